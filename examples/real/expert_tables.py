"""Pictures of real tables with exact labels, and questions about them.

The numbers come from vega-datasets (cars, weather, iris, barley, stocks, employment); no test picture has a number from
a record that is used for training. A table has up to three rows and two columns of numbers below their names, drawn in
cells of 64 x 48 pixels on a white square: without borders (domain ``lines``) or with them (domain ``tables``). Pictures
of the domain ``general`` are easy-vqa's shapes. Labels are the drawn words.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.real.expert_nets import LINE, SIDE
from mcompose.lab.pictures.sources import Figures, draw_figures, load_sources

__all__ = [
    "CELL",
    "DOMAINS",
    "SPECIAL",
    "Turn",
    "draw_tables",
    "markdown",
    "render",
    "rows_of",
    "turns_of",
    "write_data",
]

CELL: Final = 64
"""Width of a cell."""
SPECIAL: Final = ("lines", "tables")
DOMAINS: Final = ("general", *SPECIAL)
_MOST_ROWS: Final = SIDE // LINE - 1
_MOST_COLUMNS: Final = SIDE // CELL - 1
_METRICS: Final = {
    "value": ["exact_match", "anls"],
    "line": ["edit_similarity", "exact_match"],
    "count": ["exact_match"],
    "table": ["teds", "teds_structure", "edit_similarity"],
    "shape": ["exact_match"],
}
_LONGEST: Final = {"value": 6, "line": 16, "count": 6, "table": 72, "shape": 6}
_PLACEHOLDER: Final = "<image>"


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Args:
        kind: Kind of question, part of the tasks' names.
        question: Question without the picture's placeholder.
        answer: Exact answer.
    """

    kind: str
    question: str
    answer: str


def draw_tables(count: int, *, split: str, seed: int, domain: str) -> list[Figures]:
    """Draws tables.

    Args:
        count: Number of tables.
        split: "train" or "test".
        seed: Seed of the tables.
        domain: One of ``SPECIAL``; each has different tables.
    """
    generator = np.random.default_rng([seed, SPECIAL.index(domain), split == "test"])
    sources = load_sources()
    made = []
    for _ in range(count):
        source = sources[int(generator.integers(len(sources)))]
        size = {"rows": int(generator.integers(1, _MOST_ROWS + 1)), "columns": int(generator.integers(1, 3))}
        made.append(draw_figures(source, **size, split=split, generator=generator))
    return made


def rows_of(figures: Figures) -> list[list[str]]:
    """Returns all cells, the names of columns first; the corner is empty."""
    lines = [
        [name, *(str(value) for value in values)] for name, values in zip(figures.rows, figures.values, strict=True)
    ]
    return [["", *figures.columns], *lines]


def markdown(figures: Figures) -> str:
    """Writes the table as Markdown, the expected answer."""
    head, *lines = rows_of(figures)
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def render(figures: Figures, *, ruled: bool) -> Image.Image:
    """Draws a table.

    Args:
        figures: At most three rows and two columns.
        ruled: Whether every cell has a border.

    Returns:
        A grey picture, 192 x 192, in three channels.
    """
    picture = Image.new("L", (SIDE, SIDE), 255)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=26)
    for i, line in enumerate(rows_of(figures)):
        for j, word in enumerate(line):
            left, top = j * CELL, i * LINE
            pen.text((left + CELL / 2, top + LINE / 2), word, font=font, fill=0, anchor="mm")
            if ruled:
                pen.rectangle((left, top, left + CELL - 1, top + LINE - 1), outline=0)
    return picture.convert("RGB")


def turns_of(figures: Figures, *, generator: np.random.Generator) -> list[Turn]:
    """Makes one question of each kind about a table, and two of the first kind.

    Args:
        figures: The table.
        generator: Source of randomness that chooses cells, and whether rows or columns are counted.
    """
    made = []
    cells = [(i, j) for i in range(len(figures.rows)) for j in range(len(figures.columns))]
    for place in generator.permutation(len(cells))[:2]:
        i, j = cells[int(place)]
        asked = f"What is {figures.columns[j]} of {figures.rows[i]}?"
        made.append(Turn("value", asked, str(figures.values[i][j])))
    i = int(generator.integers(len(figures.rows)))
    made.append(Turn("line", f"Read the line of {figures.rows[i]}.", " ".join(rows_of(figures)[1 + i])))
    what, count = [("rows", len(figures.rows)), ("columns", len(figures.columns))][int(generator.integers(2))]
    made.append(Turn("count", f"How many {what} of numbers are there?", str(count)))
    made.append(Turn("table", "Write the table.", markdown(figures)))
    return made


