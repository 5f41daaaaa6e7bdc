"""Soft mixtures of low-rank experts as an extension of a composed output: new ones, ones out of LoRAs, carried ones.

New experts change nothing: their second factor is zero. The experts of ``init`` are LoRA checkpoints that were trained
on the base, or on the first source; their scale goes into the second factor, and ranks are filled up with zeros.
Paper: Wu et al. 2023, arXiv:2312.00968 (Omni-SMoLA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import ADAPTER
from mcompose.checkpoint import open_adapter
from mcompose.compose.extension import Addition, Draft, Extension
from mcompose.compose.groups import RoutedLinear, layer_linears
from mcompose.compose.provenance import portable_ref
from mcompose.errors import CheckpointError, CompositionError, HubError, nearest_name
from mcompose.ledger import SourceRow
from mcompose.merge import Contribution, Segment, TensorJob, copy_job, new_job
from mcompose.on_disk import COMPOSED_TYPE
from mcompose.part_names import qualified

if TYPE_CHECKING:
    from mcompose.checkpoint import Adapter, LowRank
    from mcompose.merge import SourceParts
    from mcompose.recipe import AdapterSpec, Recipe

__all__ = ["AdapterAddition", "AdapterExtension"]

_LANGUAGE = "language"
_DECODER = "model.language_model."


@dataclass(frozen=True)
class AdapterAddition(Addition):
    """The adapters of an output.

    Args:
        entries: Set -> its entry in the network's configuration.
        linears: Set -> number of linears that it stands beside.
        opened: Set and number of a LoRA -> the LoRA that an expert begins as.
        notes: Warnings for the user.
    """

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    linears: Mapping[str, int] = field(default_factory=dict[str, int])
    opened: Mapping[tuple[str, int], Adapter] = field(default_factory=dict[tuple[str, int], Any])
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.notes

    def config_fields(self, tokenizer: Any) -> dict[str, Any]:
        """Returns ``adapters``."""
        return {"adapters": {name: dict(entry) for name, entry in self.entries.items()}} if self.entries else {}

    @property
    def checked(self) -> tuple[str, ...]:
        """Everything that an adapter may stand beside."""
        places = dict.fromkeys(entry["on"] for entry in self.entries.values())
        towers = [f"model.towers.{place.removeprefix('encoder:')}." for place in places if place != _LANGUAGE]
        return ((_DECODER,) if _LANGUAGE in places else ()) + tuple(towers)

    def misfit(self, name: str, made: object, held: object) -> CompositionError:
        """Returns the error about an adapter's tensor that does not fit."""
        return CompositionError(
            f"These adapters do not fit the network: '{name}' is {made} among the planned tensors, and {held} in it.",
            hint="Name plain linear layers in 'targets'.",
        )

    def commits(self) -> dict[str, str]:
        """Returns the commit of each LoRA."""
        return {f"adapter:{name}:{number}": lora.commit or "" for (name, number), lora in self.opened.items()}

    def source_rows(self) -> tuple[SourceRow, ...]:
        """Returns a row for each LoRA."""
        return tuple(
            SourceRow(_lora_name(name, number), portable_ref(lora.ref), "lora", (), commit=lora.commit or "")
            for (name, number), lora in self.opened.items()
        )

    def report(self) -> dict[str, Any]:
        """Returns size and place of each set."""
        if not self.entries:
            return {}
        return {
            "adapters": {
                name: {
                    "experts": entry["experts"],
                    "rank": entry["rank"],
                    "mode": entry["mode"],
                    "linears": self.linears[name],
                    "parameters": self._count(qualified(ADAPTER, name)),
                }
                for name, entry in self.entries.items()
            }
        }

    def _count(self, part: str) -> int:
        return sum(math.prod(job.shape) for job in self.jobs if job.part == part)

    def report_lines(self) -> tuple[tuple[str, str], ...]:
        """Returns one line, naming all sets."""
        if not self.entries:
            return ()
        rows = self.report()["adapters"]
        texts = [
            f"'{name}' ({row['experts']} experts of rank {row['rank']} beside {row['linears']} linears, "
            f"{row['parameters']:,} parameters)"
            for name, row in rows.items()
        ]
        return (("adapters", ", ".join(texts)),)


