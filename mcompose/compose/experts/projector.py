"""The projector of a new expert: drawn by the seed, or out of a checkpoint where it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import PROJECTOR
from mcompose.checkpoint import open_checkpoint
from mcompose.errors import CheckpointError, CompositionError, HubError
from mcompose.merge import TensorJob, copy_job, new_job

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.recipe import Expert, LoadedRecipe

__all__ = ["TrainedProjector", "opened", "projector_jobs", "projector_of"]


def opened(what: str, ref: Any, loaded: LoadedRecipe, *, weights: bool) -> Checkpoint:
    """Opens a checkpoint that belongs to an expert; what is wrong with it is told with the expert's name.

    Args:
        what: What it is for.
        ref: The checkpoint.
        loaded: The recipe.
        weights: Whether weights will be read.
    """
    try:
        return open_checkpoint(ref, relative_to=loaded.folder, weights=weights)
    except (CheckpointError, HubError) as error:
        raise type(error)(f"{what[0].upper()}{what[1:]}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True)
class TrainedProjector:
    """A projector of another checkpoint.

    Args:
        checkpoint: The checkpoint.
        keys: Its parameter to the key in the files.
    """

    checkpoint: Checkpoint
    keys: Mapping[str, str] = field(default_factory=dict[str, str])


def projector_of(
    name: str, spec: Expert, loaded: LoadedRecipe, *, weights: bool
) -> tuple[dict[str, Any], TrainedProjector | None]:
    """Settings of an expert's projector, and where its trained tensors are.

    Args:
        name: The expert.
        spec: The expert's entry in the recipe.
        loaded: The recipe.
        weights: Whether weights will be read.

    Raises:
        CompositionError: The checkpoint that is named has none.
    """
    if spec.projector.model is None:
        return spec.projector.settings, None
    checkpoint = opened(f"projector of '{name}'", spec.projector.model, loaded, weights=weights)
    kept = (checkpoint.config.get("experts") or {}).get(name)
    head = f"model.experts.{name}.projector."
    keys = {key.removeprefix(head): key for key in checkpoint.tensors if key.startswith(head)}
    if not keys:
        listed = ", ".join(f"'{one}'" for one in checkpoint.config.get("experts") or {})
        raise CompositionError(
            f"'{spec.projector.model}' holds no projector of an expert called '{name}'.",
            hint=f"Its experts are {listed}." if listed else "It must be a composed checkpoint with this expert.",
        )
    settings = dict(kept["projector"]) if kept else spec.projector.settings
    return settings, TrainedProjector(checkpoint, keys)


def projector_jobs(
    name: str, shapes: Mapping[str, tuple[int, ...]], trained: TrainedProjector | None, *, seed: int
) -> list[TensorJob]:
    """Returns the tensors of an expert's projector: copied where it is trained, else made.

    Args:
        name: The expert.
        shapes: Parameter to its shape.
        trained: Where trained ones are.
        seed: The recipe's.

    Raises:
        CompositionError: The trained ones do not fit.
    """
    head, part = f"model.experts.{name}.projector.", f"{PROJECTOR}:{name}"
    if trained is None:
        return [new_job(head + key, shape, part, seed=seed) for key, shape in shapes.items()]
    held = {key: trained.checkpoint.tensors[place].shape for key, place in trained.keys.items()}
    for key in dict.fromkeys((*shapes, *held)):
        if shapes.get(key) != held.get(key):
            raise CompositionError(
                f"The trained projector of expert '{name}' does not fit: '{key}' is "
                f"{list(held[key]) if key in held else 'missing'}, and the network has "
                f"{list(shapes[key]) if key in shapes else 'none'}.",
                hint="Was it trained for this encoder and this language model?",
            )
    return [
        replace(copy_job(head + key, trained.checkpoint.tensors[trained.keys[key]], part, source=name), part=part)
        for key in shapes
    ]
