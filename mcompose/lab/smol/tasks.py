"""The family ``smol``: writes held-out media and questions about them, in the format of ``lab/numbers/tasks.py``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.lab.media_files import SUFFIXES, write_media
from mcompose.lab.numbers.tasks import question_row, write_lines
from mcompose.lab.questions import Question
from mcompose.lab.randomness import generator_for
from mcompose.lab.smol.media import Items
from mcompose.lab.smol.questions import (
    KINDS,
    MODALITIES,
    PAIR_TASKS,
    SINGLE_TASKS,
    ask,
    text_question,
)
from mcompose.lab.smol.settings import SmolSettings
from mcompose.modalities import PLACEHOLDERS

__all__ = ["SMOL_TASK_NAMES", "write_smol_data"]

_JOINT: Final = (*((task, 2) for task in PAIR_TASKS), ("common", 2), ("common", 3))
_CHANCE: Final = {
    "name": 1 / len(KINDS), "fact": 0.5, "choice": 0.25, "same": 0.5, "which": 1 / len(KINDS), "common": 0.25,
}  # fmt: skip
_VERSION: Final = 1


def _named(task: str, inputs: int) -> str:
    return f"{task}-{inputs}" if task == "common" else task


SMOL_TASK_NAMES: Final = (
    *(f"{modality}-{task}" for modality in MODALITIES for task in SINGLE_TASKS),
    *(f"joint-{_named(task, inputs)}" for task, inputs in _JOINT),
    *(f"text-{task}" for task in SINGLE_TASKS),
    *(f"text-{_named(task, inputs)}" for task, inputs in _JOINT),
)


def write_smol_data(folder: Path, held_out: Mapping[str, Items], settings: SmolSettings, *, seed: int) -> None:
    """Writes held-out media and tasks.

    Args:
        folder: Data folder; receives ``media/`` and the task files.
        held_out: Modality -> items; every kind must be among them.
        settings: Numbers of questions.
        seed: The family's seed.
    """
    paths = {modality: _write_media(folder, modality, items) for modality, items in held_out.items()}
    generator = generator_for(seed, "smol tasks")

    def rows(task: str, groups: Sequence[tuple[str, ...]], count: int) -> list[dict[str, Any]]:
        lines = []
        for index in range(count):
            group = groups[index % len(groups)]
            labels = tuple(group[i] for i in generator.permutation(len(group)))
            question = ask(task, labels, generator=generator)
            inputs = [_shown(m, n, paths[m], generator) for m, n in zip(labels, question.numbers, strict=True)]
            lines.append(question_row(index, question, inputs))
        return lines

    for modality, task in itertools.product(MODALITIES, SINGLE_TASKS):
        single = rows(task, [(modality,)], settings.single)
        write_lines(folder / f"{modality}-{task}.jsonl", _header(f"{modality}-{task}", task, [modality]), single)
    for task, inputs in _JOINT:
        name = f"joint-{_named(task, inputs)}"
        mixed = rows(task, list(itertools.combinations(MODALITIES, inputs)), settings.joint)
        write_lines(folder / f"{name}.jsonl", _header(name, task, list(MODALITIES)), mixed)
    for task, inputs in (*((task, 1) for task in SINGLE_TASKS), *_JOINT):
        name = f"text-{_named(task, inputs)}"
        text = [_text_row(i, *text_question(task, inputs, generator=generator)) for i in range(settings.text)]
        write_lines(folder / f"{name}.jsonl", _header(name, task, ["text"]), text)


def _shown(modality: str, kind: int, paths: Mapping[int, list[str]], generator: np.random.Generator) -> dict[str, str]:
    own = paths[kind]
    text = f"{modality}: {PLACEHOLDERS[modality]}"
    return {"modality": modality, "path": own[int(generator.integers(len(own)))], "text": text}


def _text_row(index: int, said: str, question: Question) -> dict[str, Any]:
    return question_row(index, question, [{"modality": "text", "text": said}])


def _header(name: str, task: str, modalities: list[str]) -> dict[str, Any]:
    return {
        "task": name,
        "version": _VERSION,
        "metric": "joint_exact_match" if name.startswith("joint-") else "exact_match",
        "modalities": modalities,
        "chance": round(_CHANCE[task], 4),
        "max_new_tokens": 2,
    }


def _write_media(folder: Path, modality: str, items: Items) -> dict[int, list[str]]:
    """Writes items; returns kind -> paths of its items, relative to the data folder."""
    paths: dict[int, list[str]] = {kind: [] for kind in range(len(KINDS))}
    for index, (values, kind) in enumerate(zip(items.values, items.kinds.tolist(), strict=True)):
        path = f"media/{modality}/{index:04d}-{KINDS[kind]}{SUFFIXES[modality]}"
        write_media(folder / path, modality, values)
        paths[kind].append(path)
    return paths
