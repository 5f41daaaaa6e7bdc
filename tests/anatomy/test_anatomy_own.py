"""mcompose's own checkpoints are read like any other: composed ones tower by tower, and the points source."""

from __future__ import annotations

import pytest
import tiny_configs

from mcompose.anatomy import (
    EMBEDDING,
    ENCODER,
    HEAD,
    LANGUAGE,
    PROJECTOR,
    can_compose,
    group_part,
    part_label,
    read_anatomy,
    summarise,
)
from mcompose.anatomy.compare import rope_of
from mcompose.errors import AnatomyError

pytestmark = pytest.mark.floor

POINTS = {
    "model_type": "mcompose_points", "architectures": ["PointsForConditionalGeneration"], "points_token_id": 77,
    "text_config": tiny_configs.text("llama"),
}  # fmt: skip
COMPOSED = {
    "model_type": "mcompose", "architectures": ["ComposedForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": tiny_configs.text("llama"), "image_token_id": 128, "audio_token_id": 129, "points_token_id": 130,
    "sources": {
        "sees": {
            "model_type": "llava", "modalities": ["image"],
            "config": {**tiny_configs.RAW["llava"], "model_type": "llava"},
        },
        "hears": {
            "model_type": "qwen2_audio", "modalities": ["audio"],
            "config": {**tiny_configs.RAW["qwen2_audio"], "model_type": "qwen2_audio"},
        },
        "feels": {"model_type": "mcompose_points", "modalities": ["points"], "config": POINTS},
    },
}  # fmt: skip


def test_points_source():
    keys = {
        "model.language_model.embed_tokens.weight": (EMBEDDING, "embed_tokens.weight", None),
        "model.language_model.layers.1.mlp.up_proj.weight": (LANGUAGE, "layers.1.mlp.up_proj.weight", 1),
        "model.language_model.norm.weight": (LANGUAGE, "norm.weight", None),
        "model.points_tower.point_in.weight": (ENCODER, "points_tower.point_in.weight", None),
        "model.multi_modal_projector.linear_1.weight": (PROJECTOR, "multi_modal_projector.linear_1.weight", None),
        "lm_head.weight": (HEAD, "lm_head.weight", None),
    }
    anatomy = read_anatomy(POINTS, dict.fromkeys(keys, (1,)))
    assert {key: (slot.part, slot.name, slot.layer) for key, slot in anatomy.slots.items()} == keys
    assert anatomy.modalities == ("points",)
    assert anatomy.placeholders == {"points": 77}
    assert anatomy.num_layers == 2
    assert anatomy.known


def test_composed_checkpoint():
    keys = {
        "lm_head.weight": (HEAD, "lm_head.weight", None),
        "model.language_model.layers.0.self_attn.q_proj.weight": (LANGUAGE, "layers.0.self_attn.q_proj.weight", 0),
        "model.towers.sees.vision_tower.encoder.layers.1.mlp.fc1.weight": (
            ENCODER, "towers.sees.vision_tower.encoder.layers.1.mlp.fc1.weight", 1,
        ),
        "model.towers.sees.multi_modal_projector.linear_1.bias": (
            PROJECTOR, "towers.sees.multi_modal_projector.linear_1.bias", None,
        ),
        "model.towers.hears.audio_tower.layers.0.fc1.weight": (
            ENCODER, "towers.hears.audio_tower.layers.0.fc1.weight", 0,
        ),
        "model.towers.feels.points_tower.point_in.bias": (ENCODER, "towers.feels.points_tower.point_in.bias", None),
    }  # fmt: skip
    anatomy = read_anatomy(COMPOSED, dict.fromkeys(keys, (1,)))
    assert {key: (slot.part, slot.name, slot.layer) for key, slot in anatomy.slots.items()} == keys
    assert anatomy.modalities == ("image", "audio", "points")
    assert anatomy.placeholders == {"image": 128, "audio": 129, "points": 130}


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("model.towers.sees.multi_modal_projector.linear_1.weight", "projector:sees"),
        ("model.towers.hears.audio_tower.conv1.weight", "encoder:hears"),
        ("model.experts.charts.encoder.layers.0.weight", "expert:charts"),
        ("model.experts.charts.projector.linear.weight", "projector:charts"),
        ("model.routers.image.weight", "router:image"),
        ("model.domain_tokens", "separators"),
        ("model.prefix_tokens.image", "projector"),
        ("model.language_model.layers.0.mlp.experts.0.up_proj.weight", "language"),
        ("model.language_model.layers.0.self_attn.q_proj.weight", "language"),
        ("model.language_model.layers.0.self_attn.q_proj.base.weight", "origin"),
        ("model.language_model.layers.0.self_attn.q_proj.groups.audio.weight", "group:audio"),
        ("model.language_model.layers.0.self_attn.q_proj.stack.0.groups.text.lora_A.weight", "group:text"),
        ("lm_head.weight", "head"),
    ],
)
def test_parts_are_labelled_with_their_owner(key, label):
    experts = {"experts": {"charts": {"modality": "image"}}, "routers": {"image": {}}}
    groups = {"routed_groups": {"audio": {"kind": "dense"}, "text": {"kind": "low_rank", "rank": [2, 2]}}}
    slot = read_anatomy({**COMPOSED, **experts, **groups}, {key: (1,)}).slots[key]
    assert part_label(slot.name, slot.part) == label
    assert group_part(key) == (label if label.startswith(("group", "origin")) else "")


