"""Which class was taken for which: a router's labels against its choices.

Paper: Chimera, arXiv 2412.05983, supplement (router accuracy on MathVista, and which domain goes to which expert).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mcompose.errors import RequestError, nearest_name

__all__ = ["Confusion", "confusion_matrix"]


@dataclass(frozen=True)
class Confusion:
    """Counts of (label, prediction).

    Args:
        classes: Names, in the order of rows and columns.
        counts: Row per label, column per prediction.
        ignored: Pairs without a label, which are in no count.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    ignored: int = 0

    @property
    def total(self) -> int:
        """Pairs with a label."""
        return sum(map(sum, self.counts))

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions; None without any pair."""
        return _share(sum(self.counts[i][i] for i in range(len(self.classes))), self.total)

    @property
    def recall(self) -> dict[str, float | None]:
        """Per label, the share that was recognised; None for a label that never occurs."""
        return {
            name: _share(row[i], sum(row)) for i, (name, row) in enumerate(zip(self.classes, self.counts, strict=True))
        }

    @property
    def precision(self) -> dict[str, float | None]:
        """Per prediction, the share that was right; None for one that was never made."""
        columns = list(zip(*self.counts, strict=True))
        return {name: _share(columns[i][i], sum(columns[i])) for i, name in enumerate(self.classes)}

    def to_json(self) -> dict[str, Any]:
        """Counts and shares as plain values."""
        return {
            "classes": list(self.classes),
            "counts": [list(row) for row in self.counts],
            "n": self.total,
            "ignored": self.ignored,
            "accuracy": self.accuracy,
            "recall": self.recall,
            "precision": self.precision,
        }

    def to_text(self) -> str:
        """A table for people: a row per label, a column per prediction, recall at the right, precision below."""
        head = ["label", *self.classes, "recall"]
        rows = [
            [name, *map(str, row), _percent(self.recall[name])]
            for name, row in zip(self.classes, self.counts, strict=True)
        ]
        foot = ["precision", *(_percent(self.precision[name]) for name in self.classes), _percent(self.accuracy)]
        widths = [max(len(row[i]) for row in (head, *rows, foot)) for i in range(len(head))]
        lines = []
        for row in (head, *rows, foot):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells))
        return "\n".join(lines)


def confusion_matrix(pairs: Iterable[tuple[str | None, str]], *, classes: Sequence[str]) -> Confusion:
    """Counts pairs.

    Args:
        pairs: Label and prediction of each sample; a label of None (a sample without an image) is ignored.
        classes: All names, in the router's order ("none" first).

    Returns:
        The counts.

    Raises:
        RequestError: A class is named twice, or a pair names none of them.
    """
    at = {name: i for i, name in enumerate(classes)}
    if len(at) != len(classes):
        raise RequestError(f"A class is named twice: {', '.join(classes)}.")
    counts = [[0] * len(at) for _ in at]
    ignored = 0
    for number, (label, predicted) in enumerate(pairs):
        for name in (label, predicted):
            if name is not None and name not in at:
                raise RequestError(f"Pair {number} names '{name}', which is not a class.", hint=nearest_name(name, at))
        if label is None:
            ignored += 1
        else:
            counts[at[label]][at[predicted]] += 1
    return Confusion(tuple(classes), tuple(map(tuple, counts)), ignored)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
