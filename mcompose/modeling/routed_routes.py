"""Which tokens of a batch use which weights: what a routed linear is told in each forward pass.

Letters: B text rows, L tokens, N = B * L, I width of a linear's input.

Long runs of tokens of one origin, as the features of an image are, are taken as slices; the rest of each group is
gathered. Whether the tokens of a group are multiplied by a weight of their own or by the base, with a low-rank part
added, is decided here once and not in every linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .routed_groups import TEXT, GroupSpec

__all__ = ["BASE", "OWN", "Route", "Share", "make_route"]

OWN, BASE = "own", "base"
# A run of so many tokens is worth a matrix product of its own; shorter ones are gathered first.
_LONG_RUN = 256


@dataclass(frozen=True)
class Share:
    """Tokens of one batch that use the same weights.

    Args:
        weights: "own", "base" or a group's name.
        start: First token, when they follow each other.
        stop: One past the last.
        index: Their positions in N, when they do not.
    """

    weights: str
    start: int = 0
    stop: int = 0
    index: torch.Tensor | None = None

    def of(self, x_NI: torch.Tensor) -> torch.Tensor:
        """Picks these tokens: a view when they follow each other."""
        if self.index is None:
            return x_NI[self.start : self.stop]
        return x_NI.index_select(0, self.index.to(x_NI.device))

    def positions(self, device: torch.device) -> torch.Tensor:
        """Returns their positions in N."""
        return torch.arange(self.start, self.stop, device=device) if self.index is None else self.index.to(device)


@dataclass
class Route:
    """Which tokens use which weights in one forward pass.

    Args:
        tokens: N.
        shares: The dense products; together they are all tokens, once.
        parts: The low-rank products, added to those.
        masks: Group -> bool (N, 1), text included; used instead of shares while compiling.
        order: Indices (N,) that put the concatenated shares back.
        met: How many linears have used it.
    """

    tokens: int
    shares: list[Share] = field(default_factory=list)
    parts: list[Share] = field(default_factory=list)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    order: torch.Tensor | None = None
    met: int = 0


def make_route(
    specs: Mapping[str, GroupSpec], masks: Mapping[str, torch.Tensor], *, base: str = "shared"
) -> Route | None:
    """Sorts the tokens of a batch by group.

    Args:
        specs: The model's groups.
        masks: Modality -> bool (B, L), disjoint: the tokens that come from a medium.
        base: ``ComposedConfig.routed_base``.

    Returns:
        The route, or None when no token leaves the text group.
    """
    flat = {name: mask.reshape(-1) for name, mask in masks.items() if name in specs}
    if not flat:
        return None
    media_N = torch.stack(list(flat.values())).any(dim=0)
    flat = {**({TEXT: ~media_N} if TEXT in specs else {}), **flat}
    if torch.compiler.is_compiling():
        # Index lists have a length that depends on the batch; masks do not, so one graph serves all batches.
        return Route(tokens=len(media_N), masks={name: mask[:, None] for name, mask in flat.items()})
    if not bool(media_N.any()):
        return None
    low_rank = [mask_N for name, mask_N in flat.items() if specs[name].low_rank and name != TEXT]
    names = [OWN, BASE, *flat]
    weights_N = torch.zeros_like(media_N, dtype=torch.long)
    for name, mask_N in flat.items():
        if not specs[name].low_rank:
            weights_N.masked_fill_(mask_N, names.index(name))
    if base == "separate" and low_rank:
        weights_N.masked_fill_(torch.stack(low_rank).any(dim=0), names.index(BASE))
    route = Route(tokens=len(media_N), shares=_shares(weights_N, names))
    for name, mask_N in flat.items():
        if specs[name].low_rank:
            route.parts += [part for part in _shares(mask_N.long(), ["", name]) if part.weights]
    if len(route.shares) > 1:
        found = [share.positions(media_N.device) for share in route.shares]
        route.order = torch.argsort(torch.cat(found))
    return route


def _shares(kinds_N: torch.Tensor, names: list[str]) -> list[Share]:
    """Cuts tokens into long runs of one kind, and what is left of each kind."""
    kinds, counts = (found.tolist() for found in torch.unique_consecutive(kinds_N, return_counts=True))
    stops = list(itertools.accumulate(counts))
    shares, rest = [], []
    for kind, count, stop in zip(kinds, counts, stops, strict=True):
        if count >= _LONG_RUN or kinds.count(kind) == 1:
            shares.append(Share(names[kind], stop - count, stop))
        else:
            rest.append((kind, torch.arange(stop - count, stop, device=kinds_N.device)))
    for kind in dict.fromkeys(kind for kind, _ in rest):
        shares.append(Share(names[kind], index=torch.cat([index for other, index in rest if other == kind])))
    return shares
