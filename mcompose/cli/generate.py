"""``mcompose generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, ExpertsOption, JsonOption, TrustOption

__all__ = ["generate"]


def _files(what: str) -> typer.models.OptionInfo:
    return typer.Option(metavar="FILE", help=f"{what}; may be given several times.")


def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str, typer.Argument(help="The question; <image>, <audio>, ... mark where media go.")],
    image: Annotated[list[Path] | None, _files("An image")] = None,
    audio: Annotated[list[Path] | None, _files("A sound")] = None,
    video: Annotated[list[Path] | None, _files("A video")] = None,
    points: Annotated[list[Path] | None, _files("A point cloud (.npy, N x 3 or more)")] = None,
    experts: ExpertsOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    plain: Annotated[bool, typer.Option("--plain", help="Use the prompt as it is, without a chat template.")] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt.

    Example: mcompose generate build/model "<image> What is this?" --image cat.png
    """
    from mcompose.pipeline import measure

    media = {"image": image, "audio": audio, "video": video, "points": points}
    answer = measure.generate(
        checkpoint,
        prompt,
        media={modality: files for modality, files in media.items() if files},
        options=measure.GenerateOptions(
            max_new_tokens=max_new_tokens, plain=plain, trust_remote_code=trust_remote_code, experts=experts
        ),
    )
    if as_json:
        output.json_data({"prompt": prompt, "answer": answer})
    else:
        output.data(answer)
