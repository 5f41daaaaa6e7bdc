"""Writes the lab's tasks: media files, and questions about them as JSON lines.

A task file has a header line, and then one question per line::

    {"task": "joint-common-3", "version": 1, "metric": "joint_letter", "modalities": [...], "chance": 0.25}
    {"id": "0", "inputs": [{"modality": "image", "path": "media/image/7.png", "text": "image <image>"}, ...],
     "question": "what do all have in common ? A even ... answer", "answer": "C"}

The prompt is the inputs' texts and the question, joined by spaces. Paths are relative to the task file. A text input
has the modality ``text`` and no path.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.lab.batches import spell_numbers
from mcompose.lab.media import DigitImages, draw
from mcompose.lab.media_files import SUFFIXES, write_media
from mcompose.lab.questions import SINGLE_TASKS, Question, ask
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import DataSettings
from mcompose.modalities import MODALITIES, PLACEHOLDERS

__all__ = ["TASK_NAMES", "VALIDATION", "question_row", "write_data", "write_lines", "write_validation"]

_JOINT_KINDS: Final = (("sum", 2), ("same", 2), ("larger", 2), ("common", 2), ("common", 3), ("common", 4))
_CHANCE: Final = {"name": 0.1, "parity": 0.5, "size": 0.5, "choice": 0.25, "common": 0.25}
_CHANCE_PAIR: Final = {"sum": 0.1, "same": 0.5, "larger": 0.19}  # frequency of the most frequent answer
_VERSION: Final = 1
VALIDATION: Final = "validation"


def _several(task: str, inputs: int) -> str:
    return f"{task}-{inputs}" if task == "common" else task


TASK_NAMES: Final = (
    *(f"{modality}-{task}" for modality in MODALITIES for task in SINGLE_TASKS),
    *(f"joint-{_several(task, inputs)}" for task, inputs in _JOINT_KINDS),
    *(f"text-{task}" for task in SINGLE_TASKS),
    *(f"text-{_several(task, inputs)}" for task, inputs in _JOINT_KINDS),
)


@dataclass(frozen=True)
class _Media:
    """Media files of one modality: number -> paths relative to the data folder."""

    modality: str
    paths: dict[int, list[str]]

    def pick(self, number: int, generator: np.random.Generator) -> dict[str, str]:
        own = self.paths[number]
        path = own[int(generator.integers(len(own)))]
        return {"modality": self.modality, "path": path, "text": f"{self.modality} {PLACEHOLDERS[self.modality]}"}


def write_data(folder: Path, settings: DataSettings, *, seed: int, digits: DigitImages) -> None:
    """Writes media and tasks.

    Args:
        folder: Data folder to write: held-out media and task files, and ``train/`` for alignment.
        settings: Numbers of media and questions.
        seed: The family's seed.
        digits: The images.
    """
    held_out = _write_media(folder, "test", settings.test_media, seed=seed, digits=digits)
    generator = generator_for(seed, "tasks")
    for modality, task in itertools.product(MODALITIES, SINGLE_TASKS):
        questions = [ask(task, 1, generator=generator) for _ in range(settings.single)]
        rows = [question_row(i, q, [held_out[modality].pick(q.numbers[0], generator)]) for i, q in enumerate(questions)]
        write_lines(folder / f"{modality}-{task}.jsonl", _header(task, modality, [modality]), rows)
    for task, inputs in _JOINT_KINDS:
        _write_joint(folder, task, inputs, count=settings.joint, media=held_out, generator=generator)
    for task in SINGLE_TASKS:
        _write_text(folder, task, 1, count=settings.single, generator=generator)
    for task, inputs in _JOINT_KINDS:
        _write_text(folder, task, inputs, count=settings.joint, generator=generator)
    _write_train(folder / "train", settings, seed=seed, digits=digits)


def write_validation(folder: Path, settings: DataSettings, *, seed: int, digits: DigitImages) -> list[Path]:
    """Writes the questions by which coefficients are searched: about one medium or text, with media of their own.

    Args:
        folder: Folder to write the task files to.
        settings: Sizes; each file has half as many questions as a single task.
        seed: The family's seed.
        digits: The images; those that follow the test media's are used.

    Returns:
        The task files, one per modality and one for text. No question is about several media.
    """
    shown = settings.test_media // 10
    rest = DigitImages(digits.train, {number: images[shown:] for number, images in digits.test.items()})
    media = _write_media(folder, "validation", settings.test_media, seed=seed, digits=rest)
    generator = generator_for(seed, "validation tasks")
    files = []
    for modality in MODALITIES:
        rows = []
        for index in range(settings.single // 2):
            question = ask(SINGLE_TASKS[index % len(SINGLE_TASKS)], 1, generator=generator)
            rows.append(question_row(index, question, [media[modality].pick(question.numbers[0], generator)]))
        files.append(_write_mixed(folder, modality, rows))
    kinds = [(task, 1) for task in SINGLE_TASKS] + list(_JOINT_KINDS)
    rows = []
    for index in range(settings.single // 2):
        question = ask(*kinds[index % len(kinds)], generator=generator)
        said = spell_numbers(question.numbers, generator=generator)
        rows.append(question_row(index, question, [{"modality": "text", "text": said}]))
    return [*files, _write_mixed(folder, "text", rows)]


def _write_mixed(folder: Path, modality: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / f"{VALIDATION}-{modality}.jsonl"
    write_lines(path, _header("mixed", modality, [modality], name=path.stem), rows)
    return path


def _write_media(folder: Path, split: str, count: int, *, seed: int, digits: DigitImages) -> dict[str, _Media]:
    made = {}
    sides = digits.train if split == "train" else digits.test
    for modality in MODALITIES:
        generator = generator_for(seed, "media", split, modality)
        paths: dict[int, list[str]] = {number: [] for number in range(10)}
        for index in range(count):
            number = index % 10
            if modality == "image":
                side = sides[number]
                values = side[(index // 10) % len(side)]
            else:
                values = draw(modality, number, generator=generator)
            path = f"media/{modality}/{index:04d}{SUFFIXES[modality]}"
            write_media(folder / path, modality, values)
            paths[number].append(path)
        made[modality] = _Media(modality, paths)
    return made


def _write_joint(
    folder: Path, task: str, inputs: int, *, count: int, media: dict[str, _Media], generator: np.random.Generator
) -> None:
    groups = list(itertools.combinations(MODALITIES, inputs))
    rows = []
    for index in range(count):
        question = ask(task, inputs, generator=generator)
        group = groups[index % len(groups)]
        order = [group[i] for i in generator.permutation(inputs)]
        shown = [media[m].pick(n, generator) for m, n in zip(order, question.numbers, strict=True)]
        rows.append(question_row(index, question, shown))
    name = f"joint-{_several(task, inputs)}"
    write_lines(folder / f"{name}.jsonl", _header(task, "", list(MODALITIES), name=name, prefix="joint_"), rows)


def _write_text(folder: Path, task: str, inputs: int, *, count: int, generator: np.random.Generator) -> None:
    rows = []
    for index in range(count):
        question = ask(task, inputs, generator=generator)
        said = spell_numbers(question.numbers, generator=generator)
        rows.append(question_row(index, question, [{"modality": "text", "text": said}]))
    name = f"text-{_several(task, inputs)}"
    write_lines(folder / f"{name}.jsonl", _header(task, "text", ["text"], name=name), rows)


def _write_train(folder: Path, settings: DataSettings, *, seed: int, digits: DigitImages) -> None:
    media = _write_media(folder, "train", settings.train_media, seed=seed, digits=digits)
    generator = generator_for(seed, "train tasks")
    for modality in MODALITIES:
        rows = []
        for index in range(4 * settings.train_media):
            question = ask(SINGLE_TASKS[index % len(SINGLE_TASKS)], 1, generator=generator)
            rows.append(question_row(index, question, [media[modality].pick(question.numbers[0], generator)]))
        header = _header("train", modality, [modality], name=f"{modality}-train") | {"metric": "exact_match"}
        write_lines(folder / f"{modality}-train.jsonl", header, rows)


def _header(task: str, subject: str, modalities: list[str], *, name: str = "", prefix: str = "") -> dict[str, Any]:
    metric = "letter" if task in {"choice", "common"} else "exact_match"
    return {
        "task": name or f"{subject}-{task}",
        "version": _VERSION,
        "metric": prefix + metric,
        "modalities": modalities,
        "chance": (_CHANCE | _CHANCE_PAIR).get(task, 0.0),
        "max_new_tokens": 4,
    }


def question_row(index: int, question: Question, inputs: list[dict[str, str]]) -> dict[str, Any]:
    """Returns one line of a task file."""
    return {
        "id": str(index),
        "inputs": inputs,
        "question": question.text,
        "answer": question.answer,
        "numbers": list(question.numbers),
    }


def write_lines(path: Path, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes a task file: the header, then one line per question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line, ensure_ascii=False) for line in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
