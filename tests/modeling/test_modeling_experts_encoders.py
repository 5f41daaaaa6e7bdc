"""Every encoder class that can be an expert: its features are the native class's own, in the order of its grid."""

import numpy as np
import pytest
import torch
import transformers
from expert_models import native_encoder, noise, patches, project
from tiny_models import fill

from mcompose.modeling.experts.expert import Expert

_VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE = {"pixel_values": noise(2, 3, 28, 28)}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_SAM = {
    **_VIT, "image_size": 64, "patch_size": 16, "output_channels": 12, "global_attn_indexes": [1], "window_size": 2,
    "mlp_dim": 32, "intermediate_size": 32,
}  # fmt: skip
_P2S = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_embed_hidden_size": 12}
_WHISPER = {
    "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
    "max_source_positions": 10, "decoder_layers": 1, "decoder_attention_heads": 4, "vocab_size": 60,
}  # fmt: skip
_CLAP = {
    "window_size": 4, "num_mel_bins": 16, "spec_size": 64, "hidden_size": 16, "patch_size": 4, "patch_stride": [4, 4],
    "num_classes": 2, "patch_embeds_hidden_size": 8, "projection_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 2], "enable_fusion": False, "mlp_ratio": 2.0, "flatten_patch_embeds": True,
}  # fmt: skip

# class, model type, config, inputs, leading tokens, tokens left, width
CASES = [
    ("CLIPVisionModel", "clip_vision_model", {**_VIT, "image_size": 28, "patch_size": 14}, _IMAGE, 1, 4, 16),
    ("SiglipVisionModel", "siglip_vision_model", {**_VIT, "image_size": 28, "patch_size": 14}, _IMAGE, 0, 4, 16),
    ("Dinov2Model", "dinov2", {**_VIT, "image_size": 28, "patch_size": 14}, _IMAGE, 1, 4, 16),
    (
        "Dinov2WithRegistersModel", "dinov2_with_registers",
        {**_VIT, "image_size": 28, "patch_size": 14, "num_register_tokens": 3}, _IMAGE, 4, 4, 16,
    ),
    ("ViTModel", "vit", {**_VIT, "image_size": 28, "patch_size": 14}, _IMAGE, 1, 4, 16),
    ("SwinModel", "swin", _SWIN, {"pixel_values": noise(2, 3, 32, 32)}, 0, 16, 16),
    ("DonutSwinModel", "donut-swin", _SWIN, {"pixel_values": noise(2, 3, 32, 32)}, 0, 16, 16),
    (
        "InternVLVisionModel", "internvl_vision", {**_VIT, "image_size": [28, 28], "patch_size": [14, 14]},
        _IMAGE, 1, 4, 16,
    ),
    ("SamVisionModel", "sam_vision_model", _SAM, {"pixel_values": noise(2, 3, 64, 64)}, 0, 16, 12),
    ("GotOcr2VisionEncoder", "got_ocr2_vision", _SAM, {"pixel_values": noise(2, 3, 64, 64)}, 0, 16, 12),
    (
        "Pix2StructVisionModel", "pix2struct_vision_model", {**_P2S, "d_kv": 6, "d_ff": 32, "seq_len": 300},
        patches(2), 0, 6, 24,
    ),
    (
        "Kosmos2_5VisionModel", "kosmos_2_5_vision_model",
        {**_P2S, "intermediate_size": 32, "head_dim": 6, "max_num_patches": 300}, patches(2, real=[4, 6]), 0, 6, 24,
    ),
    ("WhisperEncoder", "whisper", _WHISPER, {"input_features": noise(2, 8, 20)}, 0, 10, 32),
    (
        "ASTModel", "audio-spectrogram-transformer",
        {**_VIT, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8},
        {"input_values": noise(2, 16, 8)}, 2, 8, 16,
    ),
    (
        "ClapAudioModel", "clap_audio_model", _CLAP,
        {"input_features": noise(2, 1, 64, 16), "is_longer": torch.zeros(2, 1)}, 0, 64, 16,
    ),
    (
        "ClapAudioModel", "clap_audio_model", {**_CLAP, "enable_fusion": True},
        {"input_features": noise(2, 4, 64, 16), "is_longer": torch.tensor([[1], [0]])}, 0, 64, 16,
    ),
]  # fmt: skip


def entry(case, **changes):
    name, kind, config, _, skip, tokens, _ = case
    modality = "audio" if name in ("WhisperEncoder", "ASTModel", "ClapAudioModel") else "image"
    return {
        "model_type": kind, "config": config, "class_name": name, "modality": modality, "domain": "x", "layer": -1,
        "skip": skip, "padding": "keep", "projector": {"kind": "mlp"}, "tokens": tokens, **changes,
    }  # fmt: skip


