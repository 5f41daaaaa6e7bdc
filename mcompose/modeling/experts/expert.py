"""Domain experts: frozen encoders of other models whose features stand beside an item's own.

Letters: I items, T vectors of one item, E width of the encoder, N vectors of all items, D width of the language model.

The encoder is the native class of transformers, or an ONNX graph, run on the native processor's tensors, always in eval
mode and without gradients; only the projector behind it learns. Which vectors of an item count is decided here once:
leading tokens that are skipped (class token, registers), and rows that the encoder's own attention mask calls padding
(Pix2Struct fills up to 2048 rows), which may be kept, as in the paper's code, hidden from the language model's
attention, or left out. Nothing is ever cut to fit. Paper: Peng et al. 2024, arXiv 2412.05983, section 3.1.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from ..configuration.native import native_config
from ..towers.native_classes import build_encoder
from .onnx_encoder import OnnxEncoder
from .projectors import build_projector, draw_parameters

__all__ = [
    "Expert",
    "ExpertFeatures",
    "encoder_class",
    "encoder_inputs",
    "encoder_width",
    "entry_width",
    "hidden_states",
    "initial_values",
    "missing_layer",
]

_MASKS = ("attention_mask", "pixel_attention_mask")
# Their first two columns are row and column numbers, which half precision cannot hold.
_NUMBERED = "flattened_patches"


@dataclass
class ExpertFeatures:
    """What an expert made of its items.

    Args:
        x_ND: One vector per context token, items in order.
        counts: Vectors of each item.
        valid_N: Which vectors are no padding; None when all are to be seen.
    """

    x_ND: torch.Tensor  # noqa: N815 - shape suffix
    counts: list[int]
    valid_N: torch.Tensor | None = None  # noqa: N815 - shape suffix


class Expert(nn.Module):
    """One frozen encoder and its projector.

    Args:
        name: The expert's name, for messages.
        entry: Its entry in ``ComposedConfig.experts``.
        text_width: D.
        attn_implementation: The composition's own; an encoder that lacks it keeps what it has.
    """

    def __init__(
        self, name: str, entry: Mapping[str, Any], *, text_width: int, attn_implementation: str | None
    ) -> None:
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
        self.projector = build_projector(entry["projector"], width=self.width, text_width=text_width)
        if self.main_input == _NUMBERED and "onnx" not in entry:
            self.encoder.get_input_embeddings().register_forward_pre_hook(_match_dtype)
        self.freeze()

    @property
    def main_input(self) -> str:
        """Native name of the tensor that holds the items."""
        return self.known[0]

    def freeze(self) -> None:
        """Takes the encoder out of training."""
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> Expert:
        """Sets the mode of the projector; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, inputs: Mapping[str, Any]) -> ExpertFeatures:
        """Runs the expert on items.

        Args:
            inputs: The native processor's tensors, one row per item, by native name.

        Raises:
            ValueError: The main input is missing, or the number of vectors is not what the configuration says.
        """
        x_ITE, valid_IT = self.encode(inputs)
        kind, padding = self.entry["projector"]["kind"], self.entry.get("padding", "keep")
        weight = next(self.projector.parameters())
        x_ITD = self.projector(x_ITE.to(weight.device, weight.dtype), valid_IT)
        if kind == "resampler":
            valid_IT = None
        self._check_count(x_ITD, valid_IT)
        if valid_IT is None or padding == "mask":
            valid_N = None if valid_IT is None else valid_IT.flatten()
            return ExpertFeatures(x_ITD.flatten(0, 1), [x_ITD.shape[1]] * len(x_ITD), valid_N)
        return ExpertFeatures(x_ITD[valid_IT], valid_IT.sum(-1).tolist())

    def encode(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the encoder's features (I, T, E) and, unless padding is kept, which are valid (I, T).

        There is no gradient in them unless a stage trains the encoder itself or factors inside it.
        """
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return self._encoded(inputs)

    def _encoded(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = {key: self._moved(key, inputs[key]) for key in self.known if inputs.get(key) is not None}
        if self.main_input not in given:
            raise ValueError(f"The expert {self.name!r} needs {self.name}__{self.main_input}.")
        skip = self.entry.get("skip", 0)
        x_ITE = _sequence(self._state(given), self.width)
        valid_IT = None
        if self.entry.get("padding", "keep") != "keep":
            valid_IT = self._valid(given, x_ITE.shape[1])[:, skip:]
        return x_ITE[:, skip:], valid_IT

    def _state(self, given: Mapping[str, Any]) -> torch.Tensor:
        layer = self.entry.get("layer", -1)
        if layer == -1:
            return self.encoder(**given, return_dict=True).last_hidden_state
        states = hidden_states(self.encoder, given)
        if wrong := missing_layer(layer, len(states)):
            raise ValueError(f"Expert {self.name!r}: {wrong}")
        return states[layer]

    def _moved(self, key: str, value: Any) -> Any:
        weight = next(self.encoder.parameters(), None)
        if not isinstance(value, torch.Tensor) or weight is None:
            return value
        wanted = weight.dtype if value.is_floating_point() and key != _NUMBERED else None
        return value.to(weight.device, wanted)

    def _valid(self, given: Mapping[str, Any], count: int) -> torch.Tensor:
        mask = next((given[key] for key in _MASKS if key in given), None)
        if mask is None and self.main_input == _NUMBERED:
            mask = given[_NUMBERED].sum(dim=-1) != 0
        if mask is None:
            raise ValueError(f"The padding of expert {self.name!r} cannot be told: no attention mask came.")
        if mask.shape[1] % count:
            raise ValueError(f"The mask of expert {self.name!r} has {mask.shape[1]} places for {count} vectors.")
        return mask.bool().unflatten(1, (count, -1)).any(-1)

    def _check_count(self, x_ITD: torch.Tensor, valid_IT: torch.Tensor | None) -> None:
        wanted = self.entry["tokens"]
        if wanted != "attention_mask" and x_ITD.shape[1] != wanted:
            raise ValueError(
                f"The expert {self.name!r} made {x_ITD.shape[1]} vectors of an item, and its configuration says "
                f"{wanted} tokens."
            )
        if valid_IT is not None and not bool(valid_IT.any(-1).all()):
            raise ValueError(f"The expert {self.name!r} got an item that is nothing but padding.")


def encoder_class(entry: Mapping[str, Any], config: PreTrainedConfig) -> Any:
    """Returns the class that ``class_name`` names: of transformers itself, or beside the configuration's class.

    Raises:
        ValueError: The installed transformers has no such class.
    """
    name = entry["class_name"]
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
        entry: The expert's entry; ``projector.width`` overrides what the configuration says.
    """
    layer = entry.get("layer", -1)
    if (stated := entry["projector"].get("width")) is not None:
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


def initial_values(config: Any, *, seed: int) -> dict[str, torch.Tensor]:
    """Returns float32 values of all projectors and routers of a configuration, by their names in the checkpoint.

    Args:
        config: The ``ComposedConfig``.
        seed: Same seed, same values, whatever else the configuration holds.
    """
    values = {}
    for name, entry in config.experts.items():
        with torch.device("meta"):
            projector = build_projector(
                entry["projector"], width=entry_width(entry), text_width=config.text_config.hidden_size
            )
        values.update(draw_parameters(projector, seed=seed, name=f"model.experts.{name}.projector"))
    for modality, router in config.routers.items():
        with torch.device("meta"):
            linear = nn.Linear(router["width"], len(router["classes"]), bias=False)
        values.update(draw_parameters(linear, seed=seed, name=f"model.routers.{modality}"))
    return values


def _sequence(x: torch.Tensor, width: int) -> torch.Tensor:
    """Returns (I, T, E): maps with channels first or last are read row by row."""
    if x.dim() == 4:
        x = x.flatten(2).transpose(1, 2) if x.shape[1] == width else x.flatten(1, 2)
    if x.dim() != 3 or x.shape[-1] != width:
        raise ValueError(f"The encoder gave features of shape {tuple(x.shape)} where the width {width} was expected.")
    return x


def _match_dtype(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].to(module.weight.dtype), *args[1:])
