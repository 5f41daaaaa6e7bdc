"""Domain experts: frozen encoders of other models whose features stand beside an item's own.

Letters: I items, T vectors of one item, E width of the encoder, N vectors of all items, D width of the language model.

The encoder is the native class of transformers, or an ONNX graph, run on the native processor's tensors, always in eval
mode and without gradients; only the projector behind it learns. Which vectors of an item count is decided here once:
leading tokens that are skipped (class token, registers), and rows that the encoder's own attention mask calls padding
(Pix2Struct fills up to 2048 rows), which may be kept, as in the paper's code, hidden from the language model's
attention, or left out. Nothing is ever cut to fit. Paper: Peng et al. 2024, arXiv 2412.05983, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .encoder import NUMBERED_INPUT, FrozenEncoder, entry_width, token_rows
from .projectors import build_projector, draw_parameters

__all__ = [
    "Expert",
    "ExpertFeatures",
    "initial_values",
]

_MASKS = ("attention_mask", "pixel_attention_mask")


@dataclass
class ExpertFeatures:
    """What an expert made of its items.

    Args:
        x_ND: One vector per context token, items in order.
        counts: Vectors of each item.
        valid_N: Which vectors are no padding; None when all are to be seen.
    """

    x_ND: torch.Tensor  # noqa: N815 - shape suffix
    counts: list[int]
    valid_N: torch.Tensor | None = None  # noqa: N815 - shape suffix


class Expert(FrozenEncoder):
    """One frozen encoder and its projector.

    Args:
        name: The expert's name, for messages.
        entry: Its entry in ``ComposedConfig.experts``.
        text_width: D.
        attn_implementation: The composition's own; an encoder that lacks it keeps what it has.
    """

    def __init__(
        self, name: str, entry: Mapping[str, Any], *, text_width: int, attn_implementation: str | None
    ) -> None:
        super().__init__(name, entry, attn_implementation=attn_implementation)
        self.projector = build_projector(entry["projector"], width=self.width, text_width=text_width)
        self.freeze()

    def forward(self, inputs: Mapping[str, Any]) -> ExpertFeatures:
        """Runs the expert on items.

        Args:
            inputs: The native processor's tensors, one row per item, by native name.

        Raises:
            ValueError: The main input is missing, or the number of vectors is not what the configuration says.
        """
        x_ITE, valid_IT = self.encode(inputs)
        kind, padding = self.entry["projector"]["kind"], self.entry.get("padding", "keep")
        weight = next(self.projector.parameters())
        x_ITD = self.projector(x_ITE.to(weight.device, weight.dtype), valid_IT)
        if kind == "resampler":
            valid_IT = None
        self._check_count(x_ITD, valid_IT)
        if valid_IT is None or padding == "mask":
            valid_N = None if valid_IT is None else valid_IT.flatten()
            return ExpertFeatures(x_ITD.flatten(0, 1), [x_ITD.shape[1]] * len(x_ITD), valid_N)
        return ExpertFeatures(x_ITD[valid_IT], valid_IT.sum(-1).tolist())

    def encode(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the encoder's features (I, T, E) and, unless padding is kept, which are valid (I, T)."""
        given = self.given(inputs)
        skip = self.entry.get("skip", 0)
        x_ITE = token_rows(self.read(given), self.width)
        valid_IT = None
        if self.entry.get("padding", "keep") != "keep":
            valid_IT = self._valid(given, x_ITE.shape[1])[:, skip:]
        return x_ITE[:, skip:], valid_IT

    def _valid(self, given: Mapping[str, Any], count: int) -> torch.Tensor:
        mask = next((given[key] for key in _MASKS if key in given), None)
        if mask is None and self.main_input == NUMBERED_INPUT:
            mask = given[NUMBERED_INPUT].sum(dim=-1) != 0
        if mask is None:
            raise ValueError(f"The padding of expert {self.name!r} cannot be told: no attention mask came.")
        if mask.shape[1] % count:
            raise ValueError(f"The mask of expert {self.name!r} has {mask.shape[1]} places for {count} vectors.")
        return mask.bool().unflatten(1, (count, -1)).any(-1)

    def _check_count(self, x_ITD: torch.Tensor, valid_IT: torch.Tensor | None) -> None:
        wanted = self.entry["tokens"]
        if wanted != "attention_mask" and x_ITD.shape[1] != wanted:
            raise ValueError(
                f"The expert {self.name!r} made {x_ITD.shape[1]} vectors of an item, and its configuration says "
                f"{wanted} tokens."
            )
        if valid_IT is not None and not bool(valid_IT.any(-1).all()):
            raise ValueError(f"The expert {self.name!r} got an item that is nothing but padding.")


def initial_values(config: Any, *, seed: int) -> dict[str, torch.Tensor]:
    """Returns float32 values of all projectors and routers of a configuration, by their names in the checkpoint.

    Args:
        config: The ``ComposedConfig``.
        seed: Same seed, same values, whatever else the configuration holds.
    """
    values = {}
    for name, entry in config.experts.items():
        with torch.device("meta"):
            projector = build_projector(
                entry["projector"], width=entry_width(entry), text_width=config.text_config.hidden_size
            )
        values.update(draw_parameters(projector, seed=seed, name=f"model.experts.{name}.projector"))
    for modality, router in config.routers.items():
        with torch.device("meta"):
            linear = nn.Linear(router["width"], len(router["classes"]), bias=False)
        values.update(draw_parameters(linear, seed=seed, name=f"model.routers.{modality}"))
    return values
