"""``mcompose diff`` and ``mcompose verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, JsonOption, parse_source

__all__ = ["diff", "verify"]

SourceArgument = Annotated[str, typer.Argument(help="Folder, local:path or hub:org/name@rev.")]


def diff(a: SourceArgument, b: SourceArgument, as_json: JsonOption = False) -> None:
    """Show where two checkpoints differ, per part and layer.

    Example: mcompose diff build/model local:donors/image
    """
    from mcompose.pipeline import check

    report = check.diff(parse_source(a), parse_source(b))
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())


def verify(folder: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Check every file of an output against its lock file and ledger.

    Example: mcompose verify build/model
    """
    from mcompose.pipeline import check

    report = check.verify(folder)
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
    if not report.ok:
        raise typer.Exit(1)
