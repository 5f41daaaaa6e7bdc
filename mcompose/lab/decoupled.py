"""Decoupled parameters while a donor is trained: the donor's modality uses linears of its own in every layer.

The native class of a donor is given the island's routed linears for the time of its training: tokens of the medium use
the group, all others the linears that the class has anyway, which so become the text group. Afterwards the group is
taken out, and what is left is an ordinary native checkpoint again.

Paper: Chen et al. 2024, arXiv:2402.12750, section 3.2 (parameter decoupling; strategy ``modality+text``).
Differs: groups are full linears, as the shared donors' are, and not low-rank; there are no vectors around the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mcompose.modeling import ROUTE, GroupSpec, RoutedLinear, make_route, route_language, routed_linears

if TYPE_CHECKING:
    from mcompose.lab.towers import Donor

__all__ = ["give_group", "route_arguments", "take_group"]


@torch.no_grad()
def give_group(donor: Donor) -> None:
    """Gives a donor's language model a group for its modality that begins as a copy of what it has.

    Args:
        donor: Changed in place; right after it, it answers as before.
    """
    language = _language(donor)
    route_language(language, {donor.modality: GroupSpec(low_rank=False)})
    for _, linear in routed_linears(language):
        group: Any = linear.groups[donor.modality]
        group.weight.copy_(linear.weight)
        if linear.bias is not None:
            group.bias.copy_(linear.bias)


def route_arguments(donor: Donor, shown: torch.Tensor) -> dict[str, Any]:
    """Returns what the language model of a donor is handed beside the embeddings; nothing for a donor without a group.

    Args:
        donor: The donor.
        shown: True where a token comes from the medium, (batch, length).
    """
    first = next(iter(routed_linears(_language(donor))), None)
    if first is None or donor.modality not in first[1].groups:
        return {}
    return {ROUTE: make_route({donor.modality: GroupSpec(low_rank=False)}, {donor.modality: shown})}


def take_group(donor: Donor) -> dict[str, torch.Tensor]:
    """Takes the group out again.

    Args:
        donor: Changed in place; what is left are the tensors of its native class.

    Returns:
        ``layers.0.self_attn.q_proj.weight`` and so on -> the group's values.
    """
    taken = {}
    for name, linear in routed_linears(_language(donor)):
        group = linear.groups.pop(donor.modality)
        taken |= {f"{name}.{kind}": values.detach().clone() for kind, values in group.named_parameters()}
        _unrouted(linear)
    return taken


def _unrouted(linear: RoutedLinear) -> None:
    linear.slot.route = None


def _language(donor: Donor) -> Any:
    model: Any = donor.model
    return model.model.language_model
