"""The checkpoint under evaluation: loaded by plain Auto classes, and asked in batches.

mcompose's own classes (composed checkpoints, the points source, the frames processor) are registered from the installed
package. Any other code that a checkpoint ships runs only when the user trusts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT_MODELS
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL_MODELS

from mcompose.errors import CheckpointError, RequestError, UnknownNameError, first_line, nearest_name
from mcompose.evaluate.routes import TOLD, WRONG, Routes, forced_routes
from mcompose.modalities import MODALITIES, PLACEHOLDERS
from mcompose.modeling import (
    AUTO,
    NONE,
    FramesProcessor,
    PointsProcessor,
    call_processor,
    in_weights_dtype,
    processor_modalities,
    processor_placeholder,
    register,
    sampling_rate,
    takes_flat_options,
    without_second_bos,
)
from mcompose.on_disk import COMPOSED_TYPE

__all__ = ["EvaluatedModel", "load_evaluated_model"]

_OWN_PROCESSORS: Final = {"FramesProcessor": FramesProcessor, "PointsProcessor": PointsProcessor}


@dataclass(frozen=True)
class EvaluatedModel:
    """A loaded checkpoint.

    Args:
        folder: Where it was loaded from.
        model: With a head, in evaluation mode.
        processor: Its processor, or its tokenizer when it takes text only.
        modalities: Media that it takes.
        experts: Where items go in a checkpoint with experts: "auto", "none", "told", "wrong" or an expert's name.
    """

    folder: Path
    model: Any
    processor: Any
    modalities: tuple[str, ...]
    experts: str = AUTO

    def sending_to(self, experts: str) -> EvaluatedModel:
        """Returns the same checkpoint with its items sent elsewhere.

        Args:
            experts: "auto", "none", "told", "wrong" or the name of an expert.

        Raises:
            UnknownNameError: It has no such expert.
            RequestError: It has no experts at all.
        """
        names = list(getattr(self.model.config, "experts", None) or ())
        if experts != AUTO and not names:
            raise RequestError(f"'{self.folder}' has no experts, so nothing can be sent to '{experts}'.")
        if experts not in (AUTO, NONE, TOLD, WRONG, *names):
            raise UnknownNameError(
                f"'{self.folder}' has no expert '{experts}'; it has {', '.join(names)}.",
                hint=nearest_name(experts, [AUTO, NONE, TOLD, WRONG, *names]),
            )
        return replace(self, experts=experts)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer behind the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second that it expects of sounds; None when its processor does not say."""
        return sampling_rate(self.processor)

    @property
    def expert_entries(self) -> Mapping[str, Mapping[str, Any]]:
        """Name of each expert to its entry in the config; empty without any."""
        return getattr(self.model.config, "experts", None) or {}

    @property
    def served(self) -> tuple[str, ...]:
        """Modalities that have experts."""
        return tuple(dict.fromkeys(entry["modality"] for entry in self.expert_entries.values()))

    def answer(
        self,
        prompts: Sequence[str],
        media: dict[str, list[list[Any]]],
        *,
        max_new_tokens: int,
        domains: Sequence[str] = (),
    ) -> tuple[list[str], list[Routes]]:
        """Answers a batch greedily.

        Args:
            prompts: Texts with ``<modality>`` placeholders.
            media: Modality -> for each prompt its items in order. Every prompt has the same number of each modality.
            max_new_tokens: Longest answer.
            domains: Domains of each prompt's media; needed where they decide which expert is told or wrong.

        Returns:
            What the model wrote after each prompt, without special tokens; and where its media went.
        """
        routes: list[Routes] = [{} for _ in prompts]
        if media and self.experts != AUTO:
            routes = self._forced_routes(media, domains or [""] * len(prompts))
        allowed = self.prepare_inputs(prompts, media, experts=_told(routes))
        with torch.inference_mode():
            if media and self.served and self.experts == AUTO:
                allowed = self.model.route(**allowed)
                routes = _by_prompt(allowed.pop("routes"), prompts, self.model.config.routers)
            written = self.model.generate(
                **allowed,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answers = written[:, allowed["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True), routes

    def prepare_inputs(
        self, prompts: Sequence[str], media: Mapping[str, list[list[Any]]], *, experts: Any = None
    ) -> dict[str, Any]:
        """Makes what the model takes of a batch; texts are padded on the left.

        Args:
            prompts: Texts with ``<modality>`` placeholders.
            media: Modality -> for each prompt its items in order.
            experts: Experts that see the items, as the composed processor takes them.

        Returns:
            Tensors by the names of the model's arguments.
        """
        texts = [self._own_placeholders(prompt) for prompt in prompts]
        self.tokenizer.padding_side = "left"
        inputs = call_processor(
            self.processor if media else self.tokenizer,
            texts,
            media,
            text_options=without_second_bos(self.tokenizer, texts),
            experts=experts,
        )
        taken = {name: value for name, value in inputs.items() if name != "token_type_ids"}
        return taken if hasattr(self.model.config, "sources") else in_weights_dtype(self.model, taken)

    def _forced_routes(self, media: Mapping[str, Sequence[Sequence[Any]]], domains: Sequence[str]) -> list[Routes]:
        made: list[Routes] = []
        for number, domain in enumerate(domains):
            sent = {
                modality: forced_routes(self.expert_entries, modality, domain=domain, route=self.experts)
                for modality in self.served
                if modality in media
            }
            made.append({modality: (route,) * len(media[modality][number]) for modality, route in sent.items()})
        return made

    def _own_placeholders(self, prompt: str) -> str:
        for modality in self.modalities:
            token = processor_placeholder(self.processor, modality)
            if token:
                prompt = prompt.replace(PLACEHOLDERS[modality], token)
        return prompt


def _told(routes: Sequence[Routes]) -> dict[str, list[tuple[str, ...]]] | None:
    """Modality -> routes of all prompts' media; None where the router is asked."""
    modalities = dict.fromkeys(modality for one in routes for modality in one)
    return {modality: [route for one in routes for route in one.get(modality, ())] for modality in modalities} or None


def _by_prompt(routes: Sequence[Sequence[str]], prompts: Sequence[str], routers: Mapping[str, Any]) -> list[Routes]:
    """Returns what the routers chose, in reading order of the batch, as each prompt's own."""
    left, made = iter(routes), []
    for prompt in prompts:
        own: dict[str, tuple[tuple[str, ...], ...]] = {}
        for modality in re.findall(r"<(\w+)>", prompt):
            if modality in routers:
                own[modality] = (*own.get(modality, ()), tuple(next(left, ())))
        made.append(own)
    return made


def load_evaluated_model(folder: Path, *, trust_remote_code: bool = False) -> EvaluatedModel:
    """Loads a checkpoint of any kind that mcompose knows.

    Args:
        folder: A local checkpoint: native, composed, points or text.
        trust_remote_code: Whether code that the checkpoint ships may run.

    Returns:
        The checkpoint, ready to be asked.

    Raises:
        CheckpointError: The folder holds no checkpoint, or one that the installed transformers cannot load.
    """
    config = _json(folder / "config.json")
    if not config:
        raise CheckpointError(f"{folder} holds no checkpoint: it has no readable config.json.")
    register()
    trust = {"trust_remote_code": trust_remote_code}
    model_type = config.get("model_type", "")
    try:
        if model_type in TEXT_MODELS and model_type not in MULTIMODAL_MODELS and not _has_processor(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **trust)
            return EvaluatedModel(folder, model.eval(), AutoTokenizer.from_pretrained(folder, **trust), ())
        model = _model_class(config.get("architectures") or []).from_pretrained(folder, dtype="auto", **trust)
        processor = _processor(folder, trust)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded: {first_line(error)}.",
            hint=_hint(config, trust_remote_code=trust_remote_code),
        ) from error
    return EvaluatedModel(folder, model.eval(), processor, _modalities(model, processor))


def _hint(config: Mapping[str, Any], *, trust_remote_code: bool) -> str:
    if config.get("model_type") != COMPOSED_TYPE and config.get("auto_map") and not trust_remote_code:
        return "A checkpoint with code of its own needs --trust-remote-code."
    return "Files may be missing or damaged: run mcompose verify on it, or make or fetch it again."


def _processor(folder: Path, trust: dict[str, bool]) -> Any:
    own = _OWN_PROCESSORS.get(_json(folder / "processor_config.json").get("processor_class", ""))
    return own.from_pretrained(folder) if own else AutoProcessor.from_pretrained(folder, **trust)


def _model_class(architectures: list[str]) -> Any:
    """Returns the class that the config names: transformers' multimodal Auto class does not know all of its own."""
    named = getattr(transformers, architectures[0], None) if architectures else None
    return named or AutoModelForMultimodalLM


def _modalities(model: Any, processor: Any) -> tuple[str, ...]:
    taken = processor_modalities(processor)
    if not takes_flat_options(processor):  # native: a processor may have parts that this network has no use for
        taken = tuple(modality for modality in taken if modality in getattr(model, "input_modalities", ()))
    return tuple(modality for modality in MODALITIES if modality in taken)


def _has_processor(folder: Path) -> bool:
    return (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file()


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}
