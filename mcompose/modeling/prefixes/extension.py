"""Learned vectors around media items as an extension of the composed network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..network.extension import Extension
from ..network.forward_pass import ForwardPass
from .configuration import PREFIX_SIDES, prefix_ids
from .network import prefix_parameters

__all__ = ["PrefixExtension"]


class PrefixExtension(Extension):
    """Holds the vectors, and puts them where their tokens are."""

    def build(self, model: Any, config: Any) -> None:
        """Makes the vectors that a configuration names, zero."""
        for side in PREFIX_SIDES:
            setattr(model, f"{side}_tokens", prefix_parameters(config, side))

    def own_ids(self, config: Any) -> Iterator[int]:
        """Yields the ids of the tokens that stand for vectors."""
        return (index for _, _, index in prefix_ids(config))

    def place(self, model: Any, run: ForwardPass, x_BLD: torch.Tensor) -> torch.Tensor:
        """Puts the vectors where their tokens are.

        Raises:
            ValueError: Media of a modality with such vectors came without ``input_ids``.
        """
        for modality, side, index in prefix_ids(model.config):
            if modality not in run.features:
                continue
            if run.input_ids is None:
                raise ValueError(
                    f"{modality} items have learned vectors around them, so their places cannot be told from "
                    "mm_token_type_ids alone; pass input_ids."
                )
            vectors_PD = getattr(model, f"{side}_tokens")[modality]
            here_BL = (run.input_ids == index).to(x_BLD.device)
            turn_BL = (here_BL.long().cumsum(-1) - 1).clamp(min=0) % len(vectors_PD)
            vectors_BLD = vectors_PD.to(x_BLD.device, x_BLD.dtype)[turn_BL]
            x_BLD = torch.where(here_BL[..., None], vectors_BLD, x_BLD)
        return x_BLD

    def origin(self, model: Any, run: ForwardPass, origin: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Counts the vectors around an item as tokens of its modality."""
        if run.input_ids is None:
            return origin
        whole = dict(origin)
        for modality, _, index in prefix_ids(model.config):
            if modality in whole:
                whole[modality] = whole[modality] | (run.input_ids == index)
        return whole
