"""All that an output has because of domain experts: the experts, one router a modality, and the vectors around blocks.

A router is a linear layer without bias on what the general encoder saw of an item; row 0 is "none", the others are the
experts in the recipe's order. Where a composed source or a trained router knows some of the classes, their rows are
kept, and only the rows of others are new. Paper: Peng et al. 2024, arXiv:2412.05983.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import MASK, ROUTER, SEPARATORS, expert_of, is_expert_slot
from mcompose.checkpoint import open_checkpoint
from mcompose.compose.experts.expert import OutputExpert
from mcompose.compose.experts.open import output_experts
from mcompose.compose.extension import Addition, Draft, Extension
from mcompose.compose.foreign_errors import naming_source
from mcompose.errors import CheckpointError, CompositionError
from mcompose.merge import Contribution, Dropped, Segment, TensorJob, copy_job, new_job, start_of
from mcompose.modalities import MODALITIES
from mcompose.modeling import NONE
from mcompose.recipe import Router

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint, StagedOutput, TensorEntry
    from mcompose.compose.sources import SourceSet
    from mcompose.compose.towers import OutputTower
    from mcompose.ledger import FileRow, SourceRow
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe, Recipe

__all__ = ["ExpertExtension", "ExpertSet"]


_CHECKED = ("model.experts.", "model.routers.", "model.domain_tokens", "model.mask_token")


@dataclass(frozen=True)
class ExpertSet(Addition):
    """The expert side of a composed output.

    Args:
        experts: The experts, in the order of the routers' classes.
        routers: Modality to its router's entry in the network's config.
        mask_token: Whether a source's learned vector for hidden tokens is kept.
    """

    experts: tuple[OutputExpert, ...] = ()
    routers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    mask_token: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        references = {expert.name: expert.entry.get("reference") for expert in self.experts if expert.new}
        local = tuple(
            f"The encoder of expert '{name}' is kept as a path of this machine: the output works here only."
            for name, reference in references.items()
            if reference and not reference["commit"]
        )
        return (*local, *(expert.note for expert in self.experts if expert.note))

    def config_fields(self, tokenizer: Any) -> dict[str, Any]:
        """Experts, routers and the ids of their tokens; nothing without experts."""
        made: dict[str, Any] = {}
        if self.experts:
            from mcompose.modeling import add_expert_tokens  # noqa: PLC0415 - torch, when needed

            made["experts"] = {expert.name: dict(expert.entry) for expert in self.experts}
            made["routers"] = {modality: dict(entry) for modality, entry in self.routers.items()}
            made |= add_expert_tokens(tokenizer, [expert.name for expert in self.experts])
        return made | ({"mask_token": True} if self.mask_token else {})

    @property
    def checked(self) -> tuple[str, ...]:
        """The tensors of experts and routers."""
        return _CHECKED if self.experts else ()

    def misfit(self, name: str, made: object, held: object) -> CompositionError:
        """Returns the error about an expert's tensor that does not fit."""
        return CompositionError(
            f"The experts do not fit the network: '{name}' is {made} among their tensors, and {held} in it."
        )

    @property
    def outside(self) -> tuple[str, ...]:
        """The encoders that are kept by reference."""
        return tuple(f"model.experts.{e.name}.encoder." for e in self.experts if e.entry.get("reference"))

    def processor_fields(self) -> dict[str, Any]:
        """Returns what the processor is made with."""
        if not self.experts:
            return {}
        return {"experts": {e.name: dict(e.summary) for e in self.experts}, "routers": list(self.routers)}

    def processor_folders(self) -> dict[str, Path]:
        """Returns each expert's own processor."""
        return {expert.name: expert.processor_folder for expert in self.experts}

    def check_processors(self, folder: Path) -> None:
        """Loads the experts' processors out of the written output."""
        fields = self.processor_fields()
        if fields:
            from mcompose.modeling import ExpertMedia  # noqa: PLC0415 - torch, when needed

            with naming_source(", ".join(fields["experts"]), "processor"):
                ExpertMedia(**fields).load(folder)

    def write_files(self, staged: StagedOutput) -> None:
        """Copies the graphs of ONNX experts, and compares them with what was planned.

        Raises:
            CheckpointError: A file changed meanwhile.
        """
        for expert in self.experts:
            for file in expert.files:
                if staged.copy_file(file.path, file.name).sha256 != file.sha256:
                    raise CheckpointError(
                        f"'{file.path}' of expert '{expert.name}' is not the file that it was: its sha256 should be "
                        f"{file.sha256}.",
                        hint="It is damaged, or was changed meanwhile; fetch it again.",
                    )

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Returns the checkpoints of new experts."""
        return {expert.name: expert.new.checkpoint for expert in self.experts if expert.new}

    def source_rows(self) -> tuple[SourceRow, ...]:
        """Returns a row for each new expert; one that a source carries belongs to that source."""
        return tuple(expert.source_row() for expert in self.experts if expert.new)

    def file_rows(self) -> tuple[FileRow, ...]:
        """Returns the files of ONNX experts."""
        return tuple(row for expert in self.experts for row in expert.file_rows())

    def report(self) -> dict[str, Any]:
        """Returns what each expert is."""
        return {"experts": {expert.name: expert.report() for expert in self.experts}}

    def report_lines(self) -> tuple[tuple[str, str], ...]:
        """Returns one line, naming all experts."""
        return (("experts", ", ".join(expert.report_text() for expert in self.experts)),) if self.experts else ()


class ExpertExtension(Extension):
    """Chimera's domain experts."""

    def needs_composed(self, recipe: Recipe) -> bool:
        """Returns whether the recipe brings experts."""
        return bool(recipe.compose.experts)

    def plan(self, draft: Draft) -> ExpertSet:
        """Decides the expert side of a composed output.

        Args:
            draft: What has been decided so far; the mean of its table is what separators begin with.

        Raises:
            CompositionError: Experts or routers that do not fit.
            CheckpointError: A checkpoint cannot be read.
        """
        recipe, sources = draft.recipe, draft.sources
        own = [slot for source in sources.sources for slot in source.anatomy.slots.values() if is_expert_slot(slot)]
        present = bool(recipe.compose.experts or own)
        router = recipe.compose.router
        if router is not None and router.made and not present:
            raise CompositionError(
                "'compose.router' has nothing to choose among: neither the recipe nor a source has experts.",
                hint="Leave it out, or write 'compose.experts'.",
            )
        return _expert_set(draft) if draft.composed and present else ExpertSet()


