"""Which families a composed output is made of: those whose composition was shown to answer as their own class does.

``data/proven.json`` is written by ``python -m examples.families --write``: every family of transformers on a tiny
seeded checkpoint, composed alone, loaded again, and compared on text, media, padding and a greedy answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import HEAD
from mcompose.errors import CompositionError
from mcompose.modeling import refusal
from mcompose.on_disk import COMPOSED_TYPE, POINTS_TYPE, VISION_MIX_TYPE
from mcompose.part_names import HEAD_NAME

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy
    from mcompose.compose.blueprint import Blueprint
    from mcompose.compose.towers import OutputTower

__all__ = ["PROVEN_FILE", "check_proven", "how_it_composes", "what_is_proven"]

PROVEN_FILE = Path(__file__).parent / "data" / "proven.json"

NATIVE_WAY = "An output of one such source alone keeps its class: `output.format: native`."


@cache
def what_is_proven() -> Mapping[str, Any]:
    """Returns the data: ``families`` to the modalities that were compared, ``language_models``, ``transformers``."""
    return json.loads(PROVEN_FILE.read_bytes())


def how_it_composes(anatomy: Anatomy) -> str:
    """Returns what is known of a checkpoint's family in composed outputs; empty for text models and own types.

    Args:
        anatomy: Map of its tensors to parts.
    """
    kind, known = anatomy.model_type, what_is_proven()
    if anatomy.refusal or not anatomy.modalities or kind in (COMPOSED_TYPE, POINTS_TYPE):
        return ""
    if reason := refusal(kind):
        return f"not in composed outputs: {reason}"
    compared = [modality for modality in anatomy.modalities if modality in known["families"].get(kind, ())]
    text = str(anatomy.text_config.get("model_type", ""))
    if not compared or text not in known["language_models"]:
        what = "this family" if not compared else f"the language model {text}"
        return f"not in composed outputs: {what} was not compared with its own class; as a native output, yes"
    rest = [modality for modality in anatomy.modalities if modality not in compared]
    return f"{', '.join(compared)}: as its own class answers" + (f"; not {', '.join(rest)}" if rest else "")


def check_proven(blueprint: Blueprint, *, text_type: str) -> None:
    """Refuses what was not compared: a family, one of its modalities, or a language model.

    Args:
        blueprint: Decisions about a composed output.
        text_type: Type of its language model.

    Raises:
        CompositionError: Something of it was not shown to answer as its own class does.
    """
    for tower in blueprint.towers:
        if tower.built is None and tower.model_type not in (POINTS_TYPE, VISION_MIX_TYPE):
            _check_tower(tower)
    known = what_is_proven()
    if text_type not in known["language_models"]:
        raise CompositionError(
            f"The language model of the output ({text_type}) was not shown to answer in a composition as its own class "
            f"does (checked with transformers {known['transformers']}).",
            hint=NATIVE_WAY,
        )
    odd = next((job for job in blueprint.plan.jobs if job.part == HEAD and job.name != HEAD_NAME), None)
    if odd is not None:
        raise CompositionError(
            f"The language model of '{blueprint.owner.name}' has '{odd.name}', and the head of a composition is one "
            "matrix, without a bias.",
            hint=NATIVE_WAY,
        )


def _check_tower(tower: OutputTower) -> None:
    known, kind = what_is_proven(), tower.model_type
    name = f"Source '{tower.source_name}' ({kind})"
    if reason := refusal(kind):
        raise CompositionError(f"{name} cannot be composed: {reason}")
    compared = known["families"].get(kind)
    if compared is None:
        raise CompositionError(
            f"{name} cannot be composed: a composition of this family was not shown to answer as its own class does "
            f"(checked with transformers {known['transformers']}).",
            hint=f"{NATIVE_WAY} Families that compose: {', '.join(known['families'])}.",
        )
    missing = [modality for modality in tower.modalities if modality not in compared]
    if missing:
        raise CompositionError(
            f"{name} cannot bring {missing[0]}: of this family, {' and '.join(compared)} alone was compared with its "
            "own class.",
            hint=f"Say what it is to bring: `modalities: [{', '.join(compared)}]`.",
        )
