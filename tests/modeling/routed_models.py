"""Tiny routed models, and the plain arithmetic that they must equal: a masked sum over all groups."""

import copy

import torch
from composed_folders import tiny_tokenizer, write_folder
from composed_models import compose, placeholder_rows
from tiny_configs import AUDIO, IMAGE
from tiny_models import TINY, fill, tiny_inputs, tiny_model
from tiny_processors import llava
from torch import nn

from mcompose.modeling import (
    ComposedForConditionalGeneration,
    add_groups,
    add_prefixes,
    build_processor,
    prefix_fields,
)
from mcompose.modeling.groups.linear import LowRank, routed_linears
from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.points.network import PointsForConditionalGeneration
from mcompose.modeling.points.processing import PointsProcessor

LOW_RANK = {"kind": "low_rank", "rank": 3, "scale": 2.0}
PREFIXES = {
    "prefix_tokens": {"image": 2, "audio": 1}, "suffix_tokens": {"image": 1},
    "prefix_token_ids": {"image": 300, "audio": 301}, "suffix_token_ids": {"image": 302},
}  # fmt: skip
GROUPS = {
    "dense": {"image": {"kind": "dense"}, "audio": {"kind": "dense"}},
    "shared": {"image": LOW_RANK, "audio": {**LOW_RANK, "rank": 5}},
    "shared-text": {"text": {**LOW_RANK, "rank": 4}, "image": LOW_RANK, "audio": {**LOW_RANK, "rank": 5}},
    "separate": {"text": {**LOW_RANK, "rank": 4}, "image": LOW_RANK, "audio": {**LOW_RANK, "rank": 5}},
    "stacked": {
        "text": {"kind": "low_rank", "rank": [4, 2, 1], "scale": [2.0, 0.5, 1.0]},
        "image": LOW_RANK, "audio": {"kind": "dense"},
    },
    "mixed": {"image": {"kind": "dense"}, "audio": LOW_RANK},
    "mixed-text": {"text": LOW_RANK, "image": {"kind": "dense"}, "audio": LOW_RANK},
    "one": {"image": {"kind": "dense"}},
}  # fmt: skip


def plain(language="llava", dtype=torch.float64):
    """A composition of an image and an audio source, not routed, with its image and audio inputs."""
    sees, hears = tiny_model("llava"), tiny_model("voxtral", 1)
    base = tiny_model(language)
    model = compose(
        base, {"sees": sees, "hears": hears}, {"sees": ["image"], "hears": ["audio"]},
        {"image": IMAGE, "audio": AUDIO},
    )  # fmt: skip
    model = model.to(dtype)
    image = tiny_inputs("llava", sees)["pixel_values"].to(dtype)
    sound = tiny_inputs("voxtral", hears)["input_features"].to(dtype)
    return model, image, sound


def lengths(model, image, sound):
    """How many vectors the image and the sound become."""
    inputs = {"sees__pixel_values": image, "hears__input_features": sound}
    features = model.model.encode_media(model.model.media_inputs(inputs))
    return len(features["image"].x_ND), len(features["audio"].x_ND)


