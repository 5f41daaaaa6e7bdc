"""``mcompose plan`` and ``mcompose merge``."""

from __future__ import annotations

from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption, OutputOption, RecipeArgument

__all__ = ["merge", "plan"]

AllowOption = Annotated[
    bool,
    typer.Option("--allow-different-base", help="Merge language models that do not seem to share a base."),
]


def plan(recipe: RecipeArgument, target: OutputOption = None, as_json: JsonOption = False) -> None:
    """Show what a merge would do. Reads headers only.

    Example: mcompose plan recipe.yaml
    """
    from mcompose.pipeline import headers

    report = headers.plan(recipe, output=target)
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())


def merge(
    recipe: RecipeArgument,
    target: OutputOption = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted run stopped.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    allow_different_base: AllowOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the composed checkpoint. Interrupted runs resume.

    Example: mcompose merge recipe.yaml -o build/model
    """
    from mcompose.pipeline import write

    report = write.merge(
        recipe,
        output=target,
        options=write.MergeOptions(
            resume=resume,
            threads=threads,
            device=device,
            allow_different_base=allow_different_base,
            quiet=quiet,
        ),
    )
    for warning in report.warnings:
        output.say(f"warning: {warning}")
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
