"""What the output will be, decided from headers alone: its format, its keys, and what becomes of every source tensor.

Three formats. *native*: the output is the class of the one source that brings modalities (LLaVA with a better language
model stays LLaVA), under that source's own keys. *composed*: the towers of several sources over one language model,
as ``ComposedForConditionalGeneration``. *text*: the merged language model alone. ``auto`` prefers native: what loads
the source loads the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mcompose.anatomy import EMBEDDING, HEAD, LANGUAGE
from mcompose.compose.extension import Addition, Draft
from mcompose.compose.extensions import EXTENSIONS
from mcompose.compose.moved_layers import MovedLayers, move_layers
from mcompose.compose.tokenizers import choose_owner, compare_vocabularies
from mcompose.compose.towers import (
    OutputTower,
    composed_towers,
    merged_towers,
    native_towers,
    output_towers,
)
from mcompose.compose.vocabulary import SharedRows, fit_rows
from mcompose.dtypes import FLOAT_NAMES
from mcompose.errors import CompositionError
from mcompose.merge import Contribution, Dropped, MergePlan, TensorJob, build_plan, language_jobs, moved_places
from mcompose.part_names import HEAD_NAME, LANGUAGE_PARTS, TOWER_PARTS
from mcompose.recipe import drop_whole_slice

if TYPE_CHECKING:
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe, Recipe

__all__ = ["COMPOSED", "NATIVE", "TEXT", "Blueprint", "choose_format", "draw_blueprint"]

NATIVE, COMPOSED, TEXT = "native", "composed", "text"


@dataclass(frozen=True)
class Blueprint:
    """Everything about the output that headers can tell.

    Args:
        format: ``native``, ``composed`` or ``text``.
        sources: The opened sources.
        owner: The source whose tokenizer the output ships, and for native whose class, config and keys it keeps.
        vocabulary: Rows of the vocabulary tables that are merged.
        plan: Jobs that make every output tensor, and tensors that are dropped.
        towers: The towers of a composed output.
        additions: What each extension adds to the output, in the order of ``EXTENSIONS``.
        moved: Settings of the language model that follow layers to other places; slices may move them.
        warnings: Sentences for the user.
    """

    format: str
    sources: SourceSet
    owner: SourceParts
    vocabulary: SharedRows
    plan: MergePlan
    moved: MovedLayers = field(default_factory=lambda: MovedLayers({}))
    towers: tuple[OutputTower, ...] = ()
    additions: tuple[Addition, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the output's head is its embedding; one untied source unties it."""
        return self.sources.sources[0].anatomy.tied and not any(job.part == HEAD for job in self.plan.jobs)

    @property
    def dtype(self) -> str | None:
        """Dtype of the output's language model as transformers spells it; None where it has no name for it."""
        return FLOAT_NAMES.get(next(job.dtype for job in self.plan.jobs if job.part == EMBEDDING))


def choose_format(requested: str, sources: SourceSet, *, share_towers: bool = False, extended: bool = False) -> str:
    """Decides the output's format.

    Args:
        requested: ``auto``, ``native``, ``composed`` or ``text``.
        sources: The opened sources.
        share_towers: True when sources of one class merge their towers.
        extended: True when the recipe asks for an extension, which only the composed format can hold.

    Returns:
        ``native``, ``composed`` or ``text``.

    Raises:
        CompositionError: The sources cannot be written in the requested format.
    """
    towers = 1 if share_towers and sources.towers else len(sources.towers)
    mixed = [name for name in sources.modalities.values() if name not in sources.towers]
    if requested == "auto" and extended:
        requested = COMPOSED
    if requested == "auto":
        requested = (TEXT, NATIVE)[towers] if towers < 2 else COMPOSED
    if requested == NATIVE and towers != 1:
        listed = ", ".join(f"'{name}'" for name in sources.towers) or "none"
        raise CompositionError(
            f"A native output holds the encoders of exactly one source; this recipe brings {listed}.",
            hint="Set `output.format: auto`, or give all but one source `modalities: []`.",
        )
    if requested == COMPOSED and not towers and not mixed:
        raise CompositionError(
            "A composed output needs a source that brings a modality; all sources are text only.",
            hint="Set `output.format: text`.",
        )
    return requested