def write_data(folder: Path, shapes: Path, *, tables: int, asked: int, seed: int) -> dict[str, list[Path]]:
    """Draws all pictures and writes records of both stages and tasks.

    Args:
        folder: Folder to write; its contents are deleted first.
        shapes: easy-vqa's ``data/train/questions.json``.
        tables: Training pictures of each domain with an expert; half as many of shapes.
        asked: Test pictures of each domain.
        seed: Seed of tables, questions and order.

    Returns:
        "1" and "2" -> records of the stages, in the order of ``DOMAINS``; "tasks" -> task files.
    """
    shutil.rmtree(folder, ignore_errors=True)
    made: dict[str, list[Path]] = {"1": [], "2": [], "tasks": []}
    labels: list[dict[str, Any]] = []
    for domain in DOMAINS:
        train, test = (
            _shapes(shapes, folder, split=split, count=count, seed=seed)
            if domain == "general"
            else _tables(folder, domain, split=split, count=count, seed=seed)
            for split, count in (("train", tables // 2 if domain == "general" else tables), ("test", asked))
        )
        made["1"].append(_records(folder / f"train/{domain}-1.jsonl", [_first(shown) for shown in train]))
        made["2"].append(_records(folder / f"train/{domain}-2.jsonl", train))
        made["tasks"] += _tasks(folder / "test", domain, test)
        labels += [{"path": path, "domain": domain if domain in SPECIAL else "none"} for path, _ in test]
    _lines(folder / "test/labels.jsonl", labels)
    return made


_Shown = tuple[str, list[Turn]]
"""Path of a picture below the folder of its split, and the questions about it."""


def _tables(folder: Path, domain: str, *, split: str, count: int, seed: int) -> list[_Shown]:
    generator = np.random.default_rng([seed, SPECIAL.index(domain), split == "test", 1])
    made = []
    (folder / split / domain).mkdir(parents=True)
    for number, figures in enumerate(draw_tables(count, split=split, seed=seed, domain=domain)):
        path = f"{domain}/{number}.png"
        render(figures, ruled=domain == "tables").save(folder / split / path)
        turns = turns_of(figures, generator=generator)
        made.append((path, _taught(turns, generator) if split == "train" else turns))
    return made


def _taught(turns: Sequence[Turn], generator: np.random.Generator) -> list[Turn]:
    """Picks the questions of one training sample: two of any kind and the whole table, in any order."""
    places = [*generator.permutation(len(turns) - 1)[:2], len(turns) - 1]
    return [turns[int(place)] for place in generator.permutation(places)]


def _shapes(shapes: Path, folder: Path, *, split: str, count: int, seed: int) -> list[_Shown]:
    source = shapes.parent.parent / split
    generator = np.random.default_rng([seed, 2, split == "test"])
    by_picture: dict[int, list[Turn]] = {}
    for question, answer, number in json.loads((source / "questions.json").read_text(encoding="utf-8")):
        by_picture.setdefault(int(number), []).append(Turn("shape", question, answer))
    (folder / split / "general").mkdir(parents=True)
    made = []
    numbers = sorted(by_picture)
    for place in generator.permutation(len(numbers))[:count]:
        number = numbers[int(place)]
        path = f"general/{number}.png"
        shutil.copyfile(source / "images" / f"{number}.png", folder / split / path)
        turns = by_picture[number]
        made.append((path, [turns[int(i)] for i in generator.permutation(len(turns))[:2]]))
    return made


def _first(shown: _Shown) -> _Shown:
    """Picks the question of the first stage: the whole table, or about a shape."""
    path, turns = shown
    return path, [turn for turn in turns if turn.kind in ("table", "shape")]


def _records(path: Path, shown: Sequence[_Shown]) -> Path:
    rows = []
    for picture, turns in shown:
        said = []
        for number, turn in enumerate(turns):
            asked = turn.question if number else f"{_PLACEHOLDER} {turn.question}"
            said += [{"from": "human", "value": asked}, {"from": "gpt", "value": turn.answer}]
        rows.append({"image": picture, "conversations": said})
    return _lines(path, rows)


def _tasks(folder: Path, domain: str, shown: Sequence[_Shown]) -> list[Path]:
    """Writes one task per kind of question, with one question per picture."""
    made = []
    for kind in dict.fromkeys(turn.kind for _, turns in shown for turn in turns):
        head = {"task": f"{domain}-{kind}", "version": 1, "metrics": _METRICS[kind], "modalities": ["image"],
                "max_new_tokens": _LONGEST[kind]}  # fmt: skip
        rows = []
        for path, turns in shown:
            turn = next(turn for turn in turns if turn.kind == kind)
            entry = {"modality": "image", "path": path, "text": _PLACEHOLDER}
            rows.append({"id": path, "inputs": [entry], "question": turn.question, "answer": turn.answer})
        made.append(_lines(folder / f"{domain}-{kind}.jsonl", [head, *rows]))
    return made


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
