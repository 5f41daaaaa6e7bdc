"""Data on stdout, talk on stderr: the only place that prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["data", "error", "json_data", "say", "table"]


def data(text: str) -> None:
    """Prints a result on stdout."""
    sys.stdout.write(text + "\n")


def json_data(value: Mapping[str, Any]) -> None:
    """Prints a result as JSON on stdout."""
    data(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def say(text: str) -> None:
    """Prints a remark on stderr."""
    sys.stderr.write(text + "\n")


def error(message: str, *, hint: str = "") -> None:
    """Prints an error and what to do next on stderr."""
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def table(rows: Sequence[Sequence[Any]], *, header: Sequence[str]) -> str:
    """Lays rows out in columns.

    Args:
        rows: Cells; numbers are set flush right, everything else flush left.
        header: Column titles.

    Returns:
        The table as text, without a trailing newline.
    """
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(line[k]) for line in [list(header), *texts]) for k in range(len(header))]
    right = [bool(rows) and all(isinstance(row[k], int | float) for row in rows) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), line(["-" * w for w in widths]), *(line(cells) for cells in texts)])


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
