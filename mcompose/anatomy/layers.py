"""What a decoder's layers are at their places, read from a model on the meta device that its config describes.

Configs say in many ways which layer is of which kind: a list as long as the model is deep, the numbers of some layers,
the number of layers at one end, a period. Two configs mean the same when the layers that they build are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mcompose.anatomy.meta import build_on_meta, config_of, decoder_of, plain_text_config

__all__ = ["DecoderFacts", "decoder_facts"]

PLAIN = (bool, int, float, str, type(None))
NOT_BY_LAYER = ("architectures", "token_id", "token_ids")
"""Ends of the names of lists that may be as long as the model is deep, and have nothing to do with its layers."""


@dataclass(frozen=True)
class DecoderFacts:
    """A decoder, without its weights.

    Args:
        layers: For each layer, name of a fact to its value: classes, shapes and attributes of its modules, and the
            layer's entry in every list that has one for each layer.
        outside: Name of each weight outside the layers to its shape.
        settings: The language model's config with all defaults, as plain values.
    """

    layers: tuple[Mapping[str, Any], ...]
    outside: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]

    def different(self, other: DecoderFacts, places: Sequence[int], *, beside: str = "") -> list[int]:
        """Returns the layers of another decoder that are not what this one's layers are.

        Args:
            other: The decoder that takes layers of this one.
            places: For each of its layers, the layer here that it is to be.
            beside: Name of a setting that modules repeat, and that is not compared.
        """
        skipped = _numbers(self.layers, other.layers)
        return [
            place
            for place, taken in enumerate(places)
            if any(
                name.rpartition(".")[2] != beside
                for name in _differing(self.layers[taken], other.layers[place], skipped)
            )
        ]

    def difference(self, other: DecoderFacts, place: int, taken: int) -> str:
        """Returns the first fact in which a layer of another decoder differs from one here, in words."""
        ours, theirs = self.layers[taken], other.layers[place]
        for name in _differing(ours, theirs, _numbers(self.layers, other.layers)):
            return f"{name.rstrip('.')} is {_shown(ours, name)} in the source and {_shown(theirs, name)} there"
        return ""


def decoder_facts(config: Mapping[str, Any]) -> DecoderFacts | None:
    """Builds the model of a config without weights, and describes its decoder.

    Args:
        config: Parsed ``config.json`` of the part that generates text.

    Returns:
        The facts; None when the decoder's layers cannot be told apart.

    Raises:
        AnatomyError: transformers refuses the config, or cannot build its model.
    """
    model = build_on_meta(config_of(config))
    text = model.config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None)
    decoder = decoder_of(model)
    stacks = [(path, stack) for path, stack in _outermost_lists(decoder) if len(stack) == depth]
    if not stacks or not isinstance(depth, int):
        return None
    settings = plain_text_config(text)
    lists = {**_lists(settings, depth), **_lists(vars(decoder), depth)}
    layers = []
    for place in range(depth):
        facts = {f"{name}[]": values[place] for name, values in lists.items()}
        for path, stack in stacks:
            facts.update(_facts(stack[place], "" if len(stacks) == 1 else f"{path}."))
        layers.append(facts)
    return DecoderFacts(tuple(layers), _outside(model, [f"{path}." for path, _ in stacks]), settings)


def _outermost_lists(decoder: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    seen: list[str] = []
    for path, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in seen):
            seen.append(path)
            yield path, module


def _lists(table: Mapping[str, Any], depth: int) -> dict[str, list[Any]]:
    return {
        name: list(value)
        for name, value in table.items()
        if isinstance(value, list | tuple)
        and len(value) == depth
        and not name.startswith("_")
        and not name.endswith(NOT_BY_LAYER)
        and all(isinstance(item, PLAIN) for item in value)
    }


def _facts(layer: nn.Module, prefix: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for path, module in layer.named_modules():
        head = f"{prefix}{path}." if path else prefix
        facts[head or "."] = type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and _is_plain(value):
                facts[head + name] = value
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        facts[f"{prefix}{name} (shape)"] = tuple(tensor.shape)
    return facts


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)


def _outside(model: PreTrainedModel, stacks: Sequence[str]) -> dict[str, tuple[int, ...]]:
    decoder = decoder_of(model)
    return {
        name: tuple(tensor.shape) for name, tensor in decoder.named_parameters() if not name.startswith(tuple(stacks))
    }


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], skipped: Mapping[str, None]) -> list[str]:
    return [
        name
        for name in dict.fromkeys([*ours, *theirs])
        if name not in skipped and (name not in ours or name not in theirs or ours[name] != theirs[name])
    ]


def _numbers(*decoders: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    """Returns the names of facts that only count the layers: everywhere the place plus the same number."""
    offsets: dict[str, list[int | None]] = {}
    for place, facts in (pair for layers in decoders for pair in enumerate(layers)):
        for name, value in facts.items():
            offsets.setdefault(name, []).append(value - place if _is_number(value) else None)
    return {name: None for name, found in offsets.items() if found[0] is not None and len(dict.fromkeys(found)) == 1}


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(facts: Mapping[str, Any], name: str) -> str:
    return repr(facts[name]) if name in facts else "missing"
