"""The fields of ``config.json`` that describe domain experts and the router, and what makes them wrong.

- ``experts``: name -> one frozen encoder with its projector:
  ``model_type``, ``config`` (of the encoder alone), ``class_name`` (the transformers class to build), ``modality``
  (beside whose items its tokens stand), ``domain``, ``layer`` (hidden state that is read, -1 for the last), ``skip``
  (leading tokens left out), ``padding`` ("keep", "mask" or "drop": what happens to rows that the encoder's mask calls
  padding), ``projector`` (``{"kind": ...}``, see ``projectors.py``), ``tokens`` (vectors of one item, or
  "attention_mask": as many as the mask says), and ``reference`` when the encoder is fetched at load. An ONNX encoder
  has ``onnx`` (see ``onnx_encoder.py``) instead of ``model_type``, ``config`` and ``class_name``.
- ``routers``: modality -> ``classes`` (the names in the order of the router's rows, "none" first), ``feature``
  ("class" or "mean"), ``tile`` ("first", "last" or "mean"), ``rule`` (``{"kind": "argmax" | "threshold" | "top_k"}``)
  and ``width``.
- ``expert_token_ids``, ``domain_token_ids``, ``expert_slot_id``: the tokens of the blocks; no rows exist for them.
- ``router_loss_weight``, and ``mask_token``: whether there is a learned vector for hidden tokens.

Paper: Peng et al. 2024, "Chimera: Improving Generalist Model with Domain-Specific Experts", arXiv 2412.05983.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..configuration.extension import ConfigExtension
from ..families import EXPERT_MODALITIES
from ..names import is_plain_name
from .onnx_graph import is_plain_path

__all__ = ["DOMAIN_TOKENS", "NONE", "SLOT_TOKEN", "ExpertFields", "expert_token"]

NONE = "none"
DOMAIN_TOKENS = ("<domain>", "</domain>")
SLOT_TOKEN = "<expert>"  # noqa: S105 - a text token

_CHOICES = {
    "modality": EXPERT_MODALITIES,
    "padding": ("keep", "mask", "drop"),
    "kind": ("mlp", "linear", "pixel_shuffle", "resampler"),
    "feature": ("class", "mean"),
    "tile": ("first", "last", "mean"),
    "rule": ("argmax", "threshold", "top_k"),
}


def expert_token(name: str) -> str:
    """Returns the token that stands for one vector of an expert."""
    return f"<expert:{name}>"


class ExpertFields(ConfigExtension):
    """The fields of domain experts and routers."""

    fields: ClassVar[Mapping[str, Any]] = {
        "experts": {},
        "routers": {},
        "expert_token_ids": {},
        "domain_token_ids": [],
        "expert_slot_id": None,
        "router_loss_weight": 1.0,
        "mask_token": False,
    }

    def check(self, config: Any) -> None:
        """Refuses experts and routers that this composition cannot have.

        Raises:
            ValueError: Naming the expert or the router.
        """
        for name, entry in config.experts.items():
            _check_expert(config, name, entry)
        for modality, router in config.routers.items():
            _check_router(config, modality, router)
        if not config.experts:
            return
        if len(config.domain_token_ids) != 2 or set(config.expert_token_ids) != set(config.experts):
            raise ValueError("Experts need two domain_token_ids, and expert_token_ids with one id for each of them.")
        if config.routers and config.expert_slot_id is None:
            raise ValueError("A router needs an expert_slot_id.")
        ids = [config.placeholder_id(modality) for modality in config.modalities]
        ids += [*config.prefix_token_ids.values(), *config.suffix_token_ids.values()]
        ids += [*config.domain_token_ids, *config.expert_token_ids.values(), config.expert_slot_id]
        if len(set(ids)) != len(ids):
            raise ValueError(f"The token ids of experts, separators, slot and placeholders must all differ, got {ids}.")


def _check_expert(config: Any, name: str, entry: Mapping[str, Any]) -> None:
    if not is_plain_name(name) or name in (NONE, "auto") or name in config.sources:
        raise ValueError(
            f"The expert name {name!r} must be letters, digits, '-' and single '_', from a letter on, and neither a "
            "source's name nor 'none' nor 'auto'."
        )
    where = f"Expert {name!r}"
    _choose(where, "modality", entry["modality"])
    _choose(where, "padding", entry.get("padding", "keep"))
    projector = entry["projector"]
    _choose(where, "kind", projector["kind"])
    if "onnx" in entry:
        _check_graph(where, entry)
    if config.served_by(entry["modality"]) is None:
        raise ValueError(f"{where} stands beside {entry['modality']} items, and no source serves them.")
    padded = entry.get("padding", "keep") != "keep"
    if projector["kind"] == "pixel_shuffle" and padded:
        raise ValueError(f"{where} folds neighbours of a whole grid, so its padding can only be kept.")
    tokens = entry["tokens"]
    counted = tokens == "attention_mask"
    if not counted and (not isinstance(tokens, int) or tokens < 1):
        raise ValueError(f"{where} has {tokens!r} tokens; it needs a number, or 'attention_mask'.")
    if counted != (entry.get("padding") == "drop" and projector["kind"] != "resampler"):
        raise ValueError(f"{where}: tokens are 'attention_mask' exactly when padding is dropped.")


def _check_graph(where: str, entry: Mapping[str, Any]) -> None:
    graph = entry["onnx"]
    data = graph.get("data", {})
    for file in (graph["file"], *data, *data.values()):
        if not is_plain_path(file):
            raise ValueError(f"{where} names the file {file!r}, which is none of its own folder.")
    if not graph["inputs"] or not graph["output"] or "width" not in entry["projector"]:
        raise ValueError(f"{where} is an ONNX graph: it needs inputs, an output, and the width of its projector.")
    if entry.get("layer", -1) != -1:
        raise ValueError(f"{where} is an ONNX graph, which has no layers to choose from; name another output.")


def _check_router(config: Any, modality: str, router: Mapping[str, Any]) -> None:
    where = f"The router of {modality!r}"
    if config.served_by(modality) is None:
        raise ValueError(f"{where}: no source of this composition serves it.")
    classes = list(router["classes"])
    mine = [name for name, entry in config.experts.items() if entry["modality"] == modality]
    if not classes or classes[0] != NONE or len(set(classes)) != len(classes) or set(classes[1:]) - set(mine):
        raise ValueError(f"{where} has the classes {classes}; they are 'none' and then experts of {modality}: {mine}.")
    _choose(where, "feature", router["feature"])
    _choose(where, "tile", router.get("tile", "mean"))
    _choose(where, "rule", router.get("rule", {"kind": "argmax"})["kind"])


def _choose(where: str, what: str, value: Any) -> None:
    if value not in _CHOICES[what]:
        raise ValueError(f"{where} has the {what} {value!r}; known: {', '.join(_CHOICES[what])}.")
