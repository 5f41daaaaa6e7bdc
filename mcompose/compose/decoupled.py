"""What becomes of decoupled parameters in a composition: DAMC's groups, from the sources' to the output's.

The text groups of all sources are the shared language model, and merge like any other. The group of each modality is
taken whole from the source that brings the modality. Low-rank groups stay low-rank where the recipe lets them: then
what they add to is stored once, bit for bit, and all of them must add to the same. A composition of one source is that
source: its text group, too, keeps its factors. So do several, where ``stacked.py`` finds that smaller than one tensor.
Paper: Chen et al. 2024, "Model Composition for Multimodal Large Language Models", arXiv:2402.12750, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import GROUP, LANGUAGE, ORIGIN, Slot
from mcompose.compose.extension import Addition, Draft, Extension
from mcompose.compose.groups import (
    TEXT,
    DenseGroup,
    LowRankGroup,
    RoutedLinear,
    carried_group,
    converted_group,
    dense,
    layer_linears,
)
from mcompose.compose.stacked import StackedText, stacked_text
from mcompose.errors import CompositionError
from mcompose.merge import Contribution, Dropped, Segment, TensorJob, copy_job, output_dtype
from mcompose.recipe import settings_for

if TYPE_CHECKING:
    from mcompose.checkpoint import TensorEntry
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import Recipe

__all__ = ["Decoupling", "DecouplingExtension", "carries_groups"]

Group = DenseGroup | LowRankGroup


@dataclass(frozen=True)
class Decoupling(Addition):
    """The decoupled groups of an output; without groups all tokens use the merged language model.

    Args:
        groups: Modality (or ``text``) to its fields, as ``ComposedConfig.routed_groups`` has them.
        base: ``shared`` or ``separate``, as ``ComposedConfig.routed_base``.
        notes: Sentences for the user.
    """

    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    base: str = "shared"
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.notes

    def config_fields(self, tokenizer: Any) -> dict[str, Any]:
        """``routed_groups`` and ``routed_base``."""
        return {
            "routed_groups": {name: dict(fields) for name, fields in self.groups.items()},
            "routed_base": self.base,
        }

    @property
    def checked(self) -> tuple[str, ...]:
        """The language model's tensors, once any linear has groups."""
        return ("model.language_model.",) if self.language is not None else ()

    def misfit(self, name: str, made: object, held: object) -> CompositionError:
        """Returns the error about a linear that cannot have groups."""
        return CompositionError(
            f"The layers of this language model cannot be decoupled: '{name}' is {made} among the sources' tensors, "
            f"and {held} in the network.",
            hint="Leave 'compose.decouple' out for this language model.",
        )


class DecouplingExtension(Extension):
    """DAMC's decoupled groups."""

    def needs_composed(self, recipe: Recipe) -> bool:
        """Returns whether the recipe decouples."""
        return recipe.compose.decouple != "none"

    def check_source(self, source: SourceParts) -> None:
        """Refuses an adapter on a source whose groups add to the tensors that the adapter would change."""
        if source.adapter is not None and carries_groups(source):
            raise CompositionError(
                f"Source '{source.name}' has decoupled groups, and its adapter would change what they add to.",
                hint="Fold the adapter first: `mcompose merge` of this source alone, without groups.",
            )

    def plan(self, draft: Draft) -> Decoupling:
        """Plans the groups of the output.

        Args:
            draft: What has been decided so far.

        Returns:
            The groups, with the language model's jobs as they become and, behind them, the groups' own.

        Raises:
            CompositionError: A source lacks a group, or the language model cannot have any.
        """
        recipe, sources = draft.recipe, draft.sources
        if recipe.compose.decouple == "none":
            dropped = _dropped(sources, {}, used=set())
            return Decoupling(dropped=tuple(dropped), notes=_left_out(recipe, sources))
        language = draft.language
        linears = layer_linears(language)
        _Jobs.check_layers(language)
        readers = sources.readers
        groups = {m: _group(recipe, sources.get(name), m, linears) for m, name in readers.items()}
        jobs = _Jobs(recipe, sources, linears)
        text = stacked_text(sources.sources, list(groups.values()), language, linears)
        if text is not None:
            language = jobs.with_factors(language, text)
        for modality, group in groups.items():
            jobs.add(modality, group)
        base = jobs.finish(language)
        used = {(c.source, c.entry.key) for job in jobs.made for s in job.segments for c in s.contributions}
        return Decoupling(
            dropped=tuple(_dropped(sources, groups, used=used)),
            language=(*language, *jobs.made),
            groups=jobs.fields,
            base=base,
            notes=tuple(_ungrouped(modality) for modality in sources.modalities if modality not in readers),
        )