def _expert_set(draft: Draft) -> ExpertSet:
    loaded, sources, towers, table = draft.loaded, draft.sources, draft.towers, draft.table
    width = table.entry.shape[1]
    names = [*(source.name for source in sources.sources), *(tower.name for tower in towers)]
    experts = output_experts(loaded, towers, text_width=width, names=names, weights=draft.weights)
    keeping = [source for source in sources.sources if _keeps(source, towers)]
    jobs = [job for expert in experts for job in expert.jobs]
    seed = loaded.recipe.merge.seed
    routers: dict[str, Any] = {}
    for modality in MODALITIES:
        mine = [expert.name for expert in experts if expert.modality == modality]
        if mine:
            made = _router(loaded, modality, mine, towers)
            if made is not None:
                routers[modality], job = made
                jobs.append(job)
    if experts:
        jobs.append(_separators(keeping, table, seed=seed))
    mask = _kept_vector(keeping, MASK)
    dropped = [row for expert in experts for row in expert.dropped]
    jobs += [mask] if mask else []
    dropped += _left_out(sources, jobs)
    return ExpertSet(
        jobs=tuple(jobs), dropped=tuple(dropped), experts=experts, routers=routers, mask_token=mask is not None
    )


def _keeps(source: SourceParts, towers: Sequence[OutputTower]) -> bool:
    return any(tower.source is source and tower.inner for tower in towers)


def _left_out(sources: SourceSet, jobs: Sequence[TensorJob]) -> list[Dropped]:
    """Expert tensors of the sources that no job reads."""
    copied = [segment for job in jobs for segment in job.segments if segment.action == "copied"]
    read = {(c.source, c.entry.key) for segment in copied for c in segment.contributions}
    rows = []
    for source in sources.sources:
        for slot in source.anatomy.slots.values():
            if is_expert_slot(slot) and (source.name, slot.key) not in read:
                reason = "its modality is not brought" if expert_of(slot) else "no expert here needs it"
                rows.append(Dropped(source.name, slot.key, slot.part, reason))
    return rows


def _kept_vector(keeping: Sequence[SourceParts], part: str) -> TensorJob | None:
    for source in keeping:
        for slot in source.anatomy.slots.values():
            if slot.part == part:
                return copy_job(f"model.{slot.name}", source.entry(slot.key), part, source=source.name)
    return None


def _separators(keeping: Sequence[SourceParts], table: Contribution, *, seed: int) -> TensorJob:
    """Returns the two vectors around a block: a composed source's, or the mean of a known token each."""
    kept = _kept_vector(keeping, SEPARATORS)
    if kept is not None:
        return kept
    rows, width = table.entry.shape
    return new_job("model.domain_tokens", (2, width), SEPARATORS, seed=seed, start={"rows": rows}, table=table)


@dataclass(frozen=True)
class _Known:
    """A router that exists.

    Args:
        source: Name of the source that has it.
        classes: Classes, in the order of its rows.
        table: Weight of the router.
        entry: Its entry in that checkpoint's config.
    """

    source: str
    classes: Sequence[str]
    table: TensorEntry
    entry: Mapping[str, Any]


