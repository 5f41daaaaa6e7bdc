"""What a checkpoint says about decoupled parameter groups, and how their tensors are named. Needs no torch.

``ComposedConfig.routed_groups`` maps a modality, or "text", to the kind of its group::

    {"image": {"kind": "dense"}, "audio": {"kind": "low_rank", "rank": 8, "scale": 2.0}}

``ComposedConfig.routed_base`` says what low-rank groups add to; ``linear.py`` tells what each choice means:
"shared", the linear's own weight, or "separate", a tensor of its own. A low-rank group may be a sum of several, as the
text group of several donors is; then it lists a rank and a scale for each: ``{"rank": [8, 16], "scale": [2.0, 1.0]}``.
Of a linear named ``...q_proj`` the tensors are:

- ``...q_proj.weight`` (and ``.bias``): the original key; what text tokens use;
- ``...q_proj.groups.<modality>.weight`` (and ``.bias``): a dense group;
- ``...q_proj.groups.<modality>.lora_A.weight`` (rank, in) and ``.lora_B.weight`` (out, rank): a low-rank group;
- ``...q_proj.stack.<k>.groups.<modality>.lora_A.weight`` and ``.lora_B.weight``: the second (k = 0) and further
  terms of a sum;
- ``...q_proj.base.weight`` (and ``.bias``): the separate base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..configuration.extension import ConfigExtension
from ..families import MODALITIES

__all__ = ["BASES", "TEXT", "GroupFields", "GroupSpec", "base_key", "check_groups", "group_keys", "group_specs"]

TEXT = "text"
BASES = ("shared", "separate")
_FIELDS = {"dense": {"kind"}, "low_rank": {"kind", "rank", "scale"}}


@dataclass(frozen=True)
class GroupSpec:
    """One parameter group of every routed linear.

    Args:
        low_rank: Whether it is base + scale * B * A; otherwise it is a weight of its own.
        rank: Rows of A; 0 for dense groups.
        scale: The factor before B * A.
        more: Rank and scale of each further term, where it is a sum.
    """

    low_rank: bool
    rank: int = 0
    scale: float = 1.0
    more: tuple[tuple[int, float], ...] = ()

    @property
    def terms(self) -> tuple[tuple[int, float], ...]:
        """Rank and scale of every term; none for dense groups."""
        return ((self.rank, self.scale), *self.more) if self.low_rank else ()


class GroupFields(ConfigExtension):
    """The fields of decoupled parameter groups."""

    fields: ClassVar[Mapping[str, Any]] = {"routed_groups": {}, "routed_base": "shared"}

    def unused(self, whole: Mapping[str, Any]) -> list[str]:
        """Returns both fields when there are no groups; a base says something wherever there are."""
        return [] if whole.get("routed_groups") else list(self.fields)

    def check(self, config: Any) -> None:
        """Refuses groups that this composition cannot have; see :func:`check_groups`."""
        check_groups(config, config.routed_groups)


def check_groups(config: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses parameter groups that a composition cannot have.

    Args:
        config: The ``ComposedConfig``.
        groups: As ``routed_groups`` has them.

    Raises:
        ValueError: Naming the group.
    """
    for name in group_specs(groups, base=config.routed_base if groups else "shared"):
        if name != TEXT and config.served_by(name) is None:
            raise ValueError(f"routed_groups names {name!r}, and no source of this composition serves it.")


def group_specs(groups: Mapping[str, Mapping[str, Any]], *, base: str = "shared") -> dict[str, GroupSpec]:
    """Reads ``ComposedConfig.routed_groups``.

    Args:
        groups: Modality or "text" -> its fields.
        base: ``ComposedConfig.routed_base``.

    Returns:
        Name -> spec, text first and then in the order of the modalities' type ids. A dense text group is the linear
        itself and is left out.

    Raises:
        ValueError: A name, kind, rank, scale or base that there is not.
    """
    if base not in BASES:
        raise ValueError(f"routed_base must be {' or '.join(BASES)}, and is {base!r}.")
    if unknown := [name for name in groups if name not in (TEXT, *MODALITIES)]:
        raise ValueError(f"routed_groups names the unknown modality {unknown[0]!r}; known: {', '.join(MODALITIES)}.")
    specs = {name: _spec(name, groups[name]) for name in (TEXT, *MODALITIES) if name in groups}
    if TEXT in specs and not specs[TEXT].low_rank:
        del specs[TEXT]
    if base == "separate" and TEXT in specs:
        raise ValueError("With a separate base the text group is the linear's own weight, so it cannot be low_rank.")
    if base == "separate" and not any(spec.low_rank for spec in specs.values()):
        raise ValueError("routed_base is 'separate', and no group is low_rank, so nothing would use the base.")
    return specs


def _spec(name: str, fields: Mapping[str, Any]) -> GroupSpec:
    kind = fields.get("kind")
    if kind not in _FIELDS:
        raise ValueError(f"The group {name!r} has the kind {kind!r}; known: {', '.join(_FIELDS)}.")
    if unknown := [key for key in fields if key not in _FIELDS[kind]]:
        raise ValueError(f"The {kind} group {name!r} has the unknown field {unknown[0]!r}.")
    if kind == "dense":
        return GroupSpec(low_rank=False)
    (rank, scale), *more = _read_terms(name, fields)
    return GroupSpec(low_rank=True, rank=rank, scale=scale, more=tuple(more))


def _read_terms(name: str, fields: Mapping[str, Any]) -> list[tuple[int, float]]:
    ranks, scales = fields.get("rank"), fields.get("scale", 1.0)
    if not isinstance(ranks, list | tuple):
        ranks, scales = [ranks], [scales]
    if not isinstance(scales, list | tuple) or len(scales) != len(ranks) or not ranks:
        raise ValueError(f"The low_rank group {name!r} needs one scale a rank, and has {scales!r} for {ranks!r}.")
    terms: list[tuple[int, float]] = []
    for rank, scale in zip(ranks, scales, strict=True):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"The low_rank group {name!r} needs a rank of at least 1, and has {rank!r}.")
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            raise ValueError(f"The scale of group {name!r} must be a number, and is {scale!r}.")
        terms.append((rank, float(scale)))
    return terms


def group_keys(linear: str, group: str, spec: GroupSpec, *, bias: bool = False) -> tuple[str, ...]:
    """Returns the tensor names of one group of one linear.

    Args:
        linear: The linear's name, ``model.language_model.layers.0.self_attn.q_proj``.
        group: A modality, or "text" for a low-rank text group.
        spec: Its spec.
        bias: Whether the linear has a bias; dense groups then have one too.

    Returns:
        (lora_A, lora_B) of every term in turn, or (weight,) or (weight, bias).
    """
    stem = f"{linear}.groups.{group}"
    if spec.low_rank:
        places = [linear, *(f"{linear}.stack.{index}" for index in range(len(spec.more)))]
        return tuple(f"{place}.groups.{group}.lora_{factor}.weight" for place in places for factor in "AB")
    return (f"{stem}.weight", f"{stem}.bias") if bias else (f"{stem}.weight",)


def base_key(linear: str, kind: str = "weight") -> str:
    """Returns the name of a linear's separate base; ``kind`` is "weight" or "bias"."""
    return f"{linear}.base.{kind}"