def test_a_tower_that_the_config_does_not_name_is_an_orphan():
    with pytest.raises(AnatomyError, match=r"'model\.towers\.smells\.nose\.weight'"):
        read_anatomy(COMPOSED, {"model.towers.smells.nose.weight": (1,)})


ROPE = {"rope_theta": 1e4, "rope_type": "default"}


def llama(**changes):
    return tiny_configs.text("llama", **{"rms_norm_eps": 1e-6, "rope_parameters": ROPE, **changes})


def anatomy_of(model_type, **changes):
    config = {**tiny_configs.RAW[model_type], "model_type": model_type}
    if model_type == "voxtral":
        config["text_config"] = llama()
    return read_anatomy({**config, **changes}, {})


def test_sources_of_one_family_with_other_modalities_can_be_composed():
    assert (
        can_compose({"sees": anatomy_of("llava"), "hears": anatomy_of("voxtral"), "feels": read_anatomy(POINTS, {})})
        == []
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: anatomy_of("qwen2_audio"), "different families"),
        (
            lambda: anatomy_of("voxtral", text_config=llama(hidden_size=64)),
            "hidden size: 32 and 64",
        ),
        (
            lambda: anatomy_of("voxtral", text_config=llama(num_hidden_layers=3)),
            "number of layers: 2 and 3",
        ),
        (
            lambda: anatomy_of("voxtral", text_config=llama(rope_parameters=None, rope_theta=5e5)),
            "rope_theta: 10000.0 and 500000.0",
        ),
        (
            lambda: anatomy_of("voxtral", text_config=llama(rms_norm_eps=1e-3)),
            "epsilon of the norms",
        ),
        (
            lambda: anatomy_of("voxtral", text_config=llama(vocab_size=300)),
            "different vocabularies",
        ),
        (
            lambda: anatomy_of(
                "voxtral", text_config=llama(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0})
            ),
            "rope_type: default and linear",
        ),
        (lambda: anatomy_of("vipllava"), "both accept image"),
        (
            lambda: read_anatomy({"model_type": "mllama"}, {}),
            "cannot be a source: its language model has cross-attention",
        ),
    ],
)
def test_reasons_against_composing(other, words):
    reasons = can_compose({"first": anatomy_of("llava"), "second": other()})
    assert any(words in reason for reason in reasons), reasons
    assert all("'second'" in reason for reason in reasons)


def test_old_and_new_spelling_of_rope_are_the_same():
    old = anatomy_of("llava", text_config=llama(rope_parameters=None, rope_theta=7e4))
    new = anatomy_of("voxtral", text_config=llama(rope_parameters={"rope_theta": 7e4, "rope_type": "default"}))
    assert can_compose({"a": old, "b": new}) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                },
            },
        ),
        (
            {"model_type": "qwen2_vl_text", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            {"model_type": "qwen2_vl_text", "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
        ),
        (
            {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5},
            {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        ),
    ],
)
def test_rope_of_old_and_new_files(old, new):
    assert rope_of(old) == rope_of(new)
    assert rope_of(new)["rope_theta"] == {"llama": 5e5}.get(new["model_type"], 1e6)


def test_summary_counts_parameters_per_part_and_dtype():
    shapes = {
        "lm_head.weight": (128, 32), "model.language_model.layers.1.self_attn.q_proj.weight": (32, 32),
        "model.language_model.norm.weight": (32,), "model.points_tower.point_in.bias": (7,),
        "model.points_tower.scale": (),
    }  # fmt: skip
    dtypes = dict.fromkeys(shapes, "BF16") | {"model.language_model.norm.weight": "F32"}
    summary = summarise(read_anatomy(POINTS, shapes), shapes, dtypes)

    assert summary["parameters"] == 128 * 32 + 32 * 32 + 32 + 7 + 1
    assert summary["parts"] == {
        "language": {"tensors": 2, "parameters": 1056, "dtypes": {"BF16": 1024, "F32": 32}, "layers": 2},
        "head": {"tensors": 1, "parameters": 4096, "dtypes": {"BF16": 4096}, "layers": 0},
        "encoder": {"tensors": 2, "parameters": 8, "dtypes": {"BF16": 8}, "layers": 0},
    }
    assert summary["language"] == {"model_type": "llama", "layers": 2, "hidden_size": 32, "vocab_size": 128}
    assert summary["modalities"] == ["points"]
