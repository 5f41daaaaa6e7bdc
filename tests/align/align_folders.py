"""A composed checkpoint with its recipe and data, small enough to be trained in seconds."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from tiny_sources import write_family

WORDS = "abcdefgh"


def write_data(folder: Path, *, count: int = 12, text_only: int = 3) -> Path:
    """Conversations about pictures, and some without; LLaVA's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    records = []
    for number in range(count):
        answer = " ".join(WORDS[i] for i in generator.integers(len(WORDS), size=2 + number % 3))
        question = "what is this ?"
        record = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        if number >= text_only:
            pixels = generator.integers(0, 255, size=(28, 28, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            record["image"] = f"{number}.png"
            record["conversations"][0]["value"] = f"<image> {question}"
        records.append(json.dumps(record))
    path = folder / "data.jsonl"
    path.write_text("\n".join(records) + "\n", encoding="utf-8")
    return path


def write_recipe(folder: Path, stages: dict, **changes: object) -> Path:
    """A recipe over the sources of ``write_family``, with alignment stages."""
    recipe = {
        "schema": 1,
        "name": "tiny",
        "base": "local:base",
        "sources": [{"name": "sees", "model": "local:sees"}, {"name": "expert", "model": "local:expert"}],
        "merge": {"method": "naivemc"},
        "align": {"stages": stages},
        "output": {"dir": "out", "format": "composed"},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


STAGE = {
    "train": ["projectors"],
    "data": ["data/data.jsonl"],
    "steps": 6,
    "batch_size": 4,
    "lr": 1e-2,
    "max_length": 64,
}


def build(folder: Path, stages: dict | None = None) -> Path:
    """Sources, data, recipe and the composed checkpoint ``out``; returns the recipe."""
    from mcompose.pipeline.write import MergeOptions, merge

    torch.set_num_threads(1)  # several test processes share the cores
    write_family(folder)
    write_data(folder / "data")
    path = write_recipe(folder, stages or {1: STAGE})
    merge(path, options=MergeOptions(quiet=True))
    return path
