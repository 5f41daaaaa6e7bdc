"""Towers: the encoders and projectors that feed the language model, copied from their sources or merged.

A native source has one tower, which takes the source's name. A source that is itself a composition has several: each
that is used stands beside the others under its own name, or under the source's when it is the only one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import GROUP, ORIGIN, is_expert_slot
from mcompose.errors import CompositionError
from mcompose.merge import Dropped, TensorJob, copy_job, tower_jobs
from mcompose.on_disk import COMPOSED_TYPE, PROCESSORS
from mcompose.part_names import LANGUAGE_PARTS, TOWER_PARTS

if TYPE_CHECKING:
    from mcompose.anatomy import Slot
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import Recipe

__all__ = [
    "OutputTower",
    "composed_towers",
    "merged_towers",
    "name_inside",
    "native_towers",
    "output_towers",
    "tower_job",
    "vectors_around",
]
_WORDS = """
T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
set_extra_state set_submodule share_memory smart_apply state_dict to to_empty train training type update values xpu
zero_grad
"""
TORCH_WORDS = frozenset(_WORDS.split())
"""Attributes of ``torch.nn.ModuleDict``, which holds the towers; listed, so that a plan needs no torch."""

PREFIXES = ("prefix_tokens", "suffix_tokens")


@dataclass(frozen=True)
class OutputTower:
    """One tower of a composed output.

    Args:
        name: Its name in the output.
        source: The source that it comes from; None for one that the recipe puts together.
        inner: Its name in a source that is a composition; empty for a native source.
        modalities: What it serves in the output.
        built: Config of a tower that comes from no source, with ``model_type``.
    """

    name: str
    source: SourceParts | None
    inner: str
    modalities: tuple[str, ...]
    built: Mapping[str, Any] | None = None

    @property
    def owner(self) -> SourceParts:
        """The source of a tower that comes from one."""
        assert self.source is not None, "towers that the recipe puts together have no source"
        return self.source

    @property
    def source_name(self) -> str:
        """Name of the source, or of the tower itself where it has none."""
        return self.name if self.source is None else self.source.name

    @property
    def model_type(self) -> str:
        """Of the model that it came with."""
        if self.built is not None:
            return self.built["model_type"]
        return self.owner.anatomy.model_type if not self.inner else self._entry["model_type"]

    @property
    def config(self) -> dict[str, Any]:
        """The config of the class that it was built for; wrappers (Omni) hold it one level deeper."""
        if self.built is not None:
            return dict(self.built)
        if self.inner:
            return self._entry["config"]
        config = self.owner.checkpoint.config
        if config.get("model_type") != self.model_type and "thinker_config" in config:
            return {**config["thinker_config"], "model_type": self.model_type}
        return config

    @property
    def processor_folder(self) -> Path | None:
        """Where the files of its processor are; None where they are written."""
        if self.source is None:
            return None
        folder = self.source.checkpoint.folder
        return folder / PROCESSORS / self.inner if self.inner else folder

    @property
    def _entry(self) -> dict[str, Any]:
        return self.owner.checkpoint.config["sources"][self.inner]

    def around(self, side: str) -> dict[str, int]:
        """Modality to the number of learned vectors before ("prefix_tokens") or after its items."""
        counts = self.owner.checkpoint.config.get(side) or {} if self.inner else {}
        return {modality: counts[modality] for modality in self.modalities if modality in counts}


def output_towers(sources: SourceSet) -> tuple[OutputTower, ...]:
    """Returns the towers of a composed output, in the order of the recipe's sources.

    Args:
        sources: The opened sources.

    Raises:
        CompositionError: A tower cannot be built, or cannot have its name.
    """
    found: list[OutputTower] = []
    for name in sources.towers:
        source = sources.get(name)
        brought = [modality for modality, owner in sources.modalities.items() if owner == name]
        if source.anatomy.model_type != COMPOSED_TYPE or not source.anatomy.known:
            found.append(OutputTower(name, source, "", tuple(brought)))
            continue
        inner = _serving(source, brought)
        named = {key: name if len(inner) == 1 else key for key in inner}
        found += [OutputTower(named[key], source, key, modalities) for key, modalities in inner.items()]
    towers = tuple(_with_own_name(tower, [one.name for one in found], sources) for tower in found)
    for tower in towers:
        _check(tower)
    return towers


def _serving(source: SourceParts, brought: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Towers of a composition that are wanted, with what each serves."""
    table = source.checkpoint.config["sources"]
    served = {key: tuple(m for m in brought if m in entry["modalities"]) for key, entry in table.items()}
    return {key: modalities for key, modalities in served.items() if modalities}


def _with_own_name(tower: OutputTower, names: Sequence[str], sources: SourceSet) -> OutputTower:
    """Returns a tower of a composition under another name, where its own is taken."""
    taken = names.count(tower.name) > 1 or tower.name in {s.name for s in sources.sources} - {tower.source_name}
    if not taken or tower.name == tower.source_name:
        return tower
    return replace(tower, name=f"{tower.source_name}-{tower.name}")


def _check(tower: OutputTower) -> None:
    if tower.name in TORCH_WORDS:
        raise CompositionError(
            f"A source of a composed output cannot be called '{tower.name}': torch uses the word itself.",
            hint="Give it another name in the recipe.",
        )
    if not tower.owner.anatomy.known:
        raise CompositionError(
            f"Source '{tower.owner.name}' ({tower.owner.anatomy.model_type}) is of a type that transformers does not "
            "know, so that its encoders cannot be built.",
            hint="Compose from checkpoints of transformers' own classes, or keep this one as the only source of "
            "modalities (native output).",
        )


