"""``mcompose align``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption

__all__ = ["align"]


def align(
    stage: Annotated[int, typer.Option(help="Which stage; it continues the one before it.")],
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="The recipe.")] = Path("recipe.yaml"),
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the stages stand on; default: the recipe's output.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the result goes; default: beside the checkpoint."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted run stopped.")
    ] = True,
    export: Annotated[bool, typer.Option("--export", help="Write a full checkpoint, not only what changed.")] = False,
    report_to: Annotated[str, typer.Option(metavar="NAME", help="tensorboard, wandb or trackio.")] = "none",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one alignment stage: a short fine-tune of some parts. Interrupted runs resume.

    Example: mcompose align recipe.yaml --stage 1 --export

    Several devices: torchrun --nproc-per-node 8 -m mcompose align recipe.yaml --stage 1
    """
    from mcompose.errors import McomposeError
    from mcompose.pipeline import align as steps

    options = steps.AlignOptions(
        checkpoint=checkpoint, output=target, resume=resume, export=export, report_to=report_to, quiet=quiet
    )
    try:
        report = steps.align(recipe, stage=stage, options=options)
    except McomposeError as error:
        if steps.is_helper():  # the first process says it
            raise typer.Exit(error.exit_code) from None
        raise
    if report is None:
        return
    for warning in report.warnings:
        output.say(f"warning: {warning}")
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