def carries_groups(source: SourceParts) -> bool:
    """Returns whether a source is a composed checkpoint with decoupled parameters."""
    return any(slot.part.startswith(f"{GROUP}:") for slot in source.anatomy.slots.values())


def _ungrouped(modality: str) -> str:
    return f"No language model was trained on the {modality} tokens of the mixed encoders: they use the merged one."


def _left_out(recipe: Recipe, sources: SourceSet) -> tuple[str, ...]:
    """Says what a recipe without decoupling leaves out."""
    left = ", ".join(f"'{source.name}'" for source in sources.sources if carries_groups(source))
    if left:
        return (f"The decoupled groups of {left} are left out; `compose: {{decouple: donor}}` keeps them.",)
    if recipe.merge.method == "damc" and sources.towers:
        return ("Nothing is decoupled: all tokens use the merged language model. `compose.decouple` says otherwise.",)
    return ()


def _group(recipe: Recipe, source: SourceParts, modality: str, linears: Sequence[RoutedLinear]) -> Group:
    group: Group | None = carried_group(source, modality, linears)
    if group is None and recipe.compose.decouple == "donor":
        raise CompositionError(
            f"Source '{source.name}' brings '{modality}' and carries no group for it.",
            hint="Train one by `mcompose align` ('strategy: modality+text'), or write `decouple: convert`: its whole "
            "language model then becomes the group.",
        )
    group = group or converted_group(source, linears)
    return dense(group) if recipe.compose.groups == "dense" and isinstance(group, LowRankGroup) else group