@torch.no_grad()
def scramble(model, seed=5):
    """Gives every group, base and vector values of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".groups." in name or ".stack." in name or ".base." in name or "fix_tokens." in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def routed(groups="dense", *, prefixes=False, dtype=torch.float64, language="llava"):
    """A routed composition with random groups, a batch for it, and its vectors around items where asked."""
    model, image, sound = plain(language, dtype)
    give_groups(model, GROUPS[groups], separate=groups == "separate")
    if prefixes:
        add_prefixes(model, **PREFIXES)
    scramble(model)
    return model, batch(model, image, sound, prefixes=prefixes)


def give_groups(model, groups, *, separate=False):
    """Adds groups of several kinds; "separate" folds a random text group in first."""
    for name, fields in groups.items():
        add_groups(model, [name], **fields)
    if separate:
        from mcompose.modeling import fold_text

        scramble(model, 9)
        fold_text(model)


def item(modality, count, *, prefixes):
    """The ids of one item."""
    middle = [IMAGE if modality == "image" else AUDIO] * count
    if not prefixes:
        return middle
    before = [PREFIXES["prefix_token_ids"][modality]] * PREFIXES["prefix_tokens"][modality]
    after = [PREFIXES["suffix_token_ids"].get(modality)] * PREFIXES["suffix_tokens"].get(modality, 0)
    return before + middle + after


def batch(model, image, sound, *, prefixes=False, side="left"):
    """Four rows: image and sound, text only, two images side by side, one sound; padded."""
    n, m = lengths(model, image, sound)
    see, hear = item("image", n, prefixes=prefixes), item("audio", m, prefixes=prefixes)
    rows = [[1, 5, *see, 6, 7, *hear, 8], [1, 9, 10, 11], [1, *see, *see, 12, 13], [1, *hear, 14]]
    ids, mask = placeholder_rows(max(map(len, rows)), *rows, side=side)
    torch.manual_seed(3)
    images = torch.cat([image, image * 0.5 + 0.1, torch.randn_like(image)])
    sounds = torch.cat([sound, sound * 0.7 - 0.2])
    return {"input_ids": ids, "attention_mask": mask, "sees__pixel_values": images, "hears__input_features": sounds}


class Reference(nn.Module):
    """``y = sum_g mask_g * proj_g(h)``, every group on every token, as the paper's equations say it."""

    def __init__(self, linear, masks):
        super().__init__()
        self.inner, self.masks = linear, masks

    def forward(self, x):
        own = nn.functional.linear(x, self.inner.weight, self.inner.bias)
        base = own if self.inner.base is None else self.inner.base(x)
        text = torch.ones_like(next(iter(self.masks.values())))
        y = 0
        for name, mask in self.masks.items():
            text = text & ~mask
            if name in self.inner.groups:
                group = self.inner.groups[name]
                made = base + part(group, x) if isinstance(group, LowRank) else group(x)
            else:
                made = own + text_part(self.inner, x)
            y = y + mask[..., None] * made
        return y + text[..., None] * (own + text_part(self.inner, x))


def part(group, x):
    return group.scale * (x @ group.lora_A.weight.t() @ group.lora_B.weight.t())


def text_part(linear, x):
    """All low-rank parts of the text group, each written out."""
    found = [part(linear.groups["text"], x)] if "text" in linear.groups else []
    found += [part(term.groups["text"], x) for term in linear.stack]
    return sum(found)


def masks_of(ids):
    """Modality -> where its tokens are, written out again."""
    kinds = {"image": [IMAGE, 300, 302], "audio": [AUDIO, 301]}
    return {name: torch.isin(ids, torch.tensor(found)) for name, found in kinds.items()}


def reference(model, ids):
    """A copy of a routed model whose linears compute the masked sum; hooks and routes have no part in it."""
    other = copy.deepcopy(model)
    masks = masks_of(ids)
    other.model.specs = {}
    for name, linear in list(routed_linears(other)):
        other.set_submodule(name, Reference(linear, masks))
    return other


def gradients(model, inputs):
    """Gradients of a loss on all text tokens, by the parameter's name in the routed model."""
    model.zero_grad()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100)
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    return {n.replace(".inner.", "."): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def write_routed_folder(where):
    """Writes a composition with groups and vectors around items under ``where``; returns its folder.

    An image and a points source, with a low-rank text group, a dense and a low-rank one.
    """
    text = TINY["llava"]().get_text_config().to_dict()
    points = PointsForConditionalGeneration(PointsConfig(text_config=text, points_config={"hidden_size": 16})).eval()
    fill(points, 3)
    natives = {"sees": tiny_model("llava"), "feels": points}
    processors = {"sees": llava(), "feels": PointsProcessor(tiny_tokenizer("<points>"), num_points=20)}
    tokenizer = tiny_tokenizer(*[f"<extra_{k}>" for k in range(130)])
    write_folder(
        where / "plain", natives["sees"], natives, modalities={"sees": ["image"], "feels": ["points"]},
        tokenizer=tokenizer, processors=processors,
    )  # fmt: skip
    model = ComposedForConditionalGeneration.from_pretrained(where / "plain")
    add_groups(model, ["text", "points"], kind="low_rank", rank=4, scale=2.0)
    add_groups(model, ["image"])
    fields = prefix_fields(tokenizer, prefix_tokens={"image": 2, "points": 1}, suffix_tokens={"points": 2})
    add_prefixes(model, **fields)
    scramble(model)
    counts = {key: fields[key] for key in ("prefix_tokens", "suffix_tokens")}
    build_processor(tokenizer, model.config.sources, processors=processors, **counts).save_pretrained(where / "model")
    model.save_pretrained(where / "model")
    return where / "model"
