"""Compares two checkpoints tensor by tensor, and sums the differences over parts and layers.

The distance of a tensor is ``||a - b|| / ||a||`` in the Euclidean norm; the distance of a part is the same over all its
tensors together. Differences are computed in float32 and summed in float64, in pieces, so memory does not depend on the
size of tensors. Tensors without arithmetic (integers, 8-bit floats) are compared bit by bit, and ONNX graphs of experts
by their hashes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcompose.anatomy import EXPERT
from mcompose.checkpoint import (
    MERGEABLE_DTYPES,
    Checkpoint,
    TensorEntry,
    TensorFiles,
    decode,
    raw_dtype,
    stored_graphs,
)
from mcompose.progress import Progress, ProgressBar

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy

__all__ = ["DiffReport", "GroupDiff", "TensorDiff", "diff"]

CHUNK = 1 << 20
"""Elements that are compared at a time; bytes for tensors without arithmetic."""

STATES = ("equal", "differs", "dtype", "shape", "only_a", "only_b")
SHOWN = 20


@dataclass(frozen=True)
class TensorDiff:
    """Difference of one tensor.

    Args:
        name: Name that both checkpoints share, or the name in the only one that has it.
        state: ``equal`` (bit by bit), ``differs``, ``dtype``, ``shape``, ``only_a`` or ``only_b``.
        part: Part of the model; empty when the parts are not known.
        layer: Layer in that part; None outside the layers.
        a: Key, dtype and shape in the first checkpoint, as text; empty when it does not have the tensor.
        b: Key, dtype and shape in the second checkpoint.
        difference: ``||a - b||``; None when it cannot be computed.
        norm: ``||a||``; None when it cannot be computed.
        max_abs: Largest absolute difference of an element; None when it cannot be computed.
    """

    name: str
    state: str
    part: str = ""
    layer: int | None = None
    a: str = ""
    b: str = ""
    difference: float | None = None
    norm: float | None = None
    max_abs: float | None = None

    @property
    def distance(self) -> float | None:
        """``||a - b|| / ||a||``; infinite when the first is all zeros and the second is not."""
        return _ratio(self.difference, self.norm)


@dataclass(frozen=True)
class GroupDiff:
    """Difference of the tensors of one part, or of one layer of a part, together.

    Args:
        part: Name of the part.
        layer: Index of the layer; None for the whole part, and for tensors outside the layers.
        counts: State to number of tensors, in the order of ``STATES``; states that do not occur are left out.
        distance: Distance over all elements that can be compared; None when there are none.
        max_abs: Largest absolute difference of an element.
    """

    part: str
    layer: int | None
    counts: dict[str, int]
    distance: float | None
    max_abs: float | None

    @classmethod
    def of(cls, part: str, layer: int | None, tensors: Sequence[TensorDiff]) -> GroupDiff:
        """Sums the differences of tensors."""
        numbers = [(t.difference, t.norm, t.max_abs) for t in tensors]
        known = [(d, n, m) for d, n, m in numbers if d is not None and n is not None and m is not None]
        states = [tensor.state for tensor in tensors]
        return cls(
            part,
            layer,
            {state: states.count(state) for state in STATES if state in states},
            _ratio(math.hypot(*(d for d, _, _ in known)), math.hypot(*(n for _, n, _ in known))) if known else None,
            float(np.max([m for _, _, m in known])) if known else None,
        )


@dataclass(frozen=True)
class DiffReport:
    """Differences between two checkpoints.

    Args:
        a: Reference of the first checkpoint.
        b: Reference of the second checkpoint.
        tensors: All tensors: in the order of the first checkpoint, then those that only the second has.
        parts: One row for each part; a single row without a name when the parts are not known.
        layers: One row for each layer of each part.
    """

    a: str
    b: str
    tensors: tuple[TensorDiff, ...]
    parts: tuple[GroupDiff, ...]
    layers: tuple[GroupDiff, ...]

    @property
    def equal(self) -> bool:
        """True when both have the same tensors, bit by bit."""
        return all(tensor.state == "equal" for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, for ``--json``; numbers that are not finite become None."""
        tensors = [{**dataclasses.asdict(tensor), "distance": tensor.distance} for tensor in self.tensors]
        groups = {"parts": self.parts, "layers": self.layers}
        summed = {key: [_finite(dataclasses.asdict(group)) for group in value] for key, value in groups.items()}
        return {"a": self.a, "b": self.b, "equal": self.equal, **summed, "tensors": [_finite(t) for t in tensors]}

    def to_text(self) -> str:
        """Formats the report as text: parts, then layers that differ, then tensors without a counterpart."""
        if self.equal:
            return f"'{self.a}' and '{self.b}' have the same {len(self.tensors)} tensors, bit by bit."
        lines = [f"a = {self.a}", f"b = {self.b}", *(_line(group.part or "all", group) for group in self.parts)]
        changed = [group for group in self.layers if group.layer is not None and set(group.counts) != {"equal"}]
        lines += [_line(f"  {group.part} layer {group.layer}", group) for group in changed]
        odd = [tensor for tensor in self.tensors if tensor.state in STATES[2:]]
        lines += [_odd(tensor) for tensor in odd[:SHOWN]]
        if len(odd) > SHOWN:
            lines.append(f"  ... and {len(odd) - SHOWN} more")
        return "\n".join(lines)


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    anatomy_a: Anatomy | None = None,
    anatomy_b: Anatomy | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compares two checkpoints.

    Args:
        a: First checkpoint; distances are relative to it.
        b: Second checkpoint.
        anatomy_a: Anatomy of the first. With both anatomies, tensors are matched by the name that the checkpoints
            share, however their files spell it; otherwise by key.
        anatomy_b: Anatomy of the second.
        progress: Receives the compared bytes of the first checkpoint.

    Returns:
        The report.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if anatomy_a is None or anatomy_b is None:
        anatomy_a = anatomy_b = None
    first, second = _places(a, anatomy_a), _places(b, anatomy_b)
    progress = progress or ProgressBar(quiet=True)
    progress.start(a.total_bytes, 0)
    tensors: list[TensorDiff] = []
    with TensorFiles() as files:
        for name, place in first.items():
            tensors.append(_compare(name, place, second.get(name), files))
            progress.advance(place.entry.nbytes)
    for name, place in second.items():
        if name not in first:
            tensors.append(TensorDiff(name, "only_b", place.part, place.layer, b=_shown(place.entry)))
    progress.finish()
    tensors += _graphs(stored_graphs(a.config), stored_graphs(b.config))
    return DiffReport(
        str(a.ref), str(b.ref), tuple(tensors), _groups(tensors, layers=False), _groups(tensors, layers=True)
    )


