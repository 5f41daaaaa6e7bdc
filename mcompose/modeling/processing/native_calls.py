"""How a processor is called: the one home of what transformers' processors do not agree on.

A processor names the argument of each modality, takes options of its tokenizer flat or in ``text_kwargs``, takes images
by text or in one list, reads sounds at some rate, and has a token of its own that marks a medium in the text. The
composed processor calls its sources' processors from here, and training and evaluation call any checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..families import FLAT_IMAGE_PROCESSORS, MODALITIES, PLACEHOLDERS, PROCESSOR_ARGUMENTS, PROCESSOR_PARTS

__all__ = [
    "call_processor",
    "processor_modalities",
    "processor_placeholder",
    "sampling_rate",
    "set_pad_token",
    "takes_flat_images",
    "takes_flat_options",
    "without_second_bos",
]

_OWN_SOURCES = {"FramesProcessor": "video", "PointsProcessor": "points"}


def call_processor(
    processor: Any,
    texts: Sequence[str],
    media: Mapping[str, Sequence[Sequence[Any]]],
    *,
    text_options: Mapping[str, Any] | None = None,
    experts: Any = None,
    **options: Any,
) -> Any:
    """Calls a processor, or a tokenizer where there are no media, and pads the texts to one length.

    Args:
        processor: A composed or native processor, or a tokenizer.
        texts: Texts with the placeholders that the processor knows.
        media: Modality -> the items of each text, in order; sounds have the processor's :func:`sampling_rate`.
        text_options: Options for the tokenizer.
        experts: Experts that see the items; used by compositions only, see ``ComposedProcessor``.
        **options: Further arguments of the processor.

    Returns:
        The processor's output, as PyTorch tensors.

    Raises:
        ValueError: Media came for a tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if media and tokenizer is processor:
        raise ValueError(f"The checkpoint takes text only, and {', '.join(media)} came.")
    set_pad_token(tokenizer)
    text_options = {"padding": True, **(text_options or {})}
    # Said flat, padding would also stop a native feature extractor from padding sounds to what its encoder needs.
    options |= text_options if takes_flat_options(processor) else {"text_kwargs": text_options}
    if _is_composed(processor):
        options |= {"experts": experts, "sampling_rate": sampling_rate(processor) if "audio" in media else None}
    for modality, rows in media.items():
        by_text = modality == "image" and not takes_flat_images(processor)
        options[PROCESSOR_ARGUMENTS[modality]] = [
            item for row in rows if row for item in ([list(row)] if by_text else row)
        ]
    return processor(text=list(texts), return_tensors="pt", **options)


def sampling_rate(processor: Any) -> int | None:
    """Returns the samples per second that a processor expects of sounds; None when it does not say.

    Args:
        processor: A processor, a feature extractor alone (all that is loaded of Voxtral's), or a tokenizer.
    """
    if _is_composed(processor):
        return sampling_rate(processor.processors.get(processor.served_by("audio")))
    parts = [*(getattr(processor, name, None) for name in PROCESSOR_PARTS["audio"]), processor]
    rates = [getattr(part, "sampling_rate", None) for part in parts]
    return next((rate for rate in rates if isinstance(rate, int)), None)


def processor_modalities(processor: Any) -> tuple[str, ...]:
    """Returns the modalities that a processor has a part for."""
    if _is_composed(processor):
        return tuple(modality for modality in MODALITIES if processor.served_by(modality))
    own = [_OWN_SOURCES[name] for name in _class_names(processor) if name in _OWN_SOURCES]
    if own:
        return tuple(own)
    return tuple(
        modality
        for modality in MODALITIES
        if any(getattr(processor, part, None) is not None for part in PROCESSOR_PARTS.get(modality, ()))
    )


def processor_placeholder(processor: Any, modality: str) -> str | None:
    """Returns the text that marks a medium for a processor; None when it names none."""
    if _is_composed(processor):
        return PLACEHOLDERS[modality]
    # Gemma 3 reads one token in the text and fills in another.
    marks = ("boi_token", "image_token") if modality == "image" else (f"{modality}_token",)
    tokens = [getattr(processor, mark, None) for mark in marks]
    return next((str(token) for token in tokens if token is not None), None)


def takes_flat_images(processor: Any) -> bool:
    """Returns whether a processor takes images in one list and not by text, one image for each text."""
    return any(name in FLAT_IMAGE_PROCESSORS for name in _class_names(processor))


def takes_flat_options(processor: Any) -> bool:
    """Returns whether options of the tokenizer are passed as they are: tokenizers, and this package's processors."""
    own = not _OWN_SOURCES.keys().isdisjoint(_class_names(processor))
    return own or _is_composed(processor) or getattr(processor, "tokenizer", None) is None


def without_second_bos(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Returns options that keep a tokenizer from writing the first token where a chat template wrote it already."""
    bos = tokenizer.bos_token
    written = bos is not None and all(text.startswith(bos) for text in texts)
    return {"add_special_tokens": False} if written else {}


def set_pad_token(tokenizer: Any) -> None:
    """Pads with the end token where a tokenizer has no token for padding."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _is_composed(processor: Any) -> bool:
    return getattr(processor, "sources", None) is not None


def _class_names(processor: Any) -> list[str]:
    # By name, since a checkpoint's own copy of this code has classes of its own.
    return [cls.__name__ for cls in type(processor).__mro__]
