"""A reproduced table of the lab, as text, JSON and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.lab import Row, table_json, wide_table

__all__ = ["LabReport"]


@dataclass(frozen=True)
class LabReport:
    """A reproduced table.

    Args:
        name: Of the report.
        rows: Mean and spread over the seeds.
        plot: The picture.
        columns: Metrics that are printed side by side; empty for one line a metric.
    """

    name: str
    rows: tuple[Row, ...]
    plot: Path
    columns: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        return table_json(self.name, self.rows)

    def table(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """What is printed: header and rows."""
        if not self.columns:
            return ("variant", "metric", "mean", "std", "n"), [tuple(vars(row).values()) for row in self.rows]
        return wide_table(self.rows, self.columns)
