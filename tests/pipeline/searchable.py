"""Sources that are far enough apart for answers to differ, and tasks whose right answers a known merge gives."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_sources import write_language_model, write_llava, write_recipe

from mcompose.evaluate import load_evaluated_model
from mcompose.media import read_media
from mcompose.pipeline.write import MergeOptions, merge

TOP = 0.62
"""Weight of the second source that the right answers come from."""
SOURCES = [{"name": "sees", "model": "local:sees"}, {"name": "expert", "model": "local:expert"}]
QUESTIONS = [" ".join(words) for words in itertools.islice(itertools.permutations("abcdefgh", 3), 0, 48)]


def write_searchable(folder: Path) -> Path:
    """``recipe.yaml`` over ``base``, ``sees`` and ``expert``; ``words.jsonl`` and ``pictures.jsonl``."""
    write_language_model(folder / "base")
    write_language_model(folder / "expert", change=0.6, seed=1)
    write_llava(folder / "sees", change=0.6, seed=2)
    recipe(folder)
    oracle = recipe(folder, "oracle.yaml", merge={"method": "linear", "weights": {"sees": 1 - TOP, "expert": TOP}})
    subject = load_evaluated_model(
        merge(oracle, output=folder / "oracle", options=MergeOptions(quiet=True)).result.folder
    )
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    words, _ = subject.answer(QUESTIONS, {}, max_new_tokens=3)
    write_task(folder / "words.jsonl", [row(q, a) for q, a in zip(QUESTIONS, words, strict=True)])
    rows = []
    for number, question in enumerate(QUESTIONS[:16]):
        name = f"{number % 4}.png"
        shown = {"image": [[read_media(folder / name, "image")]]}
        [answer], _ = subject.answer([f"<image> {question}"], shown, max_new_tokens=3)
        rows.append(row(question, answer, {"modality": "image", "text": "<image>", "path": name}))
    write_task(folder / "pictures.jsonl", rows, modalities=("image",))
    return folder


def recipe(folder: Path, name: str = "recipe.yaml", **changes) -> Path:
    whole = {"base": "local:base", "sources": SOURCES, "merge": {"method": "linear"}, "output": {"dir": "out"}}
    return write_recipe(folder / name, **{**whole, **changes})


def row(question: str, answer: str, *inputs: dict) -> dict:
    return {"inputs": list(inputs), "question": question, "answer": answer}


def write_task(path: Path, rows: list[dict], modalities: tuple[str, ...] = ("text",), **header) -> Path:
    head = {"task": path.stem, "version": 1, "metric": "exact_match", "modalities": list(modalities)}
    lines = [{**head, "max_new_tokens": 3, **header}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
