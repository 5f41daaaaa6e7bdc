"""What an ONNX file says of itself, and the same graph with another end: read from its bytes, nothing is run.

A protocol buffer is a list of numbered fields, and only the few that name values, nodes and external data are looked
into; weights are stepped over. ``cut_graph`` writes the same message with one output and without what this output does
not need, so that a value inside a graph (the features before a detector's head) can be read, and the head is neither
asked for its inputs nor computed. Bytes that stay are copied, never written anew.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (the numbers below are its field numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Graph", "Value", "cut_graph", "is_plain_path", "read_graph"]

Shape: TypeAlias = tuple[int | str, ...] | None
"""Sizes that are known, names of those that are not ("" without one); None for an unknown rank."""

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
# Message -> the numbers of its fields that may hold tensors somewhere, and what they are.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_GRAPH, _EXTERNAL = 7, 13
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE = 1, 5, 11, 12, 13
_DEEPEST = 50


@dataclass(frozen=True)
class Value:
    """A value that a graph declares.

    Args:
        name: Its name.
        dtype: As numpy calls it; "" when the file does not say.
        shape: Its shape.
    """

    name: str
    dtype: str = ""
    shape: Shape = None

    def __str__(self) -> str:
        sizes = "unknown" if self.shape is None else f"({', '.join(str(size or '?') for size in self.shape)})"
        return f"{self.name!r} {self.dtype} {sizes}".replace("  ", " ")


@dataclass(frozen=True)
class Graph:
    """What an ONNX file declares.

    Args:
        inputs: What has to be fed, by name.
        outputs: What it is made for, by name.
        inner: Names of the values in between, in the order of the file.
        locations: Names of the files, beside it, that hold its external data.
    """

    inputs: dict[str, Value]
    outputs: dict[str, Value]
    inner: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Field:
    """One field: its number, where it begins, and where its content is (or its number, of whole numbers)."""

    number: int
    begin: int
    start: int
    stop: int
    value: int = 0


@dataclass
class _Parts:
    """The fields of a graph, by what they are."""

    fields: list[_Field] = field(default_factory=list[_Field])
    declared: dict[int, dict[str, _Field]] = field(default_factory=dict[int, dict[str, _Field]])


def read_graph(data: bytes | memoryview) -> Graph:
    """Reads what an ONNX file declares.

    Args:
        data: The bytes of the file.

    Raises:
        ValueError: They are no ONNX graph.
    """
    view = memoryview(data)
    top = _graph_field(view)
    parts = _parts(view, top)
    fed = parts.declared[_INPUT].keys() - parts.declared[_INITIALIZER].keys()
    inputs = {name: _value(view, at) for name, at in parts.declared[_INPUT].items() if name in fed}
    outputs = {name: _value(view, at) for name, at in parts.declared[_OUTPUT].items()}
    nodes = [at for at in parts.fields if at.number == _NODE]
    made = [name for node in nodes for name in _names(view, node, 2)]
    inner = tuple(name for name in dict.fromkeys(made) if name and name not in outputs)
    return Graph(inputs, outputs, inner, tuple(dict.fromkeys(_locations(view, "model", 0, len(view)))))


def cut_graph(data: bytes | memoryview, output: str) -> bytes:
    """Returns an ONNX file with one output, and with nothing that this output does not need.

    Args:
        data: The bytes of the file.
        output: Any value of the graph.

    Raises:
        ValueError: The graph makes no such value.
    """
    view = memoryview(data)
    top = _graph_field(view)
    parts = _parts(view, top)
    needed, nodes = _needed(view, parts, output)
    body: list[bytes | memoryview] = []
    for at in parts.fields:
        if at.number == _OUTPUT or (at.number == _NODE and at not in nodes):
            continue
        if at.number in (_INPUT, _INITIALIZER) and _name_of(view, at) not in needed:
            continue
        body.append(view[at.begin : at.stop])
    known = parts.declared[_OUTPUT].get(output) or parts.declared[_VALUE].get(output)
    said = bytes(view[known.start : known.stop]) if known else _written(1, output.encode())
    body.append(_written(_OUTPUT, said))
    length = sum(map(len, body))
    rest = [view[at.begin : at.stop] for at in _fields(view, 0, len(view)) if at.number != _GRAPH]
    return b"".join([*rest, _head(_GRAPH, length), *body])


def is_plain_path(name: object) -> bool:
    """Returns whether a name is that of a file in or below its own folder: relative, without a way out."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or name[1:2] == ":":
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


# what an output needs


def _needed(view: memoryview, parts: _Parts, output: str) -> tuple[set[str], set[_Field]]:
    """Names that an output depends on, itself included, and the nodes that make them."""
    makers: dict[str, _Field] = {}
    for at in parts.fields:
        if at.number == _NODE:
            makers.update(dict.fromkeys(_names(view, at, 2), at))
    if output not in makers:
        raise ValueError(f"the graph makes no value called {output!r}")
    needed: set[str] = set()
    nodes: set[_Field] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        node = makers.get(name)
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += _reads(view, node, _DEEPEST)
    return needed, nodes


