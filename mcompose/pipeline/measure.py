"""``eval``, ``generate`` and ``lab``: the steps that run models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompose.errors import RequestError
from mcompose.evaluate import PLACEHOLDERS, EvaluateOptions, Item, Report, find_tasks, load_answerer, media_of
from mcompose.evaluate import evaluate as evaluate_tasks

if TYPE_CHECKING:
    from mcompose.evaluate import Answerer

__all__ = ["EvaluateOptions", "GenerateOptions", "evaluate", "generate"]


@dataclass(frozen=True)
class GenerateOptions:
    """How to answer.

    Args:
        max_new_tokens: Longest answer.
        plain: Use the prompt as it is, without a chat template.
        trust_remote_code: Run Python code that the checkpoint ships.
    """

    max_new_tokens: int = 128
    plain: bool = False
    trust_remote_code: bool = False


def evaluate(checkpoint: Path, tasks: Sequence[str], *, options: EvaluateOptions) -> Report:
    """Measures a checkpoint on tasks.

    Args:
        checkpoint: Its folder.
        tasks: Task files, or folders of them.
        options: How.

    Returns:
        One score a task.

    Raises:
        RequestError: A task or the checkpoint cannot be used.
    """
    return evaluate_tasks(checkpoint, find_tasks(list(tasks)), options=options)


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
        RequestError: A medium is missing, the prompt marks another number of them, or the checkpoint cannot take them.
    """
    files = media_of(media)
    prompt = _with_placeholders(prompt, files)
    answerer = load_answerer(checkpoint, trust_remote_code=options.trust_remote_code)
    item = Item("0", prompt, "", files)
    answerer.check([item], task="the prompt")
    if not options.plain:
        item = Item("0", _in_chat(answerer, prompt), "", files)
    return answerer.answer([item], max_new_tokens=options.max_new_tokens)[0].strip()


def _with_placeholders(prompt: str, media: Mapping[str, Sequence[Path]]) -> str:
    """Puts placeholders in front where the prompt has none; any other difference is an error."""
    missing: list[str] = []
    for modality, placeholder in PLACEHOLDERS.items():
        marked, given = prompt.count(placeholder), len(media.get(modality, ()))
        if marked == given:
            continue
        if marked:
            raise RequestError(
                f"The prompt has {marked} '{placeholder}' and {given} {modality} files are given.",
                hint=f"Give one --{modality} for each.",
            )
        missing += [placeholder] * given
    return " ".join([*missing, prompt])


def _in_chat(answerer: Answerer, prompt: str) -> str:
    """The prompt as a user's turn, where the checkpoint has a chat template."""
    for holder in (answerer.processor, answerer.tokenizer):
        if getattr(holder, "chat_template", None):
            turns = [{"role": "user", "content": prompt}]
            return str(holder.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return prompt
