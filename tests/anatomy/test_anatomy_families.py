"""Every family splits completely, the same from data file, meta model and by hand, and its tower answers alone.

The independent reference: transformers' own ``rename_source_key`` on each key of a real save, and the identity of the
modules of the real model.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata

import pytest
import tiny_configs
import tiny_models as tiny
import torch
from safetensors import safe_open
from transformers import AutoModel, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from mcompose.anatomy import ENCODER, HEAD, LANGUAGE, PROJECTOR, meta, read_anatomy
from mcompose.anatomy import family as family_module
from mcompose.anatomy.settings import read_settings, signature
from mcompose.anatomy.tables import generated, known_family

pytestmark = pytest.mark.floor

FAMILIES = sorted(set(tiny_configs.RAW))
REQUIRED = (
    "llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava",
    "internvl", "got_ocr2", "paligemma", "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "qwen2_5_omni_thinker", "qwen2_audio", "voxtral", "granite_speech", "audioflamingo3", "glmasr",
    "qwen3_asr", "video_llama_3", "ovis2", "idefics2", "idefics3", "smolvlm", "deepseek_vl", "aria",
)  # fmt: skip


def need(model_type: str) -> None:
    if model_type not in tiny.TINY:
        pytest.skip(f"this transformers has no '{model_type}'")


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return tiny.tiny_model(model_type)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Model type -> config.json and key -> shape of a real save."""

    @cache
    def save(model_type):
        folder = tmp_path_factory.mktemp(model_type)
        model_of(model_type).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return config, shapes

    return save


def memory_name(model: PreTrainedModel, key: str) -> str:
    """Where transformers itself would load a key."""
    steps = get_model_conversion_mapping(model)
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    renamings = [step for step in steps if not isinstance(step, WeightConverter)]
    assert not converters
    return rename_source_key(key, renamings, converters, model.base_model_prefix, model.state_dict())[0]


def expected_slot(model: PreTrainedModel, path: str) -> tuple[str, str]:
    """Part and name of a parameter, told by the identity of the modules."""
    paths = {id(module): name for name, module in model.named_modules()}
    head, table = paths[id(model.get_output_embeddings())], paths[id(model.get_input_embeddings())]
    decoder = table.rpartition(".")[0]
    base = model.base_model_prefix + "."
    if path.startswith(head + "."):
        return "head", "lm_head" + path.removeprefix(head)
    if path.startswith(table + "."):
        return "embedding", path.removeprefix(decoder + ".")
    towers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and name and not f"{table}.".startswith(name + ".")
    ]
    if any(path.startswith(name + ".") for name in towers if name not in _CONNECTORS):
        inner = [name for name in towers if path.startswith(name + ".")]
        if not any(name.split(".")[-1] in {"qformer", "projector", "perceiver_resampler"} for name in inner):
            return "encoder", path.removeprefix(base)
    if path.startswith((decoder + ".layers.", decoder + ".norm.")):
        return "language", path.removeprefix(decoder + ".")
    return "projector", path.removeprefix(base)


_CONNECTORS = {"model.connector", "model.projector"}


def test_all_required_families_have_a_tiny_model():
    assert set(REQUIRED) | {"phi4_multimodal"} <= set(tiny_configs.RAW)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_split_equals_the_modules_of_the_real_model(model_type, saved):
    need(model_type)
    model, (config, shapes) = model_of(model_type), saved(model_type)
    anatomy = read_anatomy(config, shapes)

    assert list(anatomy.slots) == list(shapes)
    assert anatomy.known
    assert not anatomy.refusal
    assert anatomy.architecture == type(model).__name__
    for key, slot in anatomy.slots.items():
        path = memory_name(model, key)
        assert path in model.state_dict(), key
        assert (slot.part, slot.name) == expected_slot(model, path), key
    missing = {name for name in model.state_dict() if name not in model.all_tied_weights_keys}
    assert {memory_name(model, key) for key in shapes} == missing


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_in_memory_are_read_like_names_on_disk(model_type, saved):
    need(model_type)
    config, shapes = saved(model_type)
    model = model_of(model_type)
    memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    memory = {name: shape for name, shape in memory.items() if name not in model.all_tied_weights_keys}

    from_disk = {(slot.part, slot.name, slot.layer) for slot in read_anatomy(config, shapes).slots.values()}
    from_memory = {(slot.part, slot.name, slot.layer) for slot in read_anatomy(config, memory).slots.values()}

    assert from_memory == from_disk