def _graphs(first: Mapping[str, str], second: Mapping[str, str]) -> list[TensorDiff]:
    """Compares the ONNX graphs of experts, which are files and not tensors, by the hashes in the configs."""
    rows = []
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name), second.get(name)
        state = "only_b" if one is None else "only_a" if other is None else "equal" if one == other else "differs"
        a, b = ("" if digest is None else f"sha256 {digest[:12]}" for digest in (one, other))
        rows.append(TensorDiff(name, state, EXPERT, a=a, b=b))
    return rows


@dataclass(frozen=True)
class _Place:
    entry: TensorEntry
    part: str = ""
    layer: int | None = None


def _places(checkpoint: Checkpoint, anatomy: Anatomy | None) -> dict[str, _Place]:
    """Returns shared name to tensor; tensors that the model does not use are listed by part and key."""
    if anatomy is None:
        return {key: _Place(entry) for key, entry in checkpoint.tensors.items()}
    used = {slot.key for slot in anatomy.by_name().values()}
    return {
        slot.name if slot.key in used else f"{slot.part}:{slot.key}": _Place(
            checkpoint.tensors[slot.key], slot.part, slot.layer
        )
        for slot in anatomy.slots.values()
    }


def _compare(name: str, first: _Place, second: _Place | None, files: TensorFiles) -> TensorDiff:
    a = first.entry
    if second is None:
        return TensorDiff(name, "only_a", first.part, first.layer, a=_shown(a))
    b = second.entry
    facts: dict[str, Any] = {"part": first.part, "layer": first.layer, "a": _shown(a), "b": _shown(b)}
    if a.shape != b.shape:
        return TensorDiff(name, "shape", **facts)
    computable = a.dtype in MERGEABLE_DTYPES and b.dtype in MERGEABLE_DTYPES
    if not computable:
        same = a.dtype == b.dtype and _same_bytes(a, b, files)
        return TensorDiff(name, "equal" if same else "differs" if a.dtype == b.dtype else "dtype", **facts)
    same, difference, norm, max_abs = _measure(a, b, files)
    state = "dtype" if a.dtype != b.dtype else "equal" if same else "differs"
    return TensorDiff(name, state, **facts, difference=difference, norm=norm, max_abs=max_abs)


