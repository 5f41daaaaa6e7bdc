"""Where media go in a checkpoint with experts, and what its router made of those whose domain is known.

A question's ``domain`` is that of its media: an expert's domain (or its name), or any other word for none. Wrong
experts and none are controls: what is left of an expert's worth when another's tokens, or nobody's, stand in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcompose.errors import RequestError, slip_of
from mcompose.evaluate.confusion import Confusion, confusion_matrix
from mcompose.modeling import NONE

__all__ = ["NONE", "TOLD", "WRONG", "Routes", "expert_for", "forced_routes", "router_confusion", "slips"]

TOLD, WRONG = "told", "wrong"
"""Each medium to the expert of its question's domain; to the one after it."""

Routes = Mapping[str, tuple[tuple[str, ...], ...]]
"""Modality to the experts of each of a question's media in order, of modalities that have experts; nothing for none."""


def expert_for(domain: str, experts: Sequence[str], *, route: str) -> str:
    """Returns the expert that a medium is forced to.

    Args:
        domain: Domain of the medium, as the name of its expert.
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
    experts: Mapping[str, Mapping[str, Any]], modality: str, *, domain: str, route: str
) -> tuple[str, ...]:
    """Returns where a medium of a question is forced to.

    Args:
        experts: Name to its entry in the checkpoint's config, with ``modality`` and ``domain``.
        modality: Modality of the medium; it has experts.
        domain: Domain of the question.
        route: ``told``, ``wrong``, ``none`` or an expert's name.

    Returns:
        Its expert; nothing for none.

    Raises:
        RequestError: ``wrong``, and all experts are of this domain.
    """
    own = _of_modality(experts, modality)
    if route not in (TOLD, WRONG):
        return (route,) if route in own else ()
    right = _expert_of(experts, modality, domain)
    others = [name for name in own if name == right or own[name]["domain"] != own.get(right, {}).get("domain")]
    if route == WRONG and others == [right]:
        raise RequestError(
            f"No expert for {modality} is a wrong one for the domain '{domain}': there is only '{right}'.",
            hint="Compare with '--experts none'.",
        )
    chosen = expert_for(right, others, route=route)
    return () if chosen == NONE else (chosen,)


def router_confusion(
    routers: Mapping[str, Mapping[str, Any]],
    experts: Mapping[str, Mapping[str, Any]],
    seen: Iterable[tuple[str, Routes]],
) -> dict[str, Confusion]:
    """Returns what routers chose for media whose domain is known.

    Args:
        routers: Modality to the router's entry in the checkpoint's config, with ``classes``.
        experts: Name to its entry.
        seen: Domain and routes of each question. Without a domain, or with that of another modality's expert, a medium
            counts as ignored.

    Returns:
        Modality to its matrix, the likeliest expert for the choice; modalities without media are left out.
    """
    pairs: dict[str, list[tuple[str | None, str]]] = {modality: [] for modality in routers}
    for domain, routes in seen:
        for modality, found in pairs.items():
            label = _label(experts, modality, domain)
            found += [(label, chosen[0] if chosen else NONE) for chosen in routes.get(modality, ())]
    return {m: confusion_matrix(found, classes=routers[m]["classes"]) for m, found in pairs.items() if found}


def slips(experts: Mapping[str, Mapping[str, Any]], domains: Iterable[str]) -> list[tuple[str, str]]:
    """Domains of a task that are no expert's and look like one's, each with what it looks like.

    Args:
        experts: Name to its entry.
        domains: Domains of the task.
    """
    names = [*experts, *(entry["domain"] for entry in experts.values())]
    found = ((domain, slip_of(domain, names)) for domain in dict.fromkeys(domains))
    return [(domain, near) for domain, near in found if near]


def _label(experts: Mapping[str, Mapping[str, Any]], modality: str, domain: str) -> str | None:
    own = _expert_of(experts, modality, domain)
    elsewhere = domain in experts or any(entry["domain"] == domain for entry in experts.values())
    return None if not domain or (own == NONE and elsewhere) else own


def _expert_of(experts: Mapping[str, Mapping[str, Any]], modality: str, domain: str) -> str:
    own = _of_modality(experts, modality)
    if domain in own:
        return domain
    return next((name for name, entry in own.items() if entry["domain"] == domain), NONE)


def _of_modality(experts: Mapping[str, Mapping[str, Any]], modality: str) -> dict[str, Mapping[str, Any]]:
    return {name: entry for name, entry in experts.items() if entry["modality"] == modality}
