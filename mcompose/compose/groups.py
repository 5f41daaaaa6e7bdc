"""The parameter groups of one source: what it carries, and what its language model becomes when it is converted.

A group is the set of linears that the tokens of one modality use (DAMC, arXiv:2402.12750). *Dense*: tensors of its own.
*Low-rank*: factors, and the tensor that they add to (their origin), which has to be the very one that they were
trained against. An ordinary source is converted by taking its whole language model as the group: dense, or, where the
recipe gives it as a checkpoint and an adapter, with the adapter's factors as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcompose.anatomy import GROUP, LANGUAGE
from mcompose.checkpoint import LowRank
from mcompose.errors import CompositionError
from mcompose.merge import Contribution
from mcompose.modeling import TEXT, GroupSpec, group_keys, group_specs
from mcompose.on_disk import COMPOSED_TYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mcompose.anatomy import Anatomy
    from mcompose.checkpoint import Checkpoint, TensorEntry
    from mcompose.merge import SourceParts, TensorJob

__all__ = [
    "DenseGroup",
    "FactorSum",
    "LowRankGroup",
    "RoutedLinear",
    "carried_group",
    "converted_group",
    "dense",
    "layer_linears",
    "text_factors",
    "text_terms",
]


@dataclass(frozen=True)
class RoutedLinear:
    """One linear of one decoder layer.

    Args:
        name: ``layers.0.self_attn.q_proj``.
        layer: Its layer.
        tensors: Names of its tensors: the weight, and the bias where there is one.
    """

    name: str
    layer: int
    tensors: tuple[str, ...]

    @property
    def weight(self) -> str:
        """Name of its matrix."""
        return f"{self.name}.weight"


def layer_linears(language: Sequence[TensorJob]) -> tuple[RoutedLinear, ...]:
    """Returns all matrices of all layers, with their biases.

    Args:
        language: Jobs of the language model.
    """
    names = {job.address: job for job in language if job.part == LANGUAGE and job.layer is not None}
    found = []
    for name, job in names.items():
        stem = name.removesuffix(".weight")
        if stem != name and len(job.shape) == 2 and job.layer is not None:
            bias = f"{stem}.bias"
            found.append(RoutedLinear(stem, job.layer, (name, bias) if bias in names else (name,)))
    return tuple(found)


@dataclass(frozen=True)
class LowRankGroup:
    """``W0 + scale * B * A`` on every linear.

    Args:
        source: Whose.
        rank: Rank of the factors.
        scale: Factor of their product.
        factors: Linear to (A, B); None for one that the factors leave alone.
        origin: Name of a linear's tensor to where W0 (and its bias) lies.
    """

    source: SourceParts
    rank: int
    scale: float
    factors: Mapping[str, tuple[TensorEntry, TensorEntry] | None]
    origin: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class DenseGroup:
    """Tensors of its own for every linear.

    Args:
        source: Whose.
        tensors: Name of a linear's tensor to where its values come from.
    """

    source: SourceParts
    tensors: Mapping[str, Contribution]


class _Terms(tuple[LowRank, ...]):
    """Products whose text names no folder, since plans that differ only in folders have one fingerprint."""

    def __repr__(self) -> str:
        entries = [(term.scale, *((e.key, e.dtype, e.shape, e.offset) for e in (term.a, term.b) if e)) for term in self]
        return repr(entries)


@dataclass(frozen=True)
class FactorSum(LowRank):
    """Several products that are added to one tensor, as a text group that was composed of several has them.

    Args:
        terms: The products; ``a``, ``b`` and ``scale`` are those of the first.
    """

    terms: tuple[LowRank, ...] = ()

    @property
    def rank(self) -> int:
        """Rank of the sum, at most."""
        return sum(term.rank for term in self.terms)

    @property
    def note(self) -> str:
        """What is done, in a few words, for the ledger."""
        return "; ".join(term.note for term in self.terms)

    def delta(self, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Returns the sum of the products for some rows of the tensor, float32."""
        first, *others = (term.delta(rows) for term in self.terms)
        for other in others:
            first += other
        return first


def _summed(terms: Sequence[LowRank]) -> LowRank:
    first = terms[0]
    if len(terms) == 1:
        return first
    return FactorSum(first.key, first.shape, first.a, first.b, scale=first.scale, terms=_Terms(terms))


def _terms(part: LowRank | None) -> tuple[LowRank, ...]:
    if part is None:
        return ()
    return part.terms if isinstance(part, FactorSum) else (part,)


def text_factors(checkpoint: Checkpoint, anatomy: Anatomy) -> dict[str, LowRank]:
    """Returns the low-rank part of a composed checkpoint's text group, which belongs to its language model.

    Args:
        checkpoint: The checkpoint.
        anatomy: Anatomy of its files.

    Returns:
        Key of a linear's weight to what is added to it; empty where the text group is dense.

    Raises:
        CompositionError: Its files do not hold what its config says.
    """
    spec = _spec(checkpoint.config, TEXT)
    if spec is None or not spec.low_rank:
        return {}
    slots, found = anatomy.by_name(f"{GROUP}:{TEXT}"), {}
    for name, slot in anatomy.by_name(LANGUAGE).items():
        names = group_keys(name.removesuffix(".weight"), TEXT, spec)
        if names[0] not in slots:
            continue
        if missing := [one for one in names if one not in slots]:
            raise CompositionError(
                f"The text group of '{checkpoint.folder}' holds '{names[0]}', and no '{missing[0]}'.",
                hint="Is the checkpoint complete?",
            )
        shape = checkpoint.tensors[slot.key].shape
        factors = [checkpoint.tensors[slots[one].key] for one in names]
        pairs = zip(factors[::2], factors[1::2], spec.terms, strict=True)
        found[slot.key] = _summed([LowRank(slot.key, shape, a, b, scale=scale) for a, b, (_, scale) in pairs])
    return found


