"""A composed checkpoint with two domain experts on disk, data of three domains, and a stand-in for its processor."""

import json
from pathlib import Path

import numpy as np
import torch
from align_data_samples import MARKS, picture, write_lines  # its path makes the next imports work
from composed_folders import composed_state, config_for, tiny_tokenizer
from expert_models import maths
from safetensors.torch import save_file
from tiny_models import fill, tiny_model
from tiny_processors import clip, llava

from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.modeling.processing_mcompose import ComposedProcessor, add_placeholders, build_processor

EXPERTS = {"maths": (28, 4), "charts": (42, 9)}
"""Name to the side of its images and its tokens."""
BEGIN, END, SLOT = "<domain>", "</domain>", "<expert>"
DOMAINS = ("charts", "maths", "photos")


class ExpertProcessor(ComposedProcessor):
    """Writes the blocks of named experts, or slots, after each image, and gives the experts their pixels."""

    experts: dict = {}  # noqa: RUF012 - set below; one stand-in at a time

    def __call__(self, images=None, text=None, *, experts="auto", **kwargs):
        texts = [text] if isinstance(text, str) else list(text)
        flat = [item for row in (images or []) for item in (row if isinstance(row, list) else [row])]
        routes = iter([experts] * len(flat) if isinstance(experts, str) else experts)
        taken = []
        for number, row in enumerate(texts):
            first, *rest = row.split("<image>")
            for piece in rest:
                taken.append(next(routes))
                first += f"<image>{self.block(taken[-1])}{piece}"
            texts[number] = first
        assert next(routes, "no more") == "no more"
        out = super().__call__(images=images, text=texts, **kwargs)
        for name, (side, _) in EXPERTS.items():
            mine = [item for item, route in zip(flat, taken, strict=True) if route in (name, "auto")]
            if mine:
                out[f"{name}__pixel_values"] = clip(side)(images=mine, return_tensors="pt")["pixel_values"]
        return out

    @staticmethod
    def block(route):
        if route == "auto":
            return SLOT
        return "" if route in (None, "none") else f"{BEGIN}{f'<expert:{route}>' * EXPERTS[route][1]}{END}"


def expert_entry(name):
    side, tokens = EXPERTS[name]
    entry = maths(domain=name, tokens=tokens)
    entry["config"] = {**entry["config"], "image_size": side}
    return entry


def make_processor(tokenizer, sources) -> ExpertProcessor:
    made = build_processor(tokenizer, sources, processors={"sees": llava()})
    made.__class__ = ExpertProcessor
    made.experts = {name: {"modality": "image", "domain": name, "tokens": n} for name, (_, n) in EXPERTS.items()}
    made.types |= dict.fromkeys((BEGIN, END, SLOT, *(f"<expert:{name}>" for name in EXPERTS)), 5)
    return made


def build_experts(folder: Path, *, mask_token: bool = False) -> tuple[Path, ExpertProcessor]:
    """The checkpoint ``out`` and its processor."""
    torch.set_num_threads(1)
    sees, tokenizer = tiny_model("llava"), tiny_tokenizer(*MARKS)
    placeholders = add_placeholders(tokenizer, ["image"])
    tokenizer.add_tokens([BEGIN, END, SLOT, *(f"<expert:{name}>" for name in EXPERTS)], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids
    extra = {
        "experts": {name: expert_entry(name) for name in EXPERTS},
        "routers": {"image": {"classes": ["none", *EXPERTS], "feature": "class", "tile": "first", "width": 32}},
        "expert_token_ids": {name: ids(f"<expert:{name}>") for name in EXPERTS},
        "domain_token_ids": [ids(BEGIN), ids(END)],
        "expert_slot_id": ids(SLOT),
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
    return out, make_processor(tokenizer, config.sources)


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
