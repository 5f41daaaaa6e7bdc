"""Tiny ONNX graphs with known numbers, each beside the same computation written in torch.

``patches``: a convolution over 28 x 28 pixels into a map (n, 8, 2, 2), and a head behind it that ends in logits.
``tokens``: the same patches as vectors behind a class token, multiplied, (n, 5, 8): a ViT without its middle.
``frames``: a convolution over (n, 4, 100) features of a sound, into 50 vectors of width 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers as t
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

WIDTH = 8


def _numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


WEIGHTS = {
    "kernel": _numbers(WIDTH, 3, 14, 14, seed=1),
    "mix": _numbers(WIDTH, WIDTH, seed=2),
    "class": _numbers(1, 1, WIDTH, seed=3),
    "head": _numbers(WIDTH, 5, seed=4),
    "ear": _numbers(WIDTH, 4, 2, seed=5),
}


def _patch_nodes(pixels: str) -> list[Any]:
    return [
        h.make_node("Conv", [pixels, "kernel"], ["conv"], kernel_shape=[14, 14], strides=[14, 14]),
        h.make_node("Relu", ["conv"], ["map"]),
    ]


def _graph(kind: str, rows: Any, pixels: str, dtype: int) -> tuple[list[Any], Any, list[Any], list[str]]:
    side = h.make_tensor_value_info(pixels, dtype, [rows, 3, 28, 28])
    if kind == "patches":
        nodes = [
            *_patch_nodes(pixels),
            h.make_node("GlobalAveragePool", ["map"], ["pooled"]),
            h.make_node("Flatten", ["pooled"], ["flat"]),
            h.make_node("MatMul", ["flat", "head"], ["logits"]),
        ]
        return nodes, side, [h.make_tensor_value_info("logits", dtype, [rows, 5])], ["kernel", "head"]
    if kind == "tokens":
        nodes = [
            *_patch_nodes(pixels),
            h.make_node("Reshape", ["map", "to_rows"], ["rows"]),
            h.make_node("Transpose", ["rows"], ["patches"], perm=[0, 2, 1]),
            h.make_node("Shape", ["patches"], ["size"]),
            h.make_node("Slice", ["size", "zero", "one"], ["count"]),
            h.make_node("Concat", ["count", "ones"], ["full"], axis=0),
            h.make_node("Expand", ["class", "full"], ["classes"]),
            h.make_node("Concat", ["classes", "patches"], ["all"], axis=1),
            h.make_node("MatMul", ["all", "mix"], ["last_hidden_state"]),
            h.make_node("ReduceMean", ["last_hidden_state"], ["pooler_output"], axes=[1], keepdims=0),
        ]
        outputs = [
            h.make_tensor_value_info("last_hidden_state", dtype, [rows, "count", "width"]),
            h.make_tensor_value_info("pooler_output", dtype, [rows, WIDTH]),
        ]
        return nodes, side, outputs, ["kernel", "mix", "class"]
    nodes = [
        h.make_node("Conv", [pixels, "ear"], ["heard"], kernel_shape=[2], strides=[2]),
        h.make_node("Transpose", ["heard"], ["frames"], perm=[0, 2, 1]),
    ]
    side = h.make_tensor_value_info(pixels, dtype, [rows, 4, "time"])
    return nodes, side, [h.make_tensor_value_info("frames", dtype, [rows, "count", WIDTH])], ["ear"]


def write_graph(
    path: Path, kind: str, *, rows: Any = "n", pixels: str = "pixel_values", half: bool = False, data: str = ""
) -> Path:
    """Writes a graph.

    Args:
        path: The file.
        kind: Which one.
        rows: Items at once: a name for any number of them, or the number.
        pixels: Name of its input.
        half: Whether it is computed in float16.
        data: Name of a file for its weights; in the graph itself without one.
    """
    dtype = T.FLOAT16 if half else T.FLOAT
    nodes, side, outputs, names = _graph(kind, rows, pixels, dtype)
    held = [numpy_helper.from_array(WEIGHTS[n].astype(np.float16 if half else np.float32), n) for n in names]
    if kind == "tokens":
        whole = {"to_rows": [0, WIDTH, 4], "zero": [0], "one": [1], "ones": [1, WIDTH]}
        held += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in whole.items()]
    graph = h.make_graph(nodes, kind, [side], outputs, held)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    external = {"save_as_external_data": True, "location": data, "size_threshold": 100} if data else {}
    onnx.save(model, path, **external)
    return path


def write_graph_expert(folder: Path, kind: str, *, file: str = "model.onnx", **changes: Any) -> Path:
    """Writes a folder with a graph and the processor for it, and nothing else."""
    write_graph(folder / file, kind, **changes)
    if kind == "frames":
        t.WhisperFeatureExtractor(feature_size=4, sampling_rate=8000, hop_length=80, chunk_length=1).save_pretrained(
            folder
        )
    else:
        t.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def expected(kind: str, x: torch.Tensor) -> torch.Tensor:
    """What a graph makes of its input, by torch: vectors (n, tokens, width), row by row."""
    weights = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    if kind == "frames":
        return torch.nn.functional.conv1d(x, weights["ear"], stride=2).transpose(1, 2)
    made = torch.relu(torch.nn.functional.conv2d(x, weights["kernel"], stride=14))
    rows = torch.stack([made[:, :, y, z] for y in range(2) for z in range(2)], dim=1)
    if kind == "patches":
        return rows
    return torch.cat([weights["class"].expand(len(x), 1, -1), rows], dim=1) @ weights["mix"]
