"""``eval`` and ``generate``: the steps that run a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcompose.errors import RequestError
from mcompose.evaluate import TOLD, WRONG, EvaluateOptions, Report, in_chat
from mcompose.evaluate import evaluate as evaluate_tasks
from mcompose.media import read_media
from mcompose.modalities import PLACEHOLDERS
from mcompose.progress import OnCount, ProgressBar, remark
from mcompose.whole_files import write_json

__all__ = ["EvaluateOptions", "GenerateOptions", "evaluate", "generate", "predictions_folder", "quieten_loading"]


@dataclass(frozen=True)
class GenerateOptions:
    """How to answer.

    Args:
        max_new_tokens: Longest answer.
        plain: Use the prompt as it is, without a chat template.
        trust_remote_code: Run Python code that the checkpoint ships.
        experts: Expert that sees the media, as in :class:`EvaluateOptions`.
    """

    max_new_tokens: int = 128
    plain: bool = False
    trust_remote_code: bool = False
    experts: str = "auto"


def evaluate(
    checkpoint: Path, tasks: Sequence[str | Path], *, options: EvaluateOptions | None = None, quiet: bool = False
) -> Report:
    """Measures a checkpoint on tasks.

    Args:
        checkpoint: Its folder.
        tasks: Task files, task cards, released question files, or folders of task files and cards.
        options: How to evaluate; ``report.json`` is written beside the predictions.
        quiet: Print neither a progress bar nor remarks.

    Returns:
        The scores of each task.

    Raises:
        RequestError: A task cannot be used, or shows what the checkpoint does not take.
        UnknownNameError: The checkpoint does not have the named expert.
        CheckpointError: The checkpoint cannot be loaded.
        EndpointError: The judge refused or could not be reached.
    """
    options = options or EvaluateOptions()
    quieten_loading()
    with ProgressBar(unit="question", quiet=quiet, leave=False) as bar:
        report = evaluate_tasks(
            checkpoint,
            tasks,
            progress=_on_progress(bar),
            options=options if quiet else replace(options, say=remark),
        )
    if options.save:
        write_json(options.save / "report.json", report.to_json())
    return report


def predictions_folder(checkpoint: Path, *, experts: str = "auto") -> Path:
    """Returns the folder for predictions when the user names none.

    Args:
        checkpoint: Its folder.
        experts: Expert that its items are sent to.

    Returns:
        A folder under ``build/eval``; two checkpoints, or two ways of sending, never share one.
    """
    place = checkpoint.resolve()
    sent = "" if experts == "auto" else f"-{experts}"
    return Path("build/eval") / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}{sent}"


def _on_progress(bar: ProgressBar) -> OnCount:
    """Shows the questions of one task after the other."""

    def report(task: str, done: int, total: int) -> None:
        if bar.label != task:
            bar.start(total, label=task)
        bar.move_to(done)

    return report


def quieten_loading() -> None:
    """Keeps transformers from drawing a bar for each file that it loads."""
    from transformers.utils import logging  # noqa: PLC0415 - seconds

    logging.disable_progress_bar()


def generate(checkpoint: Path, prompt: str, *, media: Mapping[str, Sequence[Path]], options: GenerateOptions) -> str:
    """Answers one prompt.

    Args:
        checkpoint: Folder of the checkpoint.
        prompt: With one placeholder a medium; media without one are put in front.
        media: Modality to files.
        options: How.

    Returns:
        The answer.

    Raises:
        RequestError: A medium is missing, the prompt marks another number of them, or the checkpoint takes none.
        CheckpointError: The checkpoint cannot be loaded.
    """
    given = {modality: list(media.get(modality) or ()) for modality in PLACEHOLDERS}
    prompt = _with_placeholders(prompt, given)
    for modality, files in given.items():
        for file in files:
            read_media(file, modality)  # a broken file is reported before the model is loaded, which takes seconds
    if options.experts in (TOLD, WRONG):
        raise RequestError(
            f"A prompt has no domain, so nobody knows which expert is '{options.experts}'.",
            hint="Name the expert, or write 'none' or 'auto'.",
        )
    from mcompose.evaluate import load_evaluated_model  # noqa: PLC0415 - torch and transformers

    quieten_loading()
    evaluated = load_evaluated_model(checkpoint, trust_remote_code=options.trust_remote_code).sending_to(
        options.experts
    )
    items: dict[str, list[list[Any]]] = {}
    for modality, files in given.items():
        if files and modality not in evaluated.modalities:
            takes = ", ".join(evaluated.modalities) or "text only"
            raise RequestError(f"'{checkpoint}' does not take {modality}; it takes {takes}.")
        if files:
            items[modality] = [[read_media(f, modality, sampling_rate=evaluated.sampling_rate) for f in files]]
    if not options.plain:
        prompt = in_chat(evaluated, prompt)
    [answer], _ = evaluated.answer([prompt], items, max_new_tokens=options.max_new_tokens)
    return answer.strip()


def _with_placeholders(prompt: str, media: Mapping[str, Sequence[Path]]) -> str:
    """Puts placeholders in front where the prompt has none; any other difference is an error."""
    missing: list[str] = []
    for modality, placeholder in PLACEHOLDERS.items():
        marked, given = prompt.count(placeholder), len(media[modality])
        if marked == given:
            continue
        if marked:
            raise RequestError(
                f"The prompt has {marked} '{placeholder}' and {given} {modality} files are given.",
                hint=f"Give one --{modality} for each.",
            )
        missing += [placeholder] * given
    return " ".join([*missing, prompt])
