"""Weights and parameters of a mergekit YAML, as those of a recipe.

For each tensor mergekit looks at the model, the slice, the file and the method's default, in this order, and uses the
first value whose filter matches. Here these four levels become one list of choices for each source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mcompose.recipe.document import Document, KeyPath
from mcompose.recipe.mergekit.schema import MergekitRef
from mcompose.recipe.values import Choice, Value

__all__ = ["NATIVE", "Draft", "Entry", "Group", "GroupSettings"]

NATIVE = (
    "linear",
    "task_arithmetic",
    "slerp",
    "nuslerp",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "karcher",
    "passthrough",
)
"""Methods of mergekit that mcompose implements itself, under the same names."""
WEIGHTED = ("linear", "nuslerp", "multislerp", "task_arithmetic", "ties", "dare", "breadcrumbs", "della")
PER_SOURCE = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15, "scale": 1.0}
"""Parameters that mergekit reads for each model, with their defaults; all others are common to the models."""
COMMON_EPSILON = ("ram", "ramplus_tl")
SWITCHES = ("normalize", "rescale", "filter_wise", "nuslerp_row_wise", "nuslerp_flatten", "normalize_weights")
IDLE = ("int8_mask", "embed_slerp")
"""Parameters that change mergekit's memory, or that it does not read any more."""
IDLE_FOR = {"task_arithmetic": ("density", "rescale")}
"""Method to parameters that mergekit accepts for it and does not use."""
DEFAULTS = {name: {"rescale": "mergekit"} for name in ("dare_linear", "dare_ties", "della", "della_linear")}
"""Method to mergekit's defaults that differ from mcompose's."""
RESCALE = {True: "mergekit", False: "none"}


@dataclass(frozen=True)
class Entry:
    """One model of ``models`` or of a slice."""

    ref: MergekitRef
    at: KeyPath
    parameters: Mapping[str, Any]
    layer_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """Models that are merged with each other: all of ``models``, or those of one slice."""

    entries: tuple[Entry, ...]
    base: MergekitRef | None
    at: KeyPath
    levels: tuple[tuple[Mapping[str, Any], KeyPath], ...]


@dataclass
class Draft:
    """The recipe that is being written, with the lines of the mergekit file that its keys come from."""

    document: Document
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    notes: list[str] = field(default_factory=list[str])
    names: dict[MergekitRef, str] = field(default_factory=dict["MergekitRef", str])

    def mark(self, key: KeyPath, *, at: KeyPath) -> None:
        """Gives a key of the recipe the line of a key of the mergekit file."""
        self.lines[key] = self.document.line(at)

    def note(self, sentence: str, *, at: KeyPath) -> None:
        """Adds a remark for the user, with file and line."""
        place = f"{self.document.file}:{self.document.line(at)}: {sentence}"
        if place not in self.notes:
            self.notes.append(place)


