"""ONNX graphs as encoders: read from their bytes, cut to a value, run beside torch with known numbers."""

import copy
import hashlib
import io
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as h
from tiny_graphs import expected, write_graph

from mcompose.modeling.experts.onnx_encoder import OnnxEncoder
from mcompose.modeling.experts.onnx_graph import cut_graph, is_plain_path, read_graph


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(folder, kind, output, *, native="pixel_values", pixels="pixel_values", **changes):
    """An encoder over a graph of its own."""
    path = write_graph(folder / "model.onnx", kind, pixels=pixels, **changes)
    data = {changes["data"]: "experts/x.onnx_data"} if changes.get("data") else {}
    settings = {"file": "experts/x.onnx", "data": data, "inputs": {native: pixels}, "output": output}
    encoder = OnnxEncoder("x", settings)
    paths = {"experts/x.onnx": path, **{file: folder / name for name, file in data.items()}}
    encoder.attach(paths, {file: hashlib.sha256(at.read_bytes()).hexdigest() for file, at in paths.items()})
    return encoder


def test_what_a_file_declares_is_what_onnx_says(tmp_path):
    path = write_graph(tmp_path / "model.onnx", "tokens", data="weights.bin")
    graph, model = read_graph(path.read_bytes()), onnx.load(path, load_external_data=False).graph
    assert list(graph.inputs) == [value.name for value in model.input]
    assert list(graph.outputs) == [value.name for value in model.output]
    assert str(graph.inputs["pixel_values"]) == "'pixel_values' float32 (n, 3, 28, 28)"
    assert str(graph.outputs["last_hidden_state"]) == "'last_hidden_state' float32 (n, count, width)"
    inner = [name for node in model.node for name in node.output]
    assert list(graph.inner) == [name for name in inner if name not in graph.outputs]
    assert graph.locations == ("weights.bin",)


def test_a_graph_is_cut_to_what_an_output_needs(tmp_path):
    whole = write_graph(tmp_path / "model.onnx", "patches").read_bytes()
    model = onnx.load_from_string(cut_graph(whole, "map"))
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert [tensor.name for tensor in model.graph.initializer] == ["kernel"]
    assert [value.name for value in model.graph.output] == ["map"]
    assert onnx.load_from_string(cut_graph(whole, "logits")) == onnx.load_from_string(whole)
    with pytest.raises(ValueError, match="makes no value called 'pixel_values'"):
        cut_graph(whole, "pixel_values")


def test_inputs_that_only_the_cut_part_takes_are_gone_and_captured_ones_stay():
    """The branch of an If reads 'scale' from outside; 'sizes' belongs to the head alone."""
    inside = h.make_graph(
        [h.make_node("Mul", ["x", "scale"], ["big"])],
        "then", [], [h.make_tensor_value_info("big", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = h.make_graph(
        [h.make_node("Identity", ["x"], ["same"])],
        "else", [], [h.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        h.make_node("If", ["choice"], ["chosen"], then_branch=inside, else_branch=other),
        h.make_node("Div", ["chosen", "sizes"], ["boxes"]),
    ]
    inputs = [h.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 2]) for name in ("x", "scale", "sizes")]
    choice = numpy_helper.from_array(np.array(True), "choice")
    output = h.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, 2])
    whole = h.make_model(h.make_graph(nodes, "g", inputs, [output], [choice]), ir_version=8).SerializeToString()
    assert list(read_graph(cut_graph(whole, "chosen")).inputs) == ["x", "scale"]
    assert list(read_graph(cut_graph(whole, "boxes")).inputs) == ["x", "scale", "sizes"]


def test_external_data_is_found_wherever_a_tensor_can_stand():
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    constant = h.make_node("Constant", [], ["big"], value=tensor)
    branch = h.make_graph([constant], "then", [], [h.make_tensor_value_info("big", TensorProto.FLOAT, [4])])
    node = h.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=branch)
    choice = h.make_tensor_value_info("choice", TensorProto.BOOL, [])
    graph = h.make_graph([node], "g", [choice], [h.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
    assert read_graph(h.make_model(graph).SerializeToString()).locations == ("../../secret",)


@pytest.mark.parametrize("cut", [0, 1, 7, 40, 500])
def test_what_is_no_graph_is_refused(cut, tmp_path):
    whole = write_graph(tmp_path / "model.onnx", "patches").read_bytes()
    with pytest.raises(ValueError, match="not an ONNX file" if cut else "holds no ONNX graph"):
        read_graph(whole[:cut])
    with pytest.raises(ValueError, match="not an ONNX file"):
        read_graph(b"version https://git-lfs.github.com/spec/v1\n"[: cut + 5])


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "c:x", "a\\b", "a\0b", None, "."])
def test_a_name_that_leads_elsewhere_is_not_plain(name):
    assert not is_plain_path(name)
    assert is_plain_path("experts/x.onnx_data")