def composed_towers(sources: SourceSet, towers: Sequence[OutputTower]) -> tuple[list[TensorJob], list[Dropped]]:
    """Copies the towers of a composed output bit for bit.

    Args:
        sources: The opened sources.
        towers: The towers of the output.

    Returns:
        The jobs, and what no tower holds.
    """
    jobs: list[TensorJob] = []
    dropped: list[Dropped] = []
    for source in sources.sources:
        own = [tower for tower in towers if tower.source is source]
        for slot in _outside(source):
            if is_expert_slot(slot):
                continue  # see `experts.plan`
            place = _place(slot, own)
            if place is not None:
                jobs.append(tower_job(source, slot, *place))
                continue
            reason = "not part of the model" if slot.part not in TOWER_PARTS else "brings no modality here"
            dropped.append(Dropped(source.name, slot.key, slot.part, reason))
    return jobs, dropped


def _place(slot: Slot, towers: Sequence[OutputTower]) -> tuple[str, str] | None:
    """Returns the key of a slot in the output and the tower that it belongs to; None when no tower wants it."""
    if slot.part not in TOWER_PARTS:
        return None
    for tower in towers:
        inside = name_inside(slot, tower)
        if inside is not None:
            return f"model.towers.{tower.name}.{inside}", tower.name
        side, _, modality = slot.name.partition(".")
        if side in PREFIXES and modality in tower.modalities:
            return f"model.{slot.name}", tower.name
    return None


def name_inside(slot: Slot, tower: OutputTower) -> str | None:
    """Returns the name of a tower's tensor inside the tower, None for a tensor of another.

    Args:
        slot: A tensor of an encoder or a projector, of the tower's source.
        tower: The tower.
    """
    if not tower.inner:
        return slot.name
    head = f"towers.{tower.inner}."
    return slot.name.removeprefix(head) if slot.name.startswith(head) else None


def native_towers(sources: SourceSet, owner: SourceParts | None) -> tuple[list[TensorJob], list[Dropped]]:
    """Returns everything that is not language model: the owner's is copied bit for bit, all else is dropped.

    Args:
        sources: The opened sources.
        owner: Whose class the output keeps; None for a language model alone.

    Returns:
        The jobs, and what is dropped.
    """
    jobs: list[TensorJob] = []
    dropped: list[Dropped] = []
    for source in sources.sources:
        for slot in _outside(source):
            if owner is not None and source.name == owner.name:
                jobs.append(tower_job(source, slot, slot.key))
            else:
                reason = "not part of the model" if slot.part not in TOWER_PARTS else "brings no modality here"
                dropped.append(Dropped(source.name, slot.key, slot.part, reason))
    return jobs, dropped


def merged_towers(recipe: Recipe, sources: SourceSet, owner: SourceParts) -> tuple[list[TensorJob], list[Dropped]]:
    """Towers of sources of one class, merged; what is neither tower nor language model is the owner's.

    Args:
        recipe: The recipe.
        sources: The opened sources.
        owner: Whose class the output keeps.

    Returns:
        The jobs, and what is dropped.

    Raises:
        CompositionError: The towers are of two classes.
    """
    holders = [source for source in sources.sources if source.anatomy.by_name(*TOWER_PARTS)]
    for source in holders:
        if source.anatomy.model_type != owner.anatomy.model_type:
            raise CompositionError(
                f"The towers of '{owner.name}' ({owner.anatomy.model_type}) and '{source.name}' "
                f"({source.anatomy.model_type}) are of two classes and cannot be merged.",
                hint="Set `compose.towers: separate`, and say with `modalities:` which source brings what.",
            )
    keys = {slot.name: slot.key for slot in owner.anatomy.slots.values()}
    base = sources.base if sources.base and sources.base.anatomy.by_name(*TOWER_PARTS) else None
    if not holders:
        return [], []
    jobs, dropped = tower_jobs(recipe.merge, holders, base, key_of=lambda name, _: keys[name], target=owner)
    for source in sources.sources:
        for slot in _outside(source):
            if slot.part in TOWER_PARTS:
                continue
            if source is owner:
                jobs.append(tower_job(source, slot, slot.key))
            else:
                dropped.append(Dropped(source.name, slot.key, slot.part, "not part of the model"))
    return jobs, dropped


def _outside(source: SourceParts) -> list[Slot]:
    """Slots of everything but the language model and its decoupled groups."""
    inside = (*LANGUAGE_PARTS, ORIGIN)
    slots = source.anatomy.slots.values()
    return [slot for slot in slots if slot.part not in inside and not slot.part.startswith(f"{GROUP}:")]


def tower_job(source: SourceParts, slot: Slot, name: str, tower: str = "") -> TensorJob:
    """Returns a copy, or where the source's adapter reaches into its tower, the folded tensor.

    Args:
        source: The source.
        slot: The tensor.
        name: Its key in the output.
        tower: The tower that it belongs to, where that is not called like the source.
    """
    job = copy_job(name, source.entry(slot.key), slot.part, source=source.name, layer=slot.layer)
    if tower:
        job = replace(job, part=f"{slot.part}:{tower}")
    contribution = source.contribution(slot.key)
    if contribution.low_rank is None:
        return job
    segment = replace(job.segments[0], action="folded", contributions=(contribution,))
    return replace(job, segments=(segment,), note=f"adapter of {source.name} folded")


def vectors_around(towers: Sequence[OutputTower]) -> dict[str, Mapping[str, int]]:
    """``prefix_tokens`` and ``suffix_tokens`` of the output's config; empty maps where there are none."""
    return {side: {m: n for tower in towers for m, n in tower.around(side).items()} for side in PREFIXES}
