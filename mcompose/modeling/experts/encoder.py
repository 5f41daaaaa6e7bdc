"""Frozen encoders of other models, run on the tensors that their own processors make.

Letters: I items, T vectors of one item, E width of the encoder.

The encoder is a native class of transformers, or an ONNX graph, always in eval mode and without gradients. Domain
experts and mixed image encoders are both built on it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from ..configuration.native import native_config
from ..towers.native_classes import build_encoder
from ..vision_mix.qformer import QFormerEncoder
from .onnx_encoder import OnnxEncoder

__all__ = [
    "NUMBERED_INPUT",
    "FrozenEncoder",
    "encoder_class",
    "encoder_inputs",
    "encoder_width",
    "entry_width",
    "hidden_states",
    "missing_layer",
    "token_rows",
]

# Its first two columns are row and column numbers, which half precision cannot hold.
NUMBERED_INPUT = "flattened_patches"


class FrozenEncoder(nn.Module):
    """One encoder, without what reads it.

    Args:
        name: Its name, for messages.
        entry: Its entry in the configuration: ``model_type``, ``class_name`` and ``config``, or ``onnx``; ``layer``.
        attn_implementation: The composition's own; an encoder that lacks it keeps what it has.
    """

    noun: ClassVar[str] = "expert"

    def __init__(self, name: str, entry: Mapping[str, Any], *, attn_implementation: str | None) -> None:
        super().__init__()
        self.name = name
        self.entry = dict(entry)
        self.width = entry_width(entry)
        self.encoder: Any
        if "onnx" in entry:
            self.encoder = OnnxEncoder(name, entry["onnx"])
            self.known = self.encoder.known
        else:
            config = native_config(entry["model_type"], entry["config"])
            self.encoder = build_encoder(encoder_class(entry, config), config, attn_implementation=attn_implementation)
            self.known = encoder_inputs(type(self.encoder))
        if self.main_input == NUMBERED_INPUT and "onnx" not in entry:
            self.encoder.get_input_embeddings().register_forward_pre_hook(_match_dtype)

    @property
    def main_input(self) -> str:
        """Native name of the tensor that holds the items."""
        return self.known[0]

    def freeze(self) -> None:
        """Takes the encoder out of training."""
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> Any:
        """Sets the mode of what reads the encoder; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the encoder's own inputs, on its device and in its dtype.

        Args:
            inputs: The processor's tensors, by native name; what the encoder does not take is left out.

        Raises:
            ValueError: The main input is missing.
        """
        given = {key: self._moved(key, inputs[key]) for key in self.known if inputs.get(key) is not None}
        if self.main_input not in given:
            raise ValueError(f"The {self.noun} {self.name!r} needs {self.name}__{self.main_input}.")
        return given

    def read(self, given: Mapping[str, Any]) -> torch.Tensor:
        """Runs the encoder and returns the hidden state that its entry names, as the encoder gives it.

        There is no gradient in it unless a stage trains the encoder itself or factors inside it.

        Args:
            given: As :meth:`given` returns it.

        Raises:
            ValueError: The encoder has no such layer.
        """
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            layer = self.entry.get("layer", -1)
            if layer == -1:
                return self.encoder(**given, return_dict=True).last_hidden_state
            states = hidden_states(self.encoder, given)
            if wrong := missing_layer(layer, len(states)):
                raise ValueError(f"{self.noun.capitalize()} {self.name!r}: {wrong}")
            return states[layer]

    def _moved(self, key: str, value: Any) -> Any:
        weight = next(self.encoder.parameters(), None)
        if not isinstance(value, torch.Tensor) or weight is None:
            return value
        wanted = weight.dtype if value.is_floating_point() and key != NUMBERED_INPUT else None
        return value.to(weight.device, wanted)


def encoder_class(entry: Mapping[str, Any], config: PreTrainedConfig) -> Any:
    """Returns the class that ``class_name`` names: of transformers itself, beside the configuration's class, or ours.

    Raises:
        ValueError: The installed transformers has no such class.
    """
    name = entry["class_name"]
    if name == QFormerEncoder.__name__:
        return QFormerEncoder
    found = getattr(transformers, name, None)
    if found is None:
        home = type(config).__module__.replace(".configuration_", ".modeling_")
        found = getattr(importlib.import_module(home), name, None)
    if found is None:
        raise ValueError(f"transformers {transformers.__version__} has no class {name!r} for {entry['model_type']!r}.")
    return found


def encoder_inputs(cls: Any) -> list[str]:
    """Returns the native names that an encoder class takes, the one that holds the items first."""
    found = list(inspect.signature(cls.forward).parameters.values())[1:]
    settings = ("output_", "return_", "interpolate_", "bool_masked_pos", "head_mask", "labels")
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in named if not name.startswith(settings)]


def hidden_states(encoder: nn.Module, given: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Returns all hidden states of an encoder, the input of its first layer first; nothing when it gives none.

    Args:
        encoder: The encoder.
        given: What it reads.
    """
    # Kosmos-2.5's class drops what the stack of layers inside it has collected.
    inside: list[tuple[torch.Tensor, ...]] = []
    stack = getattr(encoder, "encoder", None)
    hook = None
    if isinstance(stack, nn.Module):
        hook = stack.register_forward_hook(lambda _, __, out: inside.append(getattr(out, "hidden_states", None) or ()))
    try:
        output = encoder(**given, output_hidden_states=True, return_dict=True)
    finally:
        if hook is not None:
            hook.remove()
    return output.hidden_states or (inside[-1] if inside else ())


