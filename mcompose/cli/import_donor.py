"""``mcompose import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import JsonOption, parse_source

__all__ = ["import_donor"]


def import_donor(
    donor: Annotated[Path, typer.Argument(metavar="DONOR", help="Folder of a released donor of Model Composition.")],
    base: Annotated[str, typer.Option(metavar="REF", help="The language model that it was trained on.")],
    encoder: Annotated[str, typer.Option(metavar="REF", help="The checkpoint of its encoder.")],
    target: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the checkpoint goes.")],
    alpha: Annotated[
        float | None, typer.Option(metavar="X", help="LoRA's alpha, where the donor's config does not say it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a released donor as a composed checkpoint, which recipes can name as a source.

    Example: mcompose import vision-damc --base hub:lmsys/vicuna-7b-v1.5
    --encoder hub:openai/clip-vit-large-patch14-336 -o build/donor
    """
    from mcompose.pipeline import import_donor as steps

    report = steps.import_donor(
        donor, base=parse_source(base), encoder=parse_source(encoder), output=target, alpha=alpha
    )
    if as_json:
        output.json_data(report.to_dict())
    else:
        output.data(report.to_text())
