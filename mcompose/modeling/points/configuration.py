"""Configuration of the points source: a language model that is shown point clouds.

No class of transformers takes point clouds, so the lab's points donor ships its own code: this file,
``network.py`` and ``processing.py``. They need torch and transformers only, and follow the
layout of the native multimodal classes (language model, tower, projector), so that a composition treats them
like any other source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig

__all__ = ["PointsConfig", "PointsEncoderConfig"]


class PointsEncoderConfig(PreTrainedConfig):
    """Settings of the point encoder.

    Args:
        num_channels: Numbers per point; the first three are x, y, z.
        hidden_size: Width of a point's features and of the output tokens.
        num_tokens: Tokens that one cloud becomes.
        radii: Radii at which the density around each point is measured, in the units of the coordinates.
        initializer_range: Standard deviation of fresh weights.
    """

    model_type = "mcompose_points_encoder"
    base_config_key = "points_config"

    def __init__(
        self,
        num_channels: int = 3,
        hidden_size: int = 64,
        num_tokens: int = 4,
        radii: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.num_channels = num_channels
        self.hidden_size = hidden_size
        self.num_tokens = num_tokens
        self.radii = list(radii)
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class PointsConfig(PreTrainedConfig):
    """Settings of a points source.

    Args:
        text_config: The language model's configuration; Llama when it names no type.
        points_config: The point encoder's configuration.
        points_token_id: Vocabulary id whose positions are filled with point features.
        projector_hidden_act: Activation between the projector's two linear layers.
        projector_bias: Whether the projector's linear layers have a bias.
        tie_word_embeddings: Whether head and embeddings share their weights.
    """

    model_type = "mcompose_points"
    sub_configs = {"text_config": AutoConfig, "points_config": PointsEncoderConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        points_config: dict[str, Any] | PointsEncoderConfig | None = None,
        points_token_id: int = 0,
        projector_hidden_act: str = "gelu",
        projector_bias: bool = True,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            settings = dict(text_config)
            text_config = CONFIG_MAPPING[settings.pop("model_type", "llama")](**settings)
        self.text_config = CONFIG_MAPPING["llama"]() if text_config is None else text_config
        if isinstance(points_config, dict):
            points_config = PointsEncoderConfig(**points_config)
        self.points_config = PointsEncoderConfig() if points_config is None else points_config
        self.points_token_id = points_token_id
        self.projector_hidden_act = projector_hidden_act
        self.projector_bias = projector_bias
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)
