"""Writes the lab's checkpoints: weights, configuration, tokenizer, processor, and code where a class needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcompose.modeling import generate_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["make_tokenizer", "save_points_source", "save_source"]

_POINTS_MAP: Final = {
    "AutoConfig": "configuration_points.PointsConfig",
    "AutoModel": "modeling_points.PointsModel",
    "AutoModelForImageTextToText": "modeling_points.PointsForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_points.PointsForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_points.PointsForConditionalGeneration",
}


def make_tokenizer(*, placeholder: str | None = None) -> PreTrainedTokenizerFast:
    """Makes the lab's word-level tokenizer.

    Args:
        placeholder: Extra token of a donor, appended to the base's vocabulary; None for the base.

    Returns:
        A tokenizer with left padding and a start token before every text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415 - import cost
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - import cost

    from mcompose.lab.words import VOCABULARY  # noqa: PLC0415 - beside its heavy neighbours

    words = {word: index for index, word in enumerate(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - a vocabulary word
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", words["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    if placeholder:
        tokenizer.add_special_tokens({"additional_special_tokens": [placeholder]})
    return tokenizer


def save_source(folder: Path, model: PreTrainedModel, processor: Any, *, processor_code: str = "") -> None:
    """Writes a source whose model is a class of transformers.

    Args:
        folder: Folder to write; created when missing.
        model: Model of a class of transformers.
        processor: Processor or tokenizer of the model.
        processor_code: ``module.Class`` in ``mcompose.modeling``, when the processor is not a class of transformers.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if processor_code:
        _write_code(folder, processor_code)


def save_points_source(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    """Writes a points source with its code, so that plain transformers loads it with ``trust_remote_code=True``.

    Args:
        folder: Folder to write; created when missing.
        model: A ``PointsForConditionalGeneration``.
        processor: A ``PointsProcessor``.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _edit_json(folder / "config.json", auto_map=_POINTS_MAP)
    _write_code(folder, "processing_points.PointsProcessor")


def _write_code(folder: Path, code: str) -> None:
    kind = code.partition(".")[0].removeprefix("processing_")
    for name, text in generate_files(kind).items():
        (folder / name).write_bytes(text.encode("utf-8"))
    _edit_json(folder / "processor_config.json", auto_map={"AutoProcessor": code})


def _edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
