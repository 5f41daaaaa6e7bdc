"""``mcompose push``."""

from __future__ import annotations

from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, JsonOption

__all__ = ["push"]


def push(
    folder: CheckpointArgument,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish an output with its card, then read it back and compare.

    The token comes from `hf auth login` or from HF_TOKEN.

    Example: mcompose push build/model my-org/sees-and-hears --private
    """
    from mcompose.pipeline import write

    report = write.push(folder, repo_id, private=private, create_pr=create_pr, dry_run=dry_run)
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
