"""Trains the encoders by themselves: experts to read what is written, the general one on what is visible when small."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mcompose.lab.fit import fit
from mcompose.lab.pictures.encoders import Encoder
from mcompose.lab.pictures.ink import COLOURS
from mcompose.lab.pictures.picture import KINDS, Picture
from mcompose.lab.pictures.reading import FIELDS, Pool
from mcompose.lab.pictures.scenes import SHAPES, SIDES
from mcompose.lab.pictures.starts import start
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import FitSettings

__all__ = ["COARSE", "coarse_targets", "general_shares", "train_expert", "train_general"]

COARSE = {"kind": len(KINDS), "colour": len(COLOURS), "shape": len(SHAPES), "side": len(SIDES), "digit": 10, "count": 6,
          "columns": 4, "largest": 5}  # fmt: skip
"""Labels that the general encoder is trained on -> numbers of their classes."""
_READ: Final = 32  # pictures per step that the general encoder learns to read from, if it does


def train_expert(
    encoder: Encoder,
    pool: Pool,
    settings: FitSettings,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Trains an expert to read its domain.

    Args:
        encoder: The expert, trained in place and left in evaluation mode.
        pool: Pictures of its domain with targets.
        settings: Steps and learning rate.
        seed: The family's seed.
        progress: Called with the finished share, 0 to 1.
    """
    generator = generator_for(seed, "expert", encoder.name)
    reader = _Reader(encoder, encoder.name, pool)
    start(encoder, pool, generator=generator)
    encoder.model.train()
    fit(
        [*encoder.model.parameters(), *reader.heads.parameters()],
        settings,
        loss=lambda: reader.loss(generator, settings.batch),
        progress=progress,
    )
    encoder.model.eval()


def train_general(
    encoder: Encoder,
    pool: Pool,
    settings: FitSettings,
    *,
    seed: int,
    reading: Mapping[str, Pool] = MappingProxyType({}),
    progress: Callable[[float], None] | None = None,
) -> None:
    """Trains the general encoder to recognise what a picture shows as a whole.

    Args:
        encoder: The general encoder, trained in place and left in evaluation mode.
        pool: Pictures of all domains.
        settings: Steps and learning rate.
        seed: The family's seed.
        reading: Domain -> pictures with targets that it also learns to read.
        progress: Called with the finished share, 0 to 1.
    """
    generator = generator_for(seed, "general encoder")
    targets = coarse_targets(pool.pictures)
    shares = general_shares(pool.pictures, general=0.6)
    # One set of heads for the class token, which a router reads, and one for the patches, which a projector reads.
    heads = [nn.ModuleList(nn.Linear(encoder.width, classes) for classes in COARSE.values()) for _ in range(2)]
    readers = {name: _Reader(encoder, name, own) for name, own in reading.items()}
    turns = itertools.cycle(readers.values())
    start(encoder, pool, generator=generator)
    encoder.model.train()

    def loss() -> torch.Tensor:
        index = generator.choice(len(shares), size=settings.batch, p=shares)
        out = encoder.model(**pool.rows(index)).last_hidden_state
        wanted = targets[torch.from_numpy(index)]
        losses = [
            F.cross_entropy(head(seen), wanted[:, i], ignore_index=-100)
            for own, seen in zip(heads, (out[:, 0], out[:, 1:].mean(dim=1)), strict=True)
            for i, head in enumerate(own)
        ]
        seen = torch.stack([value for value in losses if torch.isfinite(value)]).sum()
        return seen + next(turns).loss(generator, _READ) if readers else seen

    taught = [*heads, *(reader.heads for reader in readers.values())]
    parameters = [*encoder.model.parameters(), *(weight for own in taught for weight in own.parameters())]
    fit(parameters, settings, loss=loss, progress=progress)
    encoder.model.eval()


class _Reader:
    """Heads that classify what is written in each patch, one per field of a domain."""

    def __init__(self, encoder: Encoder, domain: str, pool: Pool) -> None:
        self.encoder, self.pool = encoder, pool
        self.heads = nn.ModuleList(nn.Linear(encoder.width, 1 + len(names)) for names in FIELDS[domain].values())

    def loss(self, generator: np.random.Generator, count: int) -> torch.Tensor:
        """Draws pictures; returns their loss, summed over fields."""
        index = generator.integers(len(self.pool.pictures), size=count)
        tokens = self.encoder.encode(self.pool.rows(index))
        targets = self.pool.targets[torch.from_numpy(index)]
        losses = [
            F.cross_entropy(head(tokens).flatten(0, 1), targets[..., i].flatten()) for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).sum()


def general_shares(pictures: Sequence[Picture], *, general: float) -> np.ndarray:
    """Computes how often each picture is drawn, for a given share of pictures outside the experts' domains.

    Args:
        pictures: Pictures of all domains.
        general: Share of pictures outside the experts' domains, 0 to 1.

    Returns:
        Probabilities, (pictures,).
    """
    is_general = np.array([picture.domain == "none" for picture in pictures])
    return np.where(is_general, general / max(is_general.sum(), 1), (1 - general) / max((~is_general).sum(), 1))


def coarse_targets(pictures: Sequence[Picture]) -> torch.Tensor:
    """Returns the general encoder's labels.

    Args:
        pictures: Pictures of any kind.

    Returns:
        Classes, (pictures, labels); -100 where a label does not apply.
    """
    return torch.from_numpy(np.array([_coarse(picture) for picture in pictures], dtype=np.int64))


def _coarse(picture: Picture) -> list[int]:
    truth = picture.truth
    found = dict.fromkeys(COARSE, -100) | {"kind": list(KINDS).index(picture.kind)}
    if picture.kind == "shapes":
        found |= {"colour": list(COLOURS).index(truth["colour"]), "shape": SHAPES.index(truth["shape"])}
        found |= {"count": truth["count"]} | ({"side": SIDES.index(truth["side"])} if truth["side"] else {})
    elif picture.kind == "digit":
        found["digit"] = truth["digit"]
    elif picture.kind == "table":
        found |= {"count": len(truth["rows"]), "columns": len(truth["columns"])}
    elif picture.domain == "chart":
        found |= {"count": len(truth["names"]), "largest": int(np.argmax(truth["values"]))}
    else:
        found["count"] = len(truth["lines"] if picture.kind == "page" else truth["terms"])
    return list(found.values())
