"""Experts whose encoder is an ONNX graph: which value of it is read, what it takes, and what it makes of an item.

The file is read for what it declares, then run on two items of different shapes as onnxruntime and the expert's own
processor will run it later; nothing about its output is believed that was not seen. The file itself is copied as it is.
Imports torch and transformers; used by recipes with such experts only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

from mcompose.checkpoint import ExpertFile, open_files, plain_path
from mcompose.compose.experts.expert import NewExpert, OutputExpert
from mcompose.compose.experts.probe import check_same_count, meta_device, prepared_items
from mcompose.compose.experts.projector import projector_jobs, projector_of
from mcompose.errors import CheckpointError, CompositionError, HubError, nearest_name
from mcompose.modeling import (
    MAIN_INPUTS,
    Graph,
    OnnxEncoder,
    Value,
    build_projector,
    cut_graph,
    expert_summary,
    read_graph,
)

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.recipe import Expert, LoadedRecipe, Onnx
    from mcompose.refs import ModelRef

__all__ = ["open_graph_expert"]

_LAST = "last_hidden_state"
_FLOATS = ("float32", "float16", "float64")
_FED = (*_FLOATS, "uint8", "int8", "int32", "int64", "bool")


@dataclass(frozen=True)
class _Seen:
    """What a graph made of an item.

    Args:
        vectors: Number of vectors.
        width: Width of each.
        grid: Rows and columns of a map; None for vectors.
        tokens: Vectors after the projector.
        shapes: Parameter of the projector to its shape.
    """

    vectors: int
    width: int
    grid: tuple[int, int] | None
    tokens: int
    shapes: Mapping[str, tuple[int, ...]]


def open_graph_expert(name: str, spec: Expert, loaded: LoadedRecipe, *, text_width: int, weights: bool) -> OutputExpert:
    """Opens an ONNX expert of the recipe. Its file is fetched whole even for a plan: it has no header apart.

    Args:
        name: Name of the expert.
        spec: The expert's entry in the recipe.
        loaded: The recipe.
        text_width: Width of the language model.
        weights: Whether the weights of a trained projector will be read.

    Raises:
        CompositionError: The file is not an ONNX graph, has no such output, or does not fit its processor.
        CheckpointError: A file is not there.
    """
    assert spec.onnx is not None, "experts without a graph are opened elsewhere"
    _check_runtime(name)
    checkpoint, graph, data = _opened(name, spec, spec.onnx, loaded)
    settings, stored, left = _placed(name, spec, checkpoint, data)
    output = _output(name, spec.onnx, graph)
    settings["output"] = output
    folder = checkpoint.folder
    if spec.processor is not None:
        folder = _files(f"The processor of '{name}'", spec.processor, (), loaded).folder
    whole = (checkpoint.folder / spec.onnx.file).read_bytes()
    settings["inputs"], items = _taken(name, spec, read_graph(cut_graph(whole, output)).inputs, folder)
    projector, trained = projector_of(name, spec, loaded, weights=weights)
    encoder = OnnxEncoder(name, settings)
    encoder.contents = {file.name: file.path for file in stored or left}
    skip = spec.class_token if isinstance(spec.class_token, int) else 0
    seen = [_see(encoder, item, projector, skip=skip, text_width=text_width) for item in items]
    check_same_count(name, spec.modality, seen[0].tokens, seen[1].tokens)
    one = seen[0]
    entry: dict[str, Any] = {
        "onnx": settings,
        "modality": spec.modality,
        "domain": spec.domain or name,
        "layer": -1,
        "skip": skip,
        "padding": spec.padding,
        "projector": _settings(projector, one),
        "tokens": one.tokens,
    }
    if left:
        entry["reference"] = _reference(checkpoint, left)
    else:
        settings["sha256"] = {file.name: file.sha256 for file in stored}
    return OutputExpert(
        name,
        entry,
        expert_summary(entry, inputs=encoder.known, vectors=one.vectors),
        folder,
        tuple(projector_jobs(name, one.shapes, trained, seed=loaded.recipe.merge.seed)),
        new=NewExpert(spec, checkpoint),
        files=stored,
        left=left,
        note=_class_token(name, one, skip=skip, main=items[0]),
    )


def _check_runtime(name: str) -> None:
    try:
        import onnxruntime  # noqa: F401, PLC0415 - an extra, for ONNX experts only
    except ImportError as error:
        raise CompositionError(
            f"The expert '{name}' is an ONNX graph, which onnxruntime runs, and it is not installed.",
            hint="Install it: pip install 'mcompose[onnx]'.",
        ) from error


# files


def _files(what: str, ref: ModelRef, names: Sequence[str], loaded: LoadedRecipe) -> Checkpoint:
    try:
        return open_files(ref, names, relative_to=loaded.folder)
    except (CheckpointError, HubError) as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error


def _opened(name: str, spec: Expert, onnx: Onnx, loaded: LoadedRecipe) -> tuple[Checkpoint, Graph, dict[str, str]]:
    """The folder with the graph and its external data, what the graph declares, and location to file of the data."""
    what = f"Expert '{name}'"
    checkpoint = _files(what, spec.encoder, (onnx.file,), loaded)
    try:
        graph = read_graph((checkpoint.folder / onnx.file).read_bytes())
    except ValueError as error:
        raise CompositionError(
            f"'{onnx.file}' of expert '{name}' cannot be read: {error}.",
            hint="Is it whole, and not a pointer of Git LFS?",
        ) from error
    data = {}
    for location in graph.locations:
        if not plain_path(location):
            raise CompositionError(
                f"'{onnx.file}' of expert '{name}' keeps weights in {location!a}, which leads out of its folder."
            )
        data[location] = (PurePosixPath(onnx.file).parent / location).as_posix()
    if data:
        checkpoint = _files(what, spec.encoder, (onnx.file, *data.values()), loaded)
    return checkpoint, graph, data


def _placed(
    name: str, spec: Expert, checkpoint: Checkpoint, data: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[ExpertFile, ...], tuple[ExpertFile, ...]]:
    """Returns where the config finds the files: those that are copied, or those of the reference."""
    assert spec.onnx is not None, "see open_graph_expert"
    sources = [spec.onnx.file, *dict.fromkeys(data.values())]
    if spec.store == "reference":
        names = {file: file for file in sources}
    else:
        names = {file: f"experts/{name}.onnx" + _ending(number) for number, file in enumerate(sources)}
    files = tuple(ExpertFile(checkpoint.folder / file, names[file], checkpoint.digests[file]) for file in sources)
    settings: dict[str, Any] = {"file": names[spec.onnx.file]}
    if data:
        settings["data"] = {location: names[file] for location, file in data.items()}
    return (settings, (), files) if spec.store == "reference" else (settings, files, ())


def _ending(number: int) -> str:
    return "" if number == 0 else "_data" if number == 1 else f"_data_{number}"


def _reference(checkpoint: Checkpoint, left: Sequence[ExpertFile]) -> dict[str, Any]:
    """Returns what fetches the files again, and tells that they are the same."""
    is_hub = checkpoint.ref.kind == "hub"
    return {
        "id": checkpoint.ref.location if is_hub else str(checkpoint.folder.resolve()),
        "commit": checkpoint.commit,
        "sha256": {file.name: file.sha256 for file in left},
    }


# inputs and outputs


def _output(name: str, onnx: Onnx, graph: Graph) -> str:
    listed = "; ".join(str(value) for value in graph.outputs.values())
    if onnx.output is not None:
        if onnx.output in graph.outputs or onnx.output in graph.inner:
            return onnx.output
        near = nearest_name(onnx.output, [*graph.outputs, *graph.inner])
        near = f"{near} " if near.startswith("Did you mean") else ""
        raise CompositionError(
            f"The graph of expert '{name}' makes no value called '{onnx.output}'.",
            hint=f"{near}Its outputs: {listed}; the values inside it count too.",
        )
    if _LAST in graph.outputs:
        return _LAST
    fit = [v.name for v in graph.outputs.values() if v.dtype in _FLOATS and v.shape and len(v.shape) in (3, 4)]
    if len(fit) != 1:
        found = "no output" if not fit else f"{len(fit)} outputs"
        raise CompositionError(
            f"The graph of expert '{name}' has {found} of floats with three or four dimensions, and none called "
            f"'{_LAST}': {listed}.",
            hint="Name the one to read, or a value inside the graph: 'onnx: {file: ..., output: ...}'.",
        )
    return fit[0]


def _taken(
    name: str, spec: Expert, needed: Mapping[str, Value], folder: Path
) -> tuple[dict[str, str], list[dict[str, torch.Tensor]]]:
    """Returns what the processor makes to the input that takes it, and two items as the graph takes them."""
    assert spec.onnx is not None, "see open_graph_expert"
    main = _main_input(name, spec.onnx, needed)
    items = prepared_items(name, spec.modality, folder, known=[*MAIN_INPUTS, *needed])
    inputs = _inputs(name, needed, main, items[0])
    return inputs, [{native: item[native] for native in inputs} for item in items]


def _main_input(name: str, onnx: Onnx, needed: Mapping[str, Value]) -> Value:
    listed = "; ".join(str(value) for value in needed.values()) or "none"
    wanted = onnx.input or next((known for known in MAIN_INPUTS if known in needed), None)
    if wanted is None and len(needed) == 1:
        wanted = next(iter(needed))
    if wanted is None or wanted not in needed:
        said = f"has no input '{wanted}'" if wanted else "does not tell which input takes the items"
        raise CompositionError(
            f"The graph of expert '{name}' {said}; the inputs that its output needs: {listed}.",
            hint="Name one: 'onnx: {file: ..., input: ...}'.",
        )
    value = needed[wanted]
    if value.dtype not in _FED:
        raise CompositionError(f"The input of expert '{name}' is of a type that cannot be fed: {value}.")
    return value


def _inputs(name: str, needed: Mapping[str, Value], main: Value, item: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns what the processor makes to the input that takes it."""
    made = ", ".join(f"'{key}'" for key in item) or "nothing that it could take"
    native = main.name if main.name in item else next((key for key in MAIN_INPUTS if key in item), None)
    if native is None:
        raise CompositionError(
            f"The processor of expert '{name}' makes {made}, and no picture or sound for the graph's '{main.name}'.",
            hint="'processor:' names another checkpoint.",
        )
    inputs = {native: main.name}
    for other in needed.values():
        if other.name == main.name:
            continue
        if other.name not in item or other.dtype not in _FED:
            raise CompositionError(
                f"The graph of expert '{name}' also takes {other}, and its processor makes {made}.",
                hint="Name an output that does not need it, or another processor.",
            )
        inputs[other.name] = other.name
    return inputs


