"""``mcompose export``: a checkpoint in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, JsonOption, parse_source

__all__ = ["app"]

app = typer.Typer(help="Write a checkpoint in another form.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def export() -> None:
    """Write a checkpoint in another form."""


@app.command("lora")
def lora(
    checkpoint: CheckpointArgument,
    base: Annotated[str, typer.Option(metavar="REF", help="The model that the adapter will be loaded on.")],
    target: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the adapter goes.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of a layer.")] = None,
    energy: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of each layer's change to keep (sum of squares).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a checkpoint changed of its base as a PEFT adapter.

    Example: mcompose export lora build/model --base hub:org/base --rank 64 -o build/adapter
    """
    from mcompose.pipeline import export_adapter as steps

    report = steps.export_adapter(
        parse_source(str(checkpoint)), base=parse_source(base), output=target, rank=rank, energy=energy
    )
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
