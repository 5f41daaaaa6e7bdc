"""Reads the anatomy of a checkpoint from its config and the keys of its files.

The family is looked up in this order: the generated table (no torch), the user's cache, a meta model of transformers.
For a type that transformers does not know, the parts are guessed from the names of the keys, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcompose.anatomy.cache import ask_transformers
from mcompose.anatomy.composed import OWN_TYPES, describe_own, mark_groups
from mcompose.anatomy.family import NOT_LOADED, Family, Renaming, claim
from mcompose.anatomy.part import EMBEDDING, HEAD, LANGUAGE, UNUSED, Anatomy, Slot
from mcompose.anatomy.refuse import refuse_files, refuse_type
from mcompose.anatomy.roles import read_by_roles
from mcompose.anatomy.settings import Settings, inner_config, read_settings, signature
from mcompose.anatomy.tables import known_family
from mcompose.errors import AnatomyError

__all__ = ["read_anatomy"]


def read_anatomy(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Anatomy:
    """Assigns every tensor of a checkpoint to a part.

    Args:
        config: Parsed ``config.json``.
        tensors: Key in the files to shape, in the order of the checkpoint.

    Returns:
        The anatomy; ``refusal`` says why a checkpoint cannot be a source.

    Raises:
        AnatomyError: The config does not have a model type, or some keys do not belong to a part.
    """
    refusal = refuse_files(config, tensors)
    if refusal and not config.get("model_type"):
        return _refused(config, refusal)
    if not config.get("model_type"):
        hint = "Name the folder of a Hugging Face model."
        raise AnatomyError("The config.json does not have a `model_type`.", hint=hint)
    refusal = refusal or refuse_type(config)
    if not refusal:
        return _read(config, tensors)
    if known_family(signature(inner_config(config)[0])) is None:
        return _refused(config, refusal)
    try:
        return replace(_read(config, tensors), refusal=refusal)
    except AnatomyError:
        return _refused(config, refusal)


def _read(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Anatomy:
    inner, unused, prefix = inner_config(config)
    answer = _describe(inner)
    if answer is None:
        return read_by_roles(config, tensors)
    family, settings = answer
    if prefix:
        family = _with_prefix(family, prefix, unused)
    slots, orphans = claim(family, list(tensors))
    if orphans:
        raise _orphan_error(family, orphans, total=len(tensors))
    if family.model_type in OWN_TYPES:
        slots = mark_groups(slots)
    slots = _without_layers_ahead(slots, _num_layers(settings.text_config))
    _check_names(slots)
    return _assemble(family, settings, slots, prefix=prefix)


def _describe(config: Mapping[str, Any]) -> tuple[Family, Settings] | None:
    if config["model_type"] in OWN_TYPES:
        return describe_own(config)
    family = known_family(signature(config))
    if family is None:
        return ask_transformers(config)
    return family, read_settings(config, text_type=family.text_type)


def _with_prefix(family: Family, prefix: str, unused: Mapping[str, str]) -> Family:
    """Returns the same family for files that put a prefix before every key."""
    strip = Renaming(find=f"(?P<g0>^{prefix.replace('.', chr(92) + '.')})", replace="")
    return family.with_first(strip, unused=unused)


def _assemble(family: Family, settings: Settings, slots: Mapping[str, Slot], *, prefix: str) -> Anatomy:
    parts = {slot.part for slot in slots.values()}
    tied, warnings = settings.tied, []
    if tied and HEAD in parts:
        tied = False
        warnings.append("The config ties the head to the embedding, but the files contain a head, which is used.")
    elif not tied and HEAD not in parts and EMBEDDING in parts and settings.text_config.get("tie_word_embeddings"):
        tied = True
        warnings.append("The files do not contain a head; the embedding is used as head, as `text_config` says.")
    warnings += _not_loaded(slots)
    return Anatomy(
        model_type=family.model_type,
        architecture=family.architecture,
        known=True,
        slots=slots,
        text_config={**settings.text_config, "tie_word_embeddings": tied},
        num_layers=_num_layers(settings.text_config),
        modalities=family.modalities,
        placeholders=settings.placeholders,
        tied=tied,
        declared_tied=settings.tied,
        head_key=prefix + family.head_key,
        refusal=family.refusal,
        warnings=tuple(warnings),
    )


def _without_layers_ahead(slots: Mapping[str, Slot], num_layers: int) -> dict[str, Slot]:
    """Marks layers behind the last one as unused: they predict further tokens, and transformers does not load them."""
    return {
        key: Slot(key, key, UNUSED, reason=NOT_LOADED)
        if slot.part == LANGUAGE and slot.layer is not None and num_layers and slot.layer >= num_layers
        else slot
        for key, slot in slots.items()
    }


def _not_loaded(slots: Mapping[str, Slot]) -> list[str]:
    """Returns the warning about tensors that no output will have, though the release means something by them."""
    left = [key for key, slot in slots.items() if slot.reason == NOT_LOADED]
    if not left:
        return []
    more = f" and {len(left) - 1} more tensors" if len(left) > 1 else ""
    verb = "are" if more else "is"
    return [
        f"'{left[0]}'{more} {verb} left out: transformers does not load such tensors for this class. Heads that "
        "predict several tokens ahead are of this kind: other programs use them."
    ]


def _num_layers(text_config: Mapping[str, Any]) -> int:
    for spelling in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if isinstance(text_config.get(spelling), int):
            return text_config[spelling]
    return 0


def _check_names(slots: Mapping[str, Slot]) -> None:
    seen: dict[tuple[bool, str], str] = {}
    for key, slot in slots.items():
        place = (slot.part == "unused", slot.name)
        if place in seen:
            message = f"'{key}' and '{seen[place]}' are two spellings of the same tensor, '{slot.name}'."
            raise AnatomyError(message, hint="Remove one of them from the checkpoint.")
        seen[place] = key


def _orphan_error(family: Family, orphans: list[str], *, total: int) -> AnatomyError:
    listed = ", ".join(f"'{key}'" for key in orphans[:10])
    more = f" and {len(orphans) - 10} more" if len(orphans) > 10 else ""
    return AnatomyError(
        f"{len(orphans)} of {total} tensors do not belong to a part of '{family.model_type}': {listed}{more}.",
        hint="Check that the files fit the config's `model_type`, and remove tensors that transformers would not load.",
    )


def _refused(config: Mapping[str, Any], refusal: str) -> Anatomy:
    architectures = config.get("architectures") or [""]
    return Anatomy(
        model_type=str(config.get("model_type", "")),
        architecture=str(architectures[0]),
        known=True,
        slots={},
        text_config={},
        num_layers=0,
        refusal=refusal,
    )
