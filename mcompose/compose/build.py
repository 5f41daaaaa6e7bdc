"""From a recipe to a checkpoint on disk: open, decide, check, write, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import Part, PartOutput, StagedOutput, discard_parts, gather, partial_folder
from mcompose.compose.blueprint import COMPOSED, NATIVE, Blueprint, draw_blueprint
from mcompose.compose.composed import write_composed
from mcompose.compose.native import write_native, write_text_model
from mcompose.compose.provenance import lock_text, make_ledger, source_digests
from mcompose.compose.sources import open_sources
from mcompose.errors import OutputError, RequestError
from mcompose.ledger import Ledger
from mcompose.merge import BaseFigures, Phases, check_same_base, execute
from mcompose.methods import METHODS
from mcompose.on_disk import CARD, LEDGER, LOCK, RECIPE, RESOLVED
from mcompose.progress import Progress
from mcompose.recipe import check_method, resolve_text

if TYPE_CHECKING:
    from mcompose.recipe import LoadedRecipe

__all__ = ["ComposeOptions", "ComposeResult", "check_output", "compose", "make_blueprint", "output_folder"]

CATALOGUE = {method.name: method for method in METHODS}
"""Native methods, for the recipe's checks and defaults."""

Card = Callable[[Ledger, Path], str]
"""Writes the model card from the ledger and the unfinished folder."""


@dataclass(frozen=True)
class ComposeOptions:
    """How to run; nothing here changes a byte of the result.

    Args:
        resume: Go on where an interrupted run stopped.
        threads: Threads; None for one per core.
        device: ``cpu`` or a torch device.
        allow_different_base: Merge language models that do not seem to share a base.
        sync: Wait until the disk has everything.
        sha256: Hash the output's weight files for the lock.
        finish: Take the weights from the parts that lie beside the output, and check them.
        progress: Progress bar of the weights.
        card: Writes ``README.md``.
    """

    resume: bool = True
    threads: int | None = None
    device: str = "cpu"
    allow_different_base: bool = False
    sync: bool = False
    sha256: bool = False
    finish: bool = False
    progress: Progress | None = None
    card: Card | None = None


@dataclass(frozen=True)
class ComposeResult:
    """What was written.

    Args:
        folder: The output.
        blueprint: Decisions about the output.
        ledger: Record of every tensor.
        resumed: Tensors that an earlier, interrupted run had written.
        warnings: Sentences for the user.
        phases: Wall seconds of each phase, in order.
        seconds: Seconds that the threads spent on weights, by stage, added up.
    """

    folder: Path
    blueprint: Blueprint
    ledger: Ledger
    resumed: int = 0
    warnings: tuple[str, ...] = field(default_factory=tuple)
    phases: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def output_folder(loaded: LoadedRecipe, output: Path | None) -> Path:
    """Returns where the output goes.

    Args:
        loaded: The recipe; its ``output.dir`` starts from the recipe's folder, like every path in it.
        output: Folder from the command line, relative to the current one.

    Raises:
        RequestError: Neither names a folder.
    """
    if output is not None:
        return output
    if loaded.recipe.output.dir is None:
        raise RequestError(f"'{loaded.path}' names no output folder.", hint="Give one with -o DIR.")
    return loaded.folder / Path(loaded.recipe.output.dir).expanduser()


