"""``align``: one short fine-tune of a composed checkpoint, and the full checkpoint where it is asked for.

On several processes (``torchrun --nproc-per-node N -m mcompose align ...``) every process runs this; the first one
writes and reports.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.align import stages_folder
from mcompose.compose import output_folder
from mcompose.errors import CheckpointError, RequestError, nearest_name
from mcompose.ledger import Ledger
from mcompose.progress import remark
from mcompose.recipe import load_recipe

if TYPE_CHECKING:
    from mcompose.align import StageOutcome
    from mcompose.recipe import LoadedRecipe, Stage

__all__ = ["REPORTERS", "AlignOptions", "AlignReport", "align", "is_helper"]

REPORTERS = ("none", "tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class AlignOptions:
    """How to align.

    Args:
        checkpoint: What the stages stand on; None for the recipe's output.
        output: Where the result goes: the full checkpoint with ``export``, else the stage's folder. Default:
            ``<checkpoint>-stage<N>`` and ``<checkpoint>.stages/<N>``.
        resume: Go on where an interrupted run stopped.
        export: Write a full checkpoint.
        report_to: Service that also gets the losses: one of ``REPORTERS``.
        quiet: Show no progress.
    """

    checkpoint: Path | None = None
    output: Path | None = None
    resume: bool = True
    export: bool = False
    report_to: str = "none"
    quiet: bool = False


@dataclass(frozen=True)
class AlignReport:
    """What a stage came to.

    Args:
        stage: Position of the stage in the recipe, from 1.
        folder: Folder that holds its result.
        record: ``stage.json``.
        checkpoint: The full checkpoint; None when none was asked for.
        again: True when the result was there already.
        warnings: Sentences for the user.
    """

    stage: int
    folder: Path
    record: dict[str, Any]
    checkpoint: Path | None = None
    again: bool = False
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        kept = ("plan", "precision", "trained", "frozen", "losses", "data")
        return {
            "stage": self.stage,
            "output": str(self.checkpoint or self.folder),
            "folder": str(self.folder),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "already_done": self.again,
            **{key: self.record[key] for key in kept},
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Returns the report as text."""
        losses, plan = self.record["losses"], self.record["plan"]
        trained = ", ".join(f"{part} ({size['parameters']:,})" for part, size in self.record["trained"].items())
        frozen = sum(part["tensors"] for part in self.record["frozen"].values())
        done = "was there already" if self.again else "done"
        lines = [
            f"{self.folder}",
            f"  stage {self.stage} {done}: {plan['steps']} steps of {plan['batch']} samples, "
            f"loss {losses['first']:.4f} -> {losses['mean_of_last_tenth']:.4f}",
            f"  trained      {trained}",
            f"  untouched    {frozen} tensors, bit for bit",
        ]
        if self.checkpoint is not None:
            lines.append(f"  checkpoint   {self.checkpoint}")
        else:
            lines.append("  a full checkpoint: the same command with --export")
        return "\n".join(lines)


def is_helper() -> bool:
    """Returns whether this process only helps another one, and so stays silent."""
    return int(os.environ.get("RANK", "0")) != 0


def align(recipe: Path, *, stage: int, options: AlignOptions | None = None) -> AlignReport | None:
    """Runs one stage of a recipe.

    Args:
        recipe: The recipe file.
        stage: Number of the stage.
        options: How to run the stage.

    Returns:
        The report; None in a process that only helped.

    Raises:
        McomposeError: The recipe is wrong, or the run failed.
    """
    options = options or AlignOptions()
    loaded = load_recipe(recipe)
    spec = find_stage(loaded, stage)
    _check_reporter(options.report_to)
    base = options.checkpoint if options.checkpoint is not None else output_folder(loaded, None)
    parent = find_parent(loaded, stage, base)
    folder = _stage_folder(base, stage, options)
    target = (options.output or base.parent / f"{base.name}-stage{stage}") if options.export else None
    _check_places(loaded, parent, folder, target)
    _quieten()
    outcome = _run(loaded, spec, stage, parent=parent, folder=folder, options=options)
    if outcome.result is None:
        return None
    if target is not None:
        _export(loaded, folder, target, options)
    return AlignReport(stage, folder, outcome.result.record, target, outcome.again, outcome.notices)


