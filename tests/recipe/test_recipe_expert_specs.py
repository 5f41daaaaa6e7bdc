"""Domain experts and the router in a recipe: short forms, defaults, and mistakes told with their line."""

import pytest
from recipe_failures import GOOD, failure, write

from mcompose.recipe import load_recipe, recipe_text


def compose_of(tmp_path, text):
    path = write(tmp_path, GOOD.replace("output:", f"compose:\n{text}\noutput:"))
    return load_recipe(path).recipe.compose


def test_an_expert_is_the_papers_unless_said_otherwise(tmp_path):
    expert = compose_of(tmp_path, "  experts: {charts: {encoder: 'hub:o/pix'}}").experts["charts"]
    assert (expert.modality, expert.layer, expert.class_token, expert.padding) == ("image", -1, "drop", "keep")
    assert (expert.store, expert.domain, expert.processor) == ("inside", None, None)
    assert expert.projector.settings == {"kind": "mlp", "depth": 2}


def test_short_forms(tmp_path):
    text = (
        "  experts:\n"
        "    a: {encoder: 'hub:o/a', projector: linear, class_token: 2}\n"
        "    b: {encoder: 'hub:o/b', projector: 'local:trained', modality: audio}\n"
        "    c: {encoder: 'hub:o/c', projector: {kind: pixel_shuffle}}\n"
        "    d: {encoder: 'hub:o/d', projector: {kind: resampler, queries: 9}}\n"
        "  router: {rule: top_k}\n"
    )
    compose = compose_of(tmp_path, text)
    a, b, c, d = compose.experts.values()
    assert list(compose.experts) == ["a", "b", "c", "d"]
    assert (a.projector.settings, a.class_token) == ({"kind": "linear"}, 2)
    assert (str(b.projector.model), b.projector.kind) == ("local:trained", "mlp")
    assert c.projector.settings == {"kind": "pixel_shuffle", "depth": 2, "factor": 2}
    assert d.projector.settings == {"kind": "resampler", "queries": 9, "heads": 8}
    assert compose.router.rule.settings == {"kind": "top_k", "k": 2}


def test_a_router_can_be_left_out_trained_or_strict(tmp_path):
    one = "  experts: {a: {encoder: 'hub:o/a'}}\n"
    assert compose_of(tmp_path, one).router is None
    assert compose_of(tmp_path, one + "  router: none").router.made is False
    assert str(compose_of(tmp_path, one + "  router: local:trained").router.model) == "local:trained"
    rule = compose_of(tmp_path, one + "  router: {rule: {kind: threshold, threshold: 0.7}}").router.rule
    assert rule.settings == {"kind": "threshold", "threshold": 0.7}


def test_the_resolved_recipe_says_the_same(tmp_path):
    text = "  experts: {a: {encoder: 'hub:o/a', projector: {kind: resampler}}}\n  router: {feature: mean}"
    path = write(tmp_path, GOOD.replace("output:", f"compose:\n{text}\noutput:"))
    recipe = load_recipe(path).recipe
    assert load_recipe(write(tmp_path, recipe_text(recipe))).recipe == recipe


def test_a_graph_as_a_word_or_with_its_output(tmp_path):
    text = (
        "  experts:\n"
        "    a: {encoder: 'hub:o/a', onnx: onnx/model.onnx}\n"
        "    b: {encoder: 'local:b', onnx: {file: b.onnx, output: conv.12, input: x}, class_token: 1}\n"
        "    c: {encoder: 'hub:o/c'}\n"
    )
    path = write(tmp_path, GOOD.replace("output:", f"compose:\n{text}output:"))
    recipe = load_recipe(path).recipe
    a, b, c = recipe.compose.experts.values()
    assert (a.onnx.file, a.onnx.output, a.onnx.input, a.class_token) == ("onnx/model.onnx", None, None, "keep")
    assert (b.onnx.file, b.onnx.output, b.onnx.input, b.class_token) == ("b.onnx", "conv.12", "x", 1)
    assert c.onnx is None
    assert load_recipe(write(tmp_path, recipe_text(recipe))).recipe == recipe