@pytest.mark.parametrize("kind", ["patches", "tokens", "frames"])
@pytest.mark.parametrize("rows", ["n", 1, 2])
@pytest.mark.parametrize("data", ["", "weights.bin"])
def test_the_vectors_are_those_that_torch_computes(kind, rows, data, tmp_path):
    output = {"patches": "map", "tokens": "last_hidden_state", "frames": "frames"}[kind]
    native = "input_features" if kind == "frames" else "pixel_values"
    encoder = made(tmp_path, kind, output, native=native, pixels="x", rows=rows, data=data)
    x = noise(3, 4, 100) if kind == "frames" else noise(3, 3, 28, 28)
    found = encoder(**{native: x}).last_hidden_state
    torch.testing.assert_close(found, expected(kind, x), rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    torch.testing.assert_close(encoder(**{native: x[:1]}).last_hidden_state, found[:1], rtol=1e-5, atol=1e-5)


def test_half_precision_graphs_and_items(tmp_path):
    x = noise(2, 3, 28, 28)
    half = made(tmp_path / "half", "patches", "map", half=True)(pixel_values=x).last_hidden_state
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected("patches", x), rtol=2e-2, atol=5e-3)
    full = made(tmp_path / "full", "patches", "map")(pixel_values=x.bfloat16()).last_hidden_state
    assert full.dtype == torch.float32
    torch.testing.assert_close(full, expected("patches", x.bfloat16().float()), rtol=1e-5, atol=1e-5)


def test_items_of_another_shape_are_refused_with_both_shapes(tmp_path):
    encoder = made(tmp_path, "patches", "map")
    with pytest.raises(ValueError, match=r"takes 'pixel_values' float32 \(n, 3, 28, 28\), .* came as \(2, 3, 32, 32\)"):
        encoder(pixel_values=noise(2, 3, 32, 32))
    with pytest.raises(ValueError, match="neither vectors nor a map"):
        made(tmp_path, "patches", "logits")(pixel_values=noise(1, 3, 28, 28))


def test_a_damaged_file_is_refused(tmp_path):
    encoder = made(tmp_path, "patches", "map")
    path = tmp_path / "model.onnx"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=f"not the file that the expert 'x' was composed with: .* not {digest}"):
        encoder.attach({"experts/x.onnx": path}, {"experts/x.onnx": digest})


def test_data_that_the_settings_do_not_know_is_not_looked_for(tmp_path):
    encoder = made(tmp_path, "tokens", "last_hidden_state", data="weights.bin")
    encoder.settings["data"] = {}
    with pytest.raises(ValueError, match=r"names the file 'weights.bin', unknown here"):
        encoder(pixel_values=noise(1, 3, 28, 28))


@pytest.mark.parametrize("way", ["pickle", "torch", "deepcopy"])
def test_copies_keep_the_file(way, tmp_path):
    encoder = made(tmp_path, "tokens", "last_hidden_state", data="weights.bin")
    x = noise(2, 3, 28, 28)
    wanted = encoder(pixel_values=x).last_hidden_state
    if way == "deepcopy":
        twin = copy.deepcopy(encoder)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(encoder))
    else:
        stream = io.BytesIO()
        torch.save(encoder, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    if way != "deepcopy":
        (tmp_path / "model.onnx").unlink()
        (tmp_path / "weights.bin").unlink()
    assert torch.equal(twin(pixel_values=x).last_hidden_state, wanted)
    twin.save(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again" / "experts").iterdir()) == ["x.onnx", "x.onnx_data"]
    assert not list(twin.parameters())


def test_threads_are_torchs(tmp_path):
    encoder = made(tmp_path, "patches", "map")
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            encoder(pixel_values=noise(1, 3, 28, 28))
            session = encoder._session[1][0]
            assert session.get_session_options().intra_op_num_threads == count
            assert session.get_providers() == ["CPUExecutionProvider"]
    finally:
        torch.set_num_threads(before)


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch):
    encoder = made(tmp_path, "patches", "map")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"'x' is an ONNX graph.*pip install onnxruntime \(or 'mcompose\[onnx\]'\)"):
        encoder(pixel_values=noise(1, 3, 28, 28))


def test_importing_the_network_does_not_import_onnxruntime():
    code = "import sys, mcompose.modeling.network.composed; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
