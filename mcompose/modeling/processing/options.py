"""Settings of one call of the composed processor: which are the tokenizer's, and which a medium's processor takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.processing_utils import AudioKwargs, ImagesKwargs, TextKwargs, VideosKwargs

from ..families import MODALITIES

__all__ = ["split_options"]

_TABLES = {"image": "images_kwargs", "video": "videos_kwargs", "audio": "audio_kwargs"}
_NAMES = {"image": ImagesKwargs, "video": VideosKwargs, "audio": AudioKwargs}
_ALWAYS = ("return_mm_token_type_ids", "return_token_type_ids", "return_attention_mask")
"""Settings without effect: the first and the last are always returned, the second never."""


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Sorts the settings of a call, as transformers' own processors understand them.

    Args:
        given: Flat settings, and tables of them: ``text_kwargs``, ``images_kwargs``, ``videos_kwargs``,
            ``audio_kwargs``, ``common_kwargs``.

    Returns:
        The tokenizer's settings, and for each modality those of its processor.

    Raises:
        TypeError: A setting that neither takes.
    """
    tables = {name: dict(given.get(name) or {}) for name in ("text_kwargs", "common_kwargs", *_TABLES.values())}
    text: dict[str, Any] = {}
    media: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    for name, value in {**given, **tables["common_kwargs"]}.items():
        if name in tables or name in _ALWAYS:
            continue
        takers = [modality for modality, known in _NAMES.items() if name in known.__annotations__]
        if name in TextKwargs.__annotations__:
            text[name] = value
        elif takers:
            for modality in takers:
                media[modality][name] = value
        else:
            raise TypeError(f"Neither the tokenizer nor a processor of a medium takes {name!r}.")
    for modality, table in _TABLES.items():
        media[modality] |= tables[table]
    text |= {name: value for name, value in tables["text_kwargs"].items() if name not in _ALWAYS}
    return text, media
