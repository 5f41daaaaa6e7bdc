"""The features of one source's tower, as a flat list of vectors in the order of the placeholders.

Letters: N vectors of all items of a modality, D width of the language model, B text rows, L tokens.

Inputs arrive as the source's own processor made them, under ``<source>__<name>`` (``sees__pixel_values``). They go to
the tower's own ``get_{image,video,audio,points}_features`` by name. Families whose base class has no such function,
or does more around it, have a small function here. A modality that the native class sends through its image path
(InternVL's videos) arrives as ``<source>__<modality>_<name>`` (``sees__video_pixel_values``), so that images and
videos of one source do not share a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import create_bidirectional_mask

from ..families import family_of
from .input_dtype import in_weights_dtype

__all__ = ["Features", "Tower", "accepted_names", "main_input", "own_inputs", "tower_features"]

Tower = Any
"""A native base model without its language model; its family decides its attributes."""
# Arguments of feature functions that are settings and not processor outputs.
_NOT_INPUTS = frozenset({"self", "kwargs", "args", "return_dict"})


@dataclass
class Features:
    """What a tower made of all items of one modality.

    Args:
        x_ND: One vector per placeholder, items in order.
        deepstack: For each of the first language layers, vectors (N, D) that are added after it.
        structure: id of a structural token -> its vector (D,), for families that learn them beside the tower.
        pooled_IW: One vector of the encoder's own width per item, when a router reads them.
    """

    x_ND: torch.Tensor  # noqa: N815 - shape suffix
    deepstack: list[torch.Tensor] = field(default_factory=list)
    structure: dict[int, torch.Tensor] = field(default_factory=dict)
    pooled_IW: torch.Tensor | None = None  # noqa: N815 - shape suffix


def tower_features(tower: Tower, modality: str, inputs: Mapping[str, Any]) -> Features:
    """Runs a tower on one modality.

    Args:
        tower: The source's base model without its language model.
        modality: "image", "video", "audio" or "points".
        inputs: The source's processor outputs of this modality, by native name, in any floating dtype.

    Returns:
        The features over all items, in order.
    """
    inputs = in_weights_dtype(tower, inputs)
    family = family_of(tower.config.model_type)
    if special := family.features.get(modality):
        return _SPECIAL[special](tower, inputs)
    function = _native_function(tower, modality)
    output = function(**inputs) if _own_names(tower) else _call(function, inputs)
    x_ND = _flat(getattr(output, family.output.get(modality, "pooler_output")))
    return Features(x_ND, [_flat(layer) for layer in getattr(output, "deepstack_features", None) or ()])


def main_input(tower: Tower, modality: str) -> str:
    """Returns the native name of the tensor that says a modality is present (``pixel_values``)."""
    if modality == "audio" and "audio" in family_of(tower.config.model_type).features:
        return "input_features"
    return next(iter(_own_names(tower) or _parameters(_native_function(tower, modality))))


def accepted_names(tower: Tower, modality: str) -> list[str]:
    """Returns the names that a tower takes for a modality, as they follow ``<source>__``.

    For a modality of the native image path each name carries the modality first: ``video_pixel_values``.
    """
    family = family_of(tower.config.model_type)
    names = [*(_own_names(tower) or _parameters(_native_function(tower, modality))), *family.inputs.get(modality, ())]
    if modality == "video" and family.mrope is not None and family.mrope.seconds is not None:
        names.append(family.mrope.seconds)
    if main_input(tower, modality) not in names:
        names.append(main_input(tower, modality))
    prefix = _prefix(tower, modality)
    return [prefix + name for name in dict.fromkeys(names)]


def own_inputs(tower: Tower, modality: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Picks a modality's inputs, by native name, out of everything that was passed for one source.

    Args:
        tower: The source's tower.
        modality: The modality to pick.
        named: What was passed for this source, without the source's name.

    Returns:
        Native name -> value, empty when the modality's main input is absent.
    """
    prefix = _prefix(tower, modality)
    found = {
        name.removeprefix(prefix): named[name]
        for name in accepted_names(tower, modality)
        if named.get(name) is not None
    }
    main = main_input(tower, modality)
    old = family_of(tower.config.model_type).old_names.get(main)
    if main not in found and old in found:
        found[main] = found.pop(old)
    return found if main in found else {}


def _own_names(tower: Tower) -> list[str]:
    """Names that a tower of this package states itself, since they are not those of a signature."""
    stated = getattr(tower, "media_names", None)
    return [] if stated is None else stated()


def _prefix(tower: Tower, modality: str) -> str:
    return f"{modality}_" if modality in family_of(tower.config.model_type).image_path else ""


def _native_function(tower: Tower, modality: str) -> Callable[..., Any]:
    if modality in family_of(tower.config.model_type).image_path:
        modality = "image"
    function = getattr(tower, f"get_{modality}_features", None)
    return tower.forward if function is None else function


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    return {
        name: parameter
        for name, parameter in found.items()
        if name not in _NOT_INPUTS and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _call(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    known = _parameters(function)
    return function(**{name: value for name, value in inputs.items() if name in known}, return_dict=True)


def _flat(x: torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x.reshape(-1, x.shape[-1])
    return torch.cat([_flat(item) for item in x], dim=0)


def _qwen2_audio(tower: Tower, inputs: Mapping[str, Any]) -> Features:
    # The native forward inlines this: encode, project, keep the frames that the feature mask covers.
    mask = inputs["feature_attention_mask"]
    seen, lengths = tower.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
    weight = tower.audio_tower.conv1.weight
    frames = (inputs["input_features"].shape[-1] - 2) // 2 + 1
    seen_AT = torch.arange(frames, device=seen.device)[None] < seen[:, None]
    attention = create_bidirectional_mask(
        config=tower.audio_tower.config,
        inputs_embeds=torch.zeros((len(seen), frames, 1), dtype=weight.dtype, device=weight.device),
        attention_mask=seen_AT.long().to(weight.device),
    )
    encoded = tower.audio_tower(inputs["input_features"].to(weight.device), attention_mask=attention)
    x_ATD = tower.multi_modal_projector(encoded.last_hidden_state)
    kept_AT = torch.arange(x_ATD.shape[1], device=x_ATD.device)[None] < lengths.to(x_ATD.device)[:, None]
    return Features(x_ATD[kept_AT])


def _granite_speech(tower: Tower, inputs: Mapping[str, Any]) -> Features:
    x_ATD = tower.get_audio_features(inputs["input_features"], return_dict=True).pooler_output
    mask = inputs.get("input_features_mask")
    return Features(_flat(x_ATD) if mask is None else x_ATD[mask.bool()])


def _video_llama_3(tower: Tower, inputs: Mapping[str, Any]) -> Features:
    x_ND = _flat(_call(tower.get_video_features, inputs).pooler_output)
    mask = inputs.get("video_compression_mask")
    return Features(x_ND if mask is None else x_ND[mask.to(x_ND.device)])


def _ovis2(tower: Tower, inputs: Mapping[str, Any]) -> Features:
    output = _call(tower.get_image_features, inputs)
    ids = tower.config.visual_indicator_token_ids
    structure = dict(zip(ids, output.visual_indicator_features, strict=True))
    return Features(_flat(output.pooler_output), structure=structure)


_SPECIAL: dict[str, Callable[[Tower, Mapping[str, Any]], Features]] = {
    "granite_speech": _granite_speech,
    "ovis2": _ovis2,
    "qwen2_audio": _qwen2_audio,
    "video_llama_3": _video_llama_3,
}
