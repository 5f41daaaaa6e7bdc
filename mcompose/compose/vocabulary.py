"""Which rows of the embedding mean the same token in every source.

Fine-tunes of one base append tokens of their own behind the base's, or rename reserved ones: id 32001 is
``<pad>`` in LLaVA 1.5 and ``<video>`` in Video-LLaVA, on the same Vicuna. Averaging such rows mixes two meanings, so
a row is merged only where all tokenizers agree; the other rows come from the one source whose tokenizer the output
ships.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcompose.errors import CheckpointError, CompositionError, first_line
from mcompose.merge import Contribution, Segment, TensorJob

__all__ = ["SharedRows", "Vocabulary", "fit_rows", "read_vocabulary", "shared_rows"]

MIN_AGREEMENT = 0.9
"""Least share of common ids on which tokenizers of one base agree: fine-tunes rename dozens, not thousands."""

MODEL_SECTION = b'\n  "model": {'
"""How the last section begins in files of the tokenizers library; inside its quotes, JSON has no line feed."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one source.

    Args:
        source: Name of the source.
        tokens: Id to token.
        rows: Rows of its embedding table.
    """

    source: str
    tokens: dict[int, str]
    rows: int


@dataclass(frozen=True)
class SharedRows:
    """Rows of the output's vocabulary tables.

    Args:
        ranges: Half-open row ranges in which all tokenizers agree; these are merged.
        rows: Rows of the output: those of the source whose tokenizer it ships.
        differing: (id, token per source) of rows that are not merged, in the order of ids; the first few.
    """

    ranges: tuple[tuple[int, int], ...]
    rows: int
    differing: tuple[tuple[int, tuple[str, ...]], ...] = ()


def read_vocabulary(
    folder: Path, *, source: str, rows: int, models: dict[bytes, dict[int, str]] | None = None
) -> Vocabulary | None:
    """Reads ``tokenizer.json``.

    Args:
        folder: Folder of the checkpoint.
        source: Name of the source.
        rows: Rows of its embedding table.
        models: Bytes of the files' last section, the model, to its tokens; what is read is added. Fine-tunes of one
            base share these megabytes to the letter and differ in the added tokens before them.

    Returns:
        The vocabulary, or None when the folder has no ``tokenizer.json``.

    Raises:
        CheckpointError: The file is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokens = _tokens(path.read_bytes(), {} if models is None else models)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(
            f"'{source}' has a tokenizer.json that cannot be read ('{path}'): {reason}.",
            hint="Fetch the file again; it is copied into the output.",
        ) from error
    return Vocabulary(source, tokens, rows)


def _tokens(raw: bytes, models: dict[bytes, dict[int, str]]) -> dict[int, str]:
    head, mark, model = raw.partition(MODEL_SECTION)
    if not mark:
        data = json.loads(raw)
        return _model_tokens(data["model"]["vocab"]) | _added_tokens(data)
    if model not in models:
        data = json.loads(b"{" + mark + model)
        models[model] = _model_tokens(data["model"]["vocab"]) | _added_tokens(data)
    return models[model] | _added_tokens(json.loads(head + mark + b"}}"))


def _model_tokens(vocabulary: Any) -> dict[int, str]:
    """Id to token, for a map (BPE, WordPiece, WordLevel) and for a list of pairs (Unigram)."""
    if isinstance(vocabulary, dict):
        return {int(index): str(token) for token, index in vocabulary.items()}
    return {index: str(token) for index, (token, _) in enumerate(vocabulary)}


def _added_tokens(data: Mapping[str, Any]) -> dict[int, str]:
    return {int(added["id"]): str(added["content"]) for added in data.get("added_tokens") or ()}


def shared_rows(owner: Vocabulary, others: Sequence[Vocabulary]) -> SharedRows:
    """Finds the rows that mean the same in all sources.

    Args:
        owner: The source whose tokenizer the output ships; its rows are the output's rows.
        others: All other sources of the merge.

    Returns:
        Row ranges on which all agree. An id that no tokenizer uses (padding of the table) counts as agreed.

    Raises:
        CompositionError: The tokenizers disagree on more than a few tokens: they are not of one base.
    """
    common = min([owner.rows, *(other.rows for other in others)])
    ranges: list[tuple[int, int]] = []
    differing: list[tuple[int, tuple[str, ...]]] = []
    start = 0
    vocabularies = [owner, *others]
    for index in _differing_ids(owner, others, common):
        differing.append((index, tuple(v.tokens.get(index) or "" for v in vocabularies)))
        if index > start:
            ranges.append((start, index))
        start = index + 1
    if common > start:
        ranges.append((start, common))
    _refuse_clash(vocabularies, differing, common)
    return SharedRows(tuple(ranges), owner.rows, tuple(differing[:1000]))


def _differing_ids(owner: Vocabulary, others: Sequence[Vocabulary], common: int) -> list[int]:
    """Ids below ``common`` that mean another token in some source than in the owner, in their order."""
    pairs = [owner.tokens.items() ^ other.tokens.items() for other in others]
    return sorted({index for differing in pairs for index, _ in differing if 0 <= index < common})


def fit_rows(job: TensorJob, shared: SharedRows, owner: Contribution) -> TensorJob:
    """Gives a vocabulary table the owner's rows: merged where all agree, the owner's own elsewhere.

    Args:
        job: The table, merged over the rows that all sources have.
        shared: Which of these mean the same.
        owner: The owner's table.

    Returns:
        The job with ``shared.rows`` rows; the note lists what was not merged.
    """
    merged = job.segments[0]
    segments: list[Segment] = []
    position = 0
    for start, stop in shared.ranges:
        segments += _owned(owner, position, start, dtype=job.dtype)
        segments.append(replace(merged, start=start, stop=stop))
        position = stop
    segments += _owned(owner, position, shared.rows, dtype=job.dtype)
    notes = [note for note in job.note.split("; ") if note and not note.startswith("rows ")]
    owned = [f"{s.start}-{s.stop - 1}" for s in segments if s.contributions == (owner,)]
    if owned and len(segments) > 1:
        more = f" and {len(owned) - 8} more ranges" if len(owned) > 8 else ""
        notes.append(f"rows {', '.join(owned[:8])}{more} from {owner.source}")
    return replace(job, shape=(shared.rows, *job.shape[1:]), segments=tuple(segments), note="; ".join(notes))


def _owned(owner: Contribution, start: int, stop: int, *, dtype: str) -> list[Segment]:
    """Returns the owner's own rows; none when the range is empty."""
    plain = "copied" if owner.entry.dtype == dtype else "cast"
    action = plain if owner.low_rank is None else "folded"
    return [Segment(start, stop, action, (owner,))] if stop > start else []


def _refuse_clash(
    vocabularies: Sequence[Vocabulary], differing: Sequence[tuple[int, tuple[str, ...]]], common: int
) -> None:
    if len(differing) <= (1 - MIN_AGREEMENT) * common:
        return
    index, tokens = differing[0]
    spelt = ", ".join(f"'{t}' in '{v.source}'" for t, v in zip(tokens, vocabularies, strict=True))
    raise CompositionError(
        f"The tokenizers clash: {len(differing):,} of {common:,} ids differ; id {index} is {spelt}.",
        hint="Sources must share one base language model; check `mcompose inspect` on each.",
    )
