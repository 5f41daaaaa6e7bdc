"""What each image, sound, video or cloud becomes in the text, as its source's own processor says.

A source's processor is run on its own placeholders, one text row at a time as in the batch, and answers with the media
tensors and with the text that each placeholder becomes: so many media tokens, and for some families marks around or
between them (row and column marks, "Frame1: ", a time). The media tokens turn into the composition's placeholder of
that modality. A mark that is a special token of the source is kept when the composition's tokenizer has it, and
dropped with a warning when not; ordinary text between media tokens is always kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from ..families import PLACEHOLDERS, Chunks, family_of
from .native_calls import call_processor, processor_placeholder, takes_flat_images, takes_flat_options

__all__ = ["Expansion", "expand_media"]

logger = logging.get_logger(__name__)

# Outputs of a source's processor that belong to its text, not to its media.
_TEXT_OUTPUTS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets"}
)


@dataclass(frozen=True)
class Expansion:
    """The media of one modality, ready for the model and for the text.

    Args:
        texts: For each item, what its placeholder becomes, in the composition's own placeholders.
        tensors: Processor outputs by the name that follows ``<source>__``.
        fences: Tokens that the family's chat template puts before and after an item, empty when there are none.
    """

    texts: list[str]
    tensors: dict[str, Any]
    fences: tuple[str, str] = ("", "")

    def fill(self, row: str, placeholder: str, items: Iterator[tuple[str, str]]) -> str:
        """Returns a text row with its placeholders replaced by the next items, fenced where they are not yet.

        Args:
            row: The row.
            placeholder: Placeholder of the modality.
            items: What an item becomes, and what stands behind it and its fences.
        """
        start, end = self.fences
        pieces = row.split(placeholder)
        filled = [pieces[0]]
        for piece in pieces[1:]:
            before = "" if filled[-1].endswith(start) else start
            item, behind = next(items)
            filled += [before + item + end + behind, piece.removeprefix(end)]
        return "".join(filled)


def expand_media(
    processor: Any,
    modality: str,
    rows: Sequence[Sequence[Any]],
    *,
    model_type: str,
    known: frozenset[str],
    options: Mapping[str, Any],
) -> Expansion:
    """Runs a source's processor on the items of one modality.

    Args:
        processor: The source's native processor.
        modality: "image", "video", "audio" or "points".
        rows: The items of each text row that has any.
        model_type: The source's model type.
        known: Special tokens of the composition's tokenizer.
        options: Passed on to the native processor (``sampling_rate``).

    Returns:
        Texts per item in order over all rows, and the tensors.
    """
    family = family_of(model_type)
    if hasattr(processor, "expand"):  # this package's own, which knows no text
        texts, tensors = processor.expand(modality, [item for row in rows for item in row])
        prefix = f"{modality}_" if modality in family.image_path else ""
        return Expansion(texts, {prefix + name: value for name, value in tensors.items()})
    if family.chunks is not None:
        return _chunked(processor, [item for row in rows for item in row], family.chunks, options)
    if takes_flat_images(processor):
        rows = [[item] for row in rows for item in row]
    outputs = _expanded_by(processor, modality, rows, options)
    offsets = outputs.get("text_replacement_offsets")
    if offsets is not None and any(offsets):
        replaced = [entry["replacement"] for row in offsets for entry in row]
    else:
        # No record of what was replaced: one row per item, so that a row's text is its item's.
        rows = [[item] for row in rows for item in row]
        outputs = _expanded_by(processor, modality, rows, options)
        replaced = _decoded(processor.tokenizer, outputs)
    media = frozenset([family.media_token]) if family.media_token else _media_tokens(processor)
    texts = [_translated(processor.tokenizer, text, media, PLACEHOLDERS[modality], known) for text in replaced]
    fences = family.around.get(modality, ("", ""))
    prefix = f"{modality}_" if modality in family.image_path else ""
    tensors = {prefix + name: value for name, value in outputs.items() if name not in _TEXT_OUTPUTS}
    return Expansion(texts, tensors, fences if known.issuperset(fences) else ("", ""))


def _expanded_by(
    processor: Any, modality: str, rows: Sequence[Sequence[Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    token = processor_placeholder(processor, modality)
    if token is None:
        raise ValueError(f"{type(processor).__name__} names no {modality}_token, so it cannot serve {modality}.")
    recorded = {} if takes_flat_options(processor) else {"return_text_replacement_offsets": True}
    made = call_processor(
        processor,
        [token * len(row) for row in rows],
        {modality: rows},
        text_options={"add_special_tokens": False},
        **recorded,
        **options,
    )
    return dict(made)


def _media_tokens(processor: Any) -> frozenset[str]:
    tokens = {str(getattr(processor, f"{modality}_token", None)) for modality in PLACEHOLDERS}
    if hasattr(processor, "boi_token"):
        # Gemma 3 writes one token in the text and fills in another.
        tokens = {processor.tokenizer.image_token}
    return frozenset(tokens - {"None"})


def _decoded(tokenizer: Any, outputs: Mapping[str, Any]) -> list[str]:
    texts = []
    for ids, mask in zip(outputs["input_ids"], outputs["attention_mask"], strict=True):
        texts.append(tokenizer.decode(torch.as_tensor(ids)[torch.as_tensor(mask).bool()], skip_special_tokens=False))
    return texts


def _translated(tokenizer: Any, text: str, media: frozenset[str], placeholder: str, known: frozenset[str]) -> str:
    special = {str(token) for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens)} | media
    longest_first = sorted(special, key=lambda token: (-len(token), token))
    pieces = re.split(f"({'|'.join(re.escape(token) for token in longest_first)})", text)
    kept = []
    for piece in pieces:
        if piece in media:
            kept.append(placeholder)
        elif piece in special and piece not in known:
            logger.warning_once(f"The tokenizer has no {piece!r}, so this mark of a source is left out of the text.")
        else:
            kept.append(piece)
    return "".join(kept)


def _chunked(processor: Any, items: list[Any], chunks: Chunks, options: Mapping[str, Any]) -> Expansion:
    extractor = getattr(processor, "feature_extractor", processor)
    chunk = extractor.n_samples
    texts, features = [], []
    for item in items:
        made = extractor(item, padding=True, truncation=False, pad_to_multiple_of=chunk, return_tensors="pt", **options)
        x_FT = made["input_features"][0]
        x_CFT = x_FT.reshape(x_FT.shape[0], -1, chunks.frames).transpose(0, 1)
        features.append(x_CFT)
        tokens = x_CFT.shape[0] * chunks.frames // chunks.frames_per_token
        texts.append(PLACEHOLDERS["audio"] * tokens)
    return Expansion(texts, {"input_features": torch.cat(features)})
