"""Writes the pictures: held-out tasks, and records for the two stages of alignment.

``data/<task>.jsonl`` are tasks as ``mcompose eval`` reads them; ``data/labels.jsonl`` has the complete labels of the
held-out pictures. ``data/train/<domain>.jsonl`` are conversations of one question as ``mcompose align`` reads them, for
both stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.lab.pictures.picture import DOMAINS, EXPERTS, Picture
from mcompose.lab.pictures.questions import TASKS, Question, questions_of
from mcompose.lab.pictures.render import render_many
from mcompose.lab.pictures.settings import PicturesData
from mcompose.lab.pictures.words import PLACEHOLDER
from mcompose.lab.randomness import generator_for

__all__ = ["recipe_text", "write_pictures"]

_VERSION: Final = 1
_LONGEST: Final = 32
_CHANCE: Final = {
    "general-kind": 0.125, "general-colour": 0.125, "general-shape": 0.25, "general-count": 0.33, "general-side": 0.25,
    "general-digit": 0.1,
}  # fmt: skip


def write_pictures(folder: Path, settings: PicturesData, *, seed: int) -> None:
    """Writes pictures, tasks and records.

    Args:
        folder: Data folder to write.
        settings: Numbers of pictures and questions.
        seed: The family's seed.
    """
    shown: list[tuple[str, Picture]] = []
    for domain in DOMAINS:
        held_out = render_many(domain, settings.test, seed=seed, purpose="tasks", split="test")
        shown += _saved(folder, "media", domain, held_out)
        own = render_many(domain, settings.train, seed=seed, purpose="records")
        _write_records(folder / "train", domain, own, settings, seed=seed)
    generator = generator_for(seed, "picture tasks")
    for task in TASKS:
        _write_task(folder, task, shown, settings.questions, generator)
    _lines(folder / "labels.jsonl", ({"path": path, **picture.label()} for path, picture in shown))


def recipe_text() -> str:
    """Returns the recipe that adds the three experts to the general model, and aligns them in two stages."""
    lines = ["schema: 1", "name: pictures-chimera", "sources:", "  - name: general", "    model: local:base"]
    lines += ["    modalities: [image]", "merge:", "  method: naivemc", "  dtype: float32", "  seed: 0"]
    lines += ["compose:", "  experts:"]
    for name in EXPERTS:
        padding = ", padding: drop" if name == "chart" else ""
        lines.append(f"    {name}: {{encoder: local:{name}, domain: {name}{padding}}}")
    lines += ["  router: {}", "align:", "  stages:"]
    for stage in (1, 2):
        lines += [f"    {stage}:", f"      preset: chimera-stage{stage}", "      batch_size: 32", "      data:"]
        lines += [f"        - {{path: data/train/{d}.jsonl, domain: {d}}}" for d in DOMAINS]
    lines += ["output:", "  dir: build/chimera"]
    return "\n".join(lines) + "\n"


def _saved(folder: Path, place: str, domain: str, pictures: Sequence[Picture]) -> list[tuple[str, Picture]]:
    named = [(f"{place}/{domain}/{index:04d}.png", picture) for index, picture in enumerate(pictures)]
    (folder / place / domain).mkdir(parents=True, exist_ok=True)
    for path, picture in named:
        picture.image.save(folder / path)
    return named


def _write_task(
    folder: Path, task: str, shown: Sequence[tuple[str, Picture]], most: int, generator: np.random.Generator
) -> None:
    """Writes a task: a question per picture, and further ones when there are fewer pictures than questions."""
    left = [(path, _shuffled(picture, task, generator)) for path, picture in shown]
    left = [left[i] for i in generator.permutation(len(left))]
    rows: list[dict[str, Any]] = []
    while len(rows) < most and any(questions for _, questions in left):
        for path, questions in left:
            if questions and len(rows) < most:
                question = questions.pop()
                rows.append({
                    "id": str(len(rows)),
                    "inputs": [{"modality": "image", "path": path, "text": PLACEHOLDER}],
                    "question": question.text,
                    "answer": question.answer,
                })  # fmt: skip
    header = {
        "task": task,
        "version": _VERSION,
        "metric": "exact_match",
        "modalities": ["image"],
        "chance": _CHANCE.get(task, 0.0),
        "max_new_tokens": _LONGEST,
    }
    _lines(folder / f"{task}.jsonl", [header, *rows])


def _shuffled(picture: Picture, task: str, generator: np.random.Generator) -> list[Question]:
    own = [question for question in questions_of(picture) if question.task == task]
    return [own[i] for i in generator.permutation(len(own))]


def _write_records(
    folder: Path, domain: str, pictures: Sequence[Picture], settings: PicturesData, *, seed: int
) -> None:
    generator = generator_for(seed, "picture records", domain)
    saved = _saved(folder, "media", domain, pictures)
    rows: list[dict[str, Any]] = []
    for path, picture in saved:
        asked = questions_of(picture)
        for place in generator.permutation(len(asked))[: settings.asked]:
            rows.append(_record(f"{domain}-{len(rows)}", path, domain, asked[place]))
    _lines(folder / f"{domain}.jsonl", rows)


def _record(name: str, path: str, domain: str, question: Question) -> dict[str, Any]:
    return {
        "id": name,
        "image": path,
        "domain": domain,
        "task": question.task,
        "conversations": [
            {"from": "human", "value": f"{PLACEHOLDER} {question.text}"},
            {"from": "gpt", "value": question.answer},
        ],
    }


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
