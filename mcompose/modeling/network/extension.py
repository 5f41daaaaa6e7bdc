"""Hooks of an extension: a part of the composed network beside towers over one language model.

``extensions.py`` lists all extensions. ``ComposedModel`` calls the hooks of each in that order, at fixed places of a
forward pass; a hook that an extension does not override does nothing. An extension has no state of its own: modules
belong to the model, and what is needed within one pass is kept in ``ForwardPass.own``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .forward_pass import ForwardPass, Reading

__all__ = ["Extension"]


class Extension:
    """Every hook, doing nothing. ``model`` is always the ``ComposedModel``."""

    # Building, loading, saving

    def build(self, model: Any, config: Any) -> None:
        """Gives a new model the modules that its configuration names; towers and language model are there."""

    def inner_models(self, model: Any) -> Iterable[Any]:
        """Returns native models inside, whose rules of placement and precision the whole model has to keep."""
        return ()

    def absent_keys(self, config: Any) -> list[str]:
        """Returns patterns of tensor names that a checkpoint of this model does not hold."""
        return []

    def unsaved_keys(self, model: Any) -> list[str]:
        """Returns names of tensors that are left out when the model, or the one with a head around it, is saved."""
        return []

    def save(self, model: Any, folder: Any) -> None:
        """Writes files beside the tensors of a model that is saved."""

    def load(self, model: Any, where: Any, **kwargs: Any) -> None:
        """Reads what lies outside the checkpoint's tensors.

        Args:
            model: The model, with its tensors loaded.
            where: Its checkpoint: a folder or a Hub id.
            **kwargs: What ``from_pretrained`` was given.
        """

    # A forward pass, in the order of the calls

    def begin(self, model: Any, run: ForwardPass) -> None:
        """Takes the extension's own arguments out of ``run.kwargs``, and refuses what cannot be done."""

    def encode(self, model: Any, run: ForwardPass) -> None:
        """Runs what reads media beside the towers; ``run.features`` holds what the towers made."""

    def own_ids(self, config: Any) -> Iterable[int]:
        """Returns token ids whose vectors are replaced, so that they need no row in the embedding."""
        return ()

    def place(self, model: Any, run: ForwardPass, x_BLD: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings with the extension's vectors in their places."""
        return x_BLD

    def origin(self, model: Any, run: ForwardPass, origin: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns modality -> which tokens (B, L) come from its media, with the extension's tokens counted."""
        return origin

    def edit(self, model: Any, run: ForwardPass, reading: Reading) -> Reading:
        """Returns what is read instead of what was about to be read."""
        return reading

    def language_inputs(self, model: Any, run: ForwardPass, reading: Reading) -> dict[str, Any]:
        """Returns further arguments of the language model."""
        return {}

    def check_read(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> None:
        """Refuses a language model that did not use what ``language_inputs`` gave it.

        Args:
            model: The model.
            inputs: What all extensions gave it.
            outputs: What it answered; its cache may be given what later steps need.
        """

    def outputs(self, model: Any, run: ForwardPass) -> dict[str, Any]:
        """Returns fields of ``ComposedOutput``."""
        return {}

    # Training and generation

    def read_labels(self, model: Any, labels: torch.Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns further arguments of the forward pass that follow from labels (B, L)."""
        return {}

    def edit_labels(self, labels: torch.Tensor, outputs: Any, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Returns the labels (B, L) that the loss looks at.

        Args:
            labels: With -100 where nothing is learned.
            outputs: The ``ComposedOutput``.
            kwargs: The arguments of the forward pass, ``attention_mask`` among them.
        """
        return labels

    def loss(self, model: Any, outputs: Any) -> torch.Tensor | None:
        """Returns a term that is added to the loss, or None."""
        return None

    def begin_generation(self, model: Any, kwargs: Mapping[str, Any], prompt: torch.Tensor) -> dict[str, Any]:
        """Returns further arguments of ``generate``, which travel with every step.

        Args:
            model: The ``ComposedModel``.
            kwargs: What ``generate`` was given.
            prompt: Token ids (B, L), or embeddings (B, L, D).
        """
        return {}

    def input_names(self, model: Any) -> Iterable[str]:
        """Returns the names of all arguments that ``begin`` takes."""
        return ()

    def is_input(self, config: Any, key: str) -> bool:
        """Returns whether an argument is the extension's, and used up in the first step of ``generate``."""
        return False

    def expand(self, model: Any, kwargs: dict[str, Any], input_ids: torch.Tensor | None, times: int) -> dict[str, Any]:
        """Returns the arguments of ``generate`` with every text row's vectors repeated, as its row is."""
        return kwargs