# what it makes


def _see(
    encoder: OnnxEncoder, item: Mapping[str, torch.Tensor], projector: Mapping[str, Any], *, skip: int, text_width: int
) -> _Seen:
    try:
        x = encoder.run(item)
        if x.dim() not in (3, 4) or not x.is_floating_point():
            raise ValueError(
                f"its output '{encoder.settings['output']}' is {x.dtype} of {tuple(x.shape)}, neither vectors (items, "
                "vectors, width) nor a map (items, channels, rows, columns)"
            )
        grid = (int(x.shape[2]), int(x.shape[3])) if x.dim() == 4 else None
        vectors, width = (int(x.shape[1]), int(x.shape[2])) if grid is None else (math.prod(grid), int(x.shape[1]))
        if vectors <= skip:
            raise ValueError(f"it makes {vectors} vectors, and nothing is left when {skip} are dropped")
        seen = _Seen(vectors, width, grid, 0, {})
        with meta_device():
            built = build_projector(_settings(projector, seen), width=width, text_width=text_width)
            tokens = built(torch.empty(1, vectors - skip, width)).shape[1]
    except (ValueError, RuntimeError) as error:
        raise CompositionError(
            f"The expert '{encoder.name}' cannot read an item: {error}",
            hint="Do graph and processor belong together? 'onnx: {output: ...}' names another value of the graph.",
        ) from error
    shapes = {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()}
    return _Seen(vectors, width, grid, int(tokens), shapes)


def _settings(projector: Mapping[str, Any], seen: _Seen) -> dict[str, Any]:
    """Returns the projector's settings with the width, and with the grid where neighbours are folded."""
    folded = seen.grid is not None and projector["kind"] == "pixel_shuffle"
    return {**projector, "width": seen.width} | ({"grid": list(seen.grid or ())} if folded else {})


def _class_token(name: str, seen: _Seen, *, skip: int, main: Mapping[str, torch.Tensor]) -> str:
    """Asks about a vector that is one too many for a square of patches."""
    side = math.isqrt(max(seen.vectors - 1, 0))
    if skip or seen.grid or "pixel_values" not in main or side < 2 or side**2 + 1 != seen.vectors:
        return ""
    return (
        f"The graph of expert '{name}' makes {seen.vectors} vectors, {side} x {side} and one more: if the first is a "
        "class token, 'class_token: 1' leaves it out."
    )