class AdapterExtension(Extension):
    """SMoLA's soft mixtures of low-rank experts."""

    def needs_composed(self, recipe: Recipe) -> bool:
        """Returns whether the recipe has adapters."""
        return bool(recipe.compose.adapters)

    def plan(self, draft: Draft) -> AdapterAddition:
        """Decides the adapters of a composed output.

        Args:
            draft: What has been decided so far.

        Raises:
            CompositionError: A set stands beside nothing, or a LoRA cannot be an expert.
            CheckpointError: A LoRA cannot be read.
        """
        if not draft.composed:
            return AdapterAddition()
        carried, notes = _carried(draft)
        made = [_Set.plan(name, spec, draft) for name, spec in draft.recipe.compose.adapters.items()]
        twice = [one.name for one in made if one.name in carried.entries]
        if twice:
            raise CompositionError(
                f"The source has adapters called '{twice[0]}' already.", hint="Give the new ones another name."
            )
        return AdapterAddition(
            jobs=(*carried.jobs, *(job for one in made for job in one.jobs)),
            entries={**carried.entries, **{one.name: one.entry for one in made}},
            linears={**carried.linears, **{one.name: one.linears for one in made}},
            opened={(one.name, number): lora for one in made for number, lora in enumerate(one.loras)},
            notes=notes,
        )


@dataclass(frozen=True)
class _Set:
    """One new set."""

    name: str
    entry: Mapping[str, Any]
    linears: int
    jobs: tuple[TensorJob, ...]
    loras: tuple[Adapter, ...] = ()

    @classmethod
    def plan(cls, name: str, spec: AdapterSpec, draft: Draft) -> _Set:
        if spec.on != _LANGUAGE:
            return _beside_encoder(name, spec, draft)
        shapes = {job.address: job.shape for job in draft.language}
        linears = _targets(name, spec, layer_linears(draft.language))
        loras = _open_loras(name, spec, draft)
        if loras:
            changed = [one for one in linears if any(_fold(lora, draft, one.weight) for lora in loras)]
            if not changed:
                raise CompositionError(f"No linear that the adapters '{name}' name is changed by the LoRAs of 'init'.")
            words = list(dict.fromkeys(one.name.rpartition(".")[2] for one in changed))
            linears = [one for one in linears if one.name.rpartition(".")[2] in words]
            spec = spec.model_copy(update={"targets": tuple(words)})
        folds = {one.name: [_fold(lora, draft, one.weight) for lora in loras] for one in linears}
        ranks = [fold.rank for row in folds.values() for fold in row if fold is not None]
        rank = max(ranks, default=spec.width)
        entry = _entry(spec, rank)
        jobs: list[TensorJob] = []
        for one in linears:
            outputs, inputs = shapes[one.weight]
            head = f"{_DECODER}{one.name}.adapters.{name}."
            if loras:
                jobs += _expert_jobs(name, head, folds[one.name], rank=rank, inputs=inputs, outputs=outputs)
            jobs += _fresh_jobs(name, head, entry, (outputs, inputs), seed=draft.recipe.merge.seed, factors=not loras)
        return cls(name, entry, len(linears), tuple(jobs), tuple(loras))


def _entry(spec: AdapterSpec, rank: int) -> dict[str, Any]:
    return {
        "modalities": None if spec.modalities is None else list(spec.modalities),
        "experts": spec.count,
        "rank": rank,
        "alpha": float(rank if spec.alpha is None else spec.alpha),
        "mode": spec.mode,
        "normalise": spec.normalise,
        "targets": None if spec.targets is None else list(spec.targets),
        "layers": None if spec.layers is None else list(spec.layers),
        "on": spec.on,
    }


