"""``mcompose eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, JsonOption, TrustOption
from mcompose.errors import RequestError

if TYPE_CHECKING:
    from mcompose.evaluate import Report

__all__ = ["EndpointModelOption", "EndpointOption", "evaluate"]

EndpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="OpenAI-compatible chat endpoint, such as http://localhost:8000/v1; or $MCOMPOSE_ENDPOINT."
    ),
]
EndpointModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its model; default: $MCOMPOSE_ENDPOINT_MODEL.")
]

SentOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where media go: auto (the router decides), none, told (the tasks' domains), wrong, or an expert.",
    ),
]


def evaluate(
    checkpoint: CheckpointArgument,
    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK...", help="Task files (.jsonl, .yaml, .json), or folders of them."),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Drop media that the checkpoint cannot take instead of refusing.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Count questions with missing or broken media, and continue.")
    ] = False,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="chat, plain, vicuna, or a text with {prompt}.")
    ] = None,
    experts: SentOption = "auto",
    endpoint: EndpointOption = None,
    endpoint_model: EndpointModelOption = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where predictions go; default: a folder in build/eval.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with answers that DIR holds.")] = True,
    record: Annotated[
        bool, typer.Option("--record", help="Write the scores into the output's ledger and card.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint on tasks: predictions, metrics, report.

    A task card says how a released question file is read and scored, in a few lines of YAML:
    kind (mcub, avqa, music-avqa, modelnet40, objaverse), questions, answers, media (where its paths start).
    A file such as MCUB-4.json needs no card when MCUB-answer.json and the media lie beside it.

    With --endpoint, a model there judges answers about objects (modelnet40, objaverse); its token is read from
    MCOMPOSE_ENDPOINT_TOKEN. What nobody can parse is counted, and wrong.

    Example: mcompose eval build/model build/numbers/data/joint-2.jsonl --json

    Example: mcompose eval build/model MCUB/MCUB-4.json --limit 100 --template vicuna
    """
    from mcompose.evaluate import endpoint_from
    from mcompose.pipeline import measure

    _refuse_forced_record(record=record, experts=experts)
    save = save or measure.predictions_folder(checkpoint, experts=experts)
    options = measure.EvaluateOptions(
        limit=limit,
        batch_size=batch_size,
        leave_out=leave_out,
        save=save,
        trust_remote_code=trust_remote_code,
        resume=resume,
        skip_broken=skip_broken,
        template=template,
        judge=endpoint_from(endpoint, endpoint_model),
        experts=experts,
    )
    report = measure.evaluate(checkpoint, tasks, options=options)
    if record:
        from mcompose.pipeline.record import record_scores

        record_scores(checkpoint, report.to_json()["results"])
    output.say(f"predictions: {save}")
    if as_json:
        output.json_data(report.to_json())
    else:
        output.data(_table(report))


def _refuse_forced_record(*, record: bool, experts: str) -> None:
    if record and experts != "auto":
        raise RequestError(
            "--record writes down how a checkpoint answers by itself, and --experts forces it.",
            hint="Leave one of them out.",
        )


def _table(report: Report) -> str:
    """Columns that say nothing are left out."""
    extra = [
        name for name in ("chance", "unparsed", "skipped") if any(getattr(result, name) for result in report.results)
    ]
    rows = [
        (r.task, r.metric, float(r.value), r.n, *(getattr(r, name) or None for name in extra)) for r in report.results
    ]
    shown = output.table(rows, header=("task", "metric", "value", "n", *extra))
    matrices = (
        f"\n{modality} router, rows are the tasks' domains\n{m.to_text()}" for modality, m in report.routing.items()
    )
    return "\n".join([shown, *matrices])