@dataclass(frozen=True)
class GroupSettings:
    """The settings of one group of models, from all levels of a mergekit file."""

    out: Draft
    method: str
    group: Group

    def write(self, target: dict[str, Any], *, at: KeyPath) -> None:
        """Adds ``weights`` and ``parameters`` to a merge or a slice."""
        is_weighted = self.method.startswith(WEIGHTED) or (
            self.method not in NATIVE and any("weight" in mapping for mapping, _ in self._all())
        )
        if is_weighted:
            target["weights"] = {self.out.names[entry.ref]: self._weight(entry, at=at) for entry in self.group.entries}
        parameters: dict[str, Any] = {}
        for key in self._keys():
            if key == "weight":
                if not is_weighted:
                    self._note_idle(key, reason=f"{self.method} does not take weights")
                continue
            if self.method in NATIVE and key in (*IDLE, *IDLE_FOR.get(self.method, ())):
                self._note_idle(key, reason=f"mergekit's {self.method} does not use it for the result")
                continue
            self._write_parameter(parameters, key, at=(*at, "parameters", key))
        parameters = {**DEFAULTS.get(self.method, {}), **parameters}
        if parameters:
            target["parameters"] = parameters

    def _all(self) -> list[tuple[Mapping[str, Any], KeyPath]]:
        mine = [(entry.parameters, (*entry.at, "parameters")) for entry in self.group.entries]
        return [*mine, *self.group.levels]

    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for mapping, _ in self._all() for key in mapping))

    def _where(self, key: str) -> KeyPath:
        return next((*at, key) for mapping, at in self._all() if key in mapping)

    def _note_idle(self, key: str, *, reason: str) -> None:
        self.out.note(f"'{key}' has no effect: {reason}.", at=self._where(key))

    def _weight(self, entry: Entry, *, at: KeyPath) -> Value:
        name = self.out.names[entry.ref]
        levels = [(entry.parameters, (*entry.at, "parameters")), *self.group.levels]
        chosen = _chain(mapping["weight"] for mapping, _ in levels if "weight" in mapping)
        if chosen is None:
            hint = "Set 'parameters.weight', which mergekit requires too."
            if entry.at == ("base_model",):
                hint = f"{self.method} merges the base like any other model; give it a weight or remove 'base_model'."
            raise self.out.document.error(f"'{entry.ref.path}' has no 'weight'.", at=entry.at, hint=hint)
        place = next((*where, "weight") for mapping, where in levels if "weight" in mapping)
        self.out.mark((*at, "weights", name), at=place)
        return chosen

    def _write_parameter(self, parameters: dict[str, Any], key: str, *, at: KeyPath) -> None:
        self.out.mark(at, at=self._where(key))
        common = [self._translate(key, mapping[key]) for mapping, _ in self.group.levels if key in mapping]
        is_own = any(key in entry.parameters for entry in self.group.entries)
        # A model's filters are matched against its own tensor names, which with slices differ from the output's.
        is_own = is_own or (key in PER_SOURCE and any(_is_choices(value) for value in common))
        if not is_own or not self._is_per_source(key):
            for entry in self.group.entries:
                if key in entry.parameters:
                    where = (*entry.at, "parameters", key)
                    self.out.note(f"'{key}' of one model has no effect, as in mergekit.", at=where)
            if common:
                parameters[key] = _chain(common)
            return
        values: dict[str, Value] = {}
        for entry in self.group.entries:
            own = [self._translate(key, entry.parameters[key])] if key in entry.parameters else []
            default = [PER_SOURCE[key]] if key in PER_SOURCE else []
            chosen = _chain([*own, *common, *default])
            if chosen is None:
                raise self.out.document.error(f"'{entry.ref.path}' has no '{key}'.", at=entry.at)
            values[self.out.names[entry.ref]] = chosen
        # passthrough has one source, so its scale is one value.
        parameters[key] = values if self.method != "passthrough" else next(iter(values.values()))

    def _translate(self, key: str, value: Value) -> Value:
        """Returns a switch as mcompose writes it: mergekit accepts 1 for true, and its rescale is a name here."""
        if key not in SWITCHES or isinstance(value, tuple) or value not in (0, 1):
            return value
        return RESCALE[bool(value)] if key == "rescale" and self.method in NATIVE else bool(value)

    def _is_per_source(self, key: str) -> bool:
        if self.method not in NATIVE and key not in PER_SOURCE:
            return self.method not in COMMON_EPSILON
        return key in PER_SOURCE and not (key == "epsilon" and self.method in COMMON_EPSILON)


def _is_choices(value: Value) -> bool:
    return isinstance(value, tuple) and isinstance(value[0], Choice)


def _chain(values: Iterable[Value]) -> Value | None:
    """Joins values into one that tries them in turn, until a filter matches."""
    choices: list[Choice] = []
    for value in values:
        for choice in _as_choices(value):
            choices.append(choice)
            if choice.filter in {None, "*"}:
                return choices[0].value if len(choices) == 1 else tuple(choices)
    return tuple(choices) or None


def _as_choices(value: Value) -> tuple[Choice, ...]:
    if isinstance(value, tuple) and isinstance(value[0], Choice):
        return tuple(choice for choice in value if isinstance(choice, Choice))
    return (Choice(value),)  # pyright: ignore[reportArgumentType] - a tuple of choices was handled above
