"""Expands the training strategies of DAMC into parts and groups.

Paper: Chen et al. 2024, arXiv:2402.12750, section 3. ``projector`` trains the projectors; ``shared`` also trains
the language model, for all tokens alike; ``modality`` gives each modality its own copy of the projections of every
layer and trains the copies; ``modality+text`` also trains the projections for text.
Differs: in the paper's code ``shared`` is a LoRA; here it is the language model itself unless the stage says ``lora``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import GROUP, group_part
from mcompose.errors import RequestError
from mcompose.modeling import TEXT
from mcompose.on_disk import COMPOSED_TYPE
from mcompose.part_names import qualified
from mcompose.recipe import GroupsSpec, Stage

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy

__all__ = ["NewGroups", "add_new_groups", "apply_strategy", "group_names"]

_KINDS = {"dense": "dense", "low-rank": "low_rank"}
_PROJECTIONS = "key:model.language_model.layers.*_proj.weight"


@dataclass(frozen=True)
class NewGroups:
    """Groups that a stage adds to the language model.

    Args:
        names: Modalities of the groups, and ``text`` for a low-rank text group.
        spec: Kind of the groups, and rank and scale of low-rank ones.
    """

    names: tuple[str, ...]
    spec: GroupsSpec

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the groups as parts, as in ``lr``."""
        return tuple(qualified(GROUP, name) for name in self.names)


def apply_strategy(stage: Stage, config: Mapping[str, Any], anatomy: Anatomy) -> tuple[Stage, NewGroups | None]:
    """Replaces the strategy of a stage by the parts that it trains.

    Args:
        stage: Stage of the recipe.
        config: Config of the checkpoint that the stage starts from.
        anatomy: Anatomy of that checkpoint.

    Returns:
        The stage without a strategy, and the groups to add; None if no groups are added.

    Raises:
        RequestError: The checkpoint cannot have groups.
    """
    if stage.strategy is None:
        return stage, None
    train = list(dict.fromkeys([*stage.train, "projectors"]))
    groups = None
    if stage.strategy == "shared" and not any(name.startswith("language") for name in stage.lora):
        train.append("language")
    if stage.strategy.startswith("modality"):
        groups = _groups(stage, config, anatomy)
        if stage.strategy == "modality+text" and groups.spec.kind == "dense":
            train.append(_PROJECTIONS)
        if groups.names == ():
            train.append("groups")
            groups = None
    return stage.model_copy(update={"train": tuple(dict.fromkeys(train)), "strategy": None, "groups": None}), groups


def _groups(stage: Stage, config: Mapping[str, Any], anatomy: Anatomy) -> NewGroups:
    """Returns the groups of a strategy that the checkpoint does not have yet."""
    if config.get("model_type") != COMPOSED_TYPE:
        raise RequestError(
            f"'strategy: {stage.strategy}' needs a composed checkpoint, but this is a '{config.get('model_type')}'.",
            hint="Compose the source alone first ('output: {format: composed}'), then train the result.",
        )
    spec = stage.groups or GroupsSpec()
    existing = dict(config.get("routed_groups") or {})
    names = [name for name in spec.modalities or anatomy.modalities if name not in existing]
    if stage.strategy == "modality+text" and spec.kind == "low-rank" and TEXT not in existing:
        names.append(TEXT)
    return NewGroups(tuple(names), spec)


def add_new_groups(model: Any, groups: NewGroups, *, seed: int) -> dict[str, Any]:
    """Adds new groups to a model.

    Args:
        model: Composed model; changed in place.
        groups: Groups to add.
        seed: Seed of the random factors.

    Returns:
        The changed fields of the model's config.
    """
    from mcompose.modeling import add_groups  # noqa: PLC0415 - for these strategies only

    spec = groups.spec
    low_rank: dict[str, Any] = {"rank": spec.rank, "scale": spec.scale} if spec.kind == "low-rank" else {}
    add_groups(model, groups.names, kind=_KINDS[spec.kind], seed=seed, **low_rank)
    return {"routed_groups": dict(model.config.routed_groups), "routed_base": model.config.routed_base}


def group_names(model: Any, groups: NewGroups) -> dict[str, str]:
    """Maps the name of each new parameter to its part.

    Args:
        model: Model with the new groups.
        groups: Groups that were added.
    """
    parts = {name: group_part(name) for name, _ in model.named_parameters()}
    return {name: part for name, part in parts.items() if part in groups.parts}
