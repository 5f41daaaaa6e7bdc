"""``mcompose lab make`` and ``mcompose lab report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption

__all__ = ["app"]

app = typer.Typer(help="Train small families of checkpoints and measure compositions of them.", no_args_is_help=True)


@app.command("make")
def make(
    family: Annotated[
        str, typer.Argument(metavar="FAMILY", help="numbers, numbers-apart, smol, pictures or pictures-reading")
    ],
    target: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train one small family: DIR/base, DIR/<donor>, DIR/data. Cached.

    Example: mcompose lab make numbers -o build/numbers
    """
    from mcompose.pipeline.lab import run as laboratory

    report = laboratory.make(family, target or Path("build") / family, seed=seed)
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())


@app.command("report")
def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="numbers, composition or chimera")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    family: Annotated[str, typer.Option(metavar="FAMILY", help="What it is measured on; else the report's own.")] = "",
    target: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR")] = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a table over several seeds, with mean and spread, and its plot.

    Example: mcompose lab report composition --seeds 3

    Example, on real pretrained weights: mcompose lab report composition --family smol --seeds 2
    """
    from mcompose.pipeline.lab import run as laboratory

    folder = Path("build") / "-".join(part for part in (name, family, "report") if part)
    result = laboratory.report(name, target or folder, seeds=seeds, family=family)
    if as_json:
        output.json_data(result.to_dict())
    else:
        header, rows = result.table()
        output.data(output.table(rows, header=header))
    output.say(f"plot: {result.plot}")
