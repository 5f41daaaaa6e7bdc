"""Evaluation: tasks asked of a checkpoint, predictions kept, one row per task and metric.

What a checkpoint cannot take is an error, unless inputs may be left out. Then an input of a modality that it lacks
is dropped, placeholder and all, and the question is asked about what is left: a donor alone on a joint question is
shown its own modality only. Its accuracy still counts every question; a second row, ``<metric>_seen``, counts the
questions of which it saw at least one input.

Answers are written as they come. The same evaluation started again asks only what has no answer yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose import __version__
from mcompose.errors import RequestError
from mcompose.evaluate.confusion import Confusion
from mcompose.evaluate.endpoint import Endpoint
from mcompose.evaluate.judge import judge_prompt, parse_verdict
from mcompose.evaluate.judge_cache import JudgeCache
from mcompose.evaluate.metrics import Verdict, is_right, score
from mcompose.evaluate.predictions_log import PredictionsLog, fingerprint, item_key
from mcompose.evaluate.prompts import check_template, in_template
from mcompose.evaluate.results import Prediction, Report, Result, figures
from mcompose.evaluate.routes import TOLD, WRONG, router_confusion, slips
from mcompose.evaluate.task import Item, MediaInput, Task
from mcompose.evaluate.task_files import find_tasks, load_task
from mcompose.media import MediaError, read_media
from mcompose.progress import OnCount

if TYPE_CHECKING:
    from mcompose.evaluate.evaluated_model import EvaluatedModel

__all__ = ["EvaluateOptions", "evaluate", "evaluate_task"]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate a checkpoint.

    Args:
        limit: Only the first so many questions of each task; None for all.
        batch_size: Questions that are answered together.
        leave_out: Drop inputs of modalities that the checkpoint lacks, instead of refusing the task.
        save: Folder for one JSON-lines file of predictions per task; a second run resumes from it.
        trust_remote_code: Run Python code that the checkpoint ships.
        resume: Use the answers that ``save`` holds.
        skip_broken: Count questions whose media are missing or broken and continue, instead of stopping.
        template: "chat", "plain", "vicuna" or a text with ``{prompt}``; None for the task's own.
        judge: Model that judges answers about objects; None for the local rule alone.
        experts: Where items go in a checkpoint with experts: "auto" (the router decides), "none", "told" (to the expert
            of the question's domain), "wrong" (to another one) or an expert's name.
        say: Called with each sentence that a person should read.
    """

    limit: int | None = None
    batch_size: int = 32
    leave_out: bool = False
    save: Path | None = None
    trust_remote_code: bool = False
    resume: bool = True
    skip_broken: bool = False
    template: str | None = None
    judge: Endpoint | None = None
    experts: str = "auto"
    say: Callable[[str], None] = _silent


def evaluate(
    checkpoint: Path,
    tasks: Sequence[str | Path],
    *,
    progress: OnCount | None = None,
    options: EvaluateOptions | None = None,
) -> Report:
    """Evaluates a checkpoint.

    Args:
        checkpoint: Its folder: native, composed, points or text.
        tasks: Task files, task cards, released question files, or folders of task files and cards.
        progress: Called with the task, the questions done, and the questions in all.
        options: How to evaluate.

    Returns:
        The report.

    Raises:
        RequestError: A task or medium is missing or broken, or the checkpoint lacks a modality.
        UnknownNameError: It has no such expert.
        CheckpointError: The checkpoint cannot be loaded.
        EndpointError: The judge refused or could not be reached.
    """
    options = options or EvaluateOptions()
    if options.template is not None:
        check_template(options.template)
    loaded = [load_task(file, limit=options.limit, check_media=not options.skip_broken) for file in find_tasks(tasks)]
    _refuse_what_cannot_be_told(loaded, options)
    _refuse_without_domains(loaded, options.experts)
    from mcompose.evaluate.evaluated_model import load_evaluated_model  # noqa: PLC0415 - tasks are checked before torch is loaded

    evaluated = load_evaluated_model(checkpoint, trust_remote_code=options.trust_remote_code).sending_to(
        options.experts
    )
    for task in loaded:
        _tell_of_domains(task, evaluated, options)
        if not options.leave_out:
            _refuse_lacking(task, evaluated)
    results: list[Result] = []
    asked: list[tuple[Task, Sequence[Prediction]]] = []
    for task in loaded:
        made = evaluate_task(evaluated, task, progress=progress, options=options)
        results += figures(task, made)
        asked.append((task, made))
    return Report(str(checkpoint), tuple(results), options.experts, _routing(evaluated, asked))


