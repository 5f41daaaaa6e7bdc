"""Pairs the language tensors of all sources by name: one job for each name that all share.

Without slices, layers with the same number are paired. With slices (from mergekit recipes), the recipe says which
layers of which sources make an output layer; tensors that no slice uses are dropped and listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import EMBEDDING, ENCODER, HEAD, LANGUAGE, Anatomy, Slot
from mcompose.checkpoint import TensorEntry
from mcompose.errors import CompositionError, RecipeError, nearest_name
from mcompose.merge.job import Contribution, Dropped, Segment, TensorJob
from mcompose.merge.settings import bound_segment, output_dtype
from mcompose.part_names import HEAD_NAME, LANGUAGE_PARTS
from mcompose.recipe import count_layers, find_slice

if TYPE_CHECKING:
    from mcompose.checkpoint import Adapter, Checkpoint, LowRank
    from mcompose.recipe import MergeSpec

__all__ = ["KeyOf", "SourceParts", "TensorPairing"]

KeyOf = Callable[[str, str], str]
"""(name, part) to the key in the output's files."""

EMBEDDING_NAME = "embed_tokens.weight"
COMPUTED_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias")
"""Suffixes of buffers in old checkpoints that the model computes from its config."""

Used = dict[tuple[str, str], None]
"""(source, name) of every tensor that a slice uses."""


@dataclass(frozen=True)
class SourceParts:
    """One source: its checkpoint, anatomy and adapter.

    Args:
        name: Name in the recipe; ``base`` for the base language model.
        checkpoint: The opened checkpoint.
        anatomy: Map of its tensors to parts.
        adapter: PEFT adapter to fold, bound to the checkpoint; None without one.
        factors: Key to the low-rank part that the checkpoint itself stores for it.
    """

    name: str
    checkpoint: Checkpoint
    anatomy: Anatomy
    adapter: Adapter | None = None
    factors: Mapping[str, LowRank] = field(default_factory=dict[str, Any])

    @property
    def embedding(self) -> Slot | None:
        """Slot of the token embeddings, whatever their name (``embed_tokens``, ``wte``)."""
        slots = self.anatomy.by_name(EMBEDDING)
        tables = [slot for name, slot in slots.items() if name.endswith("weight")]
        return slots.get(EMBEDDING_NAME) or next(iter(tables), None)

    def entry(self, key: str) -> TensorEntry:
        """Returns the location of a key's bytes."""
        return self.checkpoint.tensors[key]

    def contribution(self, key: str) -> Contribution:
        """Returns a key as an input of a segment, with its adapter or low-rank part."""
        low_rank = self.factors.get(key) if self.adapter is None else self.adapter.fold_for(key)
        return Contribution(self.name, self.entry(key), low_rank)


