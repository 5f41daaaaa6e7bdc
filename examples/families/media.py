"""What a family's processor would hand over for one picture, film or sound, found by trying its feature functions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from examples.families.configs import TOKENS

__all__ = ["tiny_inputs"]

KINDS = {"image": 1, "video": 2, "audio": 3}


@torch.no_grad()
def tiny_inputs(model: PreTrainedModel, *, without: Sequence[str] = ()) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Makes one row of text with an item of each modality that the model reads, and the media.

    Args:
        model: Tiny native model.
        without: Modalities to leave out.

    Returns:
        The inputs by native name, and the modalities in the row.

    Raises:
        ValueError: No medium that is tried fits.
    """
    base = getattr(model, model.base_model_prefix, model)
    accepted = list(inspect.signature(model.forward).parameters)
    ids, media, seen, errors = [1, 5, 9], {}, [], []
    for modality, candidates in (("image", _pictures), ("video", _films), ("audio", _sounds)):
        function = getattr(base, f"get_{modality}_features", None)
        if function is None or modality in without:
            continue
        known = list(inspect.signature(function).parameters)
        for candidate in candidates(model.config, [*known, *accepted]):
            given = {name: value for name, value in candidate.items() if name in known}
            try:
                count = len(_rows(function(**given)))
            except Exception as error:  # noqa: BLE001 - any line of any model's code may refuse a guess
                errors.append(f"{modality}: {type(error).__name__}: {error}".splitlines()[0][:120])
                continue
            ids += [*_runs(model, modality, count, candidate), 60]
            media.update({name: value for name, value in candidate.items() if name in accepted})
            seen.append(modality)
            break
    if not seen:
        raise ValueError(f"no medium fits ({errors[0] if errors else 'no feature function'})")
    input_ids = torch.tensor([[*ids, 7, 8]])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **media}
    if "mm_token_type_ids" in accepted:
        inputs["mm_token_type_ids"] = sum(kind * (input_ids == TOKENS[name]).int() for name, kind in KINDS.items())
    if model.config.model_type in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (input_ids == TOKENS["image"]).long()
    return inputs, seen


def _runs(model: PreTrainedModel, modality: str, count: int, media: dict[str, torch.Tensor]) -> list[int]:
    """Returns placeholders of an item; frames of films stand apart where the class counts them apart."""
    grid = media.get("video_grid_thw") if modality == "video" else None
    apart = grid is not None and _takes_frames_apart(model, grid, count)
    pieces = int(grid[0, 0]) if grid is not None and apart else 1
    return [token for _ in range(pieces) for token in [*[TOKENS[modality]] * (count // pieces), 44]]


def _takes_frames_apart(model: PreTrainedModel, grid: torch.Tensor, count: int) -> bool:
    base = getattr(model, model.base_model_prefix, model)
    if not hasattr(base, "get_rope_index"):
        return False
    types = torch.tensor([[2] * count + [0]])
    try:
        base.get_rope_index(torch.ones_like(types), mm_token_type_ids=types, video_grid_thw=grid.clone())
    except (RuntimeError, StopIteration, TypeError):
        return True
    return False


def _rows(output: Any) -> torch.Tensor:
    value = getattr(output, "pooler_output", output)
    value = output.last_hidden_state if value is None else value
    if isinstance(value, torch.Tensor):
        return value.reshape(-1, value.shape[-1])
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in value])


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _part(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), config)


def _side(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        value = value[0]
    return value if isinstance(value, int) and value > 0 else default


def _patches(config: Any) -> tuple[int, list[int]]:
    vision = _part(config, "vision_config", "image_config", "visual_config")
    patch = _side(getattr(vision, "patch_size", 14), 14)
    frames = _side(getattr(vision, "temporal_patch_size", 2), 2)
    channels = next((c for n in ("in_channels", "in_chans", "num_channels") if (c := getattr(vision, n, None))), 3)
    return patch, [channels * frames * patch**2, channels * patch**2]


def _pictures(config: Any, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    vision = _part(config, "vision_config", "image_config", "visual_config")
    side = _side(getattr(vision, "image_size", 56), 56)
    patch, widths = _patches(config)
    if grid := next((name for name in ("image_grid_thw", "grid_thw") if name in names), None):
        for width in widths:
            yield {"pixel_values": _noise(32, width), grid: torch.tensor([[1, 4, 8]])}
        yield {"pixel_values": _noise(32, 3, patch, patch), grid: torch.tensor([[1, 4, 8]])}
    if "pixel_attention_mask" in names:
        tiles = {"pixel_values": _noise(1, 1, 3, side, side)}
        yield {**tiles, "pixel_attention_mask": torch.ones(1, 1, side, side, dtype=torch.bool)}
    if "spatial_shapes" in names:
        shapes, mask = torch.tensor([[4, 4]]), torch.ones(1, 16, dtype=torch.int32)
        yield {"pixel_values": _noise(1, 16, 3 * patch**2), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    extras: list[dict[str, torch.Tensor]] = [{}]
    if "image_sizes" in names:
        extras.append({"image_sizes": torch.tensor([[side, side]])})
    for extra in extras:
        for shape in ((1, 3, side, side), (1, 1, 3, side, side), (1, 3, 3, side, side)):
            yield {"pixel_values": _noise(*shape), **extra}


def _films(config: Any, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    vision = _part(config, "vision_config", "image_config", "visual_config")
    side = _side(getattr(vision, "image_size", 56), 56)
    if "video_grid_thw" in names:
        for width in _patches(config)[1]:
            yield {"pixel_values_videos": _noise(64, width), "video_grid_thw": torch.tensor([[2, 4, 8]])}
    yield {"pixel_values_videos": _noise(1, 2, 3, side, side)}


def _sounds(config: Any, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    audio = _part(config, "audio_config", "encoder_config", "audio_encoder_config")
    bins = next((b for n in ("num_mel_bins", "input_dim") if isinstance(b := getattr(audio, n, None), int)), 8)
    for frames in (80, 96, 32):
        for features in (_noise(1, bins, frames), _noise(1, frames, bins)):
            for mask in ("input_features_mask", "feature_attention_mask"):
                if mask in names:
                    yield {"input_features": features, mask: torch.ones(1, frames, dtype=torch.long)}
            yield {"input_features": features}
