"""What the encoders of a mix read and make of one view, measured on shapes alone.

Imports torch and transformers; used by recipes with mixed encoders only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mcompose.compose.experts.probe import meta_device
from mcompose.errors import CompositionError, first_line
from mcompose.modeling import (
    MixedEncoder,
    SourceViews,
    load_item_processor,
    load_own_processor,
    missing_layer,
    native_config,
    native_inputs,
)

if TYPE_CHECKING:
    from mcompose.compose.towers import OutputTower
    from mcompose.recipe import MixedEncoder as MixedEncoderSpec

__all__ = ["Measured", "measure_encoder", "measure_source"]

_FAULTS = (ValueError, RuntimeError, IndexError, TypeError, AttributeError, KeyError, NotImplementedError)
_NORMS = ("post_layernorm", "layernorm", "layer_norm", "norm", "final_layer_norm", "ln_post")
_CLOSE = 1e-4
"""Largest difference between pixels of the native processor and ours, in standard deviations."""


@dataclass(frozen=True)
class Measured:
    """What was measured of an encoder.

    Args:
        entry: Entry of the encoder in the network's configuration.
        prepared: Entry of the encoder in the processor's configuration.
        own_processor: Whether views are prepared by the processor that it brings.
        colour: Mean colour of its pixels, 0 to 255.
        size: Side of what it sees.
    """

    entry: dict[str, Any]
    prepared: dict[str, Any]
    own_processor: bool = False
    colour: tuple[int, ...] = ()
    size: int | None = None


def measure_encoder(
    who: str, name: str, entry: Mapping[str, Any], spec: MixedEncoderSpec, *, folder: Path, side: int | None
) -> Measured:
    """Measures what an encoder reads and makes of a view.

    Args:
        who: What it is, for messages.
        name: Name of the encoder in the mix.
        entry: Entry of the encoder in the network's configuration, without what is measured here.
        spec: Entry of the encoder in the recipe.
        folder: Folder of its processor.
        side: Side of a view, where the recipe states it.

    Raises:
        CompositionError: Its processor does not load, or it cannot read what that makes.
    """
    native = _processor(who, folder)
    with meta_device():
        known = _built(who, name, {**entry, "tokens": 0, "width": 1}).known
    sample = _sample(who, name, native, known, side or 224)
    pixels = _plain_pixels(native, sample, known)
    if pixels is None:
        if spec.size is not None:
            raise CompositionError(
                f"The size of {who} cannot be set: its processor makes {', '.join(sample)}, and no plain square.",
                hint="Leave 'size' out; 'views.size' is the side of what it is shown.",
            )
        views = {key: value[:1] for key, value in sample.items()}
        prepared: dict[str, Any] = {"inputs": list(views)}
        made = _made(who, name, {**entry, **prepared}, views, spec)
        return Measured(made, prepared, own_processor=True)
    own = int(sample[known[0]].shape[-1])
    size = spec.size or own
    wide = {known[0]: torch.zeros(1, 3, size, size)}
    made = _made(who, name, {**entry, "interpolate": size != own}, wide, spec)
    colour = tuple(round(255 * value) for value in pixels["mean"])
    prepared = {"size": size, **_in_pixels(pixels), "input": known[0]}
    return Measured(made, prepared, colour=colour, size=size)


def measure_source(name: str, tower: OutputTower, *, side: int | None) -> Measured:
    """Measures what the image tower of a source makes of a view.

    Args:
        name: Name of the encoder in the mix.
        tower: The tower.
        side: Side of a view, where the recipe states it.

    Raises:
        CompositionError: Its processor does not load, or it writes text between the vectors of an image.
    """
    folder = tower.processor_folder
    assert folder is not None, "it is a source's"
    own = getattr(getattr(native_config(tower.model_type, tower.config), "vision_config", None), "image_size", None)
    size = side or (own if isinstance(own, int) else None)
    if size is None:
        raise CompositionError(
            f"The side of a view is not known: the config of '{tower.source_name}' states no image size.",
            hint="Write 'size' in 'compose.vision_mix.views'.",
        )
    try:
        views = SourceViews(load_own_processor(folder, model_type=tower.model_type), tower.model_type)
        tokens = views.tokens(Image.new("RGB", (size, size), (120, 160, 200)))
    except (*_FAULTS, OSError, ImportError) as error:
        raise CompositionError(
            f"The image tower of '{tower.source_name}' cannot be mixed as '{name}': {first_line(error)}.",
            hint="Is its processor there?",
        ) from error
    source = {"model_type": tower.model_type, "config": _plain(tower.config)}
    return Measured({"source": source, "tokens": tokens}, {"model_type": tower.model_type}, size=size)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("auto_map", "_name_or_path")}


def _processor(who: str, folder: Path) -> Any:
    try:
        return load_item_processor("image", folder)
    except (*_FAULTS, OSError, ImportError) as error:
        raise CompositionError(
            f"The processor of {who} cannot be loaded: {first_line(error)}.",
            hint="Its folder must hold a preprocessor_config.json; 'processor:' names the checkpoint that has one.",
        ) from error


def _sample(who: str, name: str, native: Any, known: list[str], side: int) -> dict[str, torch.Tensor]:
    """Returns what the native processor makes of a square picture."""
    picture = Image.new("RGB", (side, side), (120, 160, 200))
    try:
        return native_inputs(native, [picture], {"modality": "image", "inputs": known}, name=name)
    except _FAULTS as error:
        raise CompositionError(f"The processor of {who} cannot prepare a view: {first_line(error)}.") from error


def _plain_pixels(native: Any, sample: Mapping[str, torch.Tensor], known: list[str]) -> dict[str, Any] | None:
    """Returns mean, standard deviation and scale where a processor makes nothing but pixels of a square by them."""
    if list(sample) != known[:1] or sample[known[0]].dim() != 4 or len(set(sample[known[0]].shape[-2:])) != 1:
        return None
    if sample[known[0]].shape[1] != 3 or not getattr(native, "do_rescale", False):
        return None
    stated = getattr(native, "do_normalize", False)
    mean = list(native.image_mean) if stated else [0.0] * 3
    std = list(native.image_std) if stated else [1.0] * 3
    found = {"mean": mean, "std": std, "scale": float(native.rescale_factor)}
    side = int(sample[known[0]].shape[-1])
    # A picture whose every pixel differs, already of the size that is made, so that no resizing hides the arithmetic.
    values = (np.arange(side * side * 3, dtype=np.int64) * 37 % 256).astype(np.uint8).reshape(side, side, 3)
    try:
        there = native(images=Image.fromarray(values), do_resize=False, do_center_crop=False, return_tensors="pt")
    except _FAULTS:
        return None
    ours = values.astype(np.float32) * np.float32(found["scale"])
    ours = (ours - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    theirs = np.asarray(there[known[0]])[0]
    if theirs.shape != (3, side, side) or float(np.abs(theirs - ours.transpose(2, 0, 1)).max()) > _CLOSE:
        return None
    return found


def _in_pixels(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("mean", "std", "scale")}


def _built(who: str, name: str, entry: Mapping[str, Any]) -> MixedEncoder:
    try:
        return MixedEncoder(name, entry, attn_implementation=None)
    except _FAULTS as error:
        raise CompositionError(f"The {who} cannot be built: {first_line(error)}.") from error


def _made(
    who: str, name: str, entry: Mapping[str, Any], views: Mapping[str, torch.Tensor], spec: MixedEncoderSpec
) -> dict[str, Any]:
    """Returns an encoder's entry with width, grid, tokens and closing norm, from one run on shapes."""
    final = spec.final_norm if spec.final_norm is not None else spec.layer == -1 and spec.part is None
    hint = "" if spec.size is None else "Leave 'size' out: the encoder may see its own size only."
    with meta_device():
        encoder = _built(who, name, {**entry, "tokens": 0, "width": 1})
        entry = {**entry, "interpolate": bool(entry.get("interpolate")) and _takes_interpolation(encoder)}
        try:
            run = _run(encoder, entry, {key: _without_numbers(key, value) for key, value in views.items()})
        except _FAULTS as error:
            if "meta" not in str(error):
                raise _unread(who, encoder, error, hint) from error
            run = _run_shallow(who, name, entry, views, hint)
    rows, columns, vectors, width = _shape_of(run.state)
    leading = int(entry["leading"])
    count = vectors - leading
    side = math.isqrt(max(count, 0))
    has_grid = side * side == count and "inputs" not in entry and entry["class_name"] != "QFormerEncoder"
    grid = (rows, columns) if rows else (side, side) if has_grid else None
    if count < 1:
        raise CompositionError(f"The {who} makes {vectors} vectors of a view, and {leading} stand before its patches.")
    made = {**entry, "width": width, "grid": list(grid) if grid else None, "norm": run.norm if final else None}
    return {**made, "tokens": count + (bool(entry["class_token"]) and leading > 0)}