class TensorPairing:
    """Pairs the language tensors of all sources by name.

    Args:
        merge: The recipe's merge section.
        sources: All sources with a language model, in the recipe's order.
        base: The language model that all started from, where the recipe names it.
        key_of: Function from (name, part) to the key in the output.
        target: The source whose extra vocabulary rows the output keeps; None for none.
        parts: Parts to merge: the language model, or the towers of sources of the same class.
    """

    def __init__(
        self,
        merge: MergeSpec,
        sources: Sequence[SourceParts],
        base: SourceParts | None,
        *,
        key_of: KeyOf,
        target: SourceParts | None,
        parts: Sequence[str] = LANGUAGE_PARTS,
    ) -> None:
        self.merge, self.sources, self.base = merge, sources, base
        self.key_of, self.target = key_of, target
        self.dropped: list[Dropped] = []
        self.slots = [_shared_slots(source, self.dropped, parts) for source in sources]
        self.base_slots = _shared_slots(base, [], parts) if base else {}
        self.num_layers = count_layers(merge) or (target or sources[0]).anatomy.num_layers
        self._depths = _encoder_depths(self.slots[0])
        if HEAD not in parts:
            return
        _untie_heads(sources, self.slots)
        if base:
            _untie_heads([base], [self.base_slots], wanted=HEAD_NAME in self.slots[0])

    def jobs(self) -> list[TensorJob]:
        """Returns one job for each name that all sources share."""
        jobs: list[TensorJob] = []
        for name in self._shared_names():
            slots = [slots[name] for slots in self.slots]
            inputs = [source.contribution(slot.key) for source, slot in zip(self.sources, slots, strict=True)]
            jobs.append(self._job(slots[0], inputs, self._base_contribution(name)))
        return jobs

    def sliced_jobs(self) -> list[TensorJob]:
        """Returns the jobs of an output whose layers come from ranges of the sources' layers."""
        outside = [self.slots[0][name] for name in self._shared_names()]
        used: Used = {}
        jobs = [self._sliced_job(slot, used) for slot in outside if _is_before_layers(slot)]
        for layer in range(self.num_layers):
            jobs += [self._sliced_job(slot, used) for slot in self._layer_slots(layer)]
        jobs += [self._sliced_job(slot, used) for slot in outside if not _is_before_layers(slot)]
        for source, slots in zip(self.sources, self.slots, strict=True):
            self.dropped += [
                Dropped(source.name, slot.key, slot.part, "no slice takes it")
                for name, slot in slots.items()
                if (source.name, name) not in used
            ]
        return jobs

    def _shared_names(self) -> list[str]:
        """Returns the names that every source has, in the target's order; others are dropped with a reason, or refused.

        With slices, only names outside the layers: the slices define which layers are paired.
        """
        lead = self.sources.index(self.target) if self.target in self.sources else 0
        order = dict.fromkeys(name for slots in (self.slots[lead], *self.slots) for name in slots)
        names: list[str] = []
        partial: list[str] = []
        for name in order:
            held = [slots[name] for slots in self.slots if name in slots]
            if self.merge.slices and held[0].layer is not None:
                continue
            if len(held) == len(self.slots):
                names.append(name)
            elif name.endswith(COMPUTED_BUFFERS):
                self._drop_everywhere(name, "a buffer that the model computes from its config")
            else:
                partial.append(name)
        if partial:
            raise self._partial_error(partial)
        return names

    def _job(self, slot: Slot, inputs: list[Contribution], base: Contribution | None) -> TensorJob:
        key = self.key_of(slot.name, slot.part)
        if slot.part in (EMBEDDING, HEAD):
            return self._vocabulary_job(key, slot, inputs, base)
        _check_shapes(slot.name, inputs)
        shape = inputs[0].entry.shape
        segment = self._segment(slot, inputs, base, rows=shape[0] if shape else 1)
        dtype = output_dtype(self.merge.dtype, inputs[0].entry.dtype)
        note = _folded_note(inputs)
        return TensorJob(key, slot.part, slot.layer, dtype, shape, (segment,), note, address=slot.name)

    def _vocabulary_job(self, key: str, slot: Slot, inputs: list[Contribution], base: Contribution | None) -> TensorJob:
        """Merges the rows that all share; further rows are kept from the target and dropped from other sources."""
        _check_shapes(slot.name, inputs, from_dimension=1)
        merged = self._segment(slot, inputs, base, rows=min(_rows(c) for c in inputs))
        bounded = base is not None and (len(inputs) > 1 or merged.base is not None)
        shared = min(merged.stop, _rows(base)) if base is not None and bounded else merged.stop
        kept = next((c for c in inputs if self.target and c.source == self.target.name), None)
        dtype = output_dtype(self.merge.dtype, (kept or inputs[0]).entry.dtype)
        if len(inputs) > 1 and base is not None and inputs[0].entry.shape:
            _check_shapes(slot.name, (inputs[0], base), from_dimension=1)
        segments = [replace(merged, stop=shared)]
        rows, notes = shared, [_folded_note(inputs)]
        if kept and _rows(kept) > shared:
            rows = _rows(kept)
            segments.append(_kept_rows(kept, shared, rows, dtype=dtype))
            notes.append(f"rows {shared}-{rows - 1} {segments[-1].action} from {kept.source}")
        for contribution in inputs:
            if contribution is not kept and _rows(contribution) > shared:
                reason = f"rows {shared}-{_rows(contribution) - 1} are not rows of every source"
                self.dropped.append(Dropped(contribution.source, contribution.entry.key, slot.part, reason))
        shape = (rows, *inputs[0].entry.shape[1:])
        note = "; ".join(note for note in notes if note)
        return TensorJob(key, slot.part, slot.layer, dtype, shape, tuple(segments), note, address=slot.name)

    def _segment(self, slot: Slot, inputs: list[Contribution], base: Contribution | None, *, rows: int) -> Segment:
        depth = self.num_layers
        if slot.part == ENCODER:
            depth = self._depths.get(_stack(slot), max(self._depths.values(), default=1))
        return bound_segment(self.merge, slot, inputs=inputs, base=base, rows=rows, num_layers=depth)

    def _layer_slots(self, layer: int) -> list[Slot]:
        """Returns the tensors of one output layer, with the output's names, in the order of the first source."""
        place = find_slice(self.merge, part=LANGUAGE, layer=layer)
        assert place is not None, "the recipe has slices"
        lead = place.piece.names[0]
        taken = (place.layers or {})[lead]
        slots = [slot for slot in self._slots_of(lead).values() if slot.layer == taken]
        if not slots:
            raise RecipeError(f"'merge.slices' use layer {taken} of '{lead}', which does not have this layer.")
        return [_renumbered(slot, layer) for slot in slots]

    def _sliced_job(self, slot: Slot, used: Used) -> TensorJob:
        part = EMBEDDING if _is_before_layers(slot) else slot.part
        place = find_slice(self.merge, part=part, layer=slot.layer)
        assert place is not None, "the recipe has slices"
        layers = place.layers or {}
        inputs = [
            self._use(source, _renumbered(slot, layers.get(source, slot.layer)), used) for source in place.piece.names
        ]
        base_name = _renumbered(slot, layers.get("base", slot.layer)).name
        return self._job(slot, inputs, self._base_contribution(base_name))

    def _use(self, source: str, slot: Slot, used: Used) -> Contribution:
        source_slot = self._slots_of(source).get(slot.name)
        if source_slot is None:
            raise RecipeError(f"'merge.slices' use '{slot.name}' of '{source}', which does not have it.")
        used[source, slot.name] = None
        parts = next(parts for parts in self.sources if parts.name == source)
        return parts.contribution(source_slot.key)

    def _slots_of(self, source: str) -> dict[str, Slot]:
        for parts, slots in zip(self.sources, self.slots, strict=True):
            if parts.name == source:
                return slots
        names = [parts.name for parts in self.sources]
        raise RecipeError(f"'merge.slices' name '{source}', which is not a source.", hint=nearest_name(source, names))

    def _base_contribution(self, name: str) -> Contribution | None:
        if self.base is None or name not in self.base_slots:
            return None
        return self.base.contribution(self.base_slots[name].key)

    def _drop_everywhere(self, name: str, reason: str) -> None:
        for source, slots in zip(self.sources, self.slots, strict=True):
            if name in slots:
                self.dropped.append(Dropped(source.name, slots[name].key, slots[name].part, reason))

    def _partial_error(self, partial: list[str]) -> CompositionError:
        name = partial[0]
        holders = [s.name for s, slots in zip(self.sources, self.slots, strict=True) if name in slots]
        others = [s.name for s, slots in zip(self.sources, self.slots, strict=True) if name not in slots]
        more = f" and {len(partial) - 1} more tensors" if len(partial) > 1 else ""
        verb = "are" if more else "is"
        hint = "Use language models of the same architecture and depth."
        if name.endswith(".bias"):
            hint = "Use sources of the same base: one language model has biases and the other does not."
        return CompositionError(f"'{name}'{more} {verb} in {_join(holders)} but not in {_join(others)}.", hint=hint)


