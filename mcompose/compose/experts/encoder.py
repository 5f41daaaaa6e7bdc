"""Finds the encoder inside a checkpoint: its class, its config, and which of the files' keys are its.

The idea: a model built without memory from the checkpoint's own config says which of its parts take images or sounds
and no text. The outermost such part is the encoder (of Whisper, Pix2Struct and Donut the encoder, of CLIP, SigLIP and
CLAP one tower, of SAM, GOT-OCR2, Kosmos-2.5 and InternVL the vision part), without a head on top of it. The files' keys
are renamed as transformers renames them on loading, and must cover the encoder exactly.

Imports torch and transformers; used by recipes with experts only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from mcompose.anatomy import BUFFERS, EXPERT, Family, config_of, is_known, renamings_of
from mcompose.checkpoint import Checkpoint
from mcompose.errors import AnatomyError, CompositionError, first_line
from mcompose.modalities import EXPERT_MODALITIES
from mcompose.modeling import build_encoder, encoder_class, native_config

__all__ = ["FoundEncoder", "find_encoder", "find_qformer", "leading_tokens"]

_LEADING = ("class_embedding", "cls_token", "class_token", "distillation_token", "dist_token", "register_tokens")
"""Parameters that encoders put before their patches, by the last word of their names."""
_UNREAD = frozenset({"pooler", "mask_token", "head"})
"""Words in the names of tensors of an encoder's files that its features do not depend on."""
_QFORMER = {"class_name": "QFormerEncoder"}
_NOISE = ("auto_map", "_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")


@dataclass(frozen=True)
class FoundEncoder:
    """An encoder out of a checkpoint.

    Args:
        model_type: Model type of its own config.
        class_name: transformers' class.
        config: Its config, as JSON has it.
        keys: Its parameter to the key in the checkpoint's files, in the order of the class.
        unused: Key in the files to the reason why it is left out.
        leading: Vectors that it puts before the patches.
    """

    model_type: str
    class_name: str
    config: dict[str, Any]
    keys: dict[str, str]
    unused: dict[str, str] = field(default_factory=dict[str, str])
    leading: int = 0


def find_encoder(checkpoint: Checkpoint, *, modality: str, who: str) -> FoundEncoder:
    """Finds the encoder of one modality.

    Args:
        checkpoint: The expert's checkpoint; headers are enough.
        modality: ``image`` or ``audio``.
        who: What it is for, for messages: "expert 'charts'".

    Returns:
        The encoder, whose every parameter is in the files.

    Raises:
        CompositionError: There is no such encoder, or the files do not hold exactly its tensors.
    """
    whole = _whole_model(checkpoint, who)
    path, inside = _the_encoder(whole, modality, who=who, checkpoint=checkpoint)
    entry = {"model_type": inside.config.model_type, "class_name": type(inside).__name__}
    try:
        config = native_config(entry["model_type"], inside.config.to_dict())
        with torch.device("meta"):
            encoder = build_encoder(encoder_class(entry, config), config, attn_implementation=None)
    except (ValueError, AnatomyError) as error:
        raise CompositionError(f"The encoder of {who} cannot be built by itself: {error}") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    keys, unused = _matched(checkpoint, whole, path, wanted, who=who)
    plain = {key: value for key, value in inside.config.to_dict().items() if key not in _NOISE}
    return FoundEncoder(entry["model_type"], entry["class_name"], plain, keys, unused, leading_tokens(encoder))


def find_qformer(checkpoint: Checkpoint, *, who: str) -> FoundEncoder:
    """Finds the Q-Former of a BLIP-2 checkpoint, with the image encoder that it reads.

    Args:
        checkpoint: The checkpoint; headers are enough.
        who: What it is for, for messages.

    Raises:
        CompositionError: It has none, or the files do not hold exactly its tensors.
    """
    whole = _whole_model(checkpoint, who)
    if whole.config.model_type != "blip-2":
        raise CompositionError(
            f"The checkpoint of {who} is of type '{whole.config.model_type}', and 'part: qformer' is of BLIP-2 only.",
            hint="Leave 'part' out to use its image encoder.",
        )
    with torch.device("meta"):
        encoder = build_encoder(encoder_class(_QFORMER, whole.config), whole.config, attn_implementation=None)
    wanted = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    family = Family("blip-2", type(whole).__name__, base="", renamings=tuple(renamings_of(whole)), parts={})
    found: dict[str, str] = {}
    unused: dict[str, str] = {}
    for key in checkpoint.tensors:
        place = family.path_of(key)
        if place in wanted:
            found[place] = key
        else:
            unused[key] = "not part of the Q-Former"
    _check_cover(checkpoint, wanted, found, [], who=who)
    plain = {key: value for key, value in whole.config.to_dict().items() if key not in _NOISE}
    return FoundEncoder("blip-2", _QFORMER["class_name"], plain, {key: found[key] for key in wanted}, unused)


def leading_tokens(encoder: PreTrainedModel) -> int:
    """Vectors that an encoder puts before those of its patches: class token, registers.

    Args:
        encoder: The encoder.
    """
    named = [(key.rpartition(".")[2], parameter) for key, parameter in encoder.named_parameters()]
    return sum(math.prod(p.shape[:-1]) for word, p in named if word in _LEADING)


