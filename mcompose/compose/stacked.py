"""The text group of a composition as a sum of its sources' factors, where that is smaller than a tensor of its own.

DAMC's rule for the text is ``W0 + sum_i lambda_i (W_i - W0)``. Where every source's text is ``W0 + s_i B_i A_i``, that
is ``W0 + sum_i s_i (lambda_i B_i) A_i``: the factors of all sources side by side, of any ranks, over the one W0 that
the groups of the modalities add to as well. Nothing of it is rounded but the scaled B, once. A dense text would need
W0 beside it. Paper: Chen et al. 2024, "Model Composition for Multimodal Large Language Models", arXiv:2402.12750,
section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcompose.anatomy import LANGUAGE
from mcompose.compose.groups import DenseGroup, LowRankGroup, RoutedLinear, text_terms
from mcompose.merge import Contribution, Segment, TensorJob
from mcompose.methods import NOTHING

if TYPE_CHECKING:
    from mcompose.merge import SourceParts

__all__ = ["StackedText", "stacked_text"]


@dataclass(frozen=True)
class StackedText:
    """What the text group is made of.

    Args:
        terms: The products, in the order of the sources.
        shares: Coefficient of each term on each linear, by the linear's name; None where nothing is scaled.
        origin: Name of a linear's tensor to the sources' tensors that must all be W0, bit for bit.
    """

    terms: tuple[LowRankGroup, ...]
    shares: tuple[Mapping[str, float] | None, ...]
    origin: Mapping[str, tuple[Contribution, ...]]


def stacked_text(
    sources: Sequence[SourceParts],
    groups: Sequence[DenseGroup | LowRankGroup],
    language: Sequence[TensorJob],
    linears: Sequence[RoutedLinear],
) -> StackedText | None:
    """Decides whether the text group stays a sum of factors.

    Args:
        sources: The recipe's sources.
        groups: The groups of the output's modalities.
        language: Jobs of the shared language model.
        linears: The linears of the output.

    Returns:
        The sum; None where the merge is another than DAMC's, a text group is not a sum of factors over what the
        modalities' low-rank groups add to, or the factors would be larger than a tensor of their sum.
    """
    jobs = {job.address: job for job in language}
    mine = {name: jobs[name] for one in linears for name in one.tensors}
    if not all(_can_stack(job) for job in mine.values()):
        return None
    by_name = {source.name: source for source in sources}
    held = {c.source: c for job in mine.values() for c in job.segments[0].contributions}
    parts = [by_name[name] for name in held]
    terms = {source.name: text_terms(source, linears) for source in parts}
    origin = {name: _origin(job.segments[0]) for name, job in mine.items()}
    alone = len(sources) == 1
    if not all(terms[source.name] or (not alone and _adds_to_own(source, groups)) for source in parts):
        return None
    if not alone and not (_shared(groups, origin) and _is_smaller(list(terms.values()), mine, linears)):
        return None
    pairs = [(term, _shares(name, mine, linears)) for name in held for term in terms[name]]
    return StackedText(tuple(term for term, _ in pairs), tuple(shares for _, shares in pairs), origin)


def _can_stack(job: TensorJob) -> bool:
    """Returns one segment, by DAMC's rule or of one source alone, in the dtype of everything that it counts from."""
    if len(job.segments) != 1:
        return False
    (only,) = job.segments
    plain = only.action in {"copied", "folded"} or (only.action == "merged" and only.method == "damc")
    return plain and all(c.entry.dtype == job.dtype and c.first_row is None for c in _origin(only))


def _origin(segment: Segment) -> tuple[Contribution, ...]:
    """Returns what W0 is in each source; in the base too, where the coefficients leave a rest of it."""
    counted = list(segment.contributions)
    if segment.base is not None and abs(1.0 - sum(segment.weights)) > NOTHING:
        counted.append(segment.base)
    return tuple(Contribution(c.source, c.entry) for c in counted)


def _adds_to_own(source: SourceParts, groups: Sequence[DenseGroup | LowRankGroup]) -> bool:
    """Returns whether a source's text is the very W0 that its low-rank group adds to."""
    mine = [group for group in groups if isinstance(group, LowRankGroup) and group.source.name == source.name]
    slots = source.anatomy.by_name(LANGUAGE)
    own = {name: source.contribution(slots[name].key) for group in mine for name in group.origin if name in slots}
    return bool(mine) and all(
        name in own and own[name].low_rank is None and own[name].entry == entry
        for group in mine
        for name, entry in group.origin.items()
    )


def _shared(groups: Sequence[DenseGroup | LowRankGroup], origin: Mapping[str, Sequence[Contribution]]) -> bool:
    """Returns whether W0 has to be stored anyway, and is what the text counts from."""
    low_rank = [group for group in groups if isinstance(group, LowRankGroup)]
    return bool(low_rank) and all(
        any(c.entry == entry for c in origin[name]) for group in low_rank for name, entry in group.origin.items()
    )


def _is_smaller(
    terms: Sequence[Sequence[LowRankGroup]], jobs: Mapping[str, TensorJob], linears: Sequence[RoutedLinear]
) -> bool:
    rank = sum(term.rank for found in terms for term in found)
    shapes = [jobs[one.weight].shape for one in linears]
    return rank * sum(rows + columns for rows, columns in shapes) < sum(rows * columns for rows, columns in shapes)


def _shares(source: str, jobs: Mapping[str, TensorJob], linears: Sequence[RoutedLinear]) -> Mapping[str, float] | None:
    """Returns a source's coefficient on every linear; None when nothing was merged."""
    segments = {one.name: jobs[one.weight].segments[0] for one in linears}
    if any(segment.action != "merged" for segment in segments.values()):
        return None
    return {
        name: next(w for c, w in zip(s.contributions, s.weights, strict=True) if c.source == source)
        for name, s in segments.items()
    }