@dataclass(frozen=True)
class _Run:
    """What one run of an encoder showed: its hidden state, and the closing norm that only a pooled vector passed."""

    state: torch.Tensor
    norm: str | None


def _run(encoder: MixedEncoder, entry: Mapping[str, Any], views: Mapping[str, torch.Tensor]) -> _Run:
    encoder.entry = dict(entry)
    given = encoder.given(views)
    if entry["interpolate"]:
        given["interpolate_pos_encoding"] = True
    pooled: list[str] = []
    names = [n for n, _ in encoder.encoder.named_modules() if n.rpartition(".")[2] in _NORMS and n.count(".") < 2]
    handles = [
        encoder.encoder.get_submodule(n).register_forward_hook(
            lambda _, args, __, n=n: pooled.append(n) if args[0].dim() == 2 else None
        )
        for n in names
    ]
    try:
        state = encoder.read(given)
    finally:
        for handle in handles:
            handle.remove()
    return _Run(state, pooled[-1] if pooled else None)


def _run_shallow(who: str, name: str, entry: Mapping[str, Any], views: Mapping[str, torch.Tensor], hint: str) -> _Run:
    """Runs an encoder of one layer with numbers, for encoders that look into their masks."""
    small = {**entry, "config": {**entry["config"], "num_hidden_layers": 1}, "tokens": 0, "width": 1}
    layer = entry["layer"]
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        encoder = _built(who, name, small)
        depth = int(entry["config"].get("num_hidden_layers", 1))
        if wrong := missing_layer(layer, depth + 1):
            raise CompositionError(f"The {who}: {wrong}")
        try:
            return _run(encoder, {**small, "layer": max(-2, min(layer, 1))}, views)
        except _FAULTS as error:
            raise _unread(who, encoder, error, hint) from error


def _unread(who: str, encoder: MixedEncoder, error: Exception, hint: str) -> CompositionError:
    return CompositionError(
        f"The {who} ({type(encoder.encoder).__name__}) cannot read a view: {first_line(error)}.", hint=hint
    )


def _takes_interpolation(encoder: MixedEncoder) -> bool:
    """Returns whether an encoder takes ``interpolate_pos_encoding``."""
    return "interpolate_pos_encoding" in inspect.signature(type(encoder.encoder).forward).parameters


def _without_numbers(key: str, value: torch.Tensor) -> torch.Tensor:
    return value if any(word in key for word in ("shapes", "grid", "sizes")) else value.to("meta")


def _shape_of(state: torch.Tensor) -> tuple[int, int, int, int]:
    """Rows, columns (0 without a map), vectors and width of what an encoder gave of one view."""
    if state.dim() == 4:
        _, one, two, three = map(int, state.shape)
        # A view is square, so the two sides that are alike are its rows and columns.
        rows, width = (two, one) if two == three else (one, three)
        return rows, rows, rows * rows, width
    return 0, 0, int(state.shape[1]), int(state.shape[-1])
