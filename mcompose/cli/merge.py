"""``mcompose plan`` and ``mcompose merge``."""

from __future__ import annotations

from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import (
    AllowOption,
    JsonOption,
    OutputOption,
    QuietOption,
    RecipeArgument,
    ResumeOption,
    ThreadsOption,
)
from mcompose.errors import RequestError

__all__ = ["merge", "plan"]


def plan(recipe: RecipeArgument, target: OutputOption = None, as_json: JsonOption = False) -> None:
    """Show what a merge would do. Reads headers and small files only.

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
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    allow_different_base: AllowOption = False,
    sync: Annotated[bool, typer.Option("--sync", help="Wait until the disk has written everything.")] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Put the sha256 of the weight files into the lock.")] = False,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Write this part of the weights only, beside the output.")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Check the parts, and make the output of them.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print a timing breakdown.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the composed checkpoint. Interrupted runs resume.

    Example: mcompose merge recipe.yaml -o build/model
    """
    from mcompose.pipeline import write

    options = write.MergeOptions(
        resume=resume,
        threads=threads,
        device=device,
        allow_different_base=allow_different_base,
        sync=sync,
        sha256=sha256,
        finish=finish,
        quiet=quiet,
    )
    if part is not None:
        if finish:
            raise RequestError("'--part' and '--finish' are two steps.", hint="Write all parts, then `--finish`.")
        output.data(write.merge_part(recipe, part, output=target, options=options))
        return
    report = write.merge(recipe, output=target, options=options)
    for warning in report.warnings:
        output.say(f"warning: {warning}")
    if profile and not as_json:
        output.say(report.profile_text())
    if as_json:
        output.json_data(report.to_dict() | ({"profile": report.profile()} if profile else {}))
    else:
        output.data(report.to_text())
