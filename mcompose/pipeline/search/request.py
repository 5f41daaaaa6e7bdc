"""From what the user asked for to the space that is searched; everything that cannot work is refused here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mcompose.errors import RequestError, nearest_name
from mcompose.merge import find_method
from mcompose.methods import REQUIRED
from mcompose.pipeline.search.consistency import Point, changed_answers, grid_points
from mcompose.pipeline.search.space import Axis, Space

if TYPE_CHECKING:
    from mcompose.methods import Method, Parameter
    from mcompose.recipe import LoadedRecipe

__all__ = ["SpaceRequest", "defaults_of", "make_grid", "make_space"]

PAPER_GRID = (0.0, 0.6, 0.1)
"""AdaMMS, arXiv:2503.23733: weight of the second model."""
FREE_GRID = (0.0, 1.0, 0.1)
LARGEST_GRID = 10_000


@dataclass(frozen=True)
class SpaceRequest:
    """What to vary, as the user says it; None where nothing is said.

    Args:
        weights: Whether to vary the weights at all.
        total: Sum of the weights.
        low: Smallest weight.
        high: Largest weight.
        step: Distance of neighbours on the grid of the consistency rule.
        gradient: Anchors over the layers.
        parameters: ``NAME:LOW:HIGH``, ``NAME:LOW:HIGH:STEP`` or ``NAME:word,word``.
    """

    weights: bool = True
    total: float | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    gradient: int | None = None
    parameters: tuple[str, ...] = ()


def make_space(loaded: LoadedRecipe, wanted: SpaceRequest, *, on_grid: bool) -> Space:
    """Decides the space.

    Args:
        loaded: The recipe.
        wanted: Search space that the user asks for.
        on_grid: True for the consistency rule.

    Returns:
        The space.

    Raises:
        RequestError: There is nothing to search, or a bound makes no sense.
    """
    merge = loaded.recipe.merge
    method = find_method(merge.method)
    parameters = tuple(_parameter_axis(text, method, on_grid=on_grid) for text in wanted.parameters)
    _check_once(parameters)
    names = loaded.recipe.source_names
    is_weighted = method.weighted or method.name == "weight-mix"
    if not is_weighted and not parameters:
        raise RequestError(
            f"'{method.name}' takes no weights, and no parameter is named to search.", hint=_searchable(method)
        )
    mode = _mode(method, wanted, on_grid=on_grid) if is_weighted and wanted.weights else "none"
    if mode == "none":
        if not parameters:
            raise RequestError("Nothing is left to search without weights.", hint=_searchable(method))
        _refuse_bounds(wanted, why="no weights are searched")
        return Space(names, "none", parameters=parameters)
    if mode == "sum" and len(names) == 1:
        raise RequestError(
            f"'{loaded.path}' has one source, whose weight is all there is.",
            hint="Add a source, or search a parameter.",
        )
    return _weighted_space(names, mode, wanted, parameters, on_grid=on_grid)


def _mode(method: Method, wanted: SpaceRequest, *, on_grid: bool) -> Literal["sum", "free"]:
    bounded = wanted.low is not None or wanted.high is not None
    averages = method.space == "weights"
    if wanted.total is not None and bounded and not on_grid:
        raise RequestError(
            "Weights that add up start from 0; they take no bounds.", hint="Give '--sum', or '--low' and '--high'."
        )
    return "sum" if wanted.total is not None or (averages and (on_grid or not bounded)) else "free"


def _weighted_space(
    names: tuple[str, ...],
    mode: Literal["sum", "free"],
    wanted: SpaceRequest,
    parameters: tuple[Axis, ...],
    *,
    on_grid: bool,
) -> Space:
    total = 1.0 if wanted.total is None else wanted.total
    low, high, step = (PAPER_GRID if mode == "sum" else FREE_GRID) if on_grid else (0.0, 1.0, None)
    low, high = (low if wanted.low is None else wanted.low), (high if wanted.high is None else wanted.high)
    if not (math.isfinite(total) and total > 0):
        raise RequestError(f"'--sum {total:g}' is not a sum that weights can have.", hint="Give a number above 0.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RequestError(
            f"There is no weight between {low:g} and {high:g}.", hint="'--low' must be less than '--high'."
        )
    if mode == "sum" and low < 0:
        raise RequestError(f"'--low {low:g}': weights that add up start from 0.", hint="Leave '--sum' out.")
    if wanted.step is not None and not on_grid:
        raise RequestError("'--step' is for the grid of '--objective consistency'.", hint="Leave it out.")
    anchors = 1 if wanted.gradient is None else wanted.gradient
    if anchors < 1 or (anchors > 1 and on_grid):
        raise RequestError(
            f"'--gradient {anchors}' cannot be searched here.",
            hint="A gradient has 2 anchors or more, and the grid of '--objective consistency' none.",
        )
    step = (step if wanted.step is None else _step(wanted.step, low, high)) if on_grid else None
    return Space(names, mode, total, low, high, step, anchors, parameters)


def _step(step: float, low: float, high: float) -> float:
    if not 0 < step <= high - low:
        raise RequestError(f"'--step {step:g}' does not fit between {low:g} and {high:g}.", hint="Give a smaller one.")
    return step


def _refuse_bounds(wanted: SpaceRequest, *, why: str) -> None:
    given = {"--sum": wanted.total, "--low": wanted.low, "--high": wanted.high, "--step": wanted.step}
    named = next((name for name, value in {**given, "--gradient": wanted.gradient}.items() if value is not None), None)
    if named is not None:
        raise RequestError(f"'{named}' is for weights, and {why}.", hint="Leave it out.")


def _searchable(method: Method) -> str:
    names = [p.name for p in method.parameters if p.kind in {float, int}]
    if not names:
        return "Choose a method with weights or parameters, such as 'linear'."
    return f"Name one of its parameters: --parameter {names[0]}:LOW:HIGH (it has {', '.join(names)})."


def _check_once(axes: tuple[Axis, ...]) -> None:
    names = [axis.label for axis in axes]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise RequestError(f"The parameter '{twice}' is given twice.", hint="Give one range.")


def _parameter_axis(text: str, method: Method, *, on_grid: bool) -> Axis:
    name, *rest = text.split(":")
    known = {parameter.name: parameter for parameter in method.parameters}
    if name not in known:
        hint = nearest_name(name, known) or f"'{method.name}' takes no parameters."
        raise RequestError(f"'{method.name}' has no parameter '{name}'.", hint=hint)
    if known[name].kind in {str, bool}:
        return _words(text, rest, known[name], on_grid=on_grid)
    numbers = [_number(part, text) for part in rest]
    if len(numbers) not in {2, 3} or not numbers[0] < numbers[1]:
        raise _bad_axis(text)
    low, high, step = numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None
    kind: Literal["float", "int"] = "int" if known[name].kind is int else "float"
    if kind == "int":
        if any(not number.is_integer() for number in numbers):
            raise RequestError(f"'--parameter {text}': '{name}' is a whole number.", hint="Give whole numbers.")
        step = step or 1.0
    if step is not None and not 0 < step <= high - low:
        raise _bad_axis(text)
    _check_range(known[name], (low, high), text)
    if on_grid and step is None:
        raise RequestError(
            f"'--parameter {text}' needs a step for the grid.", hint=f"Write '{name}:{low:g}:{high:g}:STEP'."
        )
    return Axis(f"parameter:{name}", low, high, kind, step)


def _words(text: str, rest: list[str], parameter: Parameter, *, on_grid: bool) -> Axis:
    words = rest[0].split(",") if len(rest) == 1 else []
    if len(words) < 2 or on_grid:
        raise (
            _bad_axis(text)
            if not on_grid
            else RequestError(
                f"'--parameter {text}': words have no neighbours.", hint="Search them by another objective."
            )
        )
    choices: tuple[str | bool, ...] = tuple(words)
    allowed = parameter.choices
    if parameter.kind is bool:
        allowed = ("true", "false")
        choices = tuple(word == "true" for word in words)
    odd = next((word for word in words if allowed and word not in allowed), None)
    if odd is not None:
        raise RequestError(f"'{parameter.name}' cannot be '{odd}'.", hint=nearest_name(odd, allowed))
    return Axis(f"parameter:{parameter.name}", kind="word", choices=choices)


def _number(part: str, text: str) -> float:
    try:
        number = float(part)
    except ValueError:
        raise _bad_axis(text) from None
    if not math.isfinite(number):
        raise _bad_axis(text)
    return number


def _bad_axis(text: str) -> RequestError:
    return RequestError(
        f"'--parameter {text}' is not a range.", hint="Write NAME:LOW:HIGH, NAME:LOW:HIGH:STEP, or NAME:word,word."
    )


def _check_range(parameter: Parameter, bounds: tuple[float, float], text: str) -> None:
    low, high = parameter.low, parameter.high
    if (low is not None and bounds[0] < low) or (high is not None and bounds[1] > high):
        spelt = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
        raise RequestError(f"'--parameter {text}': '{parameter.name}' must be {spelt}.", hint="Give narrower bounds.")


def defaults_of(loaded: LoadedRecipe) -> dict[str, Any]:
    """Returns the method's default of each parameter."""
    method = find_method(loaded.recipe.merge.method)
    return {p.name: p.default for p in method.parameters if p.default is not REQUIRED}


def make_grid(space: Space) -> dict[Point, Mapping[str, Any]]:
    """All points of a space with steps.

    Args:
        space: The space.

    Returns:
        Place to axis values, in order; places that leave nothing for the first source are not among them.

    Raises:
        RequestError: No point has neighbours on all sides, or there are too many.
    """
    listed = [axis.values() for axis in space.axes]
    if math.prod(map(len, listed)) > LARGEST_GRID:
        raise RequestError(
            f"The grid has {math.prod(map(len, listed)):,} points.",
            hint="Give a larger '--step', or search fewer things.",
        )
    grid: dict[Point, Mapping[str, Any]] = {}
    for place in grid_points([len(values) for values in listed]):
        values = {axis.name: own[k] for axis, own, k in zip(space.axes, listed, place, strict=True)}
        if space.settings(values) is not None:
            grid[place] = values
    if not changed_answers(dict.fromkeys(grid, ())):
        raise RequestError(
            "No point of the grid has neighbours on all sides, so that none can be chosen.",
            hint="Three values along every axis are the least: give a smaller '--step', or wider bounds.",
        )
    return grid