def check_output(loaded: LoadedRecipe, folder: Path) -> None:
    """Refuses an output that would write into a source, or take its place.

    Args:
        loaded: The recipe.
        folder: Output folder.

    Raises:
        OutputError: The output and a source lie inside one another.
    """
    final = folder.expanduser().resolve()
    named = [(f"source '{source.name}'", source.model) for source in loaded.recipe.sources]
    named += [(f"the adapter of '{s.name}'", s.adapter) for s in loaded.recipe.sources if s.adapter is not None]
    named += [("the base", loaded.recipe.base)] if loaded.recipe.base else []
    named += [(f"expert '{name}'", expert.encoder) for name, expert in loaded.recipe.compose.experts.items()]
    mix = loaded.recipe.compose.vision_mix
    mixed = mix.encoders.items() if mix is not None else ()
    named += [(f"encoder '{name}'", encoder.encoder) for name, encoder in mixed if encoder.encoder is not None]
    for what, ref in named:
        if ref.kind != "local":
            continue
        place = ref.path(loaded.folder).resolve()
        if any(a.is_relative_to(b) for a, b in ((final, place), (place, final), (place, partial_folder(final)))):
            raise OutputError(
                f"The output folder '{folder}' and {what} ('{place}') lie inside one another.",
                hint="Name another folder with -o DIR.",
            )


def make_blueprint(loaded: LoadedRecipe, *, weights: bool) -> Blueprint:
    """Opens the sources of a recipe and decides its output, from headers alone.

    Args:
        loaded: The recipe.
        weights: Whether the weights will be read afterwards; Hub files are fetched only then.

    Returns:
        The blueprint.

    Raises:
        RequestError: Anything that makes the recipe impossible.
    """
    check_method(loaded, CATALOGUE)
    return draw_blueprint(loaded, open_sources(loaded, weights=weights), weights=weights)


def compose(loaded: LoadedRecipe, *, output: Path | None, options: ComposeOptions) -> ComposeResult:
    """Writes the composed checkpoint of a recipe.

    Args:
        loaded: The recipe.
        output: Folder to write; None for the recipe's.
        options: How to run.

    Returns:
        What was written.

    Raises:
        RequestError: The recipe cannot be followed.
        NumericsError: A source or the result is not finite.
        StorageError: The disk is full.
        InterruptedRunError: The user stopped the run; what is done is kept for the next.
    """
    folder = output_folder(loaded, output)
    check_output(loaded, folder)
    if options.device != "cpu":
        from mcompose.merge import check_device  # noqa: PLC0415 - torch, when asked for

        check_device(options.device.removeprefix("torch:"))
    phases = Phases()
    with phases("plan"):
        blueprint = make_blueprint(loaded, weights=True)
    sources = blueprint.sources
    with phases("compare bases"):
        figures = check_same_base(sources.sources, sources.base, allow_different=options.allow_different_base)
    plan = blueprint.plan
    fingerprint = _fingerprint(blueprint, options)
    with StagedOutput.open(folder, fingerprint=fingerprint, resume=options.resume, durable=options.sync) as staged:
        with phases("small files"):
            noticed = _write_files(staged, loaded, blueprint)
            blueprint = replace(blueprint, warnings=(*blueprint.warnings, *noticed))
        with phases("allocate"):
            parts = gather(staged, folder, plan.layout, fingerprint=fingerprint) if options.finish else []
            resumed = len(staged.allocate(plan.layout, recheck=options.finish))
        with phases("weights"):
            done = execute(plan, staged, threads=options.threads, device=options.device, progress=options.progress)
        ledger = make_ledger(loaded, blueprint, done.rows, details=_details(blueprint, figures))
        with phases("records"):
            _write_records(staged, loaded, blueprint, ledger, sha256=options.sha256)
            if options.card is not None:
                staged.write_file(CARD, options.card(ledger, staged.partial))
        with phases("finish"):
            final = staged.finish()
            discard_parts(parts, folder)
    notices = (staged.notice,) if staged.notice else ()
    warnings = (*loaded.notes, *blueprint.warnings, *notices)
    return ComposeResult(final, blueprint, ledger, resumed, warnings, phases.seconds, done.seconds)


