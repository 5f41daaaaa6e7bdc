"""Media for domain experts: which expert each item goes to, what its encoder reads, and the block in the text.

``processor_config.json`` of a composition with experts holds ``experts``: name -> ``{"modality", "domain", "tokens",
"inputs"}`` (``inputs``: what its encoder takes, by native name; with padding left out also ``padding``, ``vectors`` and
``skip``), and ``routers``: the modalities that have a router. ``processors/<expert>/`` holds each expert's own image
processor or feature extractor. Experts see every item whole, once, untiled and uncut.

Paper: Peng et al. 2024, arXiv 2412.05983, section 3.1 (layout of the tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor
from transformers.audio_utils import load_audio
from transformers.image_utils import load_image

from ..families import TYPE_IDS
from ..names import SEPARATOR
from ..processing.native_calls import sampling_rate
from ..processing.resampling import resampled
from ..processing.sources import PROCESSOR_FOLDER, Unavailable, first_sentence, stock_only
from .configuration import DOMAIN_TOKENS, NONE, SLOT_TOKEN, expert_token

__all__ = ["AUTO", "ExpertMedia", "add_expert_tokens", "expert_summary", "load_item_processor", "native_inputs"]

AUTO = "auto"
# Switches of native processors that cut an image into tiles, or ask for a question.
_SWITCHED_OFF = ("crop_to_patches", "do_image_splitting", "is_vqa")

Route = tuple[str, ...] | None
"""Experts of one item, in the order of their blocks; None when the router is to be asked."""


def add_expert_tokens(tokenizer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Gives a tokenizer the tokens of experts as special tokens, and returns the fields of ``ComposedConfig``.

    Args:
        tokenizer: The composition's tokenizer; changed in place.
        names: The experts.
    """
    tokens = [*DOMAIN_TOKENS, SLOT_TOKEN, *(expert_token(name) for name in names)]
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids
    return {
        "domain_token_ids": ids(list(DOMAIN_TOKENS)),
        "expert_slot_id": ids(SLOT_TOKEN),
        "expert_token_ids": {name: ids(expert_token(name)) for name in names},
    }


def expert_summary(entry: Mapping[str, Any], *, inputs: Sequence[str], vectors: int) -> dict[str, Any]:
    """Returns what ``processor_config.json`` says of an expert.

    Args:
        entry: Its entry in ``ComposedConfig.experts``.
        inputs: What its encoder takes, by native name.
        vectors: Vectors that its encoder makes of an item, before any is left out.
    """
    made = {key: entry[key] for key in ("modality", "domain", "tokens")}
    made["inputs"] = list(inputs)
    if entry.get("padding", "keep") != "keep":
        made |= {"padding": entry["padding"], "vectors": vectors, "skip": entry.get("skip", 0)}
    return made


