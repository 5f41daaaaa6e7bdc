"""Which tokens of a batch use which weights: what a routed linear is told in each forward pass.

Letters: B text rows, L tokens, N = B * L, I width of a linear's input.

Long runs of tokens of one origin, as the features of an image are, are taken as slices; the rest of each group is
gathered. Where many tokens would be gathered, all are sorted by group first and put back afterwards, which costs less
than writing them row by row. Whether the tokens of a group are multiplied by a weight of their own or by the base, with
a low-rank part added, is decided here once and not in every linear.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from .specs import TEXT, GroupSpec

__all__ = ["BASE", "OWN", "Route", "Share", "make_route"]

OWN, BASE = "own", "base"
# A run of so many tokens is worth a matrix product of its own; shorter ones are gathered first.
_LONG_RUN = 256
# From this share of scattered tokens on, sorting all of them is cheaper than writing each group to its places.
_SCATTERED = 0.25
# Fewer tokens are not worth sorting.
_WORTH_SORTING = 256


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
        order: Indices (N,) that put the concatenated shares in the order of the tokens.
        layout: Indices (N,) of the tokens sorted by group; shares and parts are then slices of that. None: as they are.
        back: Indices (N,) that undo ``layout``.
        within: The route of modules that treat every token by itself; their whole input is laid out once.
        met: How many linears have used it.
    """

    tokens: int
    shares: list[Share] = field(default_factory=list)
    parts: list[Share] = field(default_factory=list)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    order: torch.Tensor | None = None
    layout: torch.Tensor | None = None
    back: torch.Tensor | None = None
    within: Route | None = None
    met: int = 0

    def laid_out(self, x_NI: torch.Tensor) -> torch.Tensor:
        """Returns vectors (N, I), or any shape before I, in the order that shares and parts speak of."""
        return _reordered(x_NI, self.layout)

    def put_back(self, y_NO: torch.Tensor) -> torch.Tensor:
        """Returns them in the order of the tokens."""
        return _reordered(y_NO, self.back)


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
    names = [OWN, BASE, *flat]
    weights_N, groups_N = torch.zeros_like(media_N, dtype=torch.long), torch.zeros_like(media_N, dtype=torch.long)
    for name, mask_N in flat.items():
        groups_N.masked_fill_(mask_N, names.index(name))
        if not specs[name].low_rank:
            weights_N.masked_fill_(mask_N, names.index(name))
        elif base == "separate":
            weights_N.masked_fill_(mask_N, names.index(BASE))
    low_rank = {names.index(name) for name in flat if specs[name].low_rank}
    route = _in_runs(weights_N, groups_N, names, low_rank)
    scattered = sum(len(share.index) for share in route.shares if share.index is not None)
    if route.tokens < _WORTH_SORTING:
        return route
    ordered = _sorted(weights_N, groups_N, names, low_rank)
    if scattered > _SCATTERED * route.tokens:
        ordered.within = ordered
        return ordered
    if len(ordered.shares) + len(ordered.parts) < len(route.shares) + len(route.parts):
        route.within = ordered
    return route


def _reordered(x: torch.Tensor, order_N: torch.Tensor | None) -> torch.Tensor:
    if order_N is None:
        return x
    return x.reshape(-1, x.shape[-1]).index_select(0, order_N.to(x.device)).view(x.shape)


def _in_runs(weights_N: torch.Tensor, groups_N: torch.Tensor, names: list[str], low_rank: Collection[int]) -> Route:
    """Tokens where they are."""
    route = Route(tokens=len(weights_N), shares=_shares(weights_N, names))
    route.parts = _shares(groups_N, names, only=low_rank)
    if len(route.shares) > 1:
        route.order = torch.argsort(torch.cat([share.positions(weights_N.device) for share in route.shares]))
    return route


def _sorted(weights_N: torch.Tensor, groups_N: torch.Tensor, names: list[str], low_rank: Collection[int]) -> Route:
    """Tokens by what they use, so that each share and each part is one slice."""
    layout = torch.argsort(weights_N * len(names) + groups_N, stable=True)
    return Route(
        tokens=len(layout),
        shares=_shares(weights_N[layout], names),
        parts=_shares(groups_N[layout], names, only=low_rank),
        layout=layout,
        back=torch.argsort(layout),
    )


def _shares(kinds_N: torch.Tensor, names: list[str], *, only: Collection[int] | None = None) -> list[Share]:
    """Cuts tokens (of some kinds only) into long runs of one kind, and what is left of each kind."""
    kinds, counts = (found.tolist() for found in torch.unique_consecutive(kinds_N, return_counts=True))
    stops, runs = list(itertools.accumulate(counts)), Counter(kinds)
    shares, rest = [], []
    for kind, count, stop in zip(kinds, counts, stops, strict=True):
        if only is not None and kind not in only:
            continue
        if count >= _LONG_RUN or runs[kind] == 1:
            shares.append(Share(names[kind], stop - count, stop))
        else:
            rest.append((kind, torch.arange(stop - count, stop, device=kinds_N.device)))
    for kind in dict.fromkeys(kind for kind, _ in rest):
        shares.append(Share(names[kind], index=torch.cat([index for other, index in rest if other == kind])))
    return shares