def _targets(name: str, spec: AdapterSpec, linears: Sequence[RoutedLinear]) -> list[RoutedLinear]:
    """Returns the linears that a set names."""
    known = list(dict.fromkeys(one.name.rpartition(".")[2] for one in linears))
    for target in spec.targets or ():
        if target not in known:
            raise CompositionError(
                f"'compose.adapters.{name}.targets' names '{target}', and the linears of this language model are "
                f"{', '.join(known)}.",
                hint=nearest_name(target, known),
            )
    depth = 1 + max((one.layer for one in linears), default=-1)
    if spec.layers is not None and spec.layers[1] >= depth:
        raise CompositionError(
            f"'compose.adapters.{name}.layers' ends at {spec.layers[1]}, and the last layer is {depth - 1}.",
            hint="Layers count from 0.",
        )
    found = [one for one in linears if spec.targets is None or one.name.rpartition(".")[2] in spec.targets]
    found = [one for one in found if spec.layers is None or spec.layers[0] <= one.layer <= spec.layers[1]]
    if not found:
        raise CompositionError(f"The adapters '{name}' stand beside no linear layer of this language model.")
    return found


def _fresh_jobs(
    name: str, head: str, entry: Mapping[str, Any], sizes: tuple[int, int], *, seed: int, factors: bool = True
) -> list[TensorJob]:
    """Returns the tensors of a set beside one linear that no checkpoint has."""
    part, rows = qualified(ADAPTER, name), entry["experts"] * entry["rank"]
    outputs, inputs = sizes
    jobs = []
    if factors:
        jobs.append(new_job(f"{head}down", (rows, inputs), part, seed=seed))
        jobs.append(new_job(f"{head}up", (rows, outputs), part, seed=seed, start={"fill": 0.0}))
    spread = {"bound": math.sqrt(3 / inputs)}  # uniform, with the standard deviation of LeCun's normal
    jobs.append(new_job(f"{head}router", (entry["experts"], inputs), part, seed=seed, start=spread))
    if entry["normalise"] == "l2":
        jobs.append(new_job(f"{head}scale", (), part, seed=seed, start={"fill": 1.0}))
    return jobs


def _open_loras(name: str, spec: AdapterSpec, draft: Draft) -> list[Adapter]:
    target = draft.sources.base or draft.sources.sources[0]
    opened = []
    for number, ref in enumerate(spec.init or ()):
        try:
            lora = open_adapter(ref, relative_to=draft.loaded.folder, weights=draft.weights)
            opened.append(lora.bind(target.checkpoint.tensors))
        except (CheckpointError, HubError) as error:
            where = f"LoRA {number + 1} of 'compose.adapters.{name}.init'"
            raise type(error)(f"{where}: {error.message}", hint=error.hint) from error
    return opened


def _fold(lora: Adapter, draft: Draft, address: str) -> LowRank | None:
    """Returns what a LoRA adds to a tensor of the language model, None for nothing."""
    target = draft.sources.base or draft.sources.sources[0]
    slot = next((slot for slot in target.anatomy.slots.values() if slot.name == address), None)
    fold = lora.fold_for(slot.key) if slot is not None else None
    if fold is None:
        return None
    if fold.magnitude is not None or fold.replacement is not None or fold.addend is not None or fold.transposed:
        raise CompositionError(
            f"The LoRA '{lora.ref}' does more to '{address}' than to add a product of two factors, so it cannot be an "
            "expert.",
            hint="Merge it into a source instead ('adapter:').",
        )
    return fold