def missing_layer(layer: int, count: int) -> str:
    """Returns what is wrong with a layer, "" when an encoder with so many hidden states has it."""
    if not count:
        return f"its encoder gives its last hidden state only, and not that of layer {layer}."
    if -count <= layer < count:
        return ""
    return (
        f"its encoder has {count} hidden states, layers 0 to {count - 1} (or -{count} to -1); layer {layer} is none of "
        "them."
    )


def encoder_width(config: PreTrainedConfig, entry: Mapping[str, Any]) -> int:
    """Returns the width E of the hidden state that an expert reads.

    Args:
        config: The encoder's configuration.
        entry: The encoder's entry; its ``width``, or ``projector.width``, overrides what the configuration says.
    """
    layer = entry.get("layer", -1)
    stated = entry.get("width", entry.get("projector", {}).get("width"))
    if stated is not None:
        return int(stated)
    if layer == -1 and getattr(config, "output_channels", None):
        return int(config.output_channels)
    first = getattr(config, "patch_embeds_hidden_size", None) or getattr(config, "embed_dim", None)
    if first and getattr(config, "depths", None):
        # Each stage but the last halves the grid and doubles the width.
        stage = layer if layer >= 0 else len(config.depths) + 1 + layer
        return int(first * 2 ** max(0, min(stage, len(config.depths) - 1)))
    return int(config.hidden_size)


def entry_width(entry: Mapping[str, Any]) -> int:
    """Returns the width E of what an expert's encoder gives, native or ONNX."""
    if "onnx" in entry:
        return int(entry["projector"]["width"])
    return encoder_width(native_config(entry["model_type"], entry["config"]), entry)


def token_rows(x: torch.Tensor, width: int) -> torch.Tensor:
    """Returns features as (I, T, E): maps with channels first or last are read row by row.

    Args:
        x: What an encoder gave.
        width: E.
    """
    if x.dim() == 4:
        x = x.flatten(2).transpose(1, 2) if x.shape[1] == width else x.flatten(1, 2)
    if x.dim() != 3 or x.shape[-1] != width:
        raise ValueError(f"The encoder gave features of shape {tuple(x.shape)} where the width {width} was expected.")
    return x


def _match_dtype(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].to(module.weight.dtype), *args[1:])
