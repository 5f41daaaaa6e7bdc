"""``mcompose inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption, parse_source

__all__ = ["inspect"]


def inspect(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Folder, local:path or hub:org/name@rev.")],
    as_json: JsonOption = False,
) -> None:
    """Show the parts of checkpoints, and whether several can be composed. Reads headers only.

    Example: mcompose inspect hub:llava-hf/llava-1.5-7b-hf local:donors/audio
    """
    from mcompose.pipeline import headers

    report = headers.inspect([parse_source(source) for source in sources])
    if as_json:
        output.json_data(report.to_dict())
        return
    for source in report.sources:
        output.data(source.to_text())
        output.data(output.table(source.rows, header=("part", "tensors", "parameters", "dtype")) + "\n")
    if len(report.sources) > 1:
        output.data(report.verdict)
