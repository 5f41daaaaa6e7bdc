"""Prepares views for the tower of a source, by the source's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..families import PLACEHOLDERS
from ..processing.expansion import expand_media

__all__ = ["SourceViews"]


class SourceViews:
    """A source's native processor, called on views as on pictures.

    Args:
        processor: The native processor.
        model_type: The source's model type.
    """

    def __init__(self, processor: Any, model_type: str) -> None:
        self.processor = processor
        self.model_type = model_type

    def __call__(self, views: Sequence[Any]) -> dict[str, Any]:
        """Returns the tensors of the source's tower for some views, by native name."""
        return self._expanded(views).tensors

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings of the part that prepares images."""
        part = getattr(self.processor, "image_processor", self.processor)
        return part.to_dict() if hasattr(part, "to_dict") else {}

    def tokens(self, view: Any) -> int:
        """Returns the placeholders of one view.

        Args:
            view: A picture.

        Raises:
            ValueError: The source writes text between them, which a mix has no place for.
        """
        text = self._expanded([view]).texts[0]
        placeholder = PLACEHOLDERS["image"]
        between = text.replace(placeholder, "").strip()
        if between:
            raise ValueError(f"its processor writes {between[:40]!r} between the vectors of an image")
        return text.count(placeholder)

    def _expanded(self, views: Sequence[Any]) -> Any:
        rows = [[view] for view in views]
        return expand_media(self.processor, "image", rows, model_type=self.model_type, known=frozenset(), options={})