def evaluate_task(
    evaluated: EvaluatedModel,
    task: Task,
    *,
    progress: OnCount | None = None,
    options: EvaluateOptions | None = None,
) -> list[Prediction]:
    """Asks one task; inputs of modalities that the checkpoint lacks are dropped.

    Args:
        evaluated: The loaded checkpoint.
        task: The task.
        progress: Called with the task, the questions done, and the questions in all.
        options: How to evaluate; ``limit`` was used when the task was read.

    Returns:
        One prediction per item, in the task's order.

    Raises:
        MediaError: A medium cannot be read, and such questions are not to be skipped.
        EndpointError: The judge refused or could not be reached.
    """
    options = options or EvaluateOptions()
    asking = [_asked(evaluated, task, item, options) for item in task.items]
    log = _open_log(evaluated, task, options)
    found: dict[int, Prediction] = {}
    for i, one in enumerate(asking):
        row = log.found.get(one.key)
        if row is not None and ("routes" in row or not evaluated.served):  # answers of older versions tell no routes
            routes = {m: tuple(map(tuple, sent)) for m, sent in row.get("routes", {}).items()}
            found[i] = replace(one, output=str(row["output"]), routes=routes)
    if found:
        options.say(f"{task.name}: {len(found)} of {len(asking)} answers are those of an earlier run.")
    for batch in _batches(evaluated, task.items, options.batch_size, done=found):
        made = _answered(evaluated, task, {i: asking[i] for i in batch}, options)
        log.add([asdict(p) for p in made.values()])
        found |= made
        if progress:
            progress(task.name, len(found), len(asking))
    scored = _judged(task, [_scored(task, i, found[i]) for i in range(len(asking))], options)
    log.finish([asdict(p) for p in scored])
    skipped = [p for p in scored if p.skipped]
    if skipped:
        options.say(f"{task.name}: {len(skipped)} of {len(scored)} questions were skipped, first: {skipped[0].skipped}")
    return scored


def _asked(evaluated: EvaluatedModel, task: Task, item: Item, options: EvaluateOptions) -> Prediction:
    """Returns what will be asked, without an answer yet."""
    kept = _kept(evaluated, item)
    prompt = in_template(evaluated, item.prompt(kept), options.template or task.template)
    dropped = tuple(x.modality for x in item.inputs if not any(x is y for y in kept))
    return Prediction(
        id=item.id,
        prompt=prompt,
        output="",
        answer=item.answer,
        right=False,
        left_out=dropped,
        seen=len(kept),
        key=item_key(item, prompt) + (f" {item.domain}" if evaluated.experts in (TOLD, WRONG) else ""),
        accepted=item.accepted,
    )


def _answered(
    evaluated: EvaluatedModel, task: Task, asking: dict[int, Prediction], options: EvaluateOptions
) -> dict[int, Prediction]:
    """Answers a batch; questions whose media cannot be read are skipped when that is allowed."""
    made: dict[int, Prediction] = {}
    shown: dict[int, dict[str, list[Any]]] = {}
    for i, one in asking.items():
        try:
            shown[i] = _media(evaluated, _kept(evaluated, task.items[i]))
        except MediaError as error:
            if not options.skip_broken:
                raise
            made[i] = replace(one, skipped=error.message)
    if shown:
        used = [m for m in evaluated.modalities if any(media[m] for media in shown.values())]
        media = {m: [given[m] for given in shown.values()] for m in used}
        outputs, routes = evaluated.answer(
            [asking[i].prompt for i in shown], media, max_new_tokens=task.max_new_tokens,
            domains=[task.items[i].domain for i in shown],
        )  # fmt: skip
        for i, output, sent in zip(shown, outputs, routes, strict=True):
            made[i] = replace(asking[i], output=output, routes=sent)
    return made


def _routing(evaluated: EvaluatedModel, asked: Sequence[tuple[Task, Sequence[Prediction]]]) -> dict[str, Confusion]:
    """Returns what the routers chose, where they were asked and questions name domains."""
    if evaluated.experts != "auto" or not any(item.domain for task, _ in asked for item in task.items):
        return {}
    seen = [
        (item.domain, made.routes)
        for task, found in asked
        for item, made in zip(task.items, found, strict=True)
        if made.routes
    ]
    return router_confusion(getattr(evaluated.model.config, "routers", None) or {}, evaluated.expert_entries, seen)


def _scored(task: Task, index: int, prediction: Prediction) -> Prediction:
    if prediction.skipped:
        return prediction
    item, verdicts = task.items[index], {}
    for metric in task.metrics:
        wanted = item.label or item.answer if metric.endswith("label") else item.answer
        verdicts[metric] = score(metric, prediction.output, wanted, choices=item.choices, accepted=item.accepted)
    return replace(prediction, verdicts=verdicts, right=_is_right(verdicts))


