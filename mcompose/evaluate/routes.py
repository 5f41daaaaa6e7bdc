"""Where media go in a checkpoint with experts, and what its router made of those whose domain is known.

A question's ``domain`` is that of its media: an expert's domain (or its name), or any other word for none. Wrong
experts and none are controls: what is left of an expert's worth when another's tokens, or nobody's, stand in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcompose.evaluate.confusion import Confusion, confusion_matrix

__all__ = ["NONE", "TOLD", "WRONG", "Routes", "expert_for", "forced_routes", "router_confusion"]

NONE: Final = "none"
TOLD, WRONG = "told", "wrong"
"""Each medium to the expert of its question's domain; to the one after it."""

Routes = tuple[tuple[str, ...], ...]
"""The experts of each medium in reading order, of modalities that have experts; nothing for none."""


def expert_for(domain: str, experts: Sequence[str], *, route: str) -> str:
    """The expert that a medium is forced to.

    Args:
        domain: Of the medium, as the name of its expert.
        experts: All of its modality, in order.
        route: ``told``: the domain's own, none where it has none. ``wrong``: the one after it in the order, the first
            for media that belong to none. ``none``: none.

    Returns:
        Its name, or "none".
    """
    if route == NONE:
        return NONE
    if route == TOLD:
        return domain if domain in experts else NONE
    return experts[(experts.index(domain) + 1) % len(experts)] if domain in experts else experts[0]


def forced_routes(
    experts: Mapping[str, Mapping[str, Any]], modalities: Sequence[str], *, domain: str, route: str
) -> list[str]:
    """Where the media of a question are forced to.

    Args:
        experts: Name to its entry in the checkpoint's config, with ``modality`` and ``domain``.
        modalities: Of the question's media, in reading order.
        domain: Of the question.
        route: ``told`` or ``wrong``.

    Returns:
        An expert or "none" for every medium whose modality has experts.
    """
    found = []
    for modality in modalities:
        names = [name for name, entry in experts.items() if entry["modality"] == modality]
        if names:
            found.append(expert_for(_expert_of(experts, modality, domain), names, route=route))
    return found


def router_confusion(
    routers: Mapping[str, Mapping[str, Any]],
    experts: Mapping[str, Mapping[str, Any]],
    seen: Iterable[tuple[str, Sequence[str], Routes]],
) -> dict[str, Confusion]:
    """What routers chose for media whose domain is known.

    Args:
        routers: Modality to the router's entry in the checkpoint's config, with ``classes``.
        experts: Name to its entry.
        seen: Domain, modalities of the media that have experts, and routes of each question; without a domain it counts
            as ignored.

    Returns:
        Modality to its matrix, the likeliest expert for the choice; modalities without media are left out.
    """
    pairs: dict[str, list[tuple[str | None, str]]] = {modality: [] for modality in routers}
    for domain, modalities, routes in seen:
        for modality, chosen in zip(modalities, routes, strict=True):
            label = _expert_of(experts, modality, domain) if domain else None
            pairs[modality].append((label, chosen[0] if chosen else NONE))
    return {m: confusion_matrix(found, classes=routers[m]["classes"]) for m, found in pairs.items() if found}


def _expert_of(experts: Mapping[str, Mapping[str, Any]], modality: str, domain: str) -> str:
    own = {name: entry for name, entry in experts.items() if entry["modality"] == modality}
    if domain in own:
        return domain
    return next((name for name, entry in own.items() if entry["domain"] == domain), NONE)