def _expert_jobs(
    name: str, head: str, folds: Sequence[LowRank | None], *, rank: int, inputs: int, outputs: int
) -> list[TensorJob]:
    """Returns the two factors of all experts beside one linear, each expert's filled up to the set's rank."""
    down: list[Segment] = []
    up: list[Segment] = []
    for number, fold in enumerate(folds):
        start, stop = number * rank, (number + 1) * rank
        filled = start + (fold.rank if fold is not None else 0)
        if fold is not None and fold.a is not None and fold.b is not None:
            source = _lora_name(name, number)
            plain = "copied" if fold.a.dtype == "F32" else "cast"
            down.append(Segment(start, filled, plain, (Contribution(source, fold.a, first_row=0),)))
            turned = {"transposed": float(fold.scale)}
            up.append(Segment(start, filled, "created", (Contribution(source, fold.b),), parameters=turned))
        if filled < stop:
            down.append(Segment(filled, stop, "created"))
            up.append(Segment(filled, stop, "created"))
    part, rows, note = qualified(ADAPTER, name), len(folds) * rank, f"{len(folds)} LoRAs, an expert each"
    return [
        TensorJob(f"{head}down", part, None, "F32", (rows, inputs), tuple(down), note=note),
        TensorJob(f"{head}up", part, None, "F32", (rows, outputs), tuple(up), note=f"{note}, transposed and scaled"),
    ]


def _lora_name(name: str, number: int) -> str:
    return f"{name}-{number}"


def _beside_encoder(name: str, spec: AdapterSpec, draft: Draft) -> _Set:
    """Returns a set beside an encoder, whose linears the network itself names."""
    import torch  # noqa: PLC0415 - seconds to import, and only needed here

    from mcompose.modeling import adapt_encoder, adapter_sets, build_tower, native_config  # noqa: PLC0415

    tower_name = spec.on.removeprefix("encoder:")
    tower = next((one for one in draft.towers if one.name == tower_name), None)
    if tower is None:
        listed = ", ".join(one.name for one in draft.towers)
        raise CompositionError(
            f"The adapters '{name}' stand beside the encoder of '{tower_name}', and the towers of the output are "
            f"{listed}.",
            hint=nearest_name(tower_name, [one.name for one in draft.towers]),
        )
    entry = _entry(spec, spec.width)
    with torch.device("meta"):
        built = build_tower(native_config(tower.model_type, tower.config), attn_implementation=None)
        try:
            adapt_encoder(built, {name: entry}, tower_name)
        except ValueError as error:
            raise CompositionError(str(error)) from error
        found = list(adapter_sets(built))
    jobs: list[TensorJob] = []
    for path, one in found:
        head, sizes = f"model.towers.{tower_name}.{path}.", (one.up.shape[1], one.down.shape[1])
        jobs += _fresh_jobs(name, head, entry, sizes, seed=draft.recipe.merge.seed)
    return _Set(name, entry, len(found), tuple(jobs))


def _carried(draft: Draft) -> tuple[AdapterAddition, tuple[str, ...]]:
    """Adapters of a composed source, kept where its language model stays as it is."""
    holders = [source for source in draft.sources.sources if _entries_of(source)]
    if not holders:
        return AdapterAddition(), ()
    if len(draft.sources.sources) > 1:
        listed = ", ".join(f"'{source.name}'" for source in holders)
        return AdapterAddition(), (
            f"The adapters of {listed} are left out: they were trained beside a language model that changes here.",
        )
    source = holders[0]
    entries = {name: entry for name, entry in _entries_of(source).items() if entry.get("on") == _LANGUAGE}
    jobs, linears = [], dict.fromkeys(entries, 0)
    for slot in source.anatomy.slots.values():
        role, _, name = slot.part.partition(":")
        if role == ADAPTER and name in entries:
            job = copy_job(f"{_DECODER}{slot.name}", source.entry(slot.key), slot.part, source=source.name)
            jobs.append(replace(job, part=slot.part))
            linears[name] += slot.name.endswith(".down")
    left = [name for name in _entries_of(source) if name not in entries]
    notes = tuple(f"The adapters '{name}' beside an encoder of '{source.name}' are left out." for name in left)
    return AdapterAddition(jobs=tuple(jobs), entries=entries, linears=linears), notes


def _entries_of(source: SourceParts) -> Mapping[str, Any]:
    if source.anatomy.model_type != COMPOSED_TYPE:
        return {}
    return source.checkpoint.config.get("adapters") or {}