def compose_part(
    loaded: LoadedRecipe, *, part: Part, output: Path | None, options: ComposeOptions
) -> tuple[Path, tuple[str, ...]]:
    """Writes one part of the weights of a recipe's output, in a folder beside it.

    Args:
        loaded: The recipe.
        part: Which part of how many.
        output: Folder of the whole output; None for the recipe's.
        options: How to run.

    Returns:
        The folder, and the names of the files that the part writes.

    Raises:
        RequestError: The recipe cannot be followed, or has fewer weight files than there are parts.
        NumericsError: A source or the result is not finite.
        StorageError: The disk is full.
        InterruptedRunError: The user stopped the run; what is done is kept for the next.
    """
    folder = output_folder(loaded, output)
    check_output(loaded, folder)
    blueprint = make_blueprint(loaded, weights=True)
    shards = part.shards(blueprint.plan.layout)
    check_same_base(blueprint.sources.sources, blueprint.sources.base, allow_different=options.allow_different_base)
    fingerprint = _fingerprint(blueprint, options)
    with StagedOutput.open(
        part.folder(folder), fingerprint=f"{fingerprint} part {part}", resume=options.resume
    ) as staged:
        sink = PartOutput(staged, shards)
        execute(blueprint.plan, sink, threads=options.threads, device=options.device, progress=options.progress)
        sink.complete(fingerprint)
    return staged.partial, tuple(shard.filename for shard in shards)


def _fingerprint(blueprint: Blueprint, options: ComposeOptions) -> str:
    """Another device rounds differently in the last bit, so its unfinished work is not resumed."""
    plain = blueprint.plan.fingerprint
    return plain if options.device == "cpu" else f"{plain} on {options.device}"


def _write_files(staged: StagedOutput, loaded: LoadedRecipe, blueprint: Blueprint) -> list[str]:
    """Writes everything but weights first, so that it fails before gigabytes are read; returns warnings."""
    dtype = loaded.recipe.merge.dtype
    noticed = []
    if blueprint.format == COMPOSED:
        noticed = write_composed(staged, blueprint, dtype=dtype)
    elif blueprint.format == NATIVE:
        write_native(staged, blueprint, dtype=dtype)
    else:
        write_text_model(staged, blueprint, dtype=dtype)
    staged.write_file(RECIPE, loaded.raw)
    return noticed


def _write_records(
    staged: StagedOutput, loaded: LoadedRecipe, blueprint: Blueprint, ledger: Ledger, *, sha256: bool
) -> None:
    digests = source_digests(blueprint)
    staged.write_file(RESOLVED, _resolved(loaded, blueprint, digests))
    staged.write_file(LEDGER, ledger.to_json())
    weights: dict[str, dict[str, Any]] = {s.filename: {"size": s.size} for s in blueprint.plan.layout.shards}
    if sha256:
        weights = {name: vars(staged.digest(name)) for name in weights}
    staged.write_file(LOCK, lock_text(staged.partial, weights, digests))


def _resolved(loaded: LoadedRecipe, blueprint: Blueprint, digests: Mapping[str, Any]) -> str:
    """Returns the recipe with commits, defaults and file hashes filled in."""
    commits: dict[str, str] = {}
    for source in blueprint.sources.everything:
        commits[source.name] = source.checkpoint.commit or ""
        if source.adapter is not None and source.adapter.commit:
            commits[f"{source.name}:adapter"] = source.adapter.commit
    for addition in blueprint.additions:
        commits |= addition.commits()
    hashes = {
        name: {file: f"sha256:{facts['sha256']}" for file, facts in entry["files"].items() if "sha256" in facts}
        for name, entry in digests.items()
    }
    return resolve_text(loaded.recipe, commits=commits, digests=hashes, catalogue=CATALOGUE)


def _details(blueprint: Blueprint, figures: Sequence[BaseFigures]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "bytes_read": blueprint.plan.bytes_to_read,
        "bytes_written": blueprint.plan.bytes_to_write,
        "distance_from_base": [row.to_dict() for row in figures],
    }
    if blueprint.vocabulary.differing:
        details["vocabulary_rows_not_merged"] = [index for index, _ in blueprint.vocabulary.differing]
    if blueprint.warnings:
        details["warnings"] = list(blueprint.warnings)
    return details