class ExpertMedia:
    """The experts' side of a composed processor.

    Args:
        experts: Name -> what ``processor_config.json`` says of it.
        routers: Modalities that have a router.
    """

    def __init__(
        self, experts: Mapping[str, Mapping[str, Any]] | None = None, routers: Sequence[str] | None = None
    ) -> None:
        self.entries = {name: dict(entry) for name, entry in (experts or {}).items()}
        self.routers = list(routers or ())
        self.processors: dict[str, Any] = {}

    def load(self, path: Any, **hub: Any) -> None:
        """Loads every expert's own processor.

        Args:
            path: The composed checkpoint: a folder or a repository id.
            **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and their kind.
        """
        for name, entry in self.entries.items():
            where = {**hub, "subfolder": f"{PROCESSOR_FOLDER}/{name}"}
            try:
                self.processors[name] = load_item_processor(entry["modality"], path, **where)
            except ImportError as error:
                self.processors[name] = Unavailable(first_sentence(error))

    def save(self, folder: str | Path) -> None:
        """Writes every expert's own processor.

        Raises:
            ValueError: One was not loaded.
        """
        for name, processor in self.processors.items():
            _check_loaded(name, processor)
            processor.save_pretrained(Path(folder) / PROCESSOR_FOLDER / name)

    def settings(self) -> dict[str, Any]:
        """Returns what ``processor_config.json`` holds; nothing without experts."""
        return {"experts": self.entries, "routers": self.routers} if self.entries else {}

    def input_names(self) -> list[str]:
        """Returns the names of the experts' tensors."""
        return [f"{name}{SEPARATOR}{key}" for name, entry in self.entries.items() for key in entry["inputs"]]

    def token_types(self, tokenizer: Any) -> dict[str, int]:
        """Returns token -> type id, for the tokens of blocks and slots.

        Raises:
            ValueError: The tokenizer does not have one.
        """
        if not self.entries:
            return {}
        tokens = [*DOMAIN_TOKENS, SLOT_TOKEN, *(expert_token(name) for name in self.entries)]
        if missing := [token for token in tokens if token not in tokenizer.get_vocab()]:
            raise ValueError(f"The tokenizer has no {missing[0]!r}; add_expert_tokens() adds it.")
        return dict.fromkeys(tokens, TYPE_IDS["expert"])

    def routes(self, asked: Any, counts: Mapping[str, int]) -> dict[str, list[Route]]:
        """Returns modality -> the route of each of its items.

        Args:
            asked: What the caller passed as ``experts``; a list is for the one modality with experts that has items.
            counts: Modality -> number of items.

        Raises:
            ValueError: An unknown expert, one of another modality, or another number of routes than items.
        """
        mine = dict.fromkeys(entry["modality"] for entry in self.entries.values())
        if asked is None:
            asked = AUTO if self.routers else NONE
        if not mine:
            if asked not in (AUTO, NONE):
                raise ValueError("This composition has no experts.")
            return {}
        if isinstance(asked, str):
            return {modality: self._all(asked, modality, counts[modality]) for modality in mine}
        if not isinstance(asked, Mapping):
            here = [modality for modality in mine if counts[modality]] or list(mine)
            if len(here) > 1:
                raise ValueError(f"Items of several modalities ({', '.join(here)}): pass experts={{modality: list}}.")
            asked = {here[0]: asked}
        if unknown := [modality for modality in asked if modality not in mine]:
            raise ValueError(f"No expert of this composition stands beside {unknown[0]!r} items.")
        return {modality: self._listed(asked.get(modality), modality, counts[modality]) for modality in mine}

    def _all(self, asked: str, modality: str, count: int) -> list[Route]:
        if asked == AUTO:
            return [None if modality in self.routers else ()] * count
        if asked != NONE and asked in self.entries and self.entries[asked]["modality"] != modality:
            return [()] * count
        return [self._route(asked, modality)] * count

    def _listed(self, asked: Any, modality: str, count: int) -> list[Route]:
        if asked is None:
            return self._all(AUTO, modality, count)
        if isinstance(asked, str):
            return self._all(asked, modality, count)
        given = list(asked)
        if len(given) != count:
            raise ValueError(f"experts names {len(given)} routes, and {count} {modality} item(s) came.")
        if AUTO in given:
            if set(given) != {AUTO}:
                raise ValueError("The router is asked about all items of a modality or none: 'auto' stands alone.")
            return self._all(AUTO, modality, count)
        return [self._route(one, modality) for one in given]

    def _route(self, one: Any, modality: str) -> tuple[str, ...]:
        names = () if one is None or one == NONE else (one,) if isinstance(one, str) else tuple(one)
        for name in names:
            if self.entries.get(name, {}).get("modality") != modality:
                known = ", ".join(key for key, entry in self.entries.items() if entry["modality"] == modality)
                raise ValueError(f"{name!r} is not an expert for {modality}; known: {known or 'none'}, 'none', 'auto'.")
        if len(set(names)) != len(names):
            raise ValueError(f"An item cannot go to one expert twice: {list(names)}.")
        return names

    def prepare(
        self,
        modality: str,
        items: Sequence[Any],
        routes: Mapping[str, Sequence[Route]],
        *,
        rate: int | None = None,
        beside: Any = None,
    ) -> tuple[list[str], dict[str, Any]]:
        """Returns what stands after each item in the text, and the experts' tensors by ``<expert>__<native name>``.

        Args:
            modality: Modality of the items.
            items: As the caller gave them, in reading order.
            routes: As :meth:`routes` gives them.
            rate: Samples per second of sounds; None for what the general source takes.
            beside: The general source's processor.
        """
        if modality not in routes:
            return [""] * len(items), {}
        if rate is None and modality == "audio":
            rate = sampling_rate(beside)
        mine = routes[modality]
        blocks = [SLOT_TOKEN if route is None else "" for route in mine]
        tensors: dict[str, Any] = {}
        own: dict[str, list[str]] = {}
        for name, entry in self.entries.items():
            seen = [item for item, route in zip(items, mine, strict=True) if route is None or name in route]
            if entry["modality"] != modality or not seen:
                continue
            inputs = native_inputs(self.processors[name], seen, entry, name=name, rate=rate)
            tensors |= {f"{name}{SEPARATOR}{key}": value for key, value in inputs.items()}
            own[name] = [_block(name, count) for count in _counts(inputs, entry, len(seen))]
        for place, route in enumerate(mine):
            blocks[place] += "".join(own[name].pop(0) for name in route or ())
        return blocks, tensors


