"""Processor of the points source: text with ``<points>`` placeholders, and clouds of any number of points."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

__all__ = ["PointsProcessor", "sample_points"]

POINTS_TYPE = 4  # in mm_token_type_ids; transformers numbers image 1, video 2, audio 3


def sample_points(cloud: Any, *, num_points: int, num_channels: int = 3) -> np.ndarray:
    """Brings a cloud to a fixed number of points.

    Args:
        cloud: An array-like of shape (points, channels), or the path of a ``.npy`` file that holds one.
        num_points: Points wanted. A larger cloud is thinned evenly, a smaller one repeated, both in order.
        num_channels: Numbers per point.

    Returns:
        float32 array of shape (num_points, num_channels).

    Raises:
        ValueError: The cloud is empty, has another shape, or is not finite.
    """
    if isinstance(cloud, str | PathLike):
        cloud = np.load(cloud, allow_pickle=False)
    values = np.asarray(cloud, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != num_channels or not len(values):
        raise ValueError(f"A point cloud has the shape (points, {num_channels}), not {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("A point cloud holds a value that is not finite.")
    chosen = (np.arange(num_points) * len(values)) // num_points
    return values[chosen] if len(values) >= num_points else values[np.arange(num_points) % len(values)]


class PointsProcessor(ProcessorMixin):
    """Prepares text and clouds for ``PointsForConditionalGeneration``.

    Args:
        tokenizer: The language model's tokenizer; it must know the placeholder as one token.
        points_token: The placeholder.
        num_points: Points per cloud that the encoder is given.
        num_points_tokens: Tokens that one cloud becomes.
        chat_template: Optional chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        points_token: str = "<points>",  # noqa: S107
        num_points: int = 128,
        num_points_tokens: int = 4,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.points_token = points_token
        self.points_token_id = tokenizer.convert_tokens_to_ids(points_token)
        self.num_points = num_points
        self.num_points_tokens = num_points_tokens
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text: str | list[str] | None = None, points: Any = None, **kwargs: Any) -> BatchFeature:
        """Expands placeholders and stacks clouds.

        Args:
            text: One text or a batch of them.
            points: Clouds in the order of their placeholders over the whole batch: a list of arrays of shape
                (points, 3) or ``.npy`` paths, one array, or a stacked array of shape (clouds, points, 3).
            kwargs: Passed to the tokenizer, such as ``padding``; ``return_mm_token_type_ids`` adds the types.

        Returns:
            ``input_ids``, ``attention_mask``, and ``points`` of shape (clouds, num_points, 3).

        Raises:
            ValueError: The number of clouds differs from the number of placeholders.
        """
        tensors = kwargs.pop("return_tensors", None)
        with_types = kwargs.pop("return_mm_token_type_ids", False)
        clouds, replacements = self.process_points(points)
        data: dict[str, Any] = dict(clouds)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            found = sum(t.count(self.points_token) for t in texts)
            if found != len(replacements):
                raise ValueError(f"The text has {found} {self.points_token}, but {len(replacements)} clouds came.")
            expanded = [t.replace(self.points_token, self.points_token * self.num_points_tokens) for t in texts]
            data |= dict(self.tokenizer(expanded, **kwargs))
            if with_types:
                data["mm_token_type_ids"] = [
                    [POINTS_TYPE * (i == self.points_token_id) for i in ids] for ids in data["input_ids"]
                ]
        return BatchFeature(data, tensor_type=tensors)

    def process_points(self, points: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Clouds without text.

        Args:
            points: As in the call; None for no clouds.

        Returns:
            The model's inputs, and for each cloud the text that its placeholder becomes.
        """
        if points is None:
            return {}, []
        clouds = list(points) if _is_batch(points) else [points]
        stacked = np.stack([sample_points(c, num_points=self.num_points) for c in clouds])
        return {"points": torch.from_numpy(stacked)}, [self.points_token * self.num_points_tokens] * len(clouds)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs."""
        return [*self.tokenizer.model_input_names, "points"]


def _is_batch(points: Any) -> bool:
    if isinstance(points, str | PathLike):
        return False
    if isinstance(points, Sequence):
        return bool(points) and (isinstance(points[0], str | PathLike) or np.ndim(points[0]) == 2)
    return np.ndim(points) == 3
