"""Gathers what adapters say of their gates between two rows of a stage's log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["GateFigures"]


class GateFigures:
    """Running means of the figures that a model with adapters returns in training, on this process."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], list[Any]] = {}

    def add(self, figures: Mapping[str, Mapping[str, Mapping[str, Any]]] | None) -> None:
        """Adds one pass.

        Args:
            figures: ``adapter_figures`` of the output: set -> modality -> ``entropy`` in nats, and ``share`` (E,).
        """
        for name, by_modality in (figures or {}).items():
            for modality, row in by_modality.items():
                entropy, share = row["entropy"].detach(), row["share"].detach()
                before = self._sums.get((name, modality))
                self._sums[name, modality] = (
                    [1, entropy, share] if before is None else [before[0] + 1, before[1] + entropy, before[2] + share]
                )

    def take(self) -> dict[str, float]:
        """Returns means since the last call, and begins anew.

        ``gate_entropy/<set>/<modality>`` is the entropy as a part of the largest possible (1: all experts alike);
        ``least_share/<set>/<modality>`` the mean gate of the expert that is used least.
        """
        rows: dict[str, float] = {}
        for (name, modality), (count, entropy, share) in self._sums.items():
            largest = math.log(len(share)) or 1.0
            rows[f"gate_entropy/{name}/{modality}"] = float(entropy) / count / largest
            rows[f"least_share/{name}/{modality}"] = float(share.min()) / count
        self._sums.clear()
        return rows
