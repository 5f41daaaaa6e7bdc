"""Measures what a linear read-out finds in each encoder's features.

The read-out shows whether a wrong answer is due to the features or to the language model behind them. It is a ridge
regression from the vectors over a cell to the cell's two digits. It is given the position of the cell, which the
language model must find itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from examples.real.expert_nets import LINE, SIDE
from examples.real.expert_tables import CELL, SPECIAL, draw_tables, render
from mcompose.evaluate import EvaluatedModel

__all__ = ["cell_features", "features_of", "read_out", "ridge"]

_RIDGE: Final = 10.0
_CHUNK: Final = 20


@torch.inference_mode()
def features_of(evaluated: EvaluatedModel, images: Sequence[Image.Image], expert: str) -> np.ndarray:
    """Computes a checkpoint's features of pictures, before any projector.

    Args:
        evaluated: A checkpoint with experts.
        images: Pictures.
        expert: Name of an expert, or "general".

    Returns:
        Features, (pictures, rows, columns, width).
    """
    made = []
    for start in range(0, len(images), _CHUNK):
        some = list(images[start : start + _CHUNK])
        made.append(_general(evaluated, some) if expert == "general" else _expert(evaluated, some, expert))
    return np.concatenate(made)


def _general(evaluated: EvaluatedModel, images: list[Image.Image]) -> np.ndarray:
    inputs = _prepared(evaluated, images, "none")
    tower = evaluated.model.model.towers["general"]
    pixels = inputs["general__pixel_values"].to(evaluated.model.dtype)
    hidden = tower.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    side = round(hidden.shape[1] ** 0.5)
    return hidden.float().numpy().reshape(len(images), side, side, -1)


def _expert(evaluated: EvaluatedModel, images: list[Image.Image], name: str) -> np.ndarray:
    inputs = _prepared(evaluated, images, name)
    own = {key.removeprefix(f"{name}__"): value for key, value in inputs.items() if key.startswith(f"{name}__")}
    seen = evaluated.model.model.experts[name].encode(own)[0].float().numpy()
    rows = SIDE // LINE if name == SPECIAL[0] else round(seen.shape[1] ** 0.5)
    return seen.reshape(len(images), rows, -1, seen.shape[-1])


def _prepared(evaluated: EvaluatedModel, images: list[Image.Image], expert: str) -> Any:
    nested = [[image] for image in images]
    return evaluated.processor(text=["<image>"] * len(images), images=nested, return_tensors="pt", experts=expert)


def cell_features(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    """Joins the vectors over one cell of a picture.

    Args:
        grid: Features of the whole picture, (rows, columns, width).
        row: Row of the cell; 0 has the columns' names.
        column: Column of the cell; 0 has the rows' names.
    """
    rows, columns = grid.shape[:2]
    top, left = row * LINE * rows // SIDE, column * CELL * columns // SIDE
    height, width = -(-LINE * rows // SIDE), -(-CELL * columns // SIDE)
    return grid[top : top + height, left : left + width].reshape(-1)


def read_out(
    evaluated: EvaluatedModel, *, encoder: str, domain: str, counts: tuple[int, int], seed: int
) -> tuple[float, int]:
    """Measures the share of test cells whose number a linear read-out finds.

    Args:
        evaluated: A checkpoint with experts.
        encoder: Name of an expert, or "general".
        domain: Domain of the tables, which decides how they are drawn.
        counts: Numbers of training and test pictures.
        seed: Seed of the tables.

    Returns:
        The share, and the number of test cells.
    """
    sides = []
    for split, count in zip(("train", "test"), counts, strict=True):
        tables = draw_tables(count, split=split, seed=seed, domain=domain)
        grids = features_of(evaluated, [render(table, ruled=domain == SPECIAL[1]) for table in tables], encoder)
        rows, numbers = [], []
        for table, grid in zip(tables, grids, strict=True):
            for i, values in enumerate(table.values):
                for j, value in enumerate(values):
                    rows.append(cell_features(grid, i + 1, j + 1))
                    numbers.append(value)
        sides.append((np.stack(rows), np.array(numbers)))
    (x, y), (tested, truth) = sides
    read = ridge(x, y // 10, tested) * 10 + ridge(x, y % 10, tested)
    return float((read == truth).mean()), len(truth)


def ridge(x: np.ndarray, digits: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Predicts the likeliest digit of each test row: regression on one column per digit, in the space of the samples.

    Args:
        x: Training features, (samples, features).
        digits: Training labels, 0 to 9, (samples,).
        tested: Test features, (rows, features).

    Returns:
        Predicted digits, 0 to 9, (rows,).
    """
    middle, spread = x.mean(0), x.std(0) + 1e-3
    x, tested = (x - middle) / spread, (tested - middle) / spread
    shares = np.eye(10)[digits].mean(0)
    gram = x @ x.T / x.shape[1]
    weights = np.linalg.solve(gram + _RIDGE / len(x) * np.eye(len(x)), np.eye(10)[digits] - shares)
    return (tested @ x.T / x.shape[1] @ weights + shares).argmax(-1)