def _whole_model(checkpoint: Checkpoint, who: str) -> PreTrainedModel:
    """Returns the checkpoint's own class, on the meta device."""
    kind = checkpoint.model_type
    if not kind or not is_known(kind):
        raise CompositionError(
            f"The checkpoint of {who} is of type '{kind}', which transformers {transformers.__version__} "
            "does not know.",
            hint="An expert is an encoder of one of transformers' own classes.",
        )
    try:
        config = config_of(checkpoint.config)
        cls = _class_of(checkpoint.config, config)
        with torch.device("meta"):
            return cls._from_config(config)
    except AnatomyError as error:
        raise CompositionError(f"The checkpoint of {who}: {error.message}", hint=error.hint) from error
    except Exception as error:  # a config can break any line of any model's code
        raise CompositionError(f"transformers cannot build '{kind}' of {who}: {first_line(error)}.") from error


def _class_of(raw: Mapping[str, Any], config: PreTrainedConfig) -> Any:
    for named in raw.get("architectures") or ():
        found = getattr(transformers, str(named), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    if type(config) not in MODEL_MAPPING:
        raise AnatomyError(f"transformers has no model class for type '{config.model_type}'.")
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _the_encoder(
    whole: PreTrainedModel, modality: str, *, who: str, checkpoint: Checkpoint
) -> tuple[str, PreTrainedModel]:
    found = list(_encoders(whole, "", modality))
    if len(found) == 1:
        path, encoder = found[0]
        base = encoder.base_model
        if base is encoder or not isinstance(base, PreTrainedModel):
            return path, encoder
        return f"{path}.{encoder.base_model_prefix}".lstrip("."), base
    others = [other for other in EXPERT_MODALITIES if other != modality and any(_encoders(whole, "", other))]
    if not found and others:
        raise CompositionError(
            f"The checkpoint of {who} ({checkpoint.model_type}) has an encoder for {others[0]}, and none for "
            f"{modality}.",
            hint=f"Write 'modality: {others[0]}'.",
        )
    listed = ", ".join(f"'{path}' ({type(encoder).__name__})" for path, encoder in found)
    raise CompositionError(
        f"The checkpoint of {who} ({checkpoint.model_type}) has "
        + (f"several encoders for {modality}: {listed}." if found else f"no encoder that takes {modality}."),
        hint="Name the checkpoint of the encoder alone." if found else "Is it a vision or audio model's?",
    )


def _encoders(module: torch.nn.Module, path: str, modality: str) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yields the outermost models that take the modality and no text."""
    if isinstance(module, PreTrainedModel):
        takes = module.input_modalities
        takes = (takes,) if isinstance(takes, str) else tuple(takes or ())
        if modality in takes and "text" not in takes:
            yield path, module
            return
    for name, child in module.named_children():
        yield from _encoders(child, f"{path}.{name}" if path else name, modality)


def _matched(
    checkpoint: Checkpoint, whole: PreTrainedModel, path: str, wanted: Mapping[str, tuple[int, ...]], *, who: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Parameter to key, and the keys that are left out."""
    head = f"{path}." if path else ""
    family = Family(
        whole.config.model_type,
        type(whole).__name__,
        base=whole.base_model_prefix if hasattr(whole, whole.base_model_prefix or "-") else "",
        renamings=tuple(renamings_of(whole)),
        parts={head + key: EXPERT for key in wanted},
    )
    found: dict[str, str] = {}
    unused: dict[str, str] = {}
    strange: list[str] = []
    for key in checkpoint.tensors:
        place = family.path_of(key)
        inner = place.removeprefix(head)
        if place.startswith(head) and inner in wanted:
            if inner in found:
                raise CompositionError(f"'{key}' and '{found[inner]}' of {who} are one tensor, '{inner}'.")
            found[inner] = key
        elif not place.startswith(head):
            unused[key] = "not part of the encoder"
        elif BUFFERS.search(place) or set(inner.split(".")) & _UNREAD or _is_above(inner, whole, path):
            unused[key] = "not read by the encoder's features"
        else:
            strange.append(key)
    _check_cover(checkpoint, wanted, found, strange, who=who)
    return {key: found[key] for key in wanted}, unused


def _is_above(inner: str, whole: PreTrainedModel, path: str) -> bool:
    """Whether the whole model is the encoder, and the tensor belongs to no child of it: another class's head."""
    return not path and inner.split(".")[0] not in dict(whole.named_children()) | dict(whole.named_parameters())


def _check_cover(
    checkpoint: Checkpoint,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, str],
    strange: list[str],
    *,
    who: str,
) -> None:
    missing = [key for key in wanted if key not in found]
    if missing or strange:
        parts = [_some("lack", missing)] if missing else []
        parts += [_some("hold, beside it,", strange)] if strange else []
        raise CompositionError(
            f"The files of {who} ('{checkpoint.ref}') do not fit its encoder: they {' and '.join(parts)}.",
            hint="Does its config.json belong to these weights? Is the checkpoint complete?"
            + (
                " Tensors that transformers merges or splits on loading cannot be taken." if missing and strange else ""
            ),
        )
    for key, shape in wanted.items():
        held = checkpoint.tensors[found[key]].shape
        if held != shape:
            raise CompositionError(
                f"'{found[key]}' of {who} is of shape {list(held)}, and its config says {list(shape)}.",
                hint="Does its config.json belong to these weights?",
            )


def _some(verb: str, keys: list[str]) -> str:
    listed = ", ".join(f"'{key}'" for key in keys[:5])
    return f"{verb} {listed}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