def carried_group(source: SourceParts, group: str, linears: Sequence[RoutedLinear]) -> LowRankGroup | DenseGroup | None:
    """Returns the group that a composed checkpoint carries for a modality.

    Args:
        source: The source.
        group: The modality.
        linears: The linears of the output.

    Returns:
        The group; None when it carries none.

    Raises:
        CompositionError: Its files do not hold what its config says.
    """
    spec = _spec(source.checkpoint.config, group)
    if spec is None:
        return None
    slots = source.anatomy.by_name(f"{GROUP}:{group}")

    def entry(name: str) -> TensorEntry:
        if name not in slots:
            raise CompositionError(
                f"Source '{source.name}' says that it has a group for {group}, and its files hold no '{name}'.",
                hint="Is the checkpoint complete?",
            )
        return source.entry(slots[name].key)

    def own(linear: RoutedLinear, kind: str) -> TensorEntry:
        return entry(f"{linear.name}.groups.{group}.{kind}")

    if spec.low_rank:
        factors = {one.name: (own(one, "lora_A.weight"), own(one, "lora_B.weight")) for one in linears}
        return LowRankGroup(source, spec.rank, spec.scale, factors, _carried_origin(source, linears))
    pairs = ((name, own(one, name.removeprefix(f"{one.name}."))) for one in linears for name in one.tensors)
    return DenseGroup(source, {name: Contribution(source.name, entry) for name, entry in pairs})


def converted_group(source: SourceParts, linears: Sequence[RoutedLinear]) -> LowRankGroup | DenseGroup:
    """Returns a source's whole language model as a group.

    Args:
        source: The source.
        linears: The linears of the output.
    """
    terms = text_terms(source, linears)
    return terms[0] if len(terms) == 1 else DenseGroup(source, dict(_own_tensors(source, linears)))


def text_terms(source: SourceParts, linears: Sequence[RoutedLinear]) -> tuple[LowRankGroup, ...]:
    """Returns a source's language model as factors over its checkpoint, where it is exactly that.

    Args:
        source: The source; its adapter, or the low-rank parts of its text group, give the factors.
        linears: The linears of the output.

    Returns:
        One group a product; none when there are no factors, or they are more than plain products that have one rank
        and one scale on all linears.
    """
    own = dict(_own_tensors(source, linears))
    terms = {name: _terms(contribution.low_rank) for name, contribution in own.items()}
    kinds = {tuple((term.rank, term.scale) for term in found) for found in terms.values() if found}
    plain = all(term.a is not None and term == _product(term) for found in terms.values() for term in found)
    if len(kinds) != 1 or not plain:
        return ()
    origin = {name: contribution.entry for name, contribution in own.items()}
    groups = []
    for index, (rank, scale) in enumerate(kinds.pop()):
        factors: dict[str, tuple[TensorEntry, TensorEntry] | None] = {}
        for one in linears:
            part = terms[one.weight][index] if terms[one.weight] else None
            factors[one.name] = (part.a, part.b) if part is not None and part.a and part.b else None
        groups.append(LowRankGroup(source, rank, scale, factors, origin))
    return tuple(groups)


def dense(group: LowRankGroup) -> DenseGroup:
    """Returns the same group as tensors of its own; the sums are rounded once, when they are written."""
    tensors = {}
    for name, entry in group.origin.items():
        pair = group.factors.get(name.removesuffix(".weight"))
        low_rank = LowRank(entry.key, entry.shape, *pair, scale=group.scale) if pair else None
        tensors[name] = Contribution(group.source.name, entry, low_rank)
    return DenseGroup(group.source, tensors)


def _product(part: LowRank) -> LowRank:
    """Returns the plain product in a low-rank part, without anything else that an adapter may do."""
    return LowRank(part.key, part.shape, part.a, part.b, scale=part.scale)


def _own_tensors(source: SourceParts, linears: Sequence[RoutedLinear]) -> Iterator[tuple[str, Contribution]]:
    slots = source.anatomy.by_name(LANGUAGE)
    for one in linears:
        for name in one.tensors:
            yield name, source.contribution(slots[name].key)


def _carried_origin(source: SourceParts, linears: Sequence[RoutedLinear]) -> dict[str, TensorEntry]:
    slots = source.anatomy.by_name()
    apart = source.checkpoint.config.get("routed_base", "shared") == "separate"
    middle = ".base." if apart else "."
    names = {name: f"{one.name}{middle}{name.removeprefix(f'{one.name}.')}" for one in linears for name in one.tensors}
    missing = [spelt for spelt in names.values() if spelt not in slots]
    if missing:
        raise CompositionError(
            f"Low-rank groups of '{source.name}' add to '{missing[0]}', which its files do not hold.",
            hint="Is the checkpoint complete?",
        )
    return {name: source.entry(slots[spelt].key) for name, spelt in names.items()}


def _spec(config: Mapping[str, Any], group: str) -> GroupSpec | None:
    """Returns what a config says of a group; None without one, and for a text group that is the linears themselves."""
    groups = config.get("routed_groups") if config.get("model_type") == COMPOSED_TYPE else None
    try:
        return group_specs(groups or {}, base=config.get("routed_base", "shared") if groups else "shared").get(group)
    except ValueError as error:
        raise CompositionError(str(error), hint="Its config.json is broken, or of another version.") from error
