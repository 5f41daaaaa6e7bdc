"""ONNX experts that cannot be: what is said, and what to do about it; a graph that leads out of its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import transformers as t
from damc_sources import write_natives
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from test_compose_expert_graphs import composed, config, recipe
from tiny_graphs import write_graph, write_graph_expert

from mcompose.errors import CheckpointError, CompositionError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.pipeline.headers import plan


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("refused"))
    write_graph_expert(folder / "ocr", "patches", pixels="x")
    write_graph_expert(folder / "vit", "tokens")
    return folder


def refusal(tmp_path, place, name="ocr", error=CompositionError, **spec):
    with pytest.raises(error) as caught:
        plan(recipe(tmp_path, place, {name: spec}, sources=("sees",)))
    return caught.value.message, caught.value.hint


def graph_of(path: Path, *inputs, nodes, outputs) -> Path:
    """A graph of a few nodes."""
    sides = [h.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    ends = [h.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs]
    model = h.make_model(
        h.make_graph(nodes, "g", sides, ends), opset_imports=[h.make_opsetid("", 17)], ir_version=8
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    t.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(path.parent)
    return path


PIXELS = ("pixel_values", T.FLOAT, ["n", 3, 28, 28])


def test_a_file_that_is_not_there(tmp_path, place):
    message, hint = refusal(tmp_path, place, error=CheckpointError, onnx="modell.onnx")
    assert message.startswith("Expert 'ocr': 'local:")
    assert message.endswith("does not contain the file 'modell.onnx'.")
    assert hint == "It contains 'model.onnx'."


def test_a_file_that_is_no_graph(tmp_path, place):
    (place / "ocr" / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    message, hint = refusal(tmp_path, place, onnx="pointer.onnx")
    assert message.startswith("'pointer.onnx' of expert 'ocr' cannot be read: it is not an ONNX file")
    assert "Git LFS" in hint


def test_no_output_that_could_be_meant(tmp_path, place):
    message, hint = refusal(tmp_path, place, onnx="model.onnx")
    assert "has no output of floats with three or four dimensions" in message
    assert "'logits' float32 (n, 5)" in message
    assert "output: ..." in hint


def test_an_output_that_the_graph_does_not_make(tmp_path, place):
    message, hint = refusal(tmp_path, place, onnx={"file": "model.onnx", "output": "mapp"})
    assert message == "The graph of expert 'ocr' makes no value called 'mapp'."
    assert "Did you mean 'map'?" in hint
    assert "'logits' float32 (n, 5)" in hint


def test_several_outputs_that_could_be_meant(tmp_path, place):
    nodes = [h.make_node("Relu", ["pixel_values"], ["a"]), h.make_node("Neg", ["pixel_values"], ["b"])]
    ends = [("a", T.FLOAT, ["n", 3, 28, 28]), ("b", T.FLOAT, ["n", 3, 28, 28])]
    graph_of(place / "two" / "model.onnx", PIXELS, nodes=nodes, outputs=ends)
    message, _ = refusal(tmp_path, place, "two", onnx="model.onnx")
    assert "has 2 outputs of floats" in message
    assert "'a' float32 (n, 3, 28, 28); 'b' float32 (n, 3, 28, 28)" in message


def test_an_output_that_is_no_sequence_of_vectors(tmp_path, place):
    message, hint = refusal(tmp_path, place, onnx={"file": "model.onnx", "output": "flat"})
    assert "its output 'flat' is torch.float32 of (1, 8), neither vectors" in message
    assert "another value" in hint


def test_a_processor_that_makes_another_size(tmp_path, place):
    t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "large")
    spec = {"onnx": {"file": "model.onnx", "output": "map"}, "processor": f"local:{place / 'large'}"}
    message, hint = refusal(tmp_path, place, **spec)
    assert "'x' float32 (n, 3, 28, 28)" in message
    assert "(1, 3, 32, 32)" in message
    assert "belong together" in hint


def test_a_folder_without_a_processor(tmp_path, place):
    write_graph(place / "bare" / "model.onnx", "patches")
    message, hint = refusal(tmp_path, place, "bare", onnx={"file": "model.onnx", "output": "map"})
    assert message.startswith("The processor of expert 'bare' cannot be loaded")
    assert "processor:" in hint


def test_inputs_that_cannot_be_told_apart_or_filled(tmp_path, place):
    nodes = [h.make_node("Add", ["a", "b"], ["c"])]
    sides = [("a", T.FLOAT, ["n", 3, 28, 28]), ("b", T.FLOAT, ["n", 3, 28, 28])]
    graph_of(place / "sum" / "model.onnx", *sides, nodes=nodes, outputs=[("c", T.FLOAT, ["n", 3, 28, 28])])
    message, hint = refusal(tmp_path, place, "sum", onnx="model.onnx")
    assert "does not tell which input takes the items" in message
    assert "'a' float32 (n, 3, 28, 28); 'b' float32 (n, 3, 28, 28)" in message
    assert "input: ..." in hint
    message, _ = refusal(tmp_path, place, "sum", onnx={"file": "model.onnx", "input": "a"})
    assert "also takes 'b' float32 (n, 3, 28, 28), and its processor makes 'pixel_values'" in message
    message, _ = refusal(tmp_path, place, "sum", onnx={"file": "model.onnx", "input": "x"})
    assert "has no input 'x'" in message


def test_a_number_of_vectors_that_depends_on_the_item(tmp_path, place):
    nodes = [h.make_node("Relu", ["pixel_values"], ["map"])]
    sides = ("pixel_values", T.FLOAT, ["n", 3, "height", "width"])
    path = graph_of(place / "free" / "model.onnx", sides, nodes=nodes, outputs=[("map", T.FLOAT, ["n", 3, "h", "w"])])
    t.CLIPImageProcessor(size={"shortest_edge": 40}, do_center_crop=False).save_pretrained(path.parent)
    message, hint = refusal(tmp_path, place, "free", onnx="model.onnx")
    assert message == "The expert 'free' makes 2560 vectors of one image and 1920 of another."
    assert "resampler" in hint
    spec = {"onnx": "model.onnx", "projector": {"kind": "resampler", "queries": 3}}
    told = plan(recipe(tmp_path, place, {"free": spec}, sources=("sees",))).to_dict()["experts"]
    assert told["free"]["tokens"] == 3


def test_operators_that_onnxruntime_does_not_have(tmp_path, place):
    graph_of(
        place / "odd" / "model.onnx", PIXELS, nodes=[h.make_node("Secret", ["pixel_values"], ["y"], domain="mine")],
        outputs=[("y", T.FLOAT, ["n", 3, 28, 28])],
    )  # fmt: skip
    message, _ = refusal(tmp_path, place, "odd", onnx="model.onnx")
    assert "onnxruntime cannot load the graph of the expert 'odd'" in message


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../b"])
def test_external_data_that_leads_out_of_the_folder(location, tmp_path, place):
    (place / "secret.bin").write_bytes(bytes(4 * 3 * 3))
    tensor = numpy_helper.from_array(np.zeros((3, 1), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    sides = [h.make_tensor_value_info(*PIXELS)]
    ends = [h.make_tensor_value_info("y", T.FLOAT, None)]
    graph = h.make_graph([h.make_node("Mul", ["pixel_values", "w"], ["y"])], "g", sides, ends, [tensor])
    (place / "thief").mkdir(exist_ok=True)
    (place / "thief" / "model.onnx").write_bytes(h.make_model(graph).SerializeToString())
    message, _ = refusal(tmp_path, place, "thief", onnx={"file": "model.onnx", "output": "y"})
    assert "leads out of its folder" in message
    assert location in message


def test_without_onnxruntime(tmp_path, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message, hint = refusal(tmp_path, place, onnx="model.onnx")
    assert message == "The expert 'ocr' is an ONNX graph, which onnxruntime runs, and it is not installed."
    assert hint == "Install it: pip install 'mcompose[onnx]'."


def test_a_vector_too_many_is_asked_about(tmp_path, place):
    report = plan(recipe(tmp_path, place, {"vit": {"onnx": "model.onnx"}}, sources=("sees",)))
    assert "5 vectors, 2 x 2 and one more: if the first is a class token, 'class_token: 1'" in report.to_text()
    report = plan(recipe(tmp_path, place, {"vit": {"onnx": "model.onnx", "class_token": 1}}, sources=("sees",)))
    assert "class token" not in report.to_text()


def test_a_graph_by_reference_stays_where_it_is(tmp_path, place):
    from transformers import AutoModelForMultimodalLM

    experts = {"ocr": {"onnx": {"file": "model.onnx", "output": "map"}, "store": "reference"}}
    folder = composed(tmp_path, place, experts, sources=("sees",))
    entry = config(folder)["experts"]["ocr"]
    assert not (folder / "experts").exists()
    assert entry["onnx"]["file"] == "model.onnx"
    assert set(entry["reference"]["sha256"]) == {"model.onnx"}
    assert entry["reference"]["id"] == str((place / "ocr").resolve())
    (row,) = Ledger.read(folder).files
    assert (row.name, row.action, row.note) == ("model.onnx", "dropped", "kept by reference")
    assert verify(folder).problems == ()
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=False)
    assert model.model.experts["ocr"].encoder.contents["model.onnx"] == place / "ocr" / "model.onnx"
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "experts").exists()
