"""Loads the processor of any source out of a composed checkpoint: native ones, and those of a mix of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..experts.processing import load_item_processor
from ..families import VISION_MIX_TYPE
from ..vision_mix.processing import VisionMixProcessor
from ..vision_mix.source_views import SourceViews
from .sources import PROCESSOR_FOLDER, load_native_processor

__all__ = ["load_source_processor"]


def load_source_processor(path: Any, name: str, *, model_type: str, **hub: Any) -> Any:
    """Loads the processor of one source.

    Args:
        path: The composed checkpoint: a folder or a repository id.
        name: The source's name.
        model_type: The source's model type.
        **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and their kind.

    Returns:
        The processor; for a native one see ``load_native_processor``.
    """
    if model_type != VISION_MIX_TYPE:
        return load_native_processor(path, name, model_type=model_type, **hub)
    made = VisionMixProcessor.from_pretrained(path, subfolder=f"{PROCESSOR_FOLDER}/{name}", **hub)
    made.load_natives(lambda encoder, entry: _view_processor(path, f"{name}/{encoder}", entry, hub))
    return made


def _view_processor(path: Any, name: str, entry: Mapping[str, Any], hub: Mapping[str, Any]) -> Any:
    """Loads what prepares views for one encoder: its item processor, or the whole processor of a source."""
    if "model_type" not in entry:
        return load_item_processor("image", path, subfolder=f"{PROCESSOR_FOLDER}/{name}", **hub)
    native = load_native_processor(path, name, model_type=entry["model_type"], **hub)
    return SourceViews(native, entry["model_type"])
