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

from mcompose.anatomy.part import GROUP, LANGUAGE
from mcompose.checkpoint import LowRank
from mcompose.errors import CompositionError
from mcompose.merge import Contribution

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy
    from mcompose.checkpoint import Checkpoint, TensorEntry
    from mcompose.merge import SourceParts

__all__ = [
    "DenseGroup",
    "LowRankGroup",
    "RoutedLinear",
    "carried_group",
    "converted_group",
    "dense",
    "low_rank_of",
    "text_factors",
]

TEXT = "text"


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


@dataclass(frozen=True)
class LowRankGroup:
    """``W0 + scale * B * A`` on every linear.

    Args:
        source: Whose.
        rank: Of the factors.
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


def text_factors(checkpoint: Checkpoint, anatomy: Anatomy) -> dict[str, LowRank]:
    """The low-rank part of a composed checkpoint's text group, which belongs to its language model.

    Args:
        checkpoint: The checkpoint.
        anatomy: Of its files.

    Returns:
        Key of a linear's weight to what is added to it; empty where the text group is dense.
    """
    spec = _routed(checkpoint.config).get(TEXT) or {}
    if spec.get("kind") != "low_rank":
        return {}
    slots, found = anatomy.by_name(f"{GROUP}:{TEXT}"), {}
    for name, slot in anatomy.by_name(LANGUAGE).items():
        stem = f"{name.removesuffix('.weight')}.groups.{TEXT}"
        if f"{stem}.lora_A.weight" in slots:
            a, b = (checkpoint.tensors[slots[f"{stem}.{factor}.weight"].key] for factor in ("lora_A", "lora_B"))
            found[slot.key] = LowRank(slot.key, checkpoint.tensors[slot.key].shape, a, b, scale=float(spec["scale"]))
    return found


def carried_group(source: SourceParts, group: str, linears: Sequence[RoutedLinear]) -> LowRankGroup | DenseGroup | None:
    """The group that a composed checkpoint carries for a modality.

    Args:
        source: The source.
        group: The modality.
        linears: The linears of the output.

    Returns:
        The group; None when it carries none.

    Raises:
        CompositionError: Its files do not hold what its config says.
    """
    spec = _routed(source.checkpoint.config).get(group)
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

    if spec["kind"] == "low_rank":
        factors = {one.name: (own(one, "lora_A.weight"), own(one, "lora_B.weight")) for one in linears}
        return LowRankGroup(source, spec["rank"], float(spec["scale"]), factors, _carried_origin(source, linears))
    pairs = ((name, own(one, name.removeprefix(f"{one.name}."))) for one in linears for name in one.tensors)
    return DenseGroup(source, {name: Contribution(source.name, entry) for name, entry in pairs})


def converted_group(source: SourceParts, linears: Sequence[RoutedLinear]) -> LowRankGroup | DenseGroup:
    """A source's whole language model as a group.

    Args:
        source: The source.
        linears: The linears of the output.
    """
    return low_rank_of(source, linears) or DenseGroup(source, dict(_own_tensors(source, linears)))


def low_rank_of(source: SourceParts, linears: Sequence[RoutedLinear]) -> LowRankGroup | None:
    """A source's language model as factors over its checkpoint, where it is exactly that.

    Args:
        source: The source; its adapter, or the low-rank part of its text group, gives the factors.
        linears: The linears of the output.

    Returns:
        The group; None when there are no factors, or they are more than one plain product of one rank and scale.
    """
    own = dict(_own_tensors(source, linears))
    parts = [c.low_rank for c in own.values() if c.low_rank is not None]
    kinds = {(part.rank, part.scale) for part in parts}
    plain = all(part.a is not None and part == _product(part) for part in parts)
    if len(kinds) != 1 or not plain:
        return None
    factors: dict[str, tuple[TensorEntry, TensorEntry] | None] = {}
    for one in linears:
        part = own[one.weight].low_rank
        factors[one.name] = (part.a, part.b) if part is not None and part.a and part.b else None
    ((rank, scale),) = kinds
    return LowRankGroup(source, rank, scale, factors, {name: c.entry for name, c in own.items()})


def dense(group: LowRankGroup) -> DenseGroup:
    """The same group as tensors of its own; the sums are rounded once, when they are written."""
    tensors = {}
    for name, entry in group.origin.items():
        pair = group.factors.get(name.removesuffix(".weight"))
        low_rank = LowRank(entry.key, entry.shape, *pair, scale=group.scale) if pair else None
        tensors[name] = Contribution(group.source.name, entry, low_rank)
    return DenseGroup(group.source, tensors)


def _product(part: LowRank) -> LowRank:
    """The plain product in a low-rank part, without anything else that an adapter may do."""
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


def _routed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("routed_groups") or {} if config.get("model_type") == "mcompose" else {}
