"""What an expert makes of an item, measured on shapes alone.

An image and a sound go through its processor, and the result through encoder and projector on the meta device, which
computes no number. Imports torch and transformers; used by recipes with experts only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from mcompose.compose.experts.encoder import leading_tokens
from mcompose.errors import CompositionError, first_line
from mcompose.modeling import (
    Expert,
    build_projector,
    build_tower,
    encoder_width,
    encoders_of,
    family_of,
    hidden_states,
    load_item_processor,
    missing_layer,
    native_config,
    native_inputs,
)
from mcompose.on_disk import VISION_MIX_TYPE

__all__ = [
    "GeneralEncoder",
    "Probed",
    "check_same_count",
    "meta_device",
    "prepared_items",
    "probe_expert",
    "probe_general_encoder",
]

_SIZES = ((320, 200), (200, 240))  # neither is the other turned over, which would give as many vectors
_SECONDS = (0.5, 0.25)
_ASSUMED = 1
"""Width of vectors until it is measured."""
_FAULTS = (ValueError, RuntimeError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True)
class Probed:
    """What was measured of an expert.

    Args:
        tokens: Vectors of an item after the projector.
        vectors: Vectors that the encoder gives.
        inputs: What the encoder takes of what the processor makes.
        shapes: Parameter of the projector to its shape.
        measured: What the projector's settings lack: ``width`` of the vectors where the config does not tell it, and
            ``grid``, their rows and columns, where neighbours are folded.
    """

    tokens: int
    vectors: int
    inputs: list[str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    measured: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Seen:
    """What an encoder gives of an item: vectors, their width, and rows and columns where it gives a map."""

    vectors: int
    width: int
    sides: tuple[int, int] | None


@dataclass(frozen=True)
class GeneralEncoder:
    """What a router can read of the general encoder of a modality.

    Args:
        width: Width of its vectors.
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
        CompositionError: Its processor does not load, the two do not fit together, it has no such layer, its projector
            cannot read what it gives, or the number of vectors depends on the item.
    """
    with meta_device():
        entry, expert = _built(name, {**entry, "padding": "keep", "tokens": 1}, text_width=text_width)
    items = prepared_items(name, entry["modality"], processor, known=expert.known)
    seen = [_measure(expert, made) for made in items]
    settings, width = entry["projector"], seen[0].width
    if width != expert.width:
        entry = {**entry, "projector": {**settings, "width": width}}
        probed = probe_expert(name, entry, processor=processor, text_width=text_width)
        return replace(probed, measured={"width": width, **probed.measured})
    folds = settings["kind"] == "pixel_shuffle"
    measured: dict[str, Any] = {"grid": _grid(expert, items, seen)} if folds else {}
    one, other = (_tokens(expert, {**settings, **measured}, item, text_width=text_width) for item in seen)
    check_same_count(name, entry["modality"], one, other)
    shapes = {key: tuple(tensor.shape) for key, tensor in expert.projector.state_dict().items()}
    return Probed(one, seen[0].vectors, list(items[0]), shapes, measured)


def _built(name: str, entry: dict[str, Any], *, text_width: int) -> tuple[dict[str, Any], Expert]:
    """Returns the expert; where its config tells no width, one is assumed until it is measured."""
    config = native_config(entry["model_type"], entry["config"])
    try:
        encoder_width(config, entry)
    except AttributeError:
        entry = {**entry, "projector": {**entry["projector"], "width": _ASSUMED}}
    try:
        return entry, Expert(name, entry, text_width=text_width, attn_implementation=None)
    except ValueError as error:
        raise CompositionError(
            f"The expert '{name}' cannot be built: {error}",
            hint=f"Write it otherwise in 'compose.experts.{name}.projector'.",
        ) from error


def _processor(name: str, modality: str, folder: Path) -> Any:
    try:
        return load_item_processor(modality, folder)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CompositionError(
            f"The processor of expert '{name}' cannot be loaded: {first_line(error)}.",
            hint="Its folder must hold a preprocessor_config.json; 'processor:' names the checkpoint that has one.",
        ) from error


def check_same_count(name: str, modality: str, one: int, other: int) -> None:
    """Refuses an expert whose number of vectors depends on the item.

    Args:
        name: The expert.
        modality: Modality of its items.
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
    """Returns two items of different shapes, each through an expert's processor.

    Args:
        name: The expert.
        modality: Modality of the items.
        folder: Folder of its processor.
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


def _measure(expert: Expert, made: Mapping[str, torch.Tensor]) -> _Seen:
    if expert.main_input not in made:
        raise CompositionError(
            f"The processor of expert '{expert.name}' makes no '{expert.main_input}', which its encoder reads.",
            hint="'processor:' names another checkpoint.",
        )
    with meta_device():
        try:
            state = _state(expert, {key: _without_numbers(key, value) for key, value in made.items()})
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise _unread(expert, error) from error
            state = _state_of_one_layer(expert, made)
        except _FAULTS as error:
            raise _unread(expert, error) from error
    return _sequence(state, expert.width, sides=made[expert.main_input].shape[-2:])


def _tokens(expert: Expert, settings: Mapping[str, Any], seen: _Seen, *, text_width: int) -> int:
    """Vectors of an item after the projector."""
    skip = expert.entry.get("skip", 0)
    try:
        if seen.vectors <= skip:
            raise ValueError(f"it makes {seen.vectors} vectors, and nothing is left when {skip} are dropped")
        with meta_device():
            projector = build_projector(settings, width=seen.width, text_width=text_width)
            return int(projector(torch.empty(1, seen.vectors - skip, seen.width)).shape[1])
    except (ValueError, RuntimeError) as error:
        raise CompositionError(f"The expert '{expert.name}' cannot read an item: {error}") from error


def _grid(expert: Expert, items: Sequence[Mapping[str, torch.Tensor]], seen: Sequence[_Seen]) -> list[int]:
    """Rows and columns of the vectors of an item, the same of all items."""
    name, other = expert.name, "Choose another projector: 'mlp', 'linear', or 'resampler', which makes fewer vectors."
    folds = f"The expert '{name}' has 'projector: pixel_shuffle', which folds neighbours on one grid of all images"
    if expert.entry["modality"] != "image":
        raise CompositionError(f"{folds}, and the vectors of a sound are a sequence.", hint=other)
    pictures = [made[expert.main_input].shape for made in items]
    if len(pictures[0]) != 4 or pictures[0] != pictures[1]:
        raise CompositionError(f"{folds}, and its encoder has another grid for each image.", hint=other)
    kept, (height, across) = seen[0].vectors - expert.entry.get("skip", 0), pictures[0][-2:]
    sides = seen[0].sides or _sides(expert.encoder.config, int(height), int(across), count=kept)
    if sides is None or math.prod(sides) != kept:
        told = f"has {sides[0]} x {sides[1]}" if sides else "cannot be told"
        raise CompositionError(
            f"{folds}, and it keeps {kept} vectors of an image, where its encoder's grid {told}.",
            hint=f"'compose.experts.{name}.class_token' leaves out what is before the grid. {other}",
        )
    return list(sides)


def _sides(config: PreTrainedConfig, height: int, across: int, *, count: int) -> tuple[int, int] | None:
    """Rows and columns of the patches of a picture; None when the config has no patches.

    Encoders in stages halve the grid between them, rounding up; the number of vectors tells how often.
    """
    patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
    if patch is None:
        return None
    down, right = (patch, patch) if isinstance(patch, int) else patch
    stages = len(getattr(config, "depths", None) or ())
    if not stages:
        return height // down, across // right
    sides = [(math.ceil(height / down / 2**stage), math.ceil(across / right / 2**stage)) for stage in range(stages)]
    return next((one for one in sides if math.prod(one) == count), None)


def _without_numbers(key: str, value: torch.Tensor) -> torch.Tensor:
    """On the meta device, but for the sizes of what is read: some encoders count by them."""
    return value if any(word in key for word in ("shapes", "grid", "sizes")) else value.to("meta")


def _state(expert: Expert, inputs: Mapping[str, torch.Tensor], *, left_out: int = 0) -> torch.Tensor:
    """The hidden state that is read, or one of its shape where the encoder was built without some of its layers."""
    given = {key: inputs[key] for key in expert.known if key in inputs}
    layer = expert.entry.get("layer", -1)
    if layer == -1:
        return expert.encoder(**given, return_dict=True).last_hidden_state
    states = hidden_states(expert.encoder, given)
    if wrong := missing_layer(layer, len(states) + left_out if states else 0):
        raise CompositionError(
            f"Expert '{expert.name}': {wrong}",
            hint=f"Write another number in 'compose.experts.{expert.name}.layer', or leave it out to read the last."
            if states
            else f"Leave out 'compose.experts.{expert.name}.layer'.",
        )
    return states[max(-len(states), min(layer, len(states) - 1))]


def _state_of_one_layer(expert: Expert, made: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the same shape from an encoder of one layer with numbers, for encoders that look into their masks."""
    config = {**expert.entry["config"], "num_hidden_layers": 1}
    small = {**expert.entry, "config": config, "projector": {"kind": "linear", "width": expert.width}}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        shallow = Expert(expert.name, small, text_width=1, attn_implementation="sdpa")
        try:
            # Encoders in stages have the number in their configs, and go by another.
            fewer = len(list(shallow.encoder.modules())) < len(list(expert.encoder.modules()))
            left_out = expert.encoder.config.num_hidden_layers - 1 if fewer else 0
            return _state(shallow, made, left_out=left_out).to("meta")
        except _FAULTS as error:
            raise _unread(expert, error) from error


