"""Soft mixtures of low-rank experts as an extension of the composed network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..network.extension import Extension
from ..network.forward_pass import ForwardPass, Reading
from .layer import adapt_encoder, adapt_language
from .run import ADAPTER_RUN, AdapterRun, keep_states, sample_places

__all__ = ["AdapterExtension"]

_LANGUAGE = "language"
_FIGURES = "adapter_figures"
_STATES = "adapter_states"
PROMPT_MASK = "prompt_mask"


class AdapterExtension(Extension):
    """Gives the language model's linears, and those of encoders, their adapters, and each pass what they need."""

    def build(self, model: Any, config: Any) -> None:
        """Makes the adapters that a configuration names.

        Raises:
            ValueError: A tower that does not exist.
        """
        adapt_language(model.language_model, _beside(config, _LANGUAGE))
        for place in dict.fromkeys(entry.get("on", _LANGUAGE) for entry in config.adapters.values()):
            name = place.removeprefix("encoder:")
            if place != _LANGUAGE:
                if name not in model.towers:
                    raise ValueError(f"There are adapters on {place!r}, and this composition has no such tower.")
                adapt_encoder(model.towers[name], _beside(config, place), name)

    def begin(self, model: Any, run: ForwardPass) -> None:
        """Takes ``prompt_mask`` (B, L): the tokens of the prompt, where not all that are given are."""
        run.own[PROMPT_MASK] = run.kwargs.pop(PROMPT_MASK, None)

    def origin(self, model: Any, run: ForwardPass, origin: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Lets the prompt travel with the modalities, so that a token that is dropped leaves both."""
        prompt_BL = run.own[PROMPT_MASK]
        if prompt_BL is None or run.cached or not _mixes(model.config):
            return origin
        length = run.input_ids.shape[1] if run.input_ids is not None else prompt_BL.shape[1]
        missing = length - prompt_BL.shape[1]  # without a cache, a step of `generate` reads what was generated again
        return {**origin, PROMPT_MASK: torch.nn.functional.pad(prompt_BL.bool(), (0, max(missing, 0)))[:, :length]}

    def language_inputs(self, model: Any, run: ForwardPass, reading: Reading) -> dict[str, Any]:
        """Returns what the adapters need to know of the tokens.

        Raises:
            ValueError: Padding or the prompt cannot be determined.
        """
        if not _beside(model.config, _LANGUAGE):
            return {}
        mixes = _mixes(model.config)
        real_BL = _real(reading, cached=run.cached, needed=mixes)
        origin = dict(reading.origin)
        prompt_BL = origin.pop(PROMPT_MASK, None)
        made = AdapterRun(origin, real_BL, prompt_BL, continued=run.cached)
        if model.training:
            made.figures = run.own.setdefault(_FIGURES, {})
        if mixes:
            packed = None if reading.attention_mask is not None or run.cached else reading.position_ids
            made.samples = sample_places(real_BL, packed if packed is not None and packed.dim() == 2 else None)
            kept = getattr(run.past_key_values, _STATES, None)
            made.states = None if model.training else {} if kept is None else kept
        return {ADAPTER_RUN: made}

    def check_read(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> None:
        """Refuses a language model whose linears did not get the pass; keeps beside its cache what they made.

        Raises:
            ValueError: Naming the class.
        """
        run = inputs.get(ADAPTER_RUN)
        if run is None:
            return
        if not run.met:
            raise ValueError(
                f"The adapters of {type(model.language_model).__name__} were not run: it does not hand further "
                "arguments to its attention."
            )
        if run.states and outputs.past_key_values is not None:
            keep_states(outputs.past_key_values, run.states)

    def read_labels(self, model: Any, labels: torch.Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the prompt of each row: what stands before its first label."""
        modes = [entry["mode"] for entry in model.config.adapters.values()]
        if kwargs.get(PROMPT_MASK) is not None or not {"prefix", "merged"}.intersection(modes):
            return {}
        return {PROMPT_MASK: (labels != -100).long().cumsum(-1) == 0}

    def begin_generation(self, model: Any, kwargs: Mapping[str, Any], prompt: torch.Tensor) -> dict[str, Any]:
        """Says that all that ``generate`` is given is the prompt, and nothing that it adds."""
        if not _mixes(model.config) or kwargs.get(PROMPT_MASK) is not None:
            return {}
        return {PROMPT_MASK: torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)}

    def outputs(self, model: Any, run: ForwardPass) -> dict[str, Any]:
        """Returns figures of the gates in training."""
        figures = run.own.get(_FIGURES)
        return {"adapter_figures": _means(figures)} if figures else {}

    def input_names(self, model: Any) -> Iterable[str]:
        """Returns the names of the arguments that adapters take."""
        return (PROMPT_MASK,) if model.config.adapters else ()


def _beside(config: Any, place: str) -> dict[str, Mapping[str, Any]]:
    return {name: entry for name, entry in config.adapters.items() if entry.get("on", _LANGUAGE) == place}


def _mixes(config: Any) -> bool:
    """Returns whether a set beside the language model mixes tokens."""
    return any(entry["mode"] != "token" for entry in _beside(config, _LANGUAGE).values())


def _real(reading: Reading, *, cached: bool, needed: bool) -> torch.Tensor:
    """Returns bool (B, L) of real tokens; a ready-made mask tells them by what its last query may see."""
    batch, length = reading.x_BLD.shape[:2]
    mask, device = reading.attention_mask, reading.x_BLD.device
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
        if mask is None and needed:
            raise ValueError("Adapters that mix tokens cannot tell padding: no layer of this model sees all tokens.")
    if mask is None or cached:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.dim() == 2:
        return mask[:, -length:].bool().to(device)
    seen = mask[:, 0, -1, :length]
    seen = seen if seen.dtype == torch.bool else seen == 0
    return seen.expand(batch, length).to(device)


def _means(figures: Mapping[str, Mapping[str, list[dict[str, torch.Tensor]]]]) -> dict[str, dict[str, Any]]:
    """Returns set -> modality -> mean entropy and mean share of each expert, over all linears."""
    return {
        name: {
            modality: {key: torch.stack([row[key] for row in rows]).mean(0) for key in ("entropy", "share")}
            for modality, rows in by_modality.items()
        }
        for name, by_modality in figures.items()
    }
