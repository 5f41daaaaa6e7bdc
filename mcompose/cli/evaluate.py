"""``mcompose eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import CheckpointArgument, JsonOption, TrustOption

__all__ = ["evaluate"]


def evaluate(
    checkpoint: CheckpointArgument,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Task files, or folders of them.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Drop media that the checkpoint cannot take instead of refusing.")
    ] = False,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write the predictions.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the scores into the output's ledger and card.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint on tasks: predictions, metrics, report.

    Example: mcompose eval build/model build/numbers/data/joint-2.jsonl --json
    """
    from mcompose.pipeline import measure

    report = measure.evaluate(
        checkpoint,
        tasks,
        options=measure.EvaluateOptions(
            limit=limit, batch_size=batch_size, leave_out=leave_out, save=save, trust_remote_code=trust_remote_code
        ),
    )
    if record:
        from mcompose.pipeline.record import record_scores

        record_scores(checkpoint, report.to_json()["results"])
    if as_json:
        output.json_data(report.to_json())
    else:
        rows = [(result.task, result.metric, float(result.value), result.n) for result in report.results]
        output.data(output.table(rows, header=("task", "metric", "value", "n")))
