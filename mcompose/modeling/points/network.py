"""The points source: encoder, projector and language model for point clouds.

The encoder is a PointNet (shared network per point, pooled over the cloud) whose points also know how crowded
their neighbourhood is at several radii. Density makes countable what pooling alone cannot see: the sum of
1 / crowd over a cloud is its number of clusters.

Paper: PointNet, arXiv 1612.00593; PointNet++, arXiv 1706.02413 (neighbourhoods at several scales).
Differs: neighbourhoods give a density and no features of their own; the pooled vector becomes several tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration import PointsConfig, PointsEncoderConfig

__all__ = ["PointsEncoder", "PointsForConditionalGeneration", "PointsModel", "PointsPreTrainedModel"]


@dataclass
class PointsOutputWithPast(ModelOutput):
    """What the model returns: the usual language model output."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class PointsPreTrainedModel(PreTrainedModel):
    """What all classes of the points source share."""

    config_class = PointsConfig
    base_model_prefix = "model"
    input_modalities: Any = ("points", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["PointsEncoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class PointsEncoder(PointsPreTrainedModel):
    """Turns a cloud into a few tokens.

    Args:
        config: The encoder's settings.
    """

    config_class = PointsEncoderConfig
    main_input_name = "points"
    input_modalities: Any = ("points",)

    def __init__(self, config: PointsEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.num_tokens = config.num_tokens
        self.radii = list(config.radii)
        self.point_in = nn.Linear(config.num_channels + 2 * len(self.radii), width)
        self.point_hidden = nn.Linear(width, width)
        self.point_out = nn.Linear(width, width)
        self.pool_norm = nn.LayerNorm(2 * width)
        self.pool_hidden = nn.Linear(2 * width, 2 * width)
        self.pool_out = nn.Linear(2 * width, config.num_tokens * width)
        self.post_init()

    def density(self, points: torch.Tensor) -> torch.Tensor:
        """Returns how crowded it is around each point.

        Args:
            points: Coordinates, (clouds, points, channels).

        Returns:
            Log of the crowd and one over the crowd at each radius, (clouds, points, 2 * radii); a point alone
            has a crowd of 1.
        """
        place = points[..., :3].float()
        gap = place.unsqueeze(2) - place.unsqueeze(1)
        squared = (gap * gap).sum(-1)
        crowd = torch.stack([torch.exp(-squared / (2 * r * r)).sum(-1) for r in self.radii], dim=-1)
        return torch.cat([crowd.log(), crowd.reciprocal()], dim=-1).to(points.dtype)

    def forward(self, points: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encodes clouds.

        Args:
            points: Coordinates, (clouds, points, channels).
            kwargs: Ignored; callers pass the flags of other encoders.

        Returns:
            ``last_hidden_state`` of shape (clouds, num_tokens, hidden_size).
        """
        hidden = torch.cat([points, self.density(points)], dim=-1)
        hidden = nn.functional.gelu(self.point_in(hidden))
        hidden = nn.functional.gelu(self.point_hidden(hidden))
        hidden = self.point_out(hidden)
        pooled = self.pool_norm(torch.cat([hidden.mean(dim=1), hidden.amax(dim=1)], dim=-1))
        tokens = self.pool_out(nn.functional.gelu(self.pool_hidden(pooled)))
        tokens = tokens.view(points.shape[0], self.num_tokens, -1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens)


class PointsMultiModalProjector(nn.Module):
    """Two linear layers from the encoder's width to the language model's.

    Args:
        config: The source's settings.
    """

    def __init__(self, config: PointsConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.points_config.hidden_size, width, bias=config.projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=config.projector_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Projects tokens, (clouds, tokens, encoder width) to (clouds, tokens, text width)."""
        return self.linear_2(self.act(self.linear_1(features)))


class PointsModel(PointsPreTrainedModel):
    """The points source without its head.

    Args:
        config: The source's settings.
    """

    def __init__(self, config: PointsConfig) -> None:
        super().__init__(config)
        self.points_tower = PointsEncoder._from_config(config.points_config)
        self.multi_modal_projector = PointsMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the language model's embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_points_features(self, points: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Clouds as the language model sees them.

        Args:
            points: Coordinates, (clouds, points, channels).
            kwargs: Ignored; callers pass the flags of other encoders.

        Returns:
            ``last_hidden_state`` of the encoder, and ``pooler_output`` of shape (clouds, tokens, text width).
        """
        outputs = self.points_tower(points.to(self.points_tower.point_in.weight.dtype))
        outputs.pooler_output = self.multi_modal_projector(outputs.last_hidden_state)
        return outputs

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the language model over text and clouds.

        Args:
            input_ids: Token ids, (batch, length); the id ``points_token_id`` marks where cloud tokens go.
            points: Clouds in the order of their placeholders, (clouds, points, channels).
            attention_mask: 1 for real tokens, (batch, length).
            position_ids: Positions; by default counted by the language model.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: Embeddings instead of ids; clouds are then already in them.
            use_cache: Whether to return the cache.
            kwargs: Passed to the language model.

        Returns:
            The language model's output.

        Raises:
            ValueError: Both or none of ids and embeddings are given, or clouds do not fit the placeholders.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_ids is not None and inputs_embeds is not None and points is not None:
            inputs_embeds = self._insert(input_ids, inputs_embeds, points)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def _insert(self, input_ids: torch.Tensor, embeds: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_points_features(points).pooler_output
        places = (input_ids == self.config.points_token_id).unsqueeze(-1)
        if not torch.compiler.is_compiling() and places.sum() * embeds.shape[-1] != features.numel():
            found, given = int(places.sum()), features.shape[:2].numel()
            raise ValueError(f"The text has {found} placeholder tokens, the clouds give {given}.")
        return embeds.masked_scatter(places.expand_as(embeds), features.to(embeds.device, embeds.dtype))


class PointsForConditionalGeneration(PointsPreTrainedModel, GenerationMixin):
    """The points source with its head: answers questions about point clouds.

    Args:
        config: The source's settings.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PointsConfig) -> None:
        super().__init__(config)
        self.model = PointsModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the language model's embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head."""
        return self.lm_head

    def get_points_features(self, points: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See ``PointsModel.get_points_features``."""
        return self.model.get_points_features(points, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> PointsOutputWithPast:
        """Next-token scores, and the loss when labels are given; arguments as in ``PointsModel.forward``."""
        outputs = self.model(
            input_ids=input_ids,
            points=points,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return PointsOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs: Any) -> dict[str, Any]:
        """Shows the clouds in the first step only: later steps read them from the cache."""
        points = kwargs.pop("points", None)
        first = kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True)
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        inputs["points"] = points if first else None
        return inputs