def rows(x):
    """(I, T, E): a map with channels first is read row by row."""
    if x.dim() == 3:
        return x
    height, width = x.shape[2:]
    return torch.stack([x[:, :, r, c] for r in range(height) for c in range(width)], dim=1)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
@torch.no_grad()
def test_features_are_the_native_classes_own(case):
    native = native_encoder(entry(case))
    *_, inputs, skip, tokens, width = case
    expert = Expert("one", entry(case), text_width=32, attn_implementation="sdpa")
    fill(expert.projector, 2)
    inside = expert.encoder.state_dict()
    expert.encoder.load_state_dict({name: native.state_dict()[name] for name in inside})
    assert set(native.state_dict()) - set(inside) <= {"pooler.dense.weight", "pooler.dense.bias"}
    x = rows(native(**inputs).last_hidden_state)[:, skip:]
    assert x.shape == (2, tokens, width)
    made = expert(inputs)
    torch.testing.assert_close(made.x_ND, project(expert, x).reshape(2 * tokens, 32), rtol=1e-5, atol=1e-5)
    # An item alone is what it is among others.
    alone = expert({key: value[1:] for key, value in inputs.items()})
    torch.testing.assert_close(alone.x_ND, made.x_ND[tokens:], rtol=1e-4, atol=1e-5)


def native_states(native, inputs):
    """All hidden states, of Kosmos-2.5 layer by layer: its class returns none."""
    if type(native).__name__ != "Kosmos2_5VisionModel":
        return native(**inputs, output_hidden_states=True).hidden_states
    states = [native.embeddings(inputs["flattened_patches"])]
    seen = torch.zeros(2, 1, 6, 6).masked_fill(inputs["attention_mask"][:, None, None] == 0, -torch.inf)
    for layer in native.encoder.layer:
        states.append(layer(states[-1], seen))
    torch.testing.assert_close(native.layernorm(states[-1]), native(**inputs).last_hidden_state)
    return states


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
@torch.no_grad()
def test_an_earlier_layer_has_the_width_that_is_read(case):
    native = native_encoder(entry(case))
    *_, inputs, skip, _, _ = case
    wanted = native_states(native, inputs)[1]
    if wanted.dim() == 4:
        wanted = rows(wanted) if case[0] == "ClapAudioModel" else wanted.flatten(1, 2)
    made = Expert("one", entry(case, layer=1, tokens=wanted.shape[1] - skip), text_width=32, attn_implementation="sdpa")
    assert made.width == wanted.shape[-1]
    made.encoder.load_state_dict({name: native.state_dict()[name] for name in made.encoder.state_dict()})
    found, valid = made.encode(inputs)
    assert valid is None
    torch.testing.assert_close(found, wanted[:, skip:])


@pytest.mark.parametrize("layer", [3, -4, 99])
@pytest.mark.parametrize("name", ["CLIPVisionModel", "SwinModel", "Pix2StructVisionModel", "Kosmos2_5VisionModel"])
def test_a_layer_that_is_not_there_is_refused(name, layer):
    case = next(case for case in CASES if case[0] == name)
    made = Expert("one", entry(case, layer=layer), text_width=32, attn_implementation="sdpa")
    told = rf"'one': its encoder has 3 hidden states, layers 0 to 2 \(or -3 to -1\); layer {layer} is none of them"
    with pytest.raises(ValueError, match=told):
        made.encode(case[3])


@torch.no_grad()
def test_a_class_that_gives_its_last_state_only_says_so(monkeypatch):
    made = Expert("one", entry(CASES[0], layer=1), text_width=32, attn_implementation="sdpa")
    whole = type(made.encoder).forward

    def last_only(self, **given):
        return whole(self, **given | {"output_hidden_states": False})

    monkeypatch.setattr(type(made.encoder), "forward", last_only)
    with pytest.raises(ValueError, match="gives its last hidden state only, and not that of layer 1"):
        made.encode(_IMAGE)


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="has no class 'CLIPEyeModel'"):
        Expert("one", entry(CASES[0], class_name="CLIPEyeModel"), text_width=32, attn_implementation=None)


@torch.no_grad()
def test_native_processors_outputs_go_straight_in():
    """The tensors of transformers' own Pix2Struct processor, of two pages of different shape."""
    processor = transformers.Pix2StructImageProcessor(max_patches=12, patch_size={"height": 2, "width": 2})
    generator = np.random.default_rng(0)
    pages = [
        generator.integers(0, 255, (20, 30, 3), dtype=np.uint8),
        generator.integers(0, 255, (8, 90, 3), dtype=np.uint8),
    ]
    inputs = processor(pages, return_tensors="pt")
    case = next(case for case in CASES if case[0] == "Pix2StructVisionModel")
    made = Expert("one", entry(case, padding="drop", tokens="attention_mask"), text_width=32, attn_implementation=None)
    found = made(inputs)
    assert found.counts == inputs["attention_mask"].sum(-1).long().tolist()
    assert min(found.counts) < 12
