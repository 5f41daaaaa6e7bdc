"""``mcompose merge-adapters``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption, parse_source

__all__ = ["merge_adapters"]


def merge_adapters(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="PEFT adapters (LoRA) of one base.")],
    target: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the adapter goes.")],
    method: Annotated[
        Literal["linear", "robustmerge"], typer.Option(help="Sum of their changes, or RobustMerge of their factors.")
    ] = "linear",
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each adapter, in order; default: 1/M each.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank of a layer; default: the sum of theirs.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of each layer's change to keep (sum of squares).")
    ] = None,
    allow_different_base: Annotated[
        bool, typer.Option("--allow-different-base", help="Merge adapters whose configs name different bases.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge adapters of one base into one adapter, without the base.

    Example: mcompose merge-adapters local:charts local:tables --weight 0.6 --weight 0.4 -o build/adapter
    """
    from mcompose.pipeline import merge_adapters as steps

    how = steps.AdapterMerge(method, tuple(weight) if weight else None, rank, energy, allow_different_base)
    report = steps.merge_adapters([parse_source(one) for one in adapters], output=target, how=how)
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
