"""Reads two pretrained encoders from the formats of their packages, and renames their weights as in transformers."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

__all__ = ["dinov2_weights", "whisper_weights"]

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_LAYER_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}
_LINEARS = {"self_attention/linear_1": "self_attn.out_proj", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}


def _ctranslate2_tensors(parts: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a CTranslate2 model file, given in parts."""
    data = b"".join(part.read_bytes() for part in parts)
    position = 4  # the format's version

    def take(kind: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{kind}", data, position)
        position += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal position
        length = take("H")
        raw = data[position : position + length]
        position += length
        return raw.rstrip(b"\0").decode()

    text()  # the name of the specification
    take("I")  # its revision
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = _CT2_DTYPES[take("B")]
        nbytes = take("I")
        yield name, np.frombuffer(data, dtype, nbytes // np.dtype(dtype).itemsize, position).reshape(shape)
        position += nbytes


def whisper_weights(parts: list[Path]) -> dict[str, torch.Tensor]:
    """Reads the encoder of a Whisper model in CTranslate2's format.

    Args:
        parts: Files that together are the model file, in order.

    Returns:
        Weights in float32 by transformers' names, relative to the encoder.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, array in _ctranslate2_tensors(parts):
        if not name.startswith("encoder/"):
            continue
        tensor = torch.from_numpy(array.astype(np.float32))
        for key, value in _whisper_names(name.removeprefix("encoder/"), tensor):
            weights[key] = value
    return weights


def _whisper_names(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    stem, _, kind = name.rpartition("/")
    kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
    if not stem.startswith("layer_") or stem == "layer_norm":
        if stem in {"conv1", "conv2", "layer_norm"}:
            yield f"{stem}.{kind}", tensor
        elif name == "position_encodings/encodings":
            yield "embed_positions.weight", tensor
        return
    layer, _, role = stem.partition("/")
    prefix = f"layers.{layer.removeprefix('layer_')}"
    if role == "self_attention/linear_0":
        for projection, piece in zip("qkv", tensor.chunk(3), strict=True):
            if not (projection == "k" and kind == "bias"):  # Whisper's keys have no bias
                yield f"{prefix}.self_attn.{projection}_proj.{kind}", piece.clone()
    elif role in _LINEARS or role in _LAYER_NORMS:
        yield f"{prefix}.{(_LINEARS | _LAYER_NORMS)[role]}.{kind}", tensor


def dinov2_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the backbone of a DINOv2-shaped ViT from ONNX; matrices are found by the names of the nodes that use them.

    Args:
        path: The ONNX file.

    Returns:
        Weights in float32 by the names of ``Dinov2Model`` in transformers.
    """
    import onnx  # noqa: PLC0415 - an extra
    from onnx import numpy_helper  # noqa: PLC0415 - an extra

    graph = onnx.load(str(path)).graph
    arrays = {initial.name: torch.from_numpy(numpy_helper.to_array(initial).copy()) for initial in graph.initializer}
    weights = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    for node in graph.node:
        matrix = next((arrays[i] for i in node.input if i in arrays), None)
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and matrix is not None:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = matrix.T.contiguous()
    first, rest = (next(v for v in arrays.values() if tuple(v.shape) == (1, n, 384)) for n in (1, 37 * 37))
    class_positions = next(v for k, v in arrays.items() if k.startswith("onnx::Concat") and v.shape == first.shape)
    weights["embeddings.position_embeddings"] = torch.cat([class_positions, rest], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, 384)
    return {_new_name(name): weight for name, weight in weights.items()}


def _new_name(name: str) -> str:
    for old, new in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
        name = name.replace(f"attention.attention.{old}", f"attention.{new}")
    return name.replace("attention.output.dense", "attention.o_proj")
