"""Tasks: questions with media, and how their answers are scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Item", "MediaInput", "Task"]


@dataclass(frozen=True)
class MediaInput:
    """One input of a question.

    Args:
        modality: "image", "audio", "video", "points" or "text".
        text: What stands for it in the prompt; holds the placeholder ``<modality>`` unless it is text.
        path: Its file; None for text.
    """

    modality: str
    text: str
    path: Path | None


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        id: Its name within the task.
        inputs: What it is about, in order.
        question: The words after the inputs.
        answer: What the output should be.
        choices: Its options, letter to text; empty when it has none.
        turn: The whole prompt with its placeholders, where a file words it so; None: inputs' texts, then the question.
        label: Short name of what is shown, for rules that look for one; empty: the answer.
        accepted: Further right answers.
        domain: Domain of its media, where experts serve domains; empty when the task does not say.
    """

    id: str
    inputs: tuple[MediaInput, ...]
    question: str
    answer: str
    choices: Mapping[str, str] = field(default_factory=dict)
    turn: str | None = None
    label: str = ""
    accepted: tuple[str, ...] = ()
    domain: str = ""

    def prompt(self, kept: Sequence[MediaInput]) -> str:
        """Returns what is asked when only some inputs are shown.

        Args:
            kept: Inputs that are shown, a part of ``inputs``.

        Returns:
            The prompt, with one placeholder an input. In a worded turn, a line that only introduces a dropped input
            ("audio: <audio>") goes with it.
        """
        if self.turn is None:
            return " ".join([*(x.text for x in kept), self.question])
        turn = self.turn
        for entry in self.inputs:
            hole = f"<{entry.modality}>"
            if any(entry is x for x in kept):
                turn = turn.replace(hole, f"\0{entry.modality}\0", 1)
                continue
            turn, found = re.subn(rf"(?m)^[ \t]*(?:\w+[ \t]*:)?[ \t]*{hole}[ \t]*(?:\n|\Z)", "", turn, count=1)
            turn = turn if found else turn.replace(hole, "", 1)
        return re.sub(r"\0(\w+)\0", r"<\1>", turn)


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: Its name in reports.
        version: Raised when the same name asks something else.
        metric: Name of the scoring rule; ``joint_`` in front for questions over several inputs.
        modalities: What its inputs are.
        chance: Accuracy of guessing.
        items: The questions.
        max_new_tokens: Longest answer.
        file: Where it was read from.
        also: Further metrics, after ``metric``.
        judge: What a judge is asked about an answer: "class", "same" or "" for nothing.
        template: How a prompt becomes a turn when the user does not say: "plain" or "chat".
    """

    name: str
    version: int
    metric: str
    modalities: tuple[str, ...]
    chance: float
    items: tuple[Item, ...]
    max_new_tokens: int
    file: Path
    also: tuple[str, ...] = ()
    judge: str = ""
    template: str = "plain"

    @property
    def metrics(self) -> tuple[str, ...]:
        """All rules; none when only a judge can tell."""
        return tuple(metric for metric in (self.metric, *self.also) if metric)