def _reads(view: memoryview, node: _Field, depth: int) -> list[str]:
    """Returns what a node reads, with everything that graphs inside it (of If and Loop) name."""
    found = _names(view, node, 1)
    for attribute in _of(view, node, 5):
        for inner in (*_of(view, attribute, 6), *_of(view, attribute, 11)):
            _check_depth(depth)
            found += _names_of(view, inner, _OUTPUT)
            for one in _of(view, inner, _NODE):
                found += _reads(view, one, depth - 1)
    return found


# messages


def _graph_field(view: memoryview) -> _Field:
    found = [at for at in _fields(view, 0, len(view)) if at.number == _GRAPH and not at.value]
    if len(found) != 1:
        raise ValueError("it holds no ONNX graph")
    return found[0]


def _parts(view: memoryview, graph: _Field) -> _Parts:
    parts = _Parts(list(_fields(view, graph.start, graph.stop)))
    for number in (_INITIALIZER, _INPUT, _OUTPUT, _VALUE):
        here = [at for at in parts.fields if at.number == number]
        parts.declared[number] = {_name_of(view, at): at for at in here}
    if not parts.declared[_OUTPUT] or not any(at.number == _NODE for at in parts.fields):
        raise ValueError("it holds no ONNX graph")
    return parts


def _value(view: memoryview, at: _Field) -> Value:
    name = _name_of(view, at)
    for kind in _of(view, at, 2):
        for tensor in _of(view, kind, 1):
            number = next((f.value for f in _fields(view, tensor.start, tensor.stop) if f.number == 1), 0)
            shape = next((_shape(view, found) for found in _of(view, tensor, 2)), None)
            return Value(name, _DTYPES.get(number, f"type {number}"), shape)
    return Value(name)


def _shape(view: memoryview, at: _Field) -> Shape:
    sizes: list[int | str] = []
    for dim in _of(view, at, 1):
        known = {f.number: f for f in _fields(view, dim.start, dim.stop)}
        sizes.append(known[1].value if 1 in known else _text(view, known[2]) if 2 in known else "")
    return tuple(size if isinstance(size, str) or size > 0 else "" for size in sizes)


def _locations(view: memoryview, kind: str, start: int, stop: int, depth: int = _DEEPEST) -> Iterator[str]:
    """Files of external data that tensors anywhere in a message name."""
    _check_depth(depth)
    if kind == "tensor":
        for at in _fields(view, start, stop):
            if at.number == _EXTERNAL:
                pair = {f.number: _text(view, f) for f in _fields(view, at.start, at.stop)}
                if pair.get(1) == "location":
                    yield pair.get(2, "")
        return
    for at in _fields(view, start, stop):
        if at.number in _INSIDE[kind]:
            yield from _locations(view, _INSIDE[kind][at.number], at.start, at.stop, depth - 1)


def _check_depth(depth: int) -> None:
    if depth <= 0:
        raise ValueError("its graphs are nested too deeply")


def _of(view: memoryview, at: _Field, number: int) -> list[_Field]:
    return [found for found in _fields(view, at.start, at.stop) if found.number == number]


def _names(view: memoryview, node: _Field, number: int) -> list[str]:
    return [_text(view, at) for at in _of(view, node, number)]


def _names_of(view: memoryview, graph: _Field, number: int) -> list[str]:
    return [_name_of(view, at) for at in _of(view, graph, number)]


def _name_of(view: memoryview, at: _Field) -> str:
    """Returns the name of an input, an output, a value, or a tensor."""
    number = 8 if at.number == _INITIALIZER else 1
    return next((_text(view, found) for found in _of(view, at, number)), "")


def _text(view: memoryview, at: _Field) -> str:
    try:
        return bytes(view[at.start : at.stop]).decode()
    except UnicodeDecodeError as error:
        raise ValueError("it holds no ONNX graph: a name is not a text") from error


# the wire


def _fields(view: memoryview, start: int, stop: int) -> Iterator[_Field]:
    """Yields the fields of the message between two places."""
    place = start
    while place < stop:
        begin = place
        key, place = _number(view, place, stop)
        number, wire = key >> 3, key & 7
        value = 0
        if wire == 0:
            value, end = _number(view, place, stop)
        elif wire == 2:
            length, place = _number(view, place, stop)
            end = place + length
        elif wire in (1, 5):
            end = place + (8 if wire == 1 else 4)
        else:
            raise ValueError("it is not an ONNX file")
        if end > stop or not number:
            raise ValueError("it is not an ONNX file, or is cut off")
        yield _Field(number, begin, place, end, value)
        place = end


def _number(view: memoryview, place: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while place < stop and shift < 70:
        byte = view[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("it is not an ONNX file, or is cut off")


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(length)


def _written(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
