"""What an expert makes of an item, measured on shapes alone.

An image and a sound go through its processor, and the result through encoder and projector on the meta device, which
computes no number. Imports torch and transformers; used by recipes with experts only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from mcompose.compose.expert_encoders import leading_tokens
from mcompose.errors import CompositionError
from mcompose.modeling.experts import Expert, encoder_width
from mcompose.modeling.native_classes import build_tower
from mcompose.modeling.native_configs import native_config
from mcompose.modeling.processing_experts import native_inputs, whole_items

__all__ = [
    "GeneralEncoder",
    "Probed",
    "check_same_count",
    "look_at_general",
    "no_memory",
    "prepared_items",
    "probe_expert",
]

_LOADERS = {"image": AutoImageProcessor, "audio": AutoFeatureExtractor}
_SIZES = ((320, 200), (200, 240))  # neither is the other turned over, which would give as many vectors
_SECONDS = (0.5, 0.25)
_FIRST_IS_WHOLE = ("llava_next", "llava_next_video", "llava_onevision", "ovis2")
"""Families that put the whole image before its tiles; the others put it behind them."""

_UNTOLD = ("ovis2",)
"""Families whose encoder gives no hidden states at its end."""
_FAULTS = (ValueError, RuntimeError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True)
class Probed:
    """What was measured of an expert.

    Args:
        tokens: Vectors of an item after the projector.
        vectors: Vectors that the encoder gives.
        inputs: What the encoder takes of what the processor makes.
        width: Of the vectors, where the config does not tell it; else None.
        shapes: Parameter of the projector to its shape.
    """

    tokens: int
    vectors: int
    inputs: list[str]
    width: int | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])


@dataclass(frozen=True)
class GeneralEncoder:
    """What a router can read of the general encoder of a modality.

    Args:
        width: Of its vectors.
        has_class: Whether the first of them is a class token.
        tile: The tile that shows a whole image.
    """

    width: int
    has_class: bool
    tile: str


def probe_expert(name: str, entry: Mapping[str, Any], *, processor: Path, text_width: int) -> Probed:
    """Measures what an expert makes of an item.

    Args:
        name: The expert's name.
        entry: Its entry in the network's config, without ``tokens``.
        processor: Folder of its processor.
        text_width: Width of the language model.

    Raises:
        CompositionError: Its processor does not load, the two do not fit together, or the number of vectors depends on
            the item.
    """
    with no_memory():
        entry, expert = _built(name, {**entry, "padding": "keep", "tokens": 1}, text_width=text_width)
    items = prepared_items(name, entry["modality"], processor, known=expert.known)
    found = [_measure(expert, made, name=name) for made in items]
    check_same_count(name, entry["modality"], found[0][1], found[1][1])
    (vectors, tokens, width, inputs), _ = found
    shapes = {key: tuple(tensor.shape) for key, tensor in expert.projector.state_dict().items()}
    if width != expert.width:
        entry = {**entry, "projector": {**entry["projector"], "width": width}}
        return _with_width(probe_expert(name, entry, processor=processor, text_width=text_width), width)
    return Probed(tokens, vectors, inputs, None, shapes)


def _with_width(probed: Probed, width: int) -> Probed:
    return Probed(probed.tokens, probed.vectors, probed.inputs, width, probed.shapes)


def _built(name: str, entry: dict[str, Any], *, text_width: int) -> tuple[dict[str, Any], Expert]:
    """The expert; where its config tells no width, one is assumed until it is measured."""
    config = native_config(entry["model_type"], entry["config"])
    try:
        encoder_width(config, entry)
    except AttributeError:
        entry = {**entry, "projector": {**entry["projector"], "width": 1}}
    return entry, Expert(name, entry, text_width=text_width, attn_implementation=None)


def _processor(name: str, modality: str, folder: Path) -> Any:
    try:
        return whole_items(_LOADERS[modality].from_pretrained(folder))
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CompositionError(
            f"The processor of expert '{name}' cannot be loaded: {reason:.200}",
            hint="Its folder must hold a preprocessor_config.json; 'processor:' names the checkpoint that has one.",
        ) from error


def check_same_count(name: str, modality: str, one: int, other: int) -> None:
    """Refuses an expert whose number of vectors depends on the item.

    Args:
        name: The expert.
        modality: Of its items.
        one: Vectors that it makes of one item.
        other: Vectors that it makes of another.

    Raises:
        CompositionError: They differ.
    """
    if one != other:
        raise CompositionError(
            f"The expert '{name}' makes {one} vectors of one {modality} and {other} of another.",
            hint="Give it 'projector: resampler', which makes the same number of all.",
        )


def prepared_items(name: str, modality: str, folder: Path, *, known: list[str]) -> list[dict[str, torch.Tensor]]:
    """Two items of different shapes, each through an expert's processor.

    Args:
        name: The expert.
        modality: Of the items.
        folder: Of its processor.
        known: Names of the tensors that are kept.

    Raises:
        CompositionError: The processor does not load, or cannot prepare an item.
    """
    native = _processor(name, modality, folder)
    what = {"modality": modality, "inputs": known}
    if modality == "image":
        items: list[Any] = [Image.new("RGB", size, (120, 160, 200)) for size in _SIZES]
    else:
        items = [np.zeros(int(seconds * native.sampling_rate), np.float32) for seconds in _SECONDS]
    try:
        return [native_inputs(native, [item], what, name=name) for item in items]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompositionError(f"The processor of expert '{name}' cannot prepare an item: {error}") from error


def _measure(expert: Expert, made: Mapping[str, torch.Tensor], *, name: str) -> tuple[int, int, int, list[str]]:
    """Vectors of the encoder, vectors after the projector, width of the former, and the inputs that were read."""
    if expert.main_input not in made:
        raise CompositionError(
            f"The processor of expert '{name}' makes no '{expert.main_input}', which its encoder reads.",
            hint="'processor:' names another checkpoint.",
        )
    with no_memory():
        try:
            state = _state(expert, {key: _without_numbers(key, value) for key, value in made.items()})
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise _unread(expert, error) from error
            state = _state_of_one_layer(expert, made)
        except _FAULTS as error:
            raise _unread(expert, error) from error
        vectors, width = _sequence(state, expert.width)
        if width != expert.width:
            return 0, 0, width, []
        kept = vectors - expert.entry.get("skip", 0)
        try:
            if kept < 1:
                raise ValueError(f"it makes {vectors} vectors, and nothing is left when {vectors - kept} are dropped")
            tokens = expert.projector(torch.empty(1, kept, width)).shape[1]
        except (ValueError, RuntimeError) as error:
            raise CompositionError(f"The expert '{name}' cannot read an item: {error}") from error
    return vectors, tokens, width, list(made)


def _without_numbers(key: str, value: torch.Tensor) -> torch.Tensor:
    """On the meta device, but for the sizes of what is read: some encoders count by them."""
    return value if any(word in key for word in ("shapes", "grid", "sizes")) else value.to("meta")


def _state(expert: Expert, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The hidden state that is read."""
    given = {key: inputs[key] for key in expert.known if key in inputs}
    layer = expert.entry.get("layer", -1)
    output = expert.encoder(**given, return_dict=True, **({"output_hidden_states": True} if layer != -1 else {}))
    return output.last_hidden_state if layer == -1 else output.hidden_states[layer]