def _is_right(verdicts: Mapping[str, Verdict]) -> bool:
    """By the first metric; False without one."""
    return any(is_right(metric, verdict) for metric, verdict in list(verdicts.items())[:1])


def _judged(task: Task, made: list[Prediction], options: EvaluateOptions) -> list[Prediction]:
    """Adds the judge's verdicts; without a judge, or a question for one, nothing changes."""
    if options.judge is None or not task.judge:
        return made
    path = options.save / f"{task.name}.judge.jsonl" if options.save else None
    replies = JudgeCache(options.judge, name=f"{options.judge.url} {options.judge.model}", path=path)
    asked = [i for i, p in enumerate(made) if not p.skipped]
    told = replies.all([judge_prompt(task, task.items[i], made[i].output) for i in asked])
    for i, reply in zip(asked, told, strict=True):
        verdict = parse_verdict(task, task.items[i], reply)
        verdicts = {**made[i].verdicts, f"judge:{options.judge.model}": verdict}
        made[i] = replace(made[i], judge=reply, verdicts=verdicts, right=_is_right(verdicts))
    return made


def _open_log(evaluated: EvaluatedModel, task: Task, options: EvaluateOptions) -> PredictionsLog:
    settings = {
        "leave_out": options.leave_out,
        "template": options.template or task.template,
        "max_new_tokens": task.max_new_tokens,
        "versions": [__version__, version("transformers")],
    }
    if options.experts != "auto":
        settings["experts"] = options.experts
    run = fingerprint(Path(evaluated.folder), settings)
    header = {"task": task.name, "version": task.version, "metric": task.metric, "run": run}
    path = options.save / f"{task.name}.jsonl" if options.save else None
    log = PredictionsLog(path, header, resume=options.resume)
    if log.moved:
        options.say(f"{task.name}: answers of another checkpoint or setting were moved to {log.moved}; asked anew.")
    return log


def _kept(evaluated: EvaluatedModel, item: Item) -> list[MediaInput]:
    return [x for x in item.inputs if x.modality == "text" or x.modality in evaluated.modalities]


def _batches(
    evaluated: EvaluatedModel, items: Sequence[Item], size: int, *, done: dict[int, Prediction]
) -> Iterator[list[int]]:
    """Batches in which all questions have the same number of items of each modality: some processors need that."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(items):
        if index not in done:
            groups.setdefault(tuple(sorted(x.modality for x in _kept(evaluated, item))), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _media(evaluated: EvaluatedModel, kept: Sequence[MediaInput]) -> dict[str, list[Any]]:
    rate = evaluated.sampling_rate
    return {
        modality: [read_media(x.path, modality, sampling_rate=rate) for x in kept if x.modality == modality and x.path]
        for modality in evaluated.modalities
    }


def _refuse_what_cannot_be_told(tasks: Sequence[Task], options: EvaluateOptions) -> None:
    names: dict[str, Path] = {}
    for task in tasks:
        if names.setdefault(task.name, task.file) != task.file:
            raise RequestError(
                f"{names[task.name]} and {task.file} are both called '{task.name}', so one would hide the other.",
                hint="Give one of them another 'task:' name.",
            )
        if not task.metrics and options.judge is None:
            raise RequestError(
                f"The answers of {task.file} are free texts that only a judge can compare.",
                hint="Name a chat endpoint: --endpoint URL --endpoint-model NAME.",
            )


def _refuse_without_domains(tasks: Sequence[Task], experts: str) -> None:
    if experts not in (TOLD, WRONG):
        return
    for task in tasks:
        if not any(item.domain for item in task.items):
            raise RequestError(
                f"{task.file} names no domain, so nobody knows which expert is '{experts}'.",
                hint='Write "domain": "..." into its header or its questions.',
            )


def _tell_of_domains(task: Task, evaluated: EvaluatedModel, options: EvaluateOptions) -> None:
    if not evaluated.served:
        return
    for domain, near in slips(evaluated.expert_entries, (item.domain for item in task.items if item.domain)):
        options.say(
            f"{task.name}: the domain '{domain}' is not an expert's, and looks like '{near}'; it counts as none."
        )
    without = sum(not item.domain for item in task.items)
    if without and options.experts in (TOLD, WRONG):
        options.say(f"{task.name}: {without} of {len(task.items)} questions name no domain; they count as none.")


def _refuse_lacking(task: Task, evaluated: EvaluatedModel) -> None:
    for item in task.items:
        for lacking in (x.modality for x in item.inputs if x.modality != "text"):
            if lacking not in evaluated.modalities:
                takes = ", ".join(evaluated.modalities) or "text only"
                raise RequestError(
                    f"The task {task.name} shows {lacking}, which {evaluated.folder} does not take (it takes {takes}).",
                    hint="Leave the task out, or let such inputs be left out: --leave-out.",
                )
