"""Configuration of a mix of image encoders: one tower over views of a picture.

Paper: Lin et al. 2023, arXiv 2311.07575 (SPHINX), as its code has it: CLIP, ConvNeXt and DINOv2 side by side in their
channels, a Q-Former before them, and the same two learned vectors around every view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ..families import VISION_MIX_TYPE

__all__ = ["VisionMixConfig", "stream_tokens", "view_tokens"]

_VIEWS = {
    "size": 224,
    "tiles": "none",
    "max_tiles": 6,
    "padding": "square",
    "align": "center",
    "overview": "first",
    "skip": True,
}


class VisionMixConfig(PreTrainedConfig):
    """Settings of a mix of image encoders.

    Args:
        text_width: Width D of the language model.
        encoders: Name -> its entry. A lone encoder has ``model_type``, ``class_name`` and ``config`` of transformers'
            own class, ``layer``, ``norm`` (path of the closing norm that is applied to what is read, or None),
            ``leading`` (vectors before the patches), ``class_token`` (whether the first of them is kept), ``grid``
            (rows and columns of the patches, None without one), ``width``, and ``tokens`` of one view. The tower of a
            source has ``source``: ``model_type`` and ``config`` of its whole model, and ``tokens``.
        streams: What the language model reads of one view, in order: ``of`` names encoders, whose channels are put
            side by side when there are several, on a square grid of ``grid`` rows; ``projector`` are the settings of
            the layer to the language model, None where a source's own has made that step.
        views: How a picture is cut; see ``views.py``.
        marks: Whether a learned vector stands before and behind every view.
        initializer_range: Standard deviation of fresh weights.
    """

    model_type = VISION_MIX_TYPE

    def __init__(
        self,
        text_width: int = 64,
        encoders: Mapping[str, Mapping[str, Any]] | None = None,
        streams: Sequence[Mapping[str, Any]] | None = None,
        views: Mapping[str, Any] | None = None,
        marks: bool = True,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.text_width = text_width
        self.encoders = {name: dict(entry) for name, entry in (encoders or {}).items()}
        self.streams = [dict(stream) for stream in streams or []]
        self.views = {**_VIEWS, **(views or {})}
        self.marks = marks
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def skips(self) -> bool:
        """Whether a learned vector stands for empty tiles."""
        return bool(self.views["skip"]) and self.views["tiles"] != "none" and self.views["padding"] != "none"


def view_tokens(config: VisionMixConfig) -> int:
    """Returns the vectors that one view becomes, learned vectors around it included."""
    return sum(stream_tokens(config, stream) for stream in config.streams) + 2 * config.marks


def stream_tokens(config: VisionMixConfig, stream: Mapping[str, Any]) -> int:
    """Returns the vectors of one stream of a view."""
    entries = [config.encoders[name] for name in stream["of"]]
    if stream.get("grid"):
        return int(stream["grid"]) ** 2 + any(entry.get("class_token") for entry in entries)
    return int(entries[0]["tokens"])
