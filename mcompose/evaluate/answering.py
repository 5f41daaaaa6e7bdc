"""Loads a checkpoint and lets it answer: greedy, batched, by the plain Auto classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcompose.errors import RequestError
from mcompose.evaluate.media import read_media
from mcompose.evaluate.task import PLACEHOLDERS, Item
from mcompose.modeling import register

__all__ = ["Answerer", "load_answerer"]

ARGUMENTS = {"image": "images", "audio": "audio", "video": "videos", "points": "points"}
"""Modality to the processor's argument."""


@dataclass(frozen=True)
class Answerer:
    """A model that answers.

    Args:
        name: The checkpoint, for messages.
        model: The network.
        processor: Its processor; a tokenizer for text models.
        modalities: What it takes beside text.
    """

    name: str
    model: Any
    processor: Any
    modalities: tuple[str, ...]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, alone or inside the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def check(self, items: Sequence[Item], *, task: str) -> None:
        """Refuses a task that shows what the model cannot take.

        Raises:
            RequestError: The message names the modality.
        """
        shown = dict.fromkeys(m for item in items for m, files in item.media.items() if files)
        for modality in shown:
            if modality not in self.modalities:
                takes = ", ".join(self.modalities) or "text only"
                raise RequestError(
                    f"The task '{task}' shows {modality}, and '{self.name}' takes {takes}.",
                    hint="Use --leave-out to drop what it cannot take, as for a source measured alone.",
                )

    def without_unknown(self, items: Sequence[Item]) -> list[Item]:
        """The same questions without the media and placeholders that the model cannot take."""
        kept: list[Item] = []
        for item in items:
            prompt = item.prompt
            for modality, placeholder in PLACEHOLDERS.items():
                if modality not in self.modalities:
                    prompt = prompt.replace(f"{placeholder} ", "").replace(placeholder, "")
            media = {m: files for m, files in item.media.items() if m in self.modalities}
            kept.append(replace(item, prompt=prompt, media=media))
        return kept

    def answer(self, items: Sequence[Item], *, max_new_tokens: int) -> list[str]:
        """Greedy answers of one batch.

        Args:
            items: Questions; media are read here.
            max_new_tokens: Longest answer.

        Returns:
            One text an item, without the prompt and without special tokens.

        Raises:
            RequestError: A medium cannot be read.
        """
        import torch  # noqa: PLC0415 - the commands that only read tasks start without it

        inputs = self._inputs(items).to(self.model.device)
        if self.model.dtype != torch.float32:
            inputs = inputs.to(self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, items: Sequence[Item]) -> Any:
        media: dict[str, list[Any]] = {}
        for item in items:
            for modality, files in item.media.items():
                read = [read_media(file, modality, sampling_rate=self.sampling_rate) for file in files]
                media.setdefault(modality, []).extend(read)
        arguments = {ARGUMENTS[m]: values for m, values in media.items() if values}
        prompts = [self._spelt(item.prompt) for item in items]
        if self.processor is self.tokenizer:
            return self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        self.tokenizer.padding_side = "left"
        return self.processor(text=prompts, **arguments, padding=True, return_tensors="pt")

    def _spelt(self, prompt: str) -> str:
        """Native processors have placeholders of their own; tasks use one spelling."""
        for modality, placeholder in PLACEHOLDERS.items():
            own = getattr(self.processor, f"{modality}_token", None)
            if isinstance(own, str) and own != placeholder:
                prompt = prompt.replace(placeholder, own)
        return prompt

    @property
    def sampling_rate(self) -> int:
        """Hz that the audio processor expects."""
        inner = [self.processor, *getattr(self.processor, "processors", {}).values()]
        for processor in inner:
            extractor = getattr(processor, "feature_extractor", None)
            if rate := getattr(extractor, "sampling_rate", None):
                return int(rate)
        return 16000


def load_answerer(folder: Path, *, trust_remote_code: bool = False) -> Answerer:
    """Loads a checkpoint by transformers' Auto classes.

    Args:
        folder: A native, composed or text checkpoint.
        trust_remote_code: Run Python code that the checkpoint ships; mcompose's own classes need no such trust.

    Returns:
        The model in evaluation mode, with its processor.

    Raises:
        RequestError: The folder is no checkpoint, or its class is unknown.
    """
    if not (folder / "config.json").is_file():
        raise RequestError(f"'{folder}' is no checkpoint: it has no config.json.")
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer  # noqa: PLC0415 - seconds
    from transformers.utils import logging  # noqa: PLC0415 - seconds

    logging.disable_progress_bar()
    register()
    with _blaming(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        auto = _auto_class(config)
        model = auto.from_pretrained(folder, trust_remote_code=trust_remote_code, dtype="auto").eval()
        modalities = _modalities(model)
        loader = AutoProcessor if modalities else AutoTokenizer
        processor = loader.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return Answerer(str(folder), model, processor, modalities)


def _auto_class(config: Any) -> Any:
    """The class that the config names; multimodal Auto classes do not know all of transformers' own."""
    import transformers  # noqa: PLC0415 - seconds

    name = (config.architectures or [""])[0]
    known = getattr(transformers, name, None)
    if known is not None:
        return known
    if hasattr(config, "text_config"):
        return transformers.AutoModelForMultimodalLM
    return transformers.AutoModelForCausalLM


def _modalities(model: Any) -> tuple[str, ...]:
    """What a model takes: what its config serves, or the features that it can make."""
    served = getattr(model.config, "modalities", None)
    if served is not None:
        return tuple(served)
    base = getattr(model, "model", model)
    declared = tuple(getattr(model, "input_modalities", ()) or ())
    found = [
        modality
        for modality in PLACEHOLDERS
        if modality in declared or hasattr(base, f"get_{modality}_features") or _takes(model, modality)
    ]
    return tuple(found)


def _takes(model: Any, modality: str) -> bool:
    names = {"audio": ("input_features",), "points": ("points",)}.get(modality, ())
    return any(name in inspect.signature(model.forward).parameters for name in names)


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    """Turns transformers' complaints into one sentence that names the checkpoint."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "Use --trust-remote-code if you trust its code." if "trust_remote_code" in str(error) else ""
        raise RequestError(f"'{folder}' cannot be loaded: {line}", hint=hint) from error


def media_of(paths: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """Media of one prompt, in the order of the modalities."""
    return {modality: tuple(paths[modality]) for modality in PLACEHOLDERS if paths.get(modality)}
