"""The strategies by which donors of DAMC are trained, as parts and groups.

Paper: Chen et al. 2024, arXiv:2402.12750, section 3.2. ``projector`` trains the projectors; ``shared`` the language
model with them, for all tokens alike; ``modality`` gives each modality a copy of the projections of every layer and
trains that; ``modality+text`` trains the text's own as well.
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
        names: Modalities, and ``text`` for a low-rank text group.
        spec: Spec of what kind.
    """

    names: tuple[str, ...]
    spec: GroupsSpec

    @property
    def parts(self) -> tuple[str, ...]:
        """As learning rates name them."""
        return tuple(qualified(GROUP, name) for name in self.names)


def apply_strategy(stage: Stage, config: Mapping[str, Any], anatomy: Anatomy) -> tuple[Stage, NewGroups | None]:
    """Writes a strategy out.

    Args:
        stage: The recipe's stage.
        config: Configuration of the checkpoint that the stage starts from.
        anatomy: Anatomy of the same.

    Returns:
        A stage without strategy, and the groups to be added.

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
    """Returns the groups of a strategy that the checkpoint has not got yet."""
    if config.get("model_type") != COMPOSED_TYPE:
        raise RequestError(
            f"'strategy: {stage.strategy}' needs a composed checkpoint, and this is a '{config.get('model_type')}'.",
            hint="Compose the source alone first ('output: {format: composed}'), then train that.",
        )
    spec = stage.groups or GroupsSpec()
    there = dict(config.get("routed_groups") or {})
    names = [name for name in spec.modalities or anatomy.modalities if name not in there]
    if stage.strategy == "modality+text" and spec.kind == "low-rank" and TEXT not in there:
        names.append(TEXT)
    return NewGroups(tuple(names), spec)


def add_new_groups(model: Any, groups: NewGroups, *, seed: int) -> dict[str, Any]:
    """Gives a model its new groups.

    Args:
        model: A composed model; changed in place.
        groups: Which.
        seed: Seed of the random factors.

    Returns:
        What changed in its config.
    """
    from mcompose.modeling import add_groups  # noqa: PLC0415 - for these strategies only

    spec = groups.spec
    low_rank: dict[str, Any] = {"rank": spec.rank, "scale": spec.scale} if spec.kind == "low-rank" else {}
    add_groups(model, groups.names, kind=_KINDS[spec.kind], seed=seed, **low_rank)
    return {"routed_groups": dict(model.config.routed_groups), "routed_base": model.config.routed_base}


def group_names(model: Any, groups: NewGroups) -> dict[str, str]:
    """Returns the name of each new parameter to its part.

    Args:
        model: With its groups.
        groups: That were added.
    """
    parts = {name: group_part(name) for name, _ in model.named_parameters()}
    return {name: part for name, part in parts.items() if part in groups.parts}
