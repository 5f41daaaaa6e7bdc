"""A composed checkpoint with two domain experts on disk, and data of three domains."""

import json
from pathlib import Path

import numpy as np
import torch
from align_data_samples import MARKS, picture, write_lines  # its path makes the next imports work
from composed_folders import composed_state, config_for, tiny_tokenizer
from expert_models import maths
from safetensors.torch import save_file
from tiny_models import fill, tiny_model
from tiny_processors import VISION, clip, llava, write_qwen2_vl

from mcompose.align.load import load_processor
from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.modeling.experts.processing import add_expert_tokens, expert_summary
from mcompose.modeling.processing.composed import ComposedProcessor, add_placeholders, build_processor

EXPERTS = {"maths": (28, 4), "charts": (42, 9)}
"""Name to the side of its images and its tokens."""
INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
DOMAINS = ("charts", "maths", "photos")


def expert_entry(name):
    side, tokens = EXPERTS[name]
    entry = maths(domain=name, tokens=tokens)
    entry["config"] = {**entry["config"], "image_size": side}
    return entry


def make_processor(tokenizer, config) -> ComposedProcessor:
    summaries = {name: expert_summary(entry, inputs=["pixel_values"], vectors=entry["tokens"] + 1)
                 for name, entry in config.experts.items()}  # fmt: skip
    made = build_processor(
        tokenizer, config.sources, processors={"sees": llava()}, experts=summaries, routers=list(config.routers)
    )
    made.expert_media.processors.update({name: clip(side) for name, (side, _) in EXPERTS.items()})
    return made


def write_internvl(folder: Path) -> None:
    """An InternVL source's processor files: tiles of 56 pixels, 4 tokens each."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(*INTERNVL.values())
    for name, token in INTERNVL.items():
        tokenizer.init_kwargs[name] = token
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {**INTERNVL, "extra_special_tokens": INTERNVL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    images = {
        "image_processor_type": "GotOcr2ImageProcessor", "processor_class": "InternVLProcessor",
        "size": {"height": 56, "width": 56}, "crop_to_patches": False, "min_patches": 1, "max_patches": 12,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    own = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    (folder / "processor_config.json").write_text(json.dumps(own), encoding="utf-8")


WRITERS = {"internvl": write_internvl, "qwen2_vl": write_qwen2_vl}


def build_experts(
    folder: Path, *, mask_token: bool = False, native: str = "llava", **router
) -> tuple[Path, ComposedProcessor]:
    """The checkpoint ``out`` and its processor."""
    torch.set_num_threads(1)
    sees, tokenizer = tiny_model(native), tiny_tokenizer(*MARKS, *INTERNVL.values(), *VISION)
    placeholders = add_placeholders(tokenizer, ["image"])
    extra = {
        "experts": {name: expert_entry(name) for name in EXPERTS},
        "routers": {
            "image": {"classes": ["none", *EXPERTS], "feature": "class", "tile": "last", "width": 32, **router}
        },
        **add_expert_tokens(tokenizer, list(EXPERTS)),
        "mask_token": mask_token,
    }
    config = config_for(sees, {"sees": sees}, {"sees": ["image"]}, placeholders, **extra)
    model = ComposedForConditionalGeneration(config).eval()
    for seed, part in enumerate((model.model.experts, model.model.routers), start=3):
        fill(part, seed)
    model.model.domain_tokens.data.normal_(generator=torch.Generator().manual_seed(5))
    state = {**model.state_dict(), **composed_state(sees, {"sees": sees})}
    out = folder / "out"
    out.mkdir(parents=True)
    config.save_pretrained(out)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    kept = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    processor = make_processor(tokenizer, config)
    if native in WRITERS:
        processor.processors.clear()
        (out / "processors").mkdir()
        WRITERS[native](out / "processors" / "sees")
    processor.save_pretrained(out)
    return out, load_processor(out)


def write_domains(folder: Path, *, each: int = 6, text_only: int = 2) -> list:
    """Datasets of three domains, whose pictures tell them apart, and one of text; as a recipe lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for shade, domain in enumerate(DOMAINS):
        rows = []
        for number in range(each):
            picture(folder / f"{domain}{number}.png", 20 + 80 * shade + number)
            turns = [("human", "<image> what is it ?"), ("gpt", "a b c d"[: 1 + 2 * (number % 4)])]
            record = {"conversations": [{"from": who, "value": said} for who, said in turns]}
            rows.append({**record, "image": f"{domain}{number}.png"})
        found.append({"path": str(write_lines(folder / f"{domain}.jsonl", rows)), "domain": domain})
    turns = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "e f"}]
    found.append({"path": str(write_lines(folder / "text.jsonl", [{"conversations": turns}] * text_only))})
    return found


def rows_of(log: Path) -> list:
    return [json.loads(line) for line in log.read_text().splitlines()]


def values(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path)


def same(one, other) -> bool:
    return np.array_equal(one.numpy(), other.numpy())