def _rows(contribution: Contribution) -> int:
    return contribution.entry.shape[0] if contribution.entry.shape else 1


def _is_before_layers(slot: Slot) -> bool:
    """Returns whether a tensor outside the layers is used before them, such as embeddings and their norms."""
    return slot.part == EMBEDDING or (slot.layer is None and re.search(r"emb|wpe", slot.name) is not None)


def _renumbered(slot: Slot, layer: int | None) -> Slot:
    """Returns the slot of the same tensor in another layer."""
    if slot.layer is None or layer is None or slot.layer == layer:
        return slot
    name = re.sub(rf"(?<![^.]){slot.layer}\.", f"{layer}.", slot.name, count=1)  # `layers.3.`, `h.3.`
    return replace(slot, name=name, layer=layer)


def _shared_slots(source: SourceParts, dropped: list[Dropped], parts: Sequence[str]) -> dict[str, Slot]:
    slots = source.anatomy.by_name(*parts)
    if source.anatomy.tied and HEAD_NAME in slots:
        slot = slots.pop(HEAD_NAME)
        dropped.append(Dropped(source.name, slot.key, slot.part, "the head is tied to the embedding"))
    return slots


def _untie_heads(sources: Sequence[SourceParts], all_slots: list[dict[str, Slot]], *, wanted: bool = False) -> None:
    """Uses the embedding as head of tied sources when another source has a separate head."""
    if not (wanted or any(HEAD_NAME in slots for slots in all_slots)):
        return
    for source, slots in zip(sources, all_slots, strict=True):
        if source.anatomy.tied and HEAD_NAME not in slots and source.embedding is not None:
            slots[HEAD_NAME] = Slot(source.embedding.key, HEAD_NAME, HEAD)


def _stack(slot: Slot) -> str:
    """Returns the path of the list of layers that a tensor lies in; empty outside the layers."""
    return "" if slot.layer is None else slot.name.partition(f".{slot.layer}.")[0]


def _encoder_depths(slots: Mapping[str, Slot]) -> dict[str, int]:
    """Returns the number of layers of every list of layers in the towers: gradients run over each on its own."""
    depths: dict[str, int] = {}
    for slot in slots.values():
        if slot.part == ENCODER and slot.layer is not None:
            depths[_stack(slot)] = max(depths.get(_stack(slot), 0), slot.layer + 1)
    return depths


def _kept_rows(kept: Contribution, start: int, stop: int, *, dtype: str) -> Segment:
    plain = "copied" if kept.entry.dtype == dtype else "cast"
    return Segment(start, stop, plain if kept.low_rank is None else "folded", (kept,))


def _check_shapes(name: str, inputs: Sequence[Contribution], *, from_dimension: int = 0) -> None:
    first = inputs[0]
    for other in inputs[1:]:
        if other.entry.shape[from_dimension:] != first.entry.shape[from_dimension:]:
            raise CompositionError(
                f"'{name}' is {_dimensions(first)} in '{first.source}' and {_dimensions(other)} in '{other.source}'.",
                hint="Use sources of the same language model; 'mcompose inspect' shows their parts.",
            )


def _dimensions(contribution: Contribution) -> str:
    return " x ".join(map(str, contribution.entry.shape)) or "a scalar"


def _folded_note(inputs: Sequence[Contribution]) -> str:
    notes = [f"adapter of {c.source} folded ({c.low_rank.note})" for c in inputs if c.low_rank is not None]
    return "; ".join(notes)


def _join(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