EXPERT = "  experts:\n    charts:\n      encoder: hub:o/pix\n      "
MISTAKES = {
    f"{EXPERT}domian: x": (17, "'compose.experts.charts.domian' is not a known key", "'domain'"),
    f"{EXPERT}class_token: drp": (17, "not a known rule for class tokens: 'drp'", "'drop'"),
    f"{EXPERT}class_token: -1": (17, "'compose.experts.charts.class_token' must be zero or more", ""),
    f"{EXPERT}modality: video": (17, "not a known modality with experts: 'video'", "audio"),
    f"{EXPERT}padding: droop": (17, "not a known way with padding: 'droop'", "'drop'"),
    f"{EXPERT}store: refernce": (17, "not a known way to store: 'refernce'", "'reference'"),
    f"{EXPERT}projector: mpl": (17, "not a known kind of projector: 'mpl'", "'mlp'"),
    f"{EXPERT}projector: {{kind: linear, depth: 3}}": (17, "projector.depth' has no effect for", "'kind: mlp'"),
    f"{EXPERT}projector: pixel_shuffle\n      padding: drop": (
        18,
        "charts.padding' cannot be combined with 'pixel_shuffle'",
        "",
    ),
    "  experts:\n    charts: {encoder: o/pix}": (15, "'compose.experts.charts.encoder'", "'hub:o/pix'"),
    "  experts:\n    none: {encoder: 'hub:o/pix'}": (15, "cannot be the name of an expert", "reserved for routing"),
    "  experts:\n    my charts: {encoder: 'hub:o/pix'}": (15, "cannot be 'my charts'", "letters"),
    "  experts:\n    sees: {encoder: 'hub:o/pix'}": (
        15,
        "'compose.experts.sees' is also the name of a source",
        "another",
    ),
    f"{EXPERT}onnx: ../model.onnx": (17, "charts.onnx' must be a file in the encoder's folder", "'model.onnx'"),
    f"{EXPERT}onnx: /a/model.onnx": (17, "charts.onnx' must be a file in the encoder's folder", "'model.onnx'"),
    f"{EXPERT}onnx: {{output: y}}": (17, "charts.onnx' lacks the key 'file'", ""),
    f"{EXPERT}onnx: m.onnx\n      layer: 2": (18, "charts.layer' cannot be set for an ONNX graph", "output"),
    f"{EXPERT}onnx: m.onnx\n      class_token: drop": (
        18,
        "class_token: drop' cannot be set for an ONNX",
        "'class_token: 1'",
    ),
    "  experts:\n    a: {encoder: 'hub:o/a', domain: b}\n    b: {encoder: 'hub:o/b', domain: a}": (
        15,
        "'compose.experts.a' is also the domain of the expert 'b'",
        "another name",
    ),
    "  router: {rule: {kind: argmax, k: 3}}": (14, "'compose.router.rule.k' has no effect", "'kind: top_k'"),
    "  router: {feature: klass}": (14, "not a known feature: 'klass'", "'class'"),
    "  router: 3": (14, "'compose.router' must be a mapping", ""),
}


@pytest.mark.parametrize("text", MISTAKES, ids=str)
def test_a_mistake_is_told_with_its_line(tmp_path, text):
    line, message, hint = MISTAKES[text]
    found_line, found_message, found_hint = failure(tmp_path, GOOD.replace("output:", f"compose:\n{text}\noutput:"))
    assert message in found_message
    assert hint in found_hint
    assert found_line == line


def test_other_formats_have_no_room_for_experts(tmp_path):
    text = GOOD.replace("output:", "compose: {experts: {a: {encoder: 'hub:o/a'}}}\noutput:\n  format: native")
    line, message, hint = failure(tmp_path, text)
    assert (line, "'output.format: native' cannot hold experts" in message, "composed" in hint) == (15, True, True)
