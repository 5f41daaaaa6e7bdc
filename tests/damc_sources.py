"""Tiny donors on one base, ordinary ones and ones with decoupled groups, and what they are shown."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_configs import RAW, clip, text
from tiny_models import fill
from tiny_sources import perturb, tokenizer, write_recipe
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
)

from mcompose.modeling import (
    ComposedForConditionalGeneration,
    ComposedProcessor,
    add_groups,
    add_prefixes,
    build_processor,
    fold_text,
    prefix_fields,
    register,
)
from mcompose.modeling.groups.linear import LowRank, routed_linears
from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.points.network import PointsForConditionalGeneration
from mcompose.modeling.points.processing import PointsProcessor
from mcompose.pipeline.write import merge

ROWS = {"base": 100, "sees": 120, "hears": 128, "feels": 104}
MODALITY = {"sees": "image", "hears": "audio", "feels": "points"}
LINEAR = "model.language_model.layers.{}.{}"
ROLES = [f"self_attn.{role}_proj" for role in "qkvo"] + [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
LINEARS = [LINEAR.format(layer, role) for layer in range(2) for role in ROLES]


def language(model, base, *, change, seed):
    """Gives a model the base's language model, moved a little; rows behind the base's stay its own."""
    decoder = model.get_decoder()
    state = decoder.state_dict()
    for name, tensor in base.model.state_dict().items():
        state[name][: len(tensor)] = tensor
    decoder.load_state_dict(state)
    model.get_output_embeddings().weight.data[: len(base.lm_head.weight)] = base.lm_head.weight.data
    perturb(decoder, change, seed)


def write_natives(folder: Path, *, change: float = 0.05) -> Path:
    """A base with biases in its attention, and an image, an audio and a points source that grew from it."""
    config = {name: text("qwen2", vocab_size=rows) for name, rows in ROWS.items()}
    base = Qwen2ForCausalLM(Qwen2ForCausalLM.config_class.from_dict(config["base"]))
    fill(base, 0)
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    settings = {"text_config": config["sees"], "vision_config": clip(), "image_token_index": 19}
    sees = LlavaForConditionalGeneration(LlavaConfig.from_dict({**settings, "vision_feature_layer": -1}))
    audio = {**RAW["qwen2_audio"]["audio_config"], "num_mel_bins": 4}
    raw = {**RAW["qwen2_audio"], "audio_config": audio, "text_config": config["hears"], "audio_token_index": 19}
    hears = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_dict(raw))
    feels = PointsForConditionalGeneration(
        PointsConfig(text_config=config["feels"], points_config={"hidden_size": 16}, points_token_id=19)
    )
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    sounds = WhisperFeatureExtractor(feature_size=4, n_fft=256, hop_length=100, sampling_rate=8000, chunk_length=1)
    processors = {
        "sees": LlavaProcessor(
            images, tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
        "hears": Qwen2AudioProcessor(sounds, tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")),
        "feels": PointsProcessor(tokenizer("<points>"), num_points=20),
    }  # fmt: skip
    for seed, (name, model) in enumerate((("sees", sees), ("hears", hears), ("feels", feels)), start=1):
        fill(model, seed)
        language(model, base, change=change, seed=seed)
        model.save_pretrained(folder / name)
        processors[name].save_pretrained(folder / name)
    return folder


@torch.no_grad()
def write_donor(
    folder: Path, natives: Path, name: str, *, kind: str, prefixes: bool = False, rank: int | None = None
) -> Path:
    """A composed checkpoint of one source with a group of its modality, as training would leave it.

    ``dense``: group and text are tensors of their own. ``low-rank``: both are factors over the base. ``group``: only
    the modality's is, the text is the base. ``folded``: low-rank, with the text folded and the base beside it.
    """
    plain = composed(
        folder, natives, {name: natives / "base-too" / name}, {"method": "naivemc"}, output=f"{name}-plain"
    )
    model = ComposedForConditionalGeneration.from_pretrained(plain)
    modality = MODALITY[name]
    if kind == "dense":
        add_groups(model, [modality])
        perturb(model.model.language_model, 0.05, len(name))
    else:
        names = [modality] if kind == "group" else [modality, "text"]
        add_groups(model, names, kind="low_rank", rank=rank or 2 + len(name) % 3, scale=2.0)
        generator = torch.Generator().manual_seed(len(name))
        for _, linear in routed_linears(model):
            for group in linear.groups.values():
                assert isinstance(group, LowRank)
                group.lora_B.weight.copy_(torch.randn(group.lora_B.weight.shape, generator=generator) * 0.03)
    if kind == "folded":
        fold_text(model)
    processor = ComposedProcessor.from_pretrained(plain)
    counts = {}
    if prefixes:
        counts = {"prefix_tokens": {modality: 2}, "suffix_tokens": {modality: 1}}
        add_prefixes(model, **prefix_fields(processor.tokenizer, **counts))
        for vectors in (*model.model.prefix_tokens.parameters(), *model.model.suffix_tokens.parameters()):
            vectors.copy_(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(7)))
    target = folder / f"{name}-{kind}"
    build_processor(
        processor.tokenizer, model.config.sources, processors=processor.processors, **counts
    ).save_pretrained(target)
    model.save_pretrained(target)
    return target


def composed(
    folder: Path, natives: Path, sources: dict[str, Path], merge_: dict, *, output: str = "out", modalities=None, **more
) -> Path:
    """Writes a composition and gives its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"name": name, "model": f"local:{path}"} for name, path in sources.items()]
    for entry in entries:
        if modalities and entry["name"] in modalities:
            entry["modalities"] = modalities[entry["name"]]
    recipe = write_recipe(
        folder / f"{output}.yaml", base=f"local:{natives / 'base'}", sources=entries, merge=merge_,
        output={"dir": output, "format": more.pop("format", "composed")}, **more,
    )  # fmt: skip
    merge(recipe)
    return folder / output


def shown(folder: Path, *modalities: str, words: str = "what is this"):
    """Model and inputs of a composition that is shown one item of each modality."""
    register()
    processor = ComposedProcessor.from_pretrained(folder)
    model = ComposedForConditionalGeneration.from_pretrained(folder)
    random = np.random.default_rng(0)
    media = {
        "image": ("images", Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))),
        "audio": ("audio", random.standard_normal(6000).astype(np.float32)),
        "points": ("points", random.standard_normal((50, 3)).astype(np.float32)),
    }
    marks = " ".join(f"<{modality}> a" for modality in modalities)
    text_ = f"USER : {marks} {words} ASSISTANT :"
    return model, processor(text=text_, **dict(media[modality] for modality in modalities))


def low_rank_sum(tensors: dict[str, torch.Tensor], linear: str, group: str, scale: float = 2.0) -> torch.Tensor | float:
    """What factors add to one linear, in float64, worked out from a file: all terms of a sum."""
    places = [linear, *(f"{linear}.stack.{index}" for index in range(9))]
    pairs = [[tensors.get(f"{place}.groups.{group}.lora_{x}.weight") for x in "BA"] for place in places]
    return sum(scale * (b.double() @ a.double()) for b, a in pairs if a is not None and b is not None)


@torch.no_grad()
def logits(folder: Path, *modalities: str) -> torch.Tensor:
    model, inputs = shown(folder, *modalities)
    return model(**inputs).logits
