"""Options and arguments that several commands share, so that each is spelt one way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.errors import RequestError
from mcompose.refs import ModelRef

__all__ = [
    "AllowOption",
    "CheckpointArgument",
    "ExpertsOption",
    "JsonOption",
    "OutputOption",
    "QuietOption",
    "RecipeArgument",
    "ResumeOption",
    "ThreadsOption",
    "TrustOption",
    "parse_source",
]

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a mergekit YAML file.")]
CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to write; default: the recipe's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
AllowOption = Annotated[
    bool, typer.Option("--allow-different-base", help="Merge language models that do not seem to share a base.")
]
ExpertsOption = Annotated[
    str, typer.Option(metavar="NAME", help="Where media go: auto (the router decides), none, or an expert's name.")
]
ResumeOption = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted run stopped.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads for merging; default: one per core.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint ships.")]


def parse_source(text: str) -> ModelRef:
    """Reads a source on the command line.

    Args:
        text: ``hub:org/name@rev``, ``local:path``, or a folder that exists.

    Returns:
        The reference.

    Raises:
        RequestError: The text is neither; both spellings are given.
    """
    if text and not text.startswith(("hub:", "local:")):
        path = Path(text).expanduser()
        if path.is_dir():
            return ModelRef("local", text)
        if path.is_file():
            raise RequestError(f"'{text}' is a file.", hint=f"Name the folder of a checkpoint: '{path.parent}'.")
    try:
        return ModelRef.parse(text)
    except RequestError as error:
        raise RequestError(f"{error.message} No folder of this name exists here.", hint=error.hint) from None
