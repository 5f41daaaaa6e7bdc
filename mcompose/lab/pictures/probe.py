"""Measures how much detail is in an encoder's tokens, by small read-outs that are trained on frozen features.

A read-out gets the box of a mark and the tokens there, and predicts the mark's words. The same read-out is trained for
the expert and for the general encoder; their accuracies on held-out pictures are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mcompose.lab.fit import fit
from mcompose.lab.pictures.encoders import Encoder
from mcompose.lab.pictures.picture import Picture
from mcompose.lab.pictures.reading import FIELDS, classes, encoded, make_pool, overlaps
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import FitSettings

__all__ = ["readable"]

_HIDDEN = 128


def readable(
    encoder: Encoder,
    domain: str,
    train: Sequence[Picture],
    test: Sequence[Picture],
    *,
    settings: FitSettings,
    seed: int,
) -> dict[str, float]:
    """Trains a small read-out, and measures it on held-out marks.

    Args:
        encoder: The encoder, which is not trained.
        domain: Domain of the marks.
        train: Pictures to train the read-out on.
        test: Held-out pictures.
        settings: Steps and learning rate of the read-out.
        seed: The family's seed.

    Returns:
        Field -> accuracy over the marks that have it; ``"number"``: tens and units both right; ``"all"``: every field
        of a mark right.
    """
    seen, wanted = _rows(encoder, domain, train)
    generator = generator_for(seed, "probe", encoder.name, domain)
    sizes = [1 + len(names) for names in FIELDS[domain].values()]
    model = nn.Sequential(
        nn.LayerNorm(seen.shape[1]), nn.Linear(seen.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, sum(sizes))
    )

    def loss() -> torch.Tensor:
        index = torch.from_numpy(generator.integers(len(seen), size=settings.batch))
        parts = model(seen[index]).split(sizes, dim=-1)
        return torch.stack([F.cross_entropy(part, wanted[index, i]) for i, part in enumerate(parts)]).sum()

    fit(model.parameters(), settings, loss=loss)
    held, truth = _rows(encoder, domain, test)
    with torch.no_grad():
        named = torch.stack([part.argmax(-1) for part in model(held).split(sizes, dim=-1)], dim=-1)
    return _figures((named == truth).numpy(), truth.numpy() > 0, list(FIELDS[domain]))


def _figures(right: np.ndarray, there: np.ndarray, fields: list[str]) -> dict[str, float]:
    accuracy = {field: float(right[there[:, i], i].mean()) for i, field in enumerate(fields)}
    digits = [fields.index("tens"), fields.index("units")]
    numbers = there[:, digits].all(axis=1)
    accuracy["number"] = float(right[numbers][:, digits].all(axis=1).mean())
    accuracy["all"] = float(right.all(axis=1).mean())
    return {name: round(value, 3) for name, value in accuracy.items()}


def _rows(encoder: Encoder, domain: str, pictures: Sequence[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns for every mark a row (best token, mean of the tokens on it, its box), and its classes."""
    pool = make_pool(encoder, pictures)
    tokens = encoded(encoder, pool).numpy()
    rows, wanted = [], []
    for picture, own, boxes in zip(pictures, tokens, pool.boxes, strict=True):
        shares = overlaps(picture.marks, boxes).T
        weights = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
        size = np.array(picture.image.size * 2, dtype=np.float32)
        places = np.array([mark.box for mark in picture.marks], dtype=np.float32) / size
        rows.append(np.concatenate([own[shares.argmax(axis=1)], weights @ own, 4 * places], axis=1))
        wanted += [classes(mark, domain) for mark in picture.marks]
    return torch.from_numpy(np.concatenate(rows).astype(np.float32)), torch.tensor(wanted)
