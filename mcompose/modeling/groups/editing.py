"""Giving a model parameter groups, folding its text group into one tensor, and telling whose each parameter is.

For training a donor with decoupled parameters: ``add_groups`` on an ordinary model, then freeze by
``group_parameters``. Paper: Chen et al. 2024, arXiv 2402.12750, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .linear import RoutedLinear, route_language, routed_linears
from .low_rank import LowRank, linear_like
from .specs import TEXT, check_groups, group_specs

__all__ = ["add_groups", "fold_text", "group_parameters"]


@torch.no_grad()
def add_groups(
    model: Any,
    modalities: Sequence[str],
    *,
    kind: str = "dense",
    rank: int | Sequence[int] | None = None,
    scale: float | Sequence[float] = 1.0,
    seed: int = 0,
) -> None:
    """Gives a composed model parameter groups in place; an unrouted model answers as before right after it.

    Dense groups begin as copies of what text tokens use. Low-rank groups begin with B at zero: as the base is, which
    is what text tokens use unless the text group is low-rank or the base separate.

    Args:
        model: A ``ComposedModel`` or ``ComposedForConditionalGeneration``; its config is changed too.
        modalities: Which; "text" makes the text group low-rank, and comes before any training of the text weights.
        kind: "dense" or "low_rank".
        rank: Rows of A, for low-rank groups; several where the group is a sum.
        scale: The factor before B * A, for low-rank groups; one a rank.
        seed: Seed of the random A.

    Raises:
        ValueError: A group is there already, cannot be, or is of a modality that nothing serves.
    """
    config = model.config
    there = [name for name in modalities if name in config.routed_groups]
    if there:
        raise ValueError(f"The model has a group for {there[0]!r} already.")
    fields = {"kind": kind} if kind == "dense" else {"kind": kind, "rank": rank, "scale": scale}
    groups = {**config.routed_groups, **{name: dict(fields) for name in modalities}}
    specs = group_specs(groups, base=config.routed_base)
    check_groups(config, groups)
    core = _core(model)
    route_language(core.language_model, specs, base=config.routed_base)
    generator = torch.Generator().manual_seed(seed)
    for _, linear in routed_linears(core.language_model):
        for name in modalities:
            if name in linear.groups:
                _begin(linear, name, generator)
    config.routed_groups = groups
    core.specs = specs


@torch.no_grad()
def fold_text(model: Any) -> None:
    """Merges a low-rank text group into one tensor per linear, and keeps the base beside it, in place.

    The text weight is rounded once to its dtype; the modality groups stay exactly what they are. Decoding then costs
    what the plain model costs. Does nothing when the text group is not low-rank.

    Args:
        model: A ``ComposedModel`` or ``ComposedForConditionalGeneration``; its config is changed too.
    """
    config, core = model.config, _core(model)
    if TEXT not in core.specs:
        return
    groups = {name: fields for name, fields in config.routed_groups.items() if name != TEXT}
    kept = any(spec.low_rank for name, spec in core.specs.items() if name != TEXT)
    for _, linear in routed_linears(core.language_model):
        whole = effective_text(linear)
        if kept:
            linear.base = _copied(linear, linear.weight)
        linear.weight.copy_(whole)
        linear.remove(TEXT)
    config.routed_groups, config.routed_base = groups, "separate" if kept else "shared"
    core.specs = group_specs(groups, base=config.routed_base)


def group_parameters(model: Any) -> dict[str, list[str]]:
    """Tells which parameters belong to which group, for freezing by role.

    Args:
        model: A ``ComposedModel`` or ``ComposedForConditionalGeneration``.

    Returns:
        Role -> parameter names in the model's order. Roles: "text", what only the text group uses (with a shared base
        and a dense text group, low-rank groups read it too); "base", frozen tensors that low-rank groups add to and
        that are not the text group itself; one per modality with a group; "<modality>.prefix" and
        "<modality>.suffix" for the vectors around its items. Empty roles are left out.
    """
    roles: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, RoutedLinear):
            for role, parameter in _roles(module):
                roles.setdefault(role, []).append(f"{name}.{parameter}")
    for kind in ("prefix", "suffix"):
        for name, _ in model.named_parameters():
            stem, _, modality = name.rpartition(".")
            if stem.rpartition(".")[2] == f"{kind}_tokens":
                roles.setdefault(f"{modality}.{kind}", []).append(name)
    return roles


def effective_text(linear: RoutedLinear) -> torch.Tensor:
    """Returns the weight (O, I) that text tokens use, in float32 or wider when it has a low-rank part."""
    if TEXT not in linear.groups:
        return linear.weight
    first, *others = (low.product() for low in linear.terms(TEXT))
    return sum(others, linear.weight.to(first.dtype) + first)


def _roles(linear: RoutedLinear) -> Iterator[tuple[str, str]]:
    own = "base" if TEXT in linear.groups else TEXT
    for name, _ in linear.named_parameters():
        *before, rest = f".{name}".rpartition(".groups.")
        if before[1]:
            yield rest.partition(".")[0], name
        else:
            yield "base" if name.startswith("base.") else own, name


def _begin(linear: RoutedLinear, name: str, generator: torch.Generator) -> None:
    group: Any = linear.groups[name]
    if isinstance(group, LowRank):
        for low in linear.terms(name):
            # Uniform with variance 1 / (3 * in), as PEFT's default draws it.
            drawn = torch.rand(low.lora_A.weight.shape, generator=generator) * 2 - 1
            low.lora_A.weight.copy_(drawn / linear.in_features**0.5)
            low.lora_B.weight.zero_()
    else:
        group.weight.copy_(effective_text(linear))
        if linear.bias is not None:
            group.bias.copy_(linear.bias)


def _copied(linear: RoutedLinear, weight: torch.Tensor) -> nn.Linear:
    made = linear_like(linear)
    made.weight.copy_(weight)
    if linear.bias is not None:
        made.bias.copy_(linear.bias)
    return made


def _core(model: Any) -> Any:
    return model if hasattr(model, "language_model") else model.model