class _Jobs:
    """Jobs and config fields of the groups, while they are collected.

    Args:
        recipe: The recipe.
        sources: Its opened sources.
        linears: The linears of the output.
    """

    def __init__(self, recipe: Recipe, sources: SourceSet, linears: Sequence[RoutedLinear]) -> None:
        self.recipe, self.sources, self.linears = recipe, sources, linears
        self.fields: dict[str, dict[str, Any]] = {}
        self.made: list[TensorJob] = []
        self.origins: dict[str, dict[tuple[object, int], Contribution]] = {}
        self.base_slots = sources.base.anatomy.by_name(LANGUAGE) if sources.base else {}
        self.num_layers = 1 + max((one.layer for one in linears), default=0)

    @staticmethod
    def check_layers(language: Sequence[TensorJob]) -> None:
        """Refuses layers that hold more than linears, such as fused experts."""
        for job in language:
            if job.part == LANGUAGE and job.layer is not None and len(job.shape) > 2:
                raise CompositionError(
                    f"'{job.address}' has {len(job.shape)} dimensions; only plain linear layers can be decoupled.",
                    hint="Leave 'compose.decouple' out for this language model.",
                )

    def with_factors(self, language: Sequence[TensorJob], text: StackedText) -> list[TensorJob]:
        """Returns the language model with its text factors beside it, not folded into it."""
        for index, (term, shares) in enumerate(zip(text.terms, text.shares, strict=True)):
            made = self._factor_jobs(TEXT, term, place=f".stack.{index - 1}" if index else "")
            self.made += [job if shares is None else _scaled(job, shares[one.name]) for one, job in made]
        if text.terms:
            ranks, scales = [term.rank for term in text.terms], [term.scale for term in text.terms]
            several = len(ranks) > 1
            self.fields[TEXT] = {
                "kind": "low_rank", "rank": ranks if several else ranks[0], "scale": scales if several else scales[0],
            }  # fmt: skip
        return [_unfolded(job, text.origin[job.address]) if job.address in text.origin else job for job in language]

    def add(self, modality: str, group: Group) -> None:
        """Adds one modality's group."""
        shares = [self._share(group.source, one) for one in self.linears]
        if isinstance(group, DenseGroup):
            self.fields[modality] = {"kind": "dense"}
            for one, share in zip(self.linears, shares, strict=True):
                self.made += [self._dense_job(modality, group, one, name, share) for name in one.tensors]
            return
        even = len(set(shares)) <= 1
        scale = group.scale * (shares[0] if even and shares else 1.0)
        self.fields[modality] = {"kind": "low_rank", "rank": group.rank, "scale": scale}
        by_linear = dict(zip(self.linears, shares, strict=True))
        made = self._factor_jobs(modality, group)
        self.made += [job if even else _scaled(job, by_linear[one]) for one, job in made]
        for name, entry in group.origin.items():
            self.origins.setdefault(name, {})[entry.file, entry.offset] = Contribution(group.source.name, entry)

    def finish(self, language: Sequence[TensorJob]) -> str:
        """Adds what low-rank groups add to, unless the language model itself is that; says which."""
        text = {job.address: job for job in language}
        if all(_is_copy(text[name], list(found.values())) for name, found in self.origins.items()):
            return "shared"
        for one in self.linears:
            for name in one.tensors:
                kind = name.removeprefix(f"{one.name}.")
                self.made.append(_origin_job(f"{_key(one)}.base.{kind}", one, list(self.origins[name].values())))
        return "separate"

    def _share(self, source: SourceParts, one: RoutedLinear) -> float:
        """Returns the coefficient of a source's modality groups in one layer."""
        names = self.recipe.source_names
        setting = settings_for(
            self.recipe.merge, sources=names, part=LANGUAGE, layer=one.layer, num_layers=self.num_layers,
            name=one.weight,
        )  # fmt: skip
        value = setting.parameters.get("modality_weights", 1.0)
        return float(value[names.index(source.name)] if isinstance(value, tuple) else value)

    def _dense_job(self, modality: str, group: DenseGroup, one: RoutedLinear, name: str, share: float) -> TensorJob:
        taken = group.tensors[name]
        key = f"{_key(one)}.groups.{modality}.{name.removeprefix(f'{one.name}.')}"
        dtype = output_dtype(self.recipe.merge.dtype, taken.entry.dtype)
        rows = taken.entry.shape[0] if taken.entry.shape else 1
        note = "" if taken.low_rank is None else f"factors of {group.source.name} folded ({taken.low_rank.note})"
        if share == 1.0:
            plain = "copied" if taken.entry.dtype == dtype else "cast"
            segment = Segment(0, rows, plain if taken.low_rank is None else "folded", (taken,))
        else:
            base = self._base(name, taken.entry)
            segment = Segment(0, rows, "merged", (taken,), base=base, method="damc", weights=(share,))
        part = f"{GROUP}:{modality}"
        return TensorJob(key, part, one.layer, dtype, taken.entry.shape, (segment,), note, address=name)

    def _base(self, name: str, entry: TensorEntry) -> Contribution:
        """Returns what a scaled group counts from."""
        slot: Slot | None = self.base_slots.get(name)
        found = self.sources.base.contribution(slot.key) if self.sources.base and slot else None
        if found is None or found.entry.shape != entry.shape:
            raise CompositionError(
                f"'modality_weights' scale what '{name}' changed, and the base holds no such tensor.",
                hint="The recipe's 'base' must be the language model that the sources started from.",
            )
        return found

    def _factor_jobs(
        self, group: str, found: LowRankGroup, *, place: str = ""
    ) -> Iterator[tuple[RoutedLinear, TensorJob]]:
        """Yields the factors of one low-rank group, or of one term of it, as they are."""
        dtype = next(pair[0].dtype for pair in found.factors.values() if pair is not None)
        part = f"{GROUP}:{group}"
        for one in self.linears:
            pair = found.factors[one.name]
            rows, columns = found.origin[one.weight].shape
            shapes = ((found.rank, columns), (rows, found.rank))
            for index, factor in enumerate(("lora_A", "lora_B")):
                key = f"{_key(one)}{place}.groups.{group}.{factor}.weight"
                if pair is not None:
                    yield one, copy_job(key, pair[index], part, source=found.source.name, layer=one.layer)
                    continue
                segment = Segment(0, shapes[index][0], "created")
                note = f"zeros: the factors of {found.source.name} leave this linear alone"
                yield one, TensorJob(key, part, one.layer, dtype, shapes[index], (segment,), note)