def _state_of_one_layer(expert: Expert, made: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The same shape from an encoder of one layer with numbers, for encoders that look into their masks."""
    config = {**expert.entry["config"], "num_hidden_layers": 1}
    small = {**expert.entry, "config": config, "layer": -1}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        shallow = Expert(expert.name, small, text_width=1, attn_implementation="sdpa")
        try:
            return _state(shallow, made).to("meta")
        except _FAULTS as error:
            raise _unread(expert, error) from error


def _unread(expert: Expert, error: Exception) -> CompositionError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return CompositionError(
        f"The encoder of expert '{expert.name}' ({type(expert.encoder).__name__}) cannot read what its processor "
        f"makes, or has no layer {expert.entry.get('layer', -1)}: {reason:.200}",
        hint="Do encoder and processor belong together?",
    )


def _sequence(state: torch.Tensor, width: int) -> tuple[int, int]:
    """Vectors and their width; a map of two dimensions has its channels where the config's width is."""
    if state.dim() != 4:
        return int(state.shape[1]), int(state.shape[-1])
    sides = state.shape[2:] if state.shape[1] == width else state.shape[1:3]
    return int(sides.numel()), int(state.shape[1] if state.shape[1] == width else state.shape[3])


@contextmanager
def no_memory() -> Iterator[None]:
    """Everything that is built or computed inside has a shape and no numbers."""
    with torch.device("meta"), torch.no_grad():
        yield


def look_at_general(config: Mapping[str, Any], model_type: str, modality: str) -> GeneralEncoder:
    """Measures what a router can read of a general encoder.

    Args:
        config: The source's config.
        model_type: Its type.
        modality: Of the router.

    Raises:
        CompositionError: Its width cannot be told.
    """
    with no_memory():
        tower = build_tower(native_config(model_type, config), attn_implementation=None)
    found = _encoders(tower)
    encoder = next((one for one in found if modality in _takes(one)), found[0] if found else None)
    if encoder is None or model_type in _UNTOLD:
        raise CompositionError(
            f"What a router could read of the encoder of '{model_type}' cannot be told.",
            hint="Write 'router: none', and name the expert of each item.",
        )
    tile = "first" if model_type in _FIRST_IS_WHOLE else "last"
    return GeneralEncoder(_general_width(encoder.config), leading_tokens(encoder) > 0, tile)


def _encoders(module: torch.nn.Module) -> list[PreTrainedModel]:
    """The outermost models of their own in a tower, as the network watches them."""
    found: list[PreTrainedModel] = []
    for child in module.children():
        found += [child] if isinstance(child, PreTrainedModel) else _encoders(child)
    return found


def _takes(encoder: PreTrainedModel) -> tuple[str, ...]:
    takes = encoder.input_modalities
    return (takes,) if isinstance(takes, str) else tuple(takes or ())


def _general_width(config: PreTrainedConfig) -> int:
    """Width of the last hidden state; Qwen2-VL calls what its merger makes of it the hidden size."""
    inner = getattr(config, "embed_dim", None)
    if inner and config.model_type.startswith("qwen2_vl"):
        return int(inner)
    return encoder_width(config, {"projector": {}})