def draw_blueprint(loaded: LoadedRecipe, sources: SourceSet, *, weights: bool = True) -> Blueprint:
    """Decides the output from headers alone.

    Args:
        loaded: The recipe.
        sources: Its opened sources.
        weights: Whether weights will be read afterwards; experts on the Hub are fetched only then.

    Returns:
        The blueprint.

    Raises:
        CompositionError: The sources cannot be composed.
    """
    recipe = loaded.recipe
    share_towers = recipe.compose.towers == "merge"
    extended = any(extension.needs_composed(recipe) for extension in EXTENSIONS)
    output_format = choose_format(recipe.output.format, sources, share_towers=share_towers, extended=extended)
    _refuse_sources(sources)
    places = output_towers(sources) if output_format == COMPOSED else ()
    owner = choose_owner(recipe, sources, native=output_format == NATIVE)
    vocabulary, warnings = compare_vocabularies(recipe, owner, sources, native=output_format == NATIVE)
    moved = _moved(recipe, sources, owner)
    language, dropped = _language(recipe, sources, owner, output_format=output_format, vocabulary=vocabulary)
    if output_format == COMPOSED:
        towers, towers_dropped = composed_towers(sources, places)
    elif share_towers and output_format == NATIVE and not _stacks_one(recipe, sources, owner):
        towers, towers_dropped = merged_towers(recipe, sources, owner)
    else:
        towers, towers_dropped = native_towers(sources, owner if output_format == NATIVE else None)
    draft = Draft(
        loaded,
        sources,
        output_format == COMPOSED,
        places,
        _table(sources.base or owner),
        tuple(language),
        weights,
    )
    draft, additions = _extend(draft)
    jobs = [*draft.language, *towers, *(job for addition in additions for job in addition.jobs)]
    left_out = [*dropped, *towers_dropped, *(row for addition in additions for row in addition.dropped)]
    plan = build_plan(
        jobs,
        _still_dropped(left_out, additions),
        max_shard_size=recipe.output.max_shard_size,
        metadata={"format": "pt"},
    )
    anatomy_warnings = [f"{s.name}: {text}" for s in sources.everything for text in s.anatomy.warnings]
    noticed = [text for addition in additions for text in addition.warnings]
    return Blueprint(
        output_format,
        sources,
        owner,
        vocabulary,
        plan,
        moved,
        draft.towers,
        additions,
        (*anatomy_warnings, *warnings, *moved.warnings, *noticed, *plan.warnings),
    )


def _moved(recipe: Recipe, sources: SourceSet, owner: SourceParts) -> MovedLayers:
    """Finds the settings of layers that slices give other places."""
    places = moved_places(recipe.merge, owner.anatomy.num_layers)
    return move_layers(owner, {source.name: source for source in sources.everything}, places)


def _stacks_one(recipe: Recipe, sources: SourceSet, owner: SourceParts) -> bool:
    """Returns whether slices move layers of sources of which one alone has towers, which are copied.

    Raises:
        CompositionError: Several have: slices say of which layers the language model is, and nothing of towers.
    """
    if not drop_whole_slice(recipe.merge, num_layers=owner.anatomy.num_layers).slices:
        return False
    holders = [source.name for source in sources.sources if source.anatomy.by_name(*TOWER_PARTS)]
    if len(holders) > 1:
        listed = " and ".join(f"'{name}'" for name in holders)
        raise CompositionError(
            f"'slices' say nothing of the encoders, and {listed} have their own; mergekit refuses this, too.",
            hint=f"Write it as a recipe of mcompose, with `modalities: []` for all but one, such as '{owner.name}', "
            "whose encoders the output then has.",
        )
    return True


