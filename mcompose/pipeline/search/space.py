"""What a search varies: the weights of the sources, and parameters of the merge method.

Weights that add up (averages: NaiveMC, linear) live on a simplex. It is sampled by breaking a stick: of what is left,
source k takes 1 - (1 - u)^(1/n) with n sources after it, so that uniform u give uniform weights, and every axis is an
ordinary interval. Weights of deltas (task arithmetic, TIES, ...) are free numbers between two bounds. With a gradient,
every anchor over the layers has weights of its own.

All values are rounded to what a recipe can say in four digits, before they are tried: what is written is what was
tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mcompose.recipe import LoadedRecipe, MergeSpec

__all__ = ["Axis", "Settings", "Space", "Weight", "applied"]

Weight = float | tuple[float, ...]
DIGITS = 4
MANTISSA = 10
"""Decimals of values on a grid, whose steps are what the user wrote but for the last bits."""


@dataclass(frozen=True)
class Settings:
    """What one trial merges with.

    Args:
        weights: Source to weight, or to its gradient; None where weights are not searched.
        parameters: Method parameter to value.
    """

    weights: Mapping[str, Weight] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        weights = None if self.weights is None else {name: _plain(value) for name, value in self.weights.items()}
        return {"weights": weights, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Reads what ``to_json`` gave."""
        weights = data["weights"]
        if weights is not None:
            weights = {name: tuple(v) if isinstance(v, list) else v for name, v in weights.items()}
        return cls(weights, dict(data["parameters"]))


def _plain(value: Weight) -> Any:
    return list(value) if isinstance(value, tuple) else value


def applied(loaded: LoadedRecipe, settings: Settings) -> LoadedRecipe:
    """Returns the recipe with a trial's settings in it; its text stays the authored one."""
    merge = loaded.recipe.merge
    update: dict[str, Any] = {"parameters": {**merge.parameters, **settings.parameters}}
    if settings.weights is not None:
        update["weights"] = dict(settings.weights)
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"merge": merge.model_copy(update=update)}))


@dataclass(frozen=True)
class Axis:
    """One number, or one word, that is varied.

    Args:
        name: ``parameter:density``, ``weight:sees``, ``share:sees@1``.
        low: Smallest value.
        high: Largest value.
        kind: Type of the values.
        step: Distance of neighbours; None for any value between the bounds.
        choices: The words or truths of a ``word``.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    kind: Literal["float", "int", "word"] = "float"
    step: float | None = None
    choices: tuple[str | bool, ...] = ()

    @property
    def label(self) -> str:
        """Its name without the kind."""
        return self.name.partition(":")[2]

    def values(self) -> tuple[float, ...]:
        """Returns all values of an axis with steps, ends included."""
        assert self.step is not None, "only axes with steps can be listed"
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        listed = [round(self.low + index * self.step, MANTISSA) for index in range(count)]
        return tuple(int(value) if self.kind == "int" else value for value in listed)

    def rounded(self, value: Any) -> Any:
        """Returns a value rounded as it is tried."""
        if self.kind != "float":
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Returns whether the axis has a value of the recipe."""
        if self.kind == "word":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (self.step is None or any(value == v for v in self.values()))