def find_stage(loaded: LoadedRecipe, number: int) -> Stage:
    """Returns one stage of a recipe.

    Raises:
        RecipeError: The recipe has no stage of this number.
    """
    spec = loaded.recipe.align
    if spec is None:
        raise loaded.error("the recipe has no 'align' section.", hint="Write 'align: {stages: {1: {train: ...}}}'.")
    if number not in spec.stages:
        known = ", ".join(map(str, spec.stages))
        raise loaded.error(f"'align.stages' has no stage {number}.", at=("align", "stages"), hint=f"It has {known}.")
    return spec.stages[number]


def find_parent(loaded: LoadedRecipe, number: int, base: Path) -> Path:
    """Returns what a stage starts from: the result of the stage before it, or the checkpoint itself for the first.

    Args:
        loaded: The recipe.
        number: Position of the stage in the recipe, from 1.
        base: A full checkpoint, exported after some stages perhaps, or the result of a stage.

    Raises:
        CheckpointError: It does not exist.
    """
    assert loaded.recipe.align is not None
    before = loaded.recipe.align.before(number)
    if not base.is_dir():
        raise CheckpointError(
            f"The checkpoint '{base}' does not exist.", hint=f"Run 'mcompose merge {loaded.path}' first."
        )
    if before is None or (base / "stage.json").is_file() or before in _stages_inside(base):
        return base
    parent = stages_folder(base) / str(before)
    if not (parent / "stage.json").is_file():
        raise CheckpointError(
            f"Stage {number} continues stage {before}, which has no result in '{parent}'.",
            hint=f"Run 'mcompose align {loaded.path} --stage {before}' first.",
        )
    return parent


def _stages_inside(folder: Path) -> set[int]:
    """Returns the stages that an exported checkpoint already went through."""
    try:
        steps = Ledger.read(folder).steps
    except CheckpointError:
        return set()
    return {int(step.details["stage"]) for step in steps if step.step == "align"}


def _stage_folder(base: Path, stage: int, options: AlignOptions) -> Path:
    if options.output is not None and not options.export:
        return options.output
    if (base / "stage.json").is_file():  # beside the result that it continues
        return base.parent / str(stage)
    return stages_folder(base) / str(stage)


def _check_places(loaded: LoadedRecipe, parent: Path, folder: Path, target: Path | None) -> None:
    """Refuses to write into what is read."""
    for place in (folder, target):
        if place is None:
            continue
        one, other = place.expanduser().resolve(), parent.resolve()
        if one == other or one.is_relative_to(other) or other.is_relative_to(one):
            raise RequestError(
                f"The output '{place}' and '{parent}', which the stage starts from, lie inside one another.",
                hint="Name another folder with -o DIR.",
            )


def _check_reporter(name: str) -> None:
    if name not in REPORTERS:
        raise RequestError(f"'{name}' cannot be reported to.", hint=nearest_name(name, REPORTERS))
    if name != "none" and not _is_installed(name):
        raise RequestError(f"'--report-to {name}' needs the package {name}.", hint=f"pip install {name}")


def _is_installed(package: str) -> bool:
    """Returns whether a package can be imported; a folder of that name alone (wandb leaves one) does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _quieten() -> None:
    """Silences libraries, whose warnings repeat what the record holds."""
    warnings.filterwarnings("ignore", module=r"transformers\.|accelerate\.|torch\.")
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _run(
    loaded: LoadedRecipe, spec: Stage, number: int, *, parent: Path, folder: Path, options: AlignOptions
) -> StageOutcome:
    from mcompose.align import StageRequest, run_stage  # noqa: PLC0415 - torch and the trainer: seconds

    request = StageRequest(
        stage=spec,
        number=number,
        parent=parent,
        folder=folder,
        data_folder=loaded.folder,
        name=loaded.recipe.name,
        resume=options.resume,
        report_to=options.report_to,
        quiet=options.quiet,
    )
    return run_stage(request)


def _export(loaded: LoadedRecipe, folder: Path, target: Path, options: AlignOptions) -> None:
    from mcompose.align import (  # noqa: PLC0415 - see _run
        ExportRequest,
        export,
        open_lineage,
    )
    from mcompose.publish import model_card  # noqa: PLC0415 - the Hub's library, for the card only

    remark(f"writing {target}")
    export(
        open_lineage(folder),
        ExportRequest(
            folder=target,
            recipe=loaded.raw,
            recipe_file=loaded.path.name,
            name=loaded.recipe.name,
            max_shard_size=loaded.recipe.output.max_shard_size,
            resume=options.resume,
            card=lambda ledger, partial: model_card(ledger, partial, repo_id=None),
        ),
    )
