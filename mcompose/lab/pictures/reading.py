"""Training targets of an expert: the words that are written in every patch.

The words of a picture are marks with boxes. A patch belongs to the mark that covers most of it, and linear heads, one
per field, predict that mark's words from the patch's token. The heads are discarded; the encoder is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from mcompose.lab.pictures.documents import MOST_LINES, OPERATORS, ROLES
from mcompose.lab.pictures.encoders import Encoder
from mcompose.lab.pictures.picture import Mark, Picture
from mcompose.lab.pictures.sources import COLUMN_NAMES, ROW_NAMES

__all__ = ["FIELDS", "Pool", "classes", "encoded", "make_pool", "overlaps", "token_marks"]

_DIGITS: Final = tuple(str(n) for n in range(10))
_NAMES: Final = tuple(dict.fromkeys((*ROW_NAMES, *COLUMN_NAMES)))
_LINES: Final = tuple(str(1 + n) for n in range(MOST_LINES))

FIELDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "chart": {"name": _NAMES, "tens": _DIGITS, "units": _DIGITS},
    "table": {"row": ROW_NAMES, "column": COLUMN_NAMES, "tens": _DIGITS, "units": _DIGITS},
    "document": {
        "place": ("1", "2", "3", *ROLES),
        "line": _LINES,
        "word": (*_NAMES, *OPERATORS),
        "tens": _DIGITS,
        "units": _DIGITS,
    },
}
"""Domain -> field -> its possible words; class 0 of a head is "nothing", so word i is class i + 1."""

_CHUNK: Final = 250
_LEAST_SHARE: Final = 0.12
_IGNORED: Final = -100


@dataclass(frozen=True)
class Pool:
    """Pictures of one domain, prepared for an encoder.

    Args:
        inputs: Inputs of the encoder by name; floats are kept in half precision.
        targets: Class of every token and field, (pictures, tokens, fields); -100 where a token has no target.
        boxes: Box of each token's patch, (pictures, tokens, 4).
        pictures: The pictures.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    boxes: np.ndarray
    pictures: tuple[Picture, ...]

    def rows(self, index: np.ndarray | slice) -> dict[str, torch.Tensor]:
        """Returns the encoder's inputs for some pictures."""
        chosen = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        return {name: values[chosen].float() for name, values in self.inputs.items()}


def make_pool(encoder: Encoder, pictures: Sequence[Picture], *, domain: str | None = None) -> Pool:
    """Prepares pictures for an encoder.

    Args:
        encoder: Encoder to prepare them for.
        pictures: Pictures of one domain.
        domain: Domain whose fields are the targets; None for no targets.

    Returns:
        The prepared pictures.
    """
    parts: list[dict[str, torch.Tensor]] = []
    boxes, targets = [], []
    for start in range(0, len(pictures), _CHUNK):
        some = pictures[start : start + _CHUNK]
        inputs = encoder.prepare([picture.image for picture in some])
        own = encoder.token_boxes(inputs, [picture.image.size for picture in some])
        boxes.append(own)
        if domain:
            pairs = zip(some, own, strict=True)
            targets.append(np.stack([_targets(picture.marks, box, domain) for picture, box in pairs]))
        parts.append({name: values.half() for name, values in inputs.items()})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    asked = torch.from_numpy(np.concatenate(targets)) if targets else torch.zeros(0)
    return Pool(joined, asked, np.concatenate(boxes), tuple(pictures))


def overlaps(marks: Sequence[Mark], boxes: np.ndarray) -> np.ndarray:
    """Computes the share of each token's patch that each mark covers.

    Args:
        marks: The marks.
        boxes: Boxes of the tokens' patches, (tokens, 4).

    Returns:
        Shares of the patches, 0 to 1, (tokens, marks).
    """
    held = np.array([mark.box for mark in marks], dtype=np.float64)
    low = np.maximum(boxes[:, None, :2], held[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], held[None, :, 2:])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    return np.prod(np.maximum(high - low, 0), axis=-1) / np.maximum(area, 1e-9)[:, None]


def _targets(marks: Sequence[Mark], boxes: np.ndarray, domain: str) -> np.ndarray:
    labels = np.array([classes(mark, domain) for mark in marks])
    best = token_marks(marks, boxes)
    targets = labels[best]
    targets[best < 0] = [0] + [_IGNORED] * (len(FIELDS[domain]) - 1)
    return targets


def token_marks(marks: Sequence[Mark], boxes: np.ndarray) -> np.ndarray:
    """Returns the mark that each token belongs to.

    Args:
        marks: The marks.
        boxes: Boxes of the tokens' patches, (tokens, 4).

    Returns:
        Index of the mark that covers most of the token's patch, or -1 where none covers enough of it, (tokens,).
    """
    if not marks:
        return np.full(len(boxes), -1)
    shares = overlaps(marks, boxes)
    return np.where(shares.max(axis=1) < _LEAST_SHARE, -1, shares.argmax(axis=1))


def classes(mark: Mark, domain: str) -> list[int]:
    """Returns the class of a mark in each field of its domain; 0 where it has none."""
    return [
        names.index(mark.fields[field]) + 1 if field in mark.fields else 0 for field, names in FIELDS[domain].items()
    ]


@torch.no_grad()
def encoded(encoder: Encoder, pool: Pool) -> torch.Tensor:
    """Returns the tokens of all pictures, (pictures, tokens, width)."""
    count = len(pool.pictures)
    return torch.cat([encoder.encode(pool.rows(slice(at, at + _CHUNK))) for at in range(0, count, _CHUNK)])
