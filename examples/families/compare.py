"""Composes one tiny checkpoint, loads the result, and compares it with the class that wrote the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from examples.families.configs import TOKENS, tiny_config
from examples.families.media import tiny_inputs
from mcompose.anatomy import language_classes
from mcompose.checkpoint import StagedOutput
from mcompose.compose import make_blueprint, tower_entries
from mcompose.errors import McomposeError, first_line
from mcompose.merge import execute
from mcompose.modeling import ComposedForConditionalGeneration, composed_config, register
from mcompose.recipe import parse_recipe

__all__ = ["Finding", "compare_family", "compare_text", "tiny_model"]

VESSEL = "llava"
"""The family that holds any language model."""
LARGEST = 60_000_000
NEAR = 1e-5
"""Differences up to here are another order of the same sums."""


@dataclass
class Finding:
    """What one family does.

    Args:
        model_type: The family.
        verdict: ``exact``, ``near``, ``wrong``, ``refused``, ``fails`` or ``not tried``.
        reason: Why it is refused, what fails, or what differs.
        modalities: What was compared beside text.
        text_type: Type of its language model.
        differences: Case to the largest difference of logits.
    """

    model_type: str
    verdict: str
    reason: str = ""
    modalities: list[str] = field(default_factory=list)
    text_type: str = ""
    differences: dict[str, float] = field(default_factory=dict)


def tiny_model(model_type: str, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Builds a tiny model in float32, with weights that depend on the names of its parameters alone.

    Args:
        model_type: The family.
        config: Its config; None for a tiny one.

    Raises:
        Exception: Whatever the class raises.
        ValueError: It is not tiny.
    """
    config = tiny_config(model_type) if config is None else config
    with torch.device("meta"):
        meta = getattr(transformers, language_classes()[model_type])._from_config(config)
    if meta.num_parameters() > LARGEST:
        raise ValueError(f"{meta.num_parameters():,} parameters: no rule makes it small")
    model = type(meta)._from_config(config).eval().float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            small = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
            tensor.copy_(small if tensor.ndim < 2 else noise / max(tensor[0].numel(), 1) ** 0.5)
    return model


def compare_family(model_type: str, folder: Path) -> Finding:
    """Composes a multimodal family alone and compares text, media, all with padding, and greedy answers.

    Args:
        model_type: The family.
        folder: Empty folder for the checkpoints.
    """
    return _compare(model_type, lambda: tiny_model(model_type), folder)


def compare_text(text_type: str, folder: Path) -> Finding:
    """Compares LLaVA over a type of language model, in which any may stand.

    Args:
        text_type: The type.
        folder: Empty folder for the checkpoints.
    """

    def build() -> PreTrainedModel:
        whole = tiny_config(VESSEL).to_dict()
        text = tiny_config(text_type).to_dict()
        return tiny_model(VESSEL, type(tiny_config(VESSEL)).from_dict({**whole, "text_config": text}))

    return _compare(text_type, build, folder)


def _compare(name: str, build: Callable[[], PreTrainedModel], folder: Path) -> Finding:
    try:
        native = build()
        inputs, modalities = _readable_inputs(native)
    except Exception as error:  # noqa: BLE001 - any line of any model's code may refuse a rule's config or a guess
        return Finding(name, "not tried", f"{type(error).__name__}: {first_line(error)}")
    finding = Finding(name, "exact", modalities=modalities)
    finding.text_type = native.config.get_text_config(decoder=True).model_type
    cases = {"text": _text(), "media": inputs, "padded": _padded(inputs)}
    return _judge(finding, native, cases, folder)


@torch.no_grad()
def _readable_inputs(native: PreTrainedModel) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns inputs that the native class reads; without a film where it reads none of those that are tried."""
    inputs, modalities = tiny_inputs(native)
    try:
        native(**inputs)
    except Exception:
        if "video" not in modalities or len(modalities) == 1:
            raise
        inputs, modalities = tiny_inputs(native, without=("video",))
        native(**inputs)
    return inputs, modalities


def _judge(finding: Finding, native: PreTrainedModel, cases: dict[str, dict[str, Any]], folder: Path) -> Finding:
    try:
        composed = _compose(native, finding.modalities, folder)
    except (McomposeError, ValueError) as error:
        finding.verdict, finding.reason = "refused", str(error).splitlines()[0]
        return finding
    except Exception as error:  # noqa: BLE001 - what a user would see as a traceback
        finding.verdict, finding.reason = "fails", f"{type(error).__name__}: {first_line(error)}"
        return finding
    try:
        for name, inputs in cases.items():
            finding.differences[name] = _difference(native, composed, inputs)
        finding.differences["answer"] = float(not _same_answer(native, composed, cases["media"]))
    except Exception as error:  # noqa: BLE001 - as above
        finding.verdict, finding.reason = "fails", f"{type(error).__name__}: {first_line(error)}"
        return finding
    name, worst = max(finding.differences.items(), key=lambda item: item[1])
    if not worst <= NEAR:
        finding.verdict, finding.reason = "wrong", f"{name} differs by {worst:.3g}"
    elif worst:
        finding.verdict, finding.reason = "near", f"{name} differs by {worst:.1g}"
    return finding


def _compose(native: PreTrainedModel, modalities: list[str], folder: Path) -> PreTrainedModel:
    """Writes the checkpoint, merges it as a recipe would, but for the processors, and loads the result.

    Raises:
        McomposeError: mcompose refuses the family.
        ValueError: Weights are missing or left over after loading.
    """
    native.save_pretrained(folder / "source")
    _tokenizer().save_pretrained(folder / "source")
    document = {
        "schema": 1, "name": "tiny", "merge": {"method": "naivemc"}, "output": {"format": "composed"},
        "sources": [{"name": "only", "model": "local:source", "modalities": modalities}],
    }  # fmt: skip
    loaded = parse_recipe(json.dumps(document), path=folder / "recipe.yaml")
    blueprint = make_blueprint(loaded, weights=True)
    register()
    config = composed_config(
        *tower_entries(blueprint),
        placeholders={modality: TOKENS[modality] for modality in modalities},
        tie_word_embeddings=not any(job.name == "lm_head.weight" for job in blueprint.plan.jobs),
        dtype="float32",
    )
    with StagedOutput.open(folder / "out", fingerprint="tiny") as staged:
        config.save_pretrained(staged.partial)
        staged.allocate(blueprint.plan.layout)
        execute(blueprint.plan, staged)
        made = staged.finish()
    model, report = ComposedForConditionalGeneration.from_pretrained(made, output_loading_info=True, dtype="float32")
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"loading: {first_line(Exception(json.dumps(wrong)))[:160]}")
    return model.eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, 128))]
    vocabulary = {word: index for index, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # noqa: S106 - a word
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106 - a word


def _text() -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([[1, 5, 9, 33, 44, 60, 71, 3]])
    return {"input_ids": input_ids}


def _padded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.nn.functional.pad(x, (3, 0)) if _is_shared(name) else x for name, x in inputs.items()}


def _is_shared(name: str) -> bool:
    return name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def _mine(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name if _is_shared(name) else f"only__{name}": value for name, value in inputs.items()}


@torch.no_grad()
def _difference(native: PreTrainedModel, composed: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    theirs, ours = native(**inputs).logits, composed(**_mine(inputs)).logits
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    return float((ours[real][..., : theirs.shape[-1]] - theirs[real]).abs().max())


@torch.no_grad()
def _same_answer(native: PreTrainedModel, composed: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> bool:
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return torch.equal(native.generate(**inputs, **asked), composed.generate(**_mine(inputs), **asked))
