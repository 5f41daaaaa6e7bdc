"""Whose tokenizer the output ships, and which rows of the vocabulary mean the same in all sources."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcompose.compose.lost_tokens import lost_tokens
from mcompose.compose.vocabulary import SharedRows, Vocabulary, read_vocabulary, shared_rows
from mcompose.errors import CompositionError
from mcompose.recipe import UNION

if TYPE_CHECKING:
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import Recipe

__all__ = ["choose_owner", "compare_vocabularies"]


def choose_owner(recipe: Recipe, sources: SourceSet, *, native: bool) -> SourceParts:
    """Returns the source whose tokenizer the output ships.

    A native output keeps the one source that sees; else the recipe says, or the base's tokenizer is the common ground.

    Args:
        recipe: The recipe.
        sources: The opened sources.
        native: Whether the output keeps the class of a source.

    Raises:
        CompositionError: A native output cannot have the tokenizer that the recipe asks for.
    """
    name = recipe.merge.tokenizer
    named = sources.get(name) if name and not _asks_union(recipe) else None
    if not native:
        return named or sources.base or sources.sources[0]
    owner = sources.get(sources.towers[0])
    if named is not None and named is not owner and not _same_tokenizer(named, owner):
        raise CompositionError(
            f"A native output keeps the tokenizer of '{owner.name}', which knows its placeholders; the recipe asks for "
            f"that of '{named.name}'.",
            hint="Take 'merge.tokenizer' out of the recipe, or set `output.format: composed`.",
        )
    return owner


def _asks_union(recipe: Recipe) -> bool:
    return recipe.merge.tokenizer == UNION and UNION not in recipe.source_names


def compare_vocabularies(
    recipe: Recipe, owner: SourceParts, sources: SourceSet, *, native: bool
) -> tuple[SharedRows, list[str]]:
    """Compares tokenizers; a source without a ``tokenizer.json`` is taken at its number of rows.

    Args:
        recipe: The recipe.
        owner: The source whose tokenizer the output ships.
        sources: The opened sources.
        native: Whether the output keeps the class of a source.

    Returns:
        The rows that mean the same in all, and warnings.

    Raises:
        CompositionError: The tokenizers clash, a chat's end of turn would be lost, or a union is asked for of
            tokenizers that differ.
    """
    rows = {source.name: _embedding_rows(source) for source in sources.everything}
    common = min(rows.values())
    others = [s for s in sources.everything if s.name != owner.name and not _same_tokenizer(s, owner)]
    models: dict[bytes, dict[int, str]] = {}
    # Read even where all files are equal: that they are whole is not said by that.
    first = read_vocabulary(owner.checkpoint.folder, source=owner.name, rows=rows[owner.name], models=models)
    if not others:
        return SharedRows(((0, common),), rows[owner.name]), []
    known: list[tuple[SourceParts, Vocabulary]] = []
    unread = [] if first else [owner.name]
    for source in others:
        vocabulary = read_vocabulary(
            source.checkpoint.folder, source=source.name, rows=rows[source.name], models=models
        )
        if vocabulary is None:
            unread.append(source.name)
        else:
            known.append((source, vocabulary))
    if _asks_union(recipe):
        _refuse_union(first, known, unread)
    warnings: list[str] = []
    if first is None:
        shared = SharedRows(((0, common),), rows[owner.name])
    else:
        shared = shared_rows(first, [vocabulary for _, vocabulary in known])
        shared = SharedRows(_clip(shared.ranges, common), shared.rows, shared.differing)
        tuned = [pair for pair in known if pair[0] is not sources.base]
        warnings = lost_tokens(first, tuned, named=recipe.merge.tokenizer is not None, native=native)
    names = ", ".join(f"'{name}'" for name in unread)
    if unread:
        text = f"No tokenizer.json in {names}: the first {common:,} vocabulary rows are taken to mean the same."
        warnings.append(text)
    return shared, warnings


def _refuse_union(
    first: Vocabulary | None, known: Sequence[tuple[SourceParts, Vocabulary]], unread: Sequence[str]
) -> None:
    """The union of equal tokenizers is any of them; another is not built."""
    if first is not None and not unread and all(vocabulary.tokens == first.tokens for _, vocabulary in known):
        return
    other = unread[0] if unread else next((s.name for s, one in known if first and one.tokens != first.tokens), "")
    raise CompositionError(
        f"A union of tokenizers is built where all are equal, and that of '{other}' "
        f"{'cannot be read' if unread else 'differs'}.",
        hint="Name one of the sources, or 'base', in `merge.tokenizer` (in a mergekit file: `tokenizer_source`).",
    )


def _clip(ranges: Sequence[tuple[int, int]], stop: int) -> tuple[tuple[int, int], ...]:
    return tuple((a, min(b, stop)) for a, b in ranges if a < stop)


def _same_tokenizer(source: SourceParts, owner: SourceParts) -> bool:
    """Equal bytes need no parsing; rows still may differ, which the caller accounts for."""
    a, b = (s.checkpoint.folder / "tokenizer.json" for s in (source, owner))
    return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


def _embedding_rows(source: SourceParts) -> int:
    shape = source.entry(source.embedding.key).shape if source.embedding else ()
    if len(shape) != 2:
        raise CompositionError(
            f"Source '{source.name}' has no table of token embeddings.",
            hint="`mcompose inspect` shows what its files hold.",
        )
    return shape[0]