def _unread(expert: Expert, error: Exception) -> CompositionError:
    return CompositionError(
        f"The encoder of expert '{expert.name}' ({type(expert.encoder).__name__}) cannot read what its processor "
        f"makes: {first_line(error)}.",
        hint="Do encoder and processor belong together?",
    )


def _sequence(state: torch.Tensor, width: int, *, sides: Sequence[int]) -> _Seen:
    """What an item's vectors are. A map's channels are where the width is, or else beside the picture's proportions."""
    if state.dim() != 4:
        return _Seen(int(state.shape[1]), int(state.shape[-1]), None)
    _, one, two, three = map(int, state.shape)
    by_width = width not in (_ASSUMED, two) and (one == width) != (three == width)
    first = one == width if by_width else _aspect_distance(two, three, sides) <= _aspect_distance(one, two, sides)
    rows, columns = (two, three) if first else (one, two)
    return _Seen(rows * columns, one if first else three, (rows, columns))


def _aspect_distance(rows: int, columns: int, sides: Sequence[int]) -> float:
    """Returns how far the proportions of a map are from those of the picture."""
    return abs(math.log(rows / columns * sides[1] / sides[0]))


@contextmanager
def meta_device() -> Iterator[None]:
    """Everything that is built or computed inside has a shape and no numbers."""
    with torch.device("meta"), torch.no_grad():
        yield