@pytest.mark.parametrize("model_type", FAMILIES)
def test_data_file_and_meta_model_say_the_same(model_type, saved):
    need(model_type)
    config, shapes = saved(model_type)
    told = known_family(signature(config))
    assert told is not None, "every family of the tests must be in the data file"
    asked = meta.describe(meta.config_of(config))

    assert family_module.claim(asked, list(shapes)) == family_module.claim(told, list(shapes))
    assert asked.text_type == told.text_type
    if metadata.version("transformers") == generated()["transformers"]:  # older versions name some paths otherwise
        assert (asked.modalities, asked.decoder) == (told.modalities, told.decoder)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_settings_are_those_of_the_config_object(model_type, saved):
    need(model_type)
    config, _ = saved(model_type)
    real = model_of(model_type).config
    text = real.get_text_config(decoder=True)
    read = read_settings(config, text_type=text.model_type)

    rebuilt = type(text).from_dict(dict(read.text_config))
    left, right = meta.plain_text_config(rebuilt), meta.plain_text_config(text)
    left.pop("tie_word_embeddings", None)
    right.pop("tie_word_embeddings", None)
    assert left == right
    assert read.tied == bool(model_of(model_type).all_tied_weights_keys)
    modalities = (
        tiny.features(model_of(model_type), tiny.tiny_media(model_type)) if model_type in tiny.MULTIMODAL else ()
    )
    assert read.placeholders == {modality: tiny_configs.TOKENS[modality] for modality in modalities}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_layers_are_numbered(model_type, saved):
    need(model_type)
    config, shapes = saved(model_type)
    slots = read_anatomy(config, shapes).slots.values()

    for slot in slots:
        if slot.part == LANGUAGE:
            words = slot.name.split(".")
            assert slot.layer == (int(words[1]) if words[0] == "layers" else None)
    assert {slot.layer for slot in slots if slot.part == LANGUAGE} == {0, 1, None}
    if any(slot.part == ENCODER for slot in slots):
        assert {slot.layer for slot in slots if slot.part == ENCODER} == {0, 1, None}
    assert all(slot.layer is None for slot in slots if slot.part in (HEAD, PROJECTOR))


def tower_stub(model_type: str) -> torch.nn.Module:
    """A source without its language model: encoder, projector and feature code of the native base class."""
    config = tiny.TINY[model_type]()
    if model_type != "phi4_multimodal":
        text = config.get_text_config(decoder=True)
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None):
            text.layer_types = []
    whole = model_of(model_type)
    base = getattr(whole, whole.base_model_prefix, whole)
    stub = type(base)._from_config(config).eval()
    for name in ("language_model", "text_model", *(("model", "lm_head") if base is whole else ())):
        if hasattr(stub, name):
            delattr(stub, name)
    if model_type == "phi4_multimodal":
        stub.layers, stub.norm, stub.embed_tokens = torch.nn.ModuleList(), None, None
    return stub


@pytest.mark.parametrize("model_type", tiny.MULTIMODAL)
def test_tower_alone_gives_the_features_of_the_whole_model(model_type, saved):
    config, shapes = saved(model_type)
    model, stub = model_of(model_type), tower_stub(model_type)
    anatomy = read_anatomy(config, shapes)
    weights = model.state_dict()
    tower = {name: weights[memory_name(model, slot.key)] for name, slot in anatomy.by_name(ENCODER, PROJECTOR).items()}

    stub.load_state_dict(tower, strict=True)
    media = tiny.tiny_media(model_type)
    alone, whole = tiny.features(stub, media), tiny.features(model, media)

    assert list(alone) == list(whole)
    assert set(whole) | ({"video"} & set(anatomy.modalities)) == set(anatomy.modalities)
    for modality, rows in whole.items():
        assert rows.std() > 0.01
        assert torch.equal(alone[modality], rows), modality


@pytest.mark.parametrize("model_type", tiny.MULTIMODAL)
def test_media_reach_the_answer(model_type):
    model = model_of(model_type)
    inputs = tiny.tiny_inputs(model_type, model)
    other = {**inputs, **{k: v for k, v in tiny.tiny_media(model_type, seed=7).items() if v.is_floating_point()}}
    with torch.no_grad():
        logits, changed = model(**inputs).logits, model(**other).logits

    assert torch.isfinite(logits).all()
    assert (logits - changed).abs().max() > 1e-3


def test_auto_model_of_a_base_gives_the_same_stub_names():
    stub, config = tower_stub("llava"), tiny.TINY["llava"]()
    assert type(AutoModel.from_config(config)) is type(stub)
