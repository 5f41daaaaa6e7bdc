"""The media side of a composed model: which inputs belong to whom, and the features that towers make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..configuration.composed import ComposedConfig
from ..experts.router import ItemCounts, pooled_items, watched_encoder
from ..names import SEPARATOR
from ..network.placement import placeholder_masks
from .features import Features, accepted_names, main_input, own_inputs, tower_features

__all__ = ["MediaFeatures"]


class MediaFeatures:
    """Methods of ``ComposedModel`` that deal with towers; ``config``, ``towers`` and ``ids`` come from there."""

    config: ComposedConfig
    towers: Any
    ids: dict[str, Any]

    def get_encoder(self, modality: str | None = None) -> Any:
        """Returns the tower that serves a modality; without one, the model itself."""
        name = self.config.served_by(modality) if modality else None
        return self if name is None else self.towers[name]

    def input_names(self) -> dict[str, list[str]]:
        """Returns source -> every input name that the model takes for it."""
        return {
            name: [
                f"{name}{SEPARATOR}{key}"
                for modality in source["modalities"]
                for key in accepted_names(self.towers[name], modality)
            ]
            for name, source in self.config.sources.items()
        }

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, mm_token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns modality -> bool mask (B, L) of its placeholders."""
        return placeholder_masks(self.ids, input_ids=input_ids, mm_token_type_ids=mm_token_type_ids)

    def media_inputs(self, kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Picks each modality's inputs out of keyword arguments named ``<source>__<name>``.

        Returns:
            Modality -> native name -> value, for the modalities that are present.
        """
        found = {}
        for modality in self.ids:
            source = str(self.config.served_by(modality))
            prefix = f"{source}{SEPARATOR}"
            named = {key.removeprefix(prefix): value for key, value in kwargs.items() if key.startswith(prefix)}
            if inputs := own_inputs(self.towers[source], modality, named):
                found[modality] = inputs
        return found

    def encode_media(
        self, media: Mapping[str, Mapping[str, Any]], items: Mapping[str, ItemCounts] | None = None
    ) -> dict[str, Features]:
        """Runs every tower that has something to read.

        Args:
            media: As ``media_inputs`` gives it.
            items: Modality -> what is known of its items, for modalities whose router is to be asked.
        """
        asked = items or {}
        return {modality: self._encoded(modality, inputs, asked.get(modality)) for modality, inputs in media.items()}

    def _encoded(self, modality: str, inputs: Mapping[str, Any], items: ItemCounts | None) -> Features:
        tower = self.get_encoder(modality)
        if items is None:
            return tower_features(tower, modality, inputs)
        with watched_encoder(tower) as seen:
            made = tower_features(tower, modality, inputs)
        if not seen:
            raise ValueError(f"The tower of {modality} has no encoder of its own that a router could read.")
        made.pooled_IW = pooled_items(
            seen[0],
            config=tower.config,
            inputs=inputs,
            items=items,
            total=len(made.x_ND),
            router=self.config.routers[modality],
        )
        return made

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns image features; ``pooler_output`` is (N, D) over all images, in order."""
        return self._features("image", pixel_values, kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns video features; ``pooler_output`` is (N, D) over all videos, in order."""
        return self._features("video", pixel_values_videos, kwargs)

    def get_audio_features(self, input_features: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns audio features; ``pooler_output`` is (N, D) over all sounds, in order."""
        return self._features("audio", input_features, kwargs)

    def get_points_features(self, points: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns point features; ``pooler_output`` is (N, D) over all clouds, in order."""
        return self._features("points", points, kwargs)

    def _features(self, modality: str, value: torch.Tensor, kwargs: dict[str, Any]) -> BaseModelOutputWithPooling:
        if self.config.served_by(modality) is None:
            raise ValueError(
                f"No source of this composition serves {modality}; it has {', '.join(self.ids) or 'none'}."
            )
        tower = self.get_encoder(modality)
        kwargs.pop("return_dict", None)
        made = tower_features(tower, modality, {main_input(tower, modality): value, **kwargs})
        return BaseModelOutputWithPooling(pooler_output=made.x_ND)
