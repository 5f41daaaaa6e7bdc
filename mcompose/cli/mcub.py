"""``mcompose mcub make``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.evaluate import EndpointModelOption, EndpointOption
from mcompose.cli.options import JsonOption

__all__ = ["app"]

app = typer.Typer(help="Make MCUB-style question sets: what do these inputs have in common?", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make MCUB-style question sets: what do these inputs have in common?"""


@app.command("make")
def make(
    captions: Annotated[
        Path, typer.Argument(metavar="CAPTIONS.jsonl", help="One object a line: modality, path, caption.")
    ],
    target: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the set goes.")],
    name: Annotated[str, typer.Option(help="Begins the names of its files.")] = "mcub",
    size: Annotated[
        list[int] | None, typer.Option(min=2, max=4, help="Modalities a question; several times; default: 3 and 4.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Most questions per combination of modalities.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    embedding: Annotated[
        str, typer.Option(metavar="NAME", help="auto, tfidf, or sentence-transformers[:MODEL].")
    ] = "auto",
    min_similarity: Annotated[float, typer.Option(help="Least cosine between captions of a question.")] = 0.1,
    reuse: Annotated[int, typer.Option(min=1, help="In how many questions of a set one medium may be.")] = 1,
    partial: Annotated[int, typer.Option(min=0, max=3, help="Wrong options that hold for some inputs.")] = 3,
    endpoint: EndpointOption = None,
    endpoint_model: EndpointModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make question sets from captioned media; DIR is then a folder of tasks for 'mcompose eval'.

    Captions that mean alike are grouped over modalities. Questions are written from the captions' own words, or, with
    --endpoint, by a model; its token is read from MCOMPOSE_ENDPOINT_TOKEN.

    Example: mcompose mcub make captions.jsonl -o build/commonality --size 2 --size 3
    """
    from mcompose.evaluate import JudgeCache, endpoint_from
    from mcompose.evaluate.commonality import (
        EndpointWriter,
        MakeSettings,
        TemplateWriter,
        embedder,
        make_sets,
        read_captions,
    )

    entities = read_captions(captions)
    asked = endpoint_from(endpoint, endpoint_model)
    if asked is None:
        writer = TemplateWriter(entities, seed=seed, partial=partial)
    else:
        cache = JudgeCache(asked, name=f"{asked.url} {asked.model}", path=target / f"{name}-replies.jsonl")
        writer = EndpointWriter(cache, name=asked.model)
    chosen = embedder(embedding)
    output.say(f"captions: {len(entities)}, embedding: {chosen[0]}, questions by: {writer.name}")
    settings = MakeSettings(name, tuple(size or (3, 4)), count, seed, min_similarity, reuse)
    made = make_sets(entities, target, embedding=chosen, writer=writer, settings=settings)
    if as_json:
        output.json_data({"sets": [vars(one) for one in made]})
    else:
        rows = [(one.name, one.questions, one.groups, one.dropped, str(one.card)) for one in made]
        output.data(output.table(rows, header=("set", "questions", "groups", "dropped", "card")))
