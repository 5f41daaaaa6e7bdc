"""Decoupled parameters during a donor's training: its modality uses linear layers of its own in every layer.

While a donor is trained, the linear layers of its class are replaced by the routed ones of ``mcompose.modeling``:
tokens of the medium use the new group, all others the layers that the class has anyway, which so become the text group.
Afterwards the group is removed, and an ordinary checkpoint of the class remains.

Paper: Chen et al. 2024, arXiv:2402.12750, section 3 (parameter decoupling; strategy ``modality+text``).
Differs: groups are full linear layers, as those of the shared donors, and not low-rank; there are no vectors around the
features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mcompose.modeling import ROUTE, GroupSpec, make_route, route_language, routed_linears

if TYPE_CHECKING:
    from mcompose.lab.towers import Donor

__all__ = ["add_group", "remove_group", "route_arguments"]


@torch.no_grad()
def add_group(donor: Donor) -> None:
    """Adds a group for its modality to a donor's language model, as a copy of the existing weights.

    Args:
        donor: Donor, changed in place; its answers stay the same until it is trained.
    """
    language = _language(donor)
    route_language(language, {donor.modality: GroupSpec(low_rank=False)})
    for _, linear in routed_linears(language):
        group: Any = linear.groups[donor.modality]
        group.weight.copy_(linear.weight)
        if linear.bias is not None:
            group.bias.copy_(linear.bias)


def route_arguments(donor: Donor, shown: torch.Tensor) -> dict[str, Any]:
    """Returns the arguments of the donor's language model beside the embeddings; empty for a donor without a group.

    Args:
        donor: Donor, with or without a group.
        shown: True where a token comes from the medium, (batch, length).
    """
    first = next(iter(routed_linears(_language(donor))), None)
    if first is None or donor.modality not in first[1].groups:
        return {}
    return {ROUTE: make_route({donor.modality: GroupSpec(low_rank=False)}, {donor.modality: shown})}


def remove_group(donor: Donor) -> dict[str, torch.Tensor]:
    """Removes the group.

    Args:
        donor: Donor, changed in place; the tensors of its native class remain.

    Returns:
        ``layers.0.self_attn.q_proj.weight`` and so on -> the group's values.
    """
    values_of_group = {}
    for name, linear in routed_linears(_language(donor)):
        group = linear.groups.pop(donor.modality)
        values_of_group |= {f"{name}.{kind}": values.detach().clone() for kind, values in group.named_parameters()}
        linear.slot.route = None
    return values_of_group


def _language(donor: Donor) -> Any:
    model: Any = donor.model
    return model.model.language_model
