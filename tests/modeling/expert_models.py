"""Composed models with tiny experts, and batches written by hand, for the tests of experts."""

import torch
from composed_folders import composed_state, config_for
from tiny_configs import TOKENS
from tiny_models import fill, tiny_model

from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.modeling.configuration.native import native_config
from mcompose.modeling.experts.encoder import encoder_class

BEGIN, END, SLOT, MATHS, CHARTS, SPEECH = 1010, 1011, 1012, 1013, 1014, 1015
IMAGE, AUDIO, VIDEO = TOKENS["image"], TOKENS["audio"], TOKENS["video"]
IDS = {"maths": MATHS, "charts": CHARTS, "speech": SPEECH}
"""Beyond the embedding table, which has 128 rows."""

_VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_MLP = {"kind": "mlp", "depth": 2}
PATCHES = 6


def maths(**changes):
    """A CLIP tower of 4 patches behind a class token."""
    entry = {
        "model_type": "clip_vision_model", "config": {**_VIT, "image_size": 28, "patch_size": 14},
        "class_name": "CLIPVisionModel", "modality": "image", "domain": "maths", "layer": -1, "skip": 1,
        "padding": "keep", "projector": _MLP, "tokens": 4,
    }  # fmt: skip
    return {**entry, **changes}


def charts(**changes):
    """A Pix2Struct tower of up to 6 patches, whose mask says which are real."""
    config = {
        "hidden_size": 24, "d_kv": 6, "d_ff": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "seq_len": 300,
        "patch_embed_hidden_size": 12,
    }  # fmt: skip
    entry = {
        "model_type": "pix2struct_vision_model", "config": config, "class_name": "Pix2StructVisionModel",
        "modality": "image", "domain": "charts", "layer": -1, "skip": 0, "padding": "keep", "projector": _MLP,
        "tokens": PATCHES,
    }  # fmt: skip
    return {**entry, **changes}


def speech(**changes):
    """A Whisper encoder of 10 frames."""
    config = {
        "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
        "max_source_positions": 10, "decoder_layers": 1, "decoder_attention_heads": 4, "vocab_size": 60,
    }  # fmt: skip
    entry = {
        "model_type": "whisper", "config": config, "class_name": "WhisperEncoder", "modality": "audio",
        "domain": "speech", "layer": -1, "skip": 0, "padding": "keep", "projector": _MLP, "tokens": 10,
    }  # fmt: skip
    return {**entry, **changes}


def fields(experts, routers=None, **extra):
    """The expert fields of a configuration."""
    return {
        "experts": experts,
        "routers": routers or {},
        "expert_token_ids": {name: IDS[name] for name in experts},
        "domain_token_ids": [BEGIN, END],
        "expert_slot_id": SLOT,
        **extra,
    }


def image_router(*classes, width=32, **changes):
    """The router of images."""
    router = {"classes": ["none", *classes], "feature": "class", "tile": "first", "rule": {"kind": "argmax"}}
    return {"image": {**router, "width": width, **changes}}


def native_encoder(entry, seed=0):
    """An expert's encoder as transformers has it."""
    config = native_config(entry["model_type"], entry["config"])
    cls = encoder_class(entry, config)
    encoder = cls._from_config(config, attn_implementation="sdpa" if cls._supports_sdpa else "eager").eval()
    fill(encoder, seed)
    return encoder


def with_experts(natives, modalities, experts, routers=None, *, attention=None, **extra):
    """A composed model with experts in eval mode, and the native encoders whose weights it has."""
    first = next(iter(natives.values()))
    used = {m: TOKENS[m] for found in modalities.values() for m in found}
    config = config_for(first, natives, modalities, used, **fields(experts, routers, **extra))
    if attention:
        config._attn_implementation = attention
    model = ComposedForConditionalGeneration(config).eval()
    state = composed_state(first, natives)
    encoders = {name: native_encoder(entry, seed) for seed, (name, entry) in enumerate(experts.items(), start=7)}
    fill(model.model.experts, 3)
    fill(model.model.routers, 4)
    for name, encoder in encoders.items():
        inside = model.model.experts[name].encoder.state_dict()
        state |= {f"model.experts.{name}.encoder.{k}": v for k, v in encoder.state_dict().items() if k in inside}
        assert set(inside) <= set(encoder.state_dict())
    for name, tensor in model.state_dict().items():
        if ".projector." in name or name.startswith("model.routers."):
            state.setdefault(name, tensor)
    state["model.domain_tokens"] = noise(2, 32, seed=20)
    if "model.mask_token" in model.state_dict():
        state["model.mask_token"] = noise(32, seed=21)
    model.load_state_dict(state)
    return model, encoders


def two(attention=None, *, native="llava", **changes):
    """Images of one source, with two experts and a router over both."""
    experts = {"charts": charts(**changes.pop("charts", {})), "maths": maths(**changes.pop("maths", {}))}
    router = image_router("maths", "charts", **changes.pop("router", {}))
    source = tiny_model(native)
    return with_experts({"sees": source}, {"sees": ["image"]}, experts, router, attention=attention, **changes)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(count, seed=1):
    """Images for the source (LLaVA)."""
    return {"sees__pixel_values": noise(count, 3, 28, 28, seed=seed)}


def patches(count, real=None, seed=2):
    """Flattened patches with their row and column numbers, and the mask of real ones."""
    x = noise(count, PATCHES, 12, seed=seed)
    places = torch.stack([torch.arange(PATCHES) // 3 + 1, torch.arange(PATCHES) % 3 + 1], dim=-1)
    mask = torch.ones(count, PATCHES)
    for item, kept in enumerate(real or []):
        mask[item, kept:] = 0
    whole = torch.cat([places.expand(count, -1, -1).float(), x], dim=-1) * mask[..., None]
    return {"flattened_patches": whole, "attention_mask": mask}


def squares(count, seed=3):
    """Images for the CLIP expert."""
    return {"pixel_values": noise(count, 3, 28, 28, seed=seed)}


def named(expert, inputs):
    return {f"{expert}__{key}": value for key, value in inputs.items()}


def picked(inputs, rows):
    return {key: value[rows] for key, value in inputs.items()}


def block(name, count):
    return [BEGIN, *[IDS[name]] * count, END]


def project(expert, x):
    """LayerNorm, Linear, GELU, Linear, written out."""
    p = expert.projector
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * p.norm.weight + p.norm.bias
    first, second = p.layers
    x = x @ first.weight.T + first.bias
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x @ second.weight.T + second.bias


def write_experts_folder(folder):
    """Writes a composition with two experts and a router, and ``batch.pt``: what ``route`` takes for it.

    Returns:
        The folder, the model, the native encoders and the batch.
    """
    model, encoders = two(mask_token=True)
    images = [IMAGE] * 4
    with torch.no_grad():
        tower = model.model.towers["sees"]
        cls = tower.vision_tower(pixels(2)["sees__pixel_values"]).last_hidden_state[:, 0]
        wanted = torch.tensor([[0.0, 0, 5], [0, 5, 0]])
        model.model.routers["image"].weight.copy_((torch.linalg.pinv(cls) @ wanted).T)
    model.save_pretrained(folder)
    batch = {
        "input_ids": torch.tensor([[1, *images, SLOT, 5, *images, SLOT, 6]]),
        **pixels(2),
        **named("charts", patches(2)),
        **named("maths", squares(2)),
    }
    torch.save(batch, folder / "batch.pt")
    return folder, model, encoders, batch