def _router(
    loaded: LoadedRecipe, modality: str, names: Sequence[str], towers: Sequence[OutputTower]
) -> tuple[dict[str, Any], TensorJob] | None:
    """Entry and tensor of one modality's router; None where the caller chooses."""
    spec = loaded.recipe.compose.router
    tower = next(tower for tower in towers if modality in tower.modalities)
    known = _known(loaded, spec, modality, tower)
    if spec is not None and not spec.made:
        return None
    if spec is None and known is None and tower.inner and not loaded.recipe.compose.experts:
        return None  # a composed source that has experts and no router stays so
    before = [label for label in known.classes if label in names] if known else []
    entry = _entry(spec, known, modality, tower)
    entry["classes"] = [NONE, *before, *(name for name in names if name not in before)]
    return entry, _router_job(modality, entry, known, seed=loaded.recipe.merge.seed)


def _known(loaded: LoadedRecipe, spec: Router | None, modality: str, tower: OutputTower) -> _Known | None:
    """Returns the router whose rows are kept: the recipe's trained one, else the composed source's."""
    if spec is not None and spec.model is not None:
        checkpoint = open_checkpoint(spec.model, relative_to=loaded.folder)
        key = f"model.routers.{modality}.weight"
        entry = (checkpoint.config.get("routers") or {}).get(modality)
        if entry is None or key not in checkpoint.tensors:
            raise CompositionError(
                f"'{spec.model}' has no router for {modality}.", hint="It must be a composed checkpoint with one."
            )
        return _Known("router", entry["classes"], checkpoint.tensors[key], entry)
    if not tower.inner:
        return None
    entry = (tower.owner.checkpoint.config.get("routers") or {}).get(modality)
    slot = next((s for s in tower.owner.anatomy.slots.values() if s.name == f"routers.{modality}.weight"), None)
    return _Known(tower.owner.name, entry["classes"], tower.owner.entry(slot.key), entry) if entry and slot else None


def _entry(spec: Router | None, known: _Known | None, modality: str, tower: OutputTower) -> dict[str, Any]:
    from mcompose.compose.experts.probe import probe_general_encoder  # noqa: PLC0415 - torch, for recipes with experts only

    if spec is None and known is not None:
        return {key: known.entry[key] for key in ("feature", "tile", "rule", "width") if key in known.entry}
    spec = spec or Router()
    general = probe_general_encoder(tower.config, tower.model_type, modality)
    if spec.feature == "class" and not general.has_class:
        raise CompositionError(
            f"The encoder of '{tower.name}' has no class token that the router could read.",
            hint="Write 'feature: mean', or leave it out.",
        )
    before = known.entry if known else {}
    feature = spec.feature or before.get("feature") or ("class" if general.has_class else "mean")
    tile = spec.tile or before.get("tile") or general.tile
    entry = {"feature": feature, "tile": tile, "rule": spec.rule.settings, "width": general.width}
    if known and (known.entry["width"] != general.width or known.entry["feature"] != feature):
        raise CompositionError(
            f"The router of '{known.source}' reads a {known.entry['feature']} feature of width {known.entry['width']}, "
            f"and '{tower.name}' gives a {feature} feature of width {general.width}.",
            hint="A router belongs to the general encoder that it was trained on.",
        )
    return entry


def _router_job(modality: str, entry: Mapping[str, Any], known: _Known | None, *, seed: int) -> TensorJob:
    name, classes = f"model.routers.{modality}.weight", entry["classes"]
    shape, part = (len(classes), entry["width"]), f"{ROUTER}:{modality}"
    if known is None:
        return new_job(name, shape, part, seed=seed)
    if known.table.shape != (len(known.classes), entry["width"]):
        raise CompositionError(
            f"The router of '{known.source}' for {modality} is {list(known.table.shape)}, and its config says "
            f"{[len(known.classes), entry['width']]}."
        )
    if list(known.classes) == classes:
        return copy_job(name, known.table, part, source=known.source)
    segments = [_row(row, label, known, name, shape, seed=seed) for row, label in enumerate(classes)]
    kept = ", ".join(label for label in classes if label in known.classes)
    return TensorJob(name, part, None, known.table.dtype, shape, tuple(segments), note=f"kept rows: {kept}")


def _row(row: int, label: str, known: _Known, name: str, shape: tuple[int, int], *, seed: int) -> Segment:
    if label in known.classes:
        found = Contribution(known.source, known.table, first_row=list(known.classes).index(label))
        return Segment(row, row + 1, "copied", (found,))
    return Segment(row, row + 1, "created", parameters=start_of(name, shape), seed=seed)
