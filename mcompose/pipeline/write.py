"""``merge`` and ``push``: the steps that write."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcompose.checkpoint import Part
from mcompose.compose import ComposeOptions, compose, compose_part
from mcompose.ledger import Ledger
from mcompose.pipeline.reports import MergeReport
from mcompose.progress import ProgressBar
from mcompose.recipe import load_recipe

if TYPE_CHECKING:
    from mcompose.publish import PushReport

__all__ = ["MergeOptions", "merge", "merge_part", "push"]


@dataclass(frozen=True)
class MergeOptions(ComposeOptions):
    """How to merge; nothing here changes a byte of the result. Progress and card are the command line's own.

    Args:
        quiet: No progress bar.
    """

    quiet: bool = False


def merge(recipe: Path, *, output: Path | None = None, options: MergeOptions | None = None) -> MergeReport:
    """Writes the composed checkpoint of a recipe, with its card.

    Args:
        recipe: The recipe file.
        output: Folder to write; None for the recipe's.
        options: How to run.

    Returns:
        The report.

    Raises:
        McomposeError: The recipe is wrong, or the run failed.
    """
    options = options or MergeOptions()
    started = time.monotonic()
    loaded = load_recipe(recipe)
    result = compose(
        loaded,
        output=output,
        options=replace(options, progress=ProgressBar("merge", quiet=options.quiet), card=_card),
    )
    return MergeReport(result, time.monotonic() - started)


def merge_part(recipe: Path, part: str, *, output: Path | None = None, options: MergeOptions | None = None) -> str:
    """Writes one part of the weights of a recipe's output; ``merge`` with ``finish`` puts the parts together.

    Args:
        recipe: The recipe file.
        part: ``k/n``.
        output: Folder of the whole output; None for the recipe's.
        options: How to run.

    Returns:
        What was written, as text.

    Raises:
        McomposeError: The recipe is wrong, or the run failed.
    """
    options = options or MergeOptions()
    chosen = Part.parse(part)
    running = replace(options, progress=ProgressBar(f"part {chosen}", quiet=options.quiet))
    folder, files = compose_part(load_recipe(recipe), part=chosen, output=output, options=running)
    return f"{folder}  part {chosen}: {', '.join(files)}"


def _card(ledger: Ledger, folder: Path) -> str:
    from mcompose.publish import model_card  # noqa: PLC0415 - the Hub's library, needed at the very end only

    return model_card(ledger, folder, repo_id=None)


def push(
    folder: Path, repo_id: str, *, private: bool = False, create_pr: bool = False, dry_run: bool = False
) -> PushReport:
    """Publishes an output on the Hub, reads it back and compares.

    Args:
        folder: An output of ``merge``.
        repo_id: ``org/name``.
        private: Create the repository as private.
        create_pr: Open a pull request instead of writing to the main branch.
        dry_run: Report what would be uploaded, and upload nothing.

    Returns:
        The report.

    Raises:
        HubError: The Hub refused, or what it holds is not what was sent.
        CheckpointError: The folder is not a finished output.
    """
    from mcompose.publish import push as push_folder  # noqa: PLC0415 - the Hub's library, for this step only

    return push_folder(folder, repo_id, private=private, create_pr=create_pr, dry_run=dry_run)