@dataclass(frozen=True)
class Space:
    """Everything that a search varies.

    Args:
        sources: Names of the sources, in order.
        mode: ``sum``: weights from 0 on that add up to ``total``; ``free``: weights between ``low`` and ``high``;
            ``none``: weights are left alone.
        total: Sum of the weights that add up.
        low: Smallest free weight; on a grid, of every weight that has an axis.
        high: Largest.
        step: Distance of neighbours on a grid; None for no grid.
        anchors: Weights a source has over the layers; 1 for one weight.
        parameters: Axes of the method's parameters.
    """

    sources: tuple[str, ...]
    mode: Literal["sum", "free", "none"]
    total: float = 1.0
    low: float = 0.0
    high: float = 1.0
    step: float | None = None
    anchors: int = 1
    parameters: tuple[Axis, ...] = ()

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Returns all axes: weights first, anchor by anchor."""
        return (*self._weight_axes(), *self.parameters)

    def _weight_axes(self) -> tuple[Axis, ...]:
        if self.mode == "none":
            return ()
        if self.step is not None:  # on a grid the first source takes what the others leave
            moving = self.sources[1:] if self.mode == "sum" else self.sources
            return tuple(Axis(f"weight:{name}", self.low, self.high, step=self.step) for name in moving)
        names = [f"@{anchor}" if self.anchors > 1 else "" for anchor in range(self.anchors)]
        if self.mode == "sum":
            return tuple(Axis(f"share:{source}{anchor}") for anchor in names for source in self.sources[:-1])
        return tuple(
            Axis(f"weight:{source}{anchor}", self.low, self.high) for anchor in names for source in self.sources
        )

    def settings(self, values: Mapping[str, Any]) -> Settings | None:
        """Returns the settings that values of the axes stand for.

        Args:
            values: Axis name to value.

        Returns:
            The settings; None for a grid point whose weights leave nothing for the first source.
        """
        parameters = {axis.label: axis.rounded(values[axis.name]) for axis in self.parameters}
        if self.mode == "none":
            return Settings(None, parameters)
        listed = [values[axis.name] for axis in self._weight_axes()]
        if self.step is not None:
            whole = [self._rest(listed), *listed] if self.mode == "sum" else listed
            return None if whole[0] < 0 else Settings(dict(zip(self.sources, whole, strict=True)), parameters)
        width = len(listed) // self.anchors
        rows = [self._row(listed[k * width : (k + 1) * width]) for k in range(self.anchors)]
        columns = list(zip(*rows, strict=True))
        weights = {
            name: column[0] if self.anchors == 1 else tuple(column)
            for name, column in zip(self.sources, columns, strict=True)
        }
        return Settings(weights, parameters)

    def _rest(self, listed: Sequence[float]) -> float:
        return round(self.total - sum(listed), MANTISSA)

    def _row(self, values: Sequence[float]) -> list[float]:
        """Weights of one anchor."""
        if self.mode == "free":
            return [Axis("", self.low, self.high).rounded(value) for value in values]
        left, sums = self.total, [0.0]
        for index, value in enumerate(values):
            left *= (1.0 - value) ** (1.0 / (len(values) - index))
            sums.append(round(self.total - left, DIGITS))  # rounded sums: no weight comes out below 0
        sums.append(self.total)
        return [round(after - before, MANTISSA) for before, after in itertools.pairwise(sums)]

    def values_of(self, merge: MergeSpec, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the place of a recipe's own settings in the space.

        Args:
            merge: The recipe's merge section.
            defaults: The method's defaults, by parameter.

        Returns:
            Axis name to value; None when they are outside, or on a grid, which has its own points.
        """
        if self.step is not None:
            return None
        values: dict[str, Any] = {}
        for axis in self.parameters:
            value = merge.parameters.get(axis.label, defaults.get(axis.label))
            if not axis.holds(value):
                return None
            values[axis.name] = value
        if self.mode == "none":
            return values
        rows = self._authored_rows(merge)
        if rows is None:
            return None
        listed = [value for row in rows for value in (self._shares(row) if self.mode == "sum" else row)]
        return {**dict(zip([axis.name for axis in self._weight_axes()], listed, strict=True)), **values}

    def _authored_rows(self, merge: MergeSpec) -> list[list[float]] | None:
        """Returns the recipe's weights, anchor by anchor; None when the space does not hold them."""
        given = merge.weights or dict.fromkeys(self.sources, 1.0 / len(self.sources))
        spread: list[tuple[float, ...]] = []
        for source in self.sources:
            value = given[source]
            line = value if isinstance(value, tuple) else (value,) * self.anchors
            if len(line) != self.anchors or not all(isinstance(v, int | float) for v in line):
                return None
            spread.append(line)
        rows = [list(map(float, row)) for row in zip(*spread, strict=True)]
        return rows if all(self._holds_row(row) for row in rows) else None

    def _holds_row(self, row: Sequence[float]) -> bool:
        if self.mode == "sum":
            return min(row) >= 0 and abs(sum(row) - self.total) < 1e-6
        return all(self.low <= value <= self.high for value in row)

    def _shares(self, row: Sequence[float]) -> list[float]:
        """Returns the stick-breaking shares that give these weights."""
        left, shares = self.total, []
        for index, weight in enumerate(row[:-1]):
            after = max(left - weight, 0.0)
            shares.append(1.0 - (after / left) ** (len(row) - 1 - index) if left > 1e-9 else 0.0)
            left = after
        return shares

    def coordinates(self, settings: Settings) -> dict[str, float]:
        """Returns the coordinates of a trial, for plots and tables.

        Args:
            settings: Settings of the trial.

        Returns:
            Label to number. Of weights that add up, the first is left out: it follows from the others.
        """
        found: dict[str, float] = {}
        for source in self.sources[1:] if self.mode == "sum" else self.sources if self.mode == "free" else ():
            value = (settings.weights or {})[source]
            line = value if isinstance(value, tuple) else (value,) * self.anchors
            found |= {f"{source}@{k}" if self.anchors > 1 else source: number for k, number in enumerate(line)}
        numbers = (axis for axis in self.parameters if axis.kind != "word")
        return found | {axis.label: settings.parameters[axis.label] for axis in numbers}

    def to_json(self) -> dict[str, Any]:
        """Returns everything that decides the space, as plain values."""
        axes = [{k: v for k, v in vars(axis).items() if v not in (None, ())} for axis in self.axes]
        return {"sources": list(self.sources), "mode": self.mode, "total": self.total, "axes": axes}
