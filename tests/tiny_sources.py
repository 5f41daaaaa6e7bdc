"""Tiny sources on one base, with tokenizers and processors, as real checkpoints on disk."""

from pathlib import Path

import torch
import yaml
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlamaForCausalLM, LlavaProcessor, PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "USER", ":", "ASSISTANT", "what", "is", "this", "?", *"abcdefgh"]
IMAGE_ID = len(WORDS)
BASE_ROWS = 120


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.add_tokens(list(special), special_tokens=True)
    return made


def write_llava(folder: Path, *, change: float = 0.0, seed: int = 0, tower_change: float = 0.0) -> Path:
    """A LLaVA with 128 vocabulary rows; its language model is the base's plus ``change`` times a seeded direction."""
    model = tiny_model("llava", 0)
    config = model.config
    config.image_token_id = IMAGE_ID
    perturb(model.model.language_model, change, seed)
    perturb(model.model.vision_tower, tower_change, seed)
    perturb(model.model.multi_modal_projector, tower_change, seed)
    vision = config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    images = CLIPImageProcessor(size={"shortest_edge": vision.image_size}, crop_size=side)
    processor = LlavaProcessor(
        images,
        tokenizer("<image>"),
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_language_model(folder: Path, *, change: float = 0.0, seed: int = 0, rows: int = BASE_ROWS) -> Path:
    """The language model of ``write_llava`` as a checkpoint of its own, with the base's tokenizer."""
    whole = tiny_model("llava", 0)
    config = type(whole.config.text_config).from_dict({**whole.config.text_config.to_dict(), "vocab_size": rows})
    model = LlamaForCausalLM(config)
    state = {f"model.{name}": tensor for name, tensor in whole.model.language_model.state_dict().items()}
    state["lm_head.weight"] = whole.lm_head.weight
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:rows]
    model.load_state_dict(state)
    perturb(model.model, change, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def perturb(module: torch.nn.Module, change: float, seed: int) -> None:
    """Moves every weight matrix by ``change`` times its own size, in a direction that the seed names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += change * parameter.abs().mean() * noise


def write_recipe(path: Path, **changes: object) -> Path:
    recipe = {"schema": 1, "name": "tiny", **changes}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def write_family(folder: Path) -> Path:
    """A base, a language model and two LLaVAs that grew from it."""
    write_language_model(folder / "base")
    write_language_model(folder / "expert", change=0.05, seed=1)
    write_llava(folder / "sees", change=0.05, seed=2)
    write_llava(folder / "sees-too", change=0.05, seed=3)
    write_llava(folder / "sees-other-tower", change=0.05, seed=4, tower_change=0.05)
    return folder