def _scaled(job: TensorJob, share: float) -> TensorJob:
    """Returns a factor B times a coefficient; other jobs as they are."""
    if ".lora_B." not in job.name or job.action != "copied":
        return job
    whole = replace(job.segments[0], action="merged", method="passthrough", parameters={"scale": share})
    return replace(job, segments=(whole,))


def _key(one: RoutedLinear) -> str:
    return f"model.language_model.{one.name}"


def _unfolded(job: TensorJob, origin: Sequence[Contribution]) -> TensorJob:
    """Returns a text tensor as what the text's factors add to; several sources must hold the same bits."""
    first = origin[0]
    part = job.part if len(origin) == 1 else ORIGIN
    copied = copy_job(job.name, first.entry, part, source=first.source, layer=job.layer)
    segment = replace(copied.segments[0], contributions=tuple(origin))
    return replace(copied, segments=(segment,), address=job.address)


def _is_copy(job: TensorJob, origins: Sequence[Contribution]) -> bool:
    """Returns whether a text tensor is the very tensor that low-rank groups add to."""
    if len(job.segments) != 1 or job.segments[0].action != "copied":
        return False
    entries = [contribution.entry for contribution in job.segments[0].contributions]
    return all(origin.entry in entries for origin in origins)


def _origin_job(key: str, one: RoutedLinear, origins: Sequence[Contribution]) -> TensorJob:
    """Returns what low-rank groups add to: the same bits in every source, which is checked while they are copied."""
    first = origins[0]
    for other in origins[1:]:
        if (other.entry.dtype, other.entry.shape) != (first.entry.dtype, first.entry.shape):
            raise CompositionError(
                f"The low-rank groups of '{first.source}' and '{other.source}' add to different tensors: "
                f"'{one.weight}' is {first.entry.dtype} in one and {other.entry.dtype} in the other.",
                hint="Write `compose: {groups: dense}`: each group then gets tensors of its own.",
            )
    job = copy_job(key, first.entry, ORIGIN, source=first.source, layer=one.layer)
    return replace(job, segments=(replace(job.segments[0], contributions=tuple(origins)),))


def _dropped(sources: SourceSet, groups: Mapping[str, Group], *, used: set[tuple[str, str]]) -> list[Dropped]:
    """Returns what the sources carry of groups and the output does not."""
    found = []
    for source, slot in _carried(sources):
        if (source.name, slot.key) in used:
            continue
        modality = slot.part.removeprefix(f"{GROUP}:")
        reason = "no group of the output adds to it"
        if slot.part != ORIGIN:
            reason = f"{modality} is not taken from here" if groups else "nothing is decoupled here"
        found.append(Dropped(source.name, slot.key, slot.part, reason))
    return found


def _carried(sources: SourceSet) -> Iterator[tuple[SourceParts, Slot]]:
    """Slots of groups and origins; text factors are part of the language model that is merged."""
    for source in sources.sources:
        for slot in source.anatomy.slots.values():
            is_group = slot.part.startswith(f"{GROUP}:") and slot.part != f"{GROUP}:{TEXT}"
            if is_group or slot.part == ORIGIN:
                yield source, slot