def load_item_processor(modality: str, path: Any, **where: Any) -> Any:
    """Loads an encoder's own processor, set to neither cut an image nor ask for a question.

    Args:
        modality: "image" or "audio".
        path: A folder or a repository.
        **where: ``subfolder``, ``revision`` and their kind.
    """
    loader = AutoImageProcessor if modality == "image" else AutoFeatureExtractor
    processor = loader.from_pretrained(path, **stock_only(where))
    for switch in _SWITCHED_OFF:
        if getattr(processor, switch, False):
            setattr(processor, switch, False)
    return processor


def native_inputs(
    processor: Any, items: Sequence[Any], entry: Mapping[str, Any], *, name: str, rate: int | None = None
) -> dict[str, Any]:
    """Runs an expert's own processor on items.

    Args:
        processor: The processor.
        items: Images (or paths), or sounds.
        entry: ``modality``, ``inputs`` and ``padding``, as in ``processor_config.json``.
        name: The expert's name, for messages.
        rate: Samples per second of sounds; None for the expert's own.

    Returns:
        What its encoder takes, one row per item.

    Raises:
        ValueError: It makes another number of rows than items, or a sound is longer than it can hear.
    """
    _check_loaded(name, processor)
    if entry["modality"] == "image":
        made = processor(images=[load_image(_picture(item)) for item in items], return_tensors="pt")
    else:
        sounds = [_sound(item, processor, name=name, rate=rate) for item in items]
        asked = {"return_attention_mask": True} if entry.get("padding", "keep") != "keep" else {}
        made = processor(sounds, sampling_rate=processor.sampling_rate, return_tensors="pt", **asked)
    kept = {key: torch.as_tensor(made[key]) for key in entry["inputs"] if key in made}
    for key, value in kept.items():
        if len(value) != len(items):
            raise ValueError(
                f"The processor of expert {name!r} made {len(value)} rows of {key!r} for {len(items)} item(s); an "
                "expert sees every item whole, once."
            )
    if "is_longer" in kept:
        # CLAP's extractor says it of an item drawn by chance when no sound is cut, and none is: see _sound.
        kept["is_longer"] = torch.zeros_like(kept["is_longer"])
    return kept


def _picture(item: Any) -> Any:
    if isinstance(item, str) or hasattr(item, "convert"):
        return item
    from transformers.image_transforms import to_pil_image  # noqa: PLC0415 - for arrays only

    return to_pil_image(item)


def _sound(item: Any, extractor: Any, *, name: str, rate: int | None) -> Any:
    own = int(extractor.sampling_rate)
    if isinstance(item, str):
        sound = load_audio(item, sampling_rate=own)
    else:
        sound = resampled(item, source=own if rate is None else int(rate), target=own)
    most = _longest(extractor)
    if most is not None and len(sound) > most:
        raise ValueError(
            f"A sound of {len(sound) / own:.1f} s is longer than the {most / own:.1f} s that the expert {name!r} "
            "hears; cut it before."
        )
    return sound


def _longest(extractor: Any) -> int | None:
    """Samples that an extractor reads before it begins to cut."""
    told = [getattr(extractor, attribute, None) for attribute in ("n_samples", "nb_max_samples")]
    if any(told):
        return min(int(most) for most in told if most)
    if type(extractor).__name__ == "ASTFeatureExtractor":
        # Frames of 25 ms, 10 ms apart.
        return int(extractor.sampling_rate * (0.015 + 0.010 * extractor.max_length))
    return None


def _counts(inputs: Mapping[str, torch.Tensor], entry: Mapping[str, Any], items: int) -> list[int]:
    if entry["tokens"] != "attention_mask":
        return [int(entry["tokens"])] * items
    mask = next((inputs[key] for key in ("attention_mask", "pixel_attention_mask") if key in inputs), None)
    if mask is None:
        mask = inputs["flattened_patches"].sum(dim=-1) != 0
    return mask.bool().unflatten(1, (entry["vectors"], -1)).any(-1)[:, entry["skip"] :].sum(-1).tolist()


def _block(name: str, count: int) -> str:
    begin, end = DOMAIN_TOKENS
    return begin + expert_token(name) * count + end


def _check_loaded(name: str, processor: Any) -> None:
    if isinstance(processor, Unavailable):
        raise ValueError(f"The processor of expert {name!r} cannot be loaded: {processor.reason}")