def _measure(a: TensorEntry, b: TensorEntry, files: TensorFiles) -> tuple[bool, float, float, float]:
    """Returns whether the bits are equal, ``||a - b||``, ``||a||`` and the largest absolute difference."""
    same, squares, norms, largest = a.dtype == b.dtype, 0.0, 0.0, 0.0
    count = math.prod(a.shape)
    for start in range(0, count, CHUNK):
        length = min(CHUNK, count - start)
        raw_a, raw_b = _piece(a, start, length, files), _piece(b, start, length, files)
        values = decode(raw_a, a.dtype)
        norms += _squares(values)
        if a.dtype == b.dtype and raw_a.tobytes() == raw_b.tobytes():
            continue
        same = False
        with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN show in the numbers
            delta = values - decode(raw_b, b.dtype)
        squares += _squares(delta)
        largest = float(np.maximum(largest, np.abs(delta).max()))
    return same, math.sqrt(squares), math.sqrt(norms), largest


def _piece(entry: TensorEntry, start: int, length: int, files: TensorFiles) -> NDArray[Any]:
    raw = np.empty(length, raw_dtype(entry.dtype))
    files.read_into(entry, raw.view(np.uint8).data, start=start * raw.itemsize)
    return raw


def _squares(values: NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(np.dot(wide, wide))


def _same_bytes(a: TensorEntry, b: TensorEntry, files: TensorFiles) -> bool:
    if a.nbytes != b.nbytes:
        return False
    for start in range(0, a.nbytes, CHUNK):
        one, other = bytearray(min(CHUNK, a.nbytes - start)), bytearray(min(CHUNK, a.nbytes - start))
        files.read_into(a, memoryview(one), start=start)
        files.read_into(b, memoryview(other), start=start)
        if one != other:
            return False
    return True


def _groups(tensors: Iterable[TensorDiff], *, layers: bool) -> tuple[GroupDiff, ...]:
    """Groups tensors by part, or by part and layer, in the order of their first tensor."""
    groups: dict[tuple[str, int | None], list[TensorDiff]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.part, tensor.layer if layers else None), []).append(tensor)
    return tuple(GroupDiff.of(part, layer, members) for (part, layer), members in groups.items())


def _ratio(difference: float | None, norm: float | None) -> float | None:
    if difference is None or norm is None:
        return None
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / norm


def _shown(entry: TensorEntry) -> str:
    return f"{entry.key} {entry.dtype} {list(entry.shape)}"


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _line(label: str, group: GroupDiff) -> str:
    counts = ", ".join(f"{count} {_WORDS[state]}" for state, count in group.counts.items())
    figures = "" if group.distance is None else f"  distance {group.distance:.3g}, largest {group.max_abs:.3g}"
    return f"{label}: {counts}{figures}"


def _odd(tensor: TensorDiff) -> str:
    return f"  {tensor.name}: {_WORDS[tensor.state]} (a: {tensor.a or 'absent'}; b: {tensor.b or 'absent'})"


_WORDS = {
    "equal": "equal",
    "differs": "differ",
    "dtype": "of another dtype",
    "shape": "of another shape",
    "only_a": "only in a",
    "only_b": "only in b",
}