def _extend(draft: Draft) -> tuple[Draft, tuple[Addition, ...]]:
    """Asks every extension in turn; each sees the language model as those before it have left it."""
    additions = []
    for extension in EXTENSIONS:
        addition = extension.plan(draft)
        additions.append(addition)
        if addition.language is not None:
            draft = replace(draft, language=addition.language)
        draft = replace(draft, towers=(*addition.towers, *draft.towers))
    return draft, tuple(additions)


def _still_dropped(rows: Sequence[Dropped], additions: Sequence[Addition]) -> list[Dropped]:
    """Leaves out what an extension reads after all: the tower of a source as part of a mix."""
    jobs = [job for addition in additions for job in addition.jobs]
    read = {(c.source, c.entry.key) for job in jobs for segment in job.segments for c in segment.contributions}
    return [row for row in rows if (row.source, row.key) not in read]


def _table(source: SourceParts) -> Contribution:
    slot = source.embedding
    assert slot is not None, "its rows were counted"
    return Contribution(source.name, source.entry(slot.key))


def _refuse_sources(sources: SourceSet) -> None:
    for source in sources.everything:
        if source.anatomy.refusal:
            raise CompositionError(
                f"Source '{source.name}' ({source.anatomy.model_type}) cannot be composed: {source.anatomy.refusal}"
            )
        if source.checkpoint.quantised:
            raise CompositionError(
                f"Source '{source.name}' is quantised ({source.checkpoint.quantised}) and cannot be merged.",
                hint="Use the checkpoint that it was quantised from.",
            )
        for extension in EXTENSIONS:
            extension.check_source(source)
        _refuse_missing_layers(source)


def _refuse_missing_layers(source: SourceParts) -> None:
    """A config that promises more layers than the files hold; files may hold more (layers that predict ahead)."""
    held = {slot.layer for slot in source.anatomy.slots.values() if slot.part == LANGUAGE and slot.layer is not None}
    if len(held) < source.anatomy.num_layers:
        raise CompositionError(
            f"The config of '{source.name}' says {source.anatomy.num_layers} layers, and its files hold {len(held)}.",
            hint="Is the checkpoint complete?",
        )


def _language(
    recipe: Recipe,
    sources: SourceSet,
    owner: SourceParts,
    *,
    output_format: str,
    vocabulary: SharedRows,
) -> tuple[list[TensorJob], list[Dropped]]:
    embedding = owner.embedding
    assert embedding is not None, "its rows were counted"
    if output_format == NATIVE or (output_format == TEXT and not owner.anatomy.modalities):
        keys = {slot.name: slot.key for slot in owner.anatomy.slots.values() if slot.part in LANGUAGE_PARTS}
        prefix, head = embedding.key.removesuffix(embedding.name), owner.anatomy.head_key
    else:
        keys, head = {}, HEAD_NAME
        prefix = "model.language_model." if output_format == COMPOSED else "model."

    def key_of(name: str, part: str) -> str:
        """Returns the owner's spelling; layers that slices add are spelt like its others."""
        return keys.get(name, head if name == HEAD_NAME else name if part == HEAD else prefix + name)

    jobs, dropped = language_jobs(recipe.merge, sources.sources, sources.base, key_of=key_of, target=owner)
    tables = {embedding.name: embedding, **owner.anatomy.by_name(HEAD)}

    def fit(job: TensorJob) -> TensorJob:
        if job.part != HEAD and job.address != embedding.name:
            return job
        table = tables.get(job.address, embedding)  # a tied owner's head is its embedding
        rows = owner.entry(table.key).shape[0]
        if rows < vocabulary.rows:
            raise CompositionError(
                f"'{table.key}' of '{owner.name}' has {rows:,} rows, and its embedding {vocabulary.rows:,}.",
                hint="Head and embedding must have one row a token; resize the source first.",
            )
        return fit_rows(job, vocabulary, owner.contribution(table.key))

    return [fit(job) for job in jobs], dropped