def probe_general_encoder(config: Mapping[str, Any], model_type: str, modality: str) -> GeneralEncoder:
    """Measures what a router can read of a general encoder.

    Args:
        config: The source's config.
        model_type: transformers' model type.
        modality: Modality of the router.

    Raises:
        CompositionError: The width of its vectors cannot be determined.
    """
    with meta_device():
        tower = build_tower(native_config(model_type, config), attn_implementation=None)
    found = encoders_of(tower)
    encoder = next((one for one in found if modality in _takes(one)), found[0] if found else None)
    family = family_of(model_type)
    if encoder is None or not family.hidden_states:
        raise CompositionError(
            f"What a router could read of the encoder of '{model_type}' cannot be told.",
            hint="Write 'router: none', and name the expert of each item.",
        )
    tile = family.whole_tile if model_type != VISION_MIX_TYPE else _overview(config["views"])
    return GeneralEncoder(_general_width(encoder.config), leading_tokens(encoder) > 0, tile)


def _overview(views: Mapping[str, Any]) -> str:
    """The view of a mix that shows a whole picture; the mean of its tiles where none does."""
    if views["tiles"] == "none":
        return "first"
    return "mean" if views["overview"] == "none" else str(views["overview"])


def _takes(encoder: PreTrainedModel) -> tuple[str, ...]:
    takes = encoder.input_modalities
    return (takes,) if isinstance(takes, str) else tuple(takes or ())


def _general_width(config: PreTrainedConfig) -> int:
    """Width of the last hidden state; Qwen2-VL calls what its merger makes of it the hidden size."""
    inner = getattr(config, "embed_dim", None)
    if inner and config.model_type.startswith("qwen2_vl"):
        return int(inner)
    return encoder_width(config, {"projector": {}})
