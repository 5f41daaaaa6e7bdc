"""From slots to blocks: asks the router, runs the experts it chose, and writes their blocks into the batch.

Letters: B text rows, L tokens, I items, C classes.

A batch comes with one ``<expert>`` slot after each item and the inputs of every expert for every item. ``route``
encodes the items once, asks the router, runs each expert on the items that go to it, and replaces every slot by the
block of its experts, or by nothing. What it returns is a batch as if the experts had been named to the processor.
Paper: Peng et al. 2024, arXiv 2412.05983, section 3.1 (one expert per image at most; several are not in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..families import TYPE_IDS
from ..towers.features import Features
from .configuration import NONE
from .expert import ExpertFeatures
from .places import ITEM_TOKENS, Extras, expert_names, take_extras, unseen
from .router import ItemCounts, chosen_experts

__all__ = ["has_slots", "route_batch", "routed_generation"]

_ROW_TENSORS = ("input_ids", "attention_mask", "padding_mask", "token_type_ids", "mm_token_type_ids", "labels")


@dataclass(frozen=True)
class _Slot:
    """One slot.

    Args:
        row: Its text row.
        place: Its place in the row.
        modality: Modality of the item before it.
        item: The item's number among those of its modality.
    """

    row: int
    place: int
    modality: str
    item: int


def has_slots(config: Any, input_ids: torch.Tensor | None) -> bool:
    """Returns whether a batch has slots that an expert is still to be chosen for."""
    if config.expert_slot_id is None or not isinstance(input_ids, torch.Tensor):
        return False
    return bool((input_ids == config.expert_slot_id).any())


def route_batch(model: Any, batch: Mapping[str, Any], *, experts: Any = "auto") -> dict[str, Any]:
    """Chooses experts, and writes their blocks into a batch.

    Args:
        model: The ``ComposedModel``.
        batch: What the processor gave with ``experts="auto"``; labels and positions may be there too.
        experts: "auto" asks the router; "none" uses none; a name sends all items of its modality there; a list says
            it for each item that has a slot, in reading order (None or "none" for none, a tuple for several); a
            mapping holds one of these for each modality.

    Returns:
        The batch with blocks, ``mm_features`` and ``expert_features`` that were made on the way, and ``routes``: the
        experts of each item in reading order. A batch without slots comes back as it is, with ``routes`` empty.

    Raises:
        ValueError: Slots and items do not match, or an expert's inputs are missing.
    """
    config, input_ids = model.config, batch["input_ids"]
    if not has_slots(config, input_ids):
        return {**batch, "routes": []}
    extras, rest = take_extras(config, batch)
    media, _ = model._split(rest)
    slots, items = _slots(model, input_ids, extras)
    features = rest.get("mm_features")
    if features is None:
        features = model.encode_media(media, items if _asks(experts) else None)
    routes = _asked(model, slots, items, features) if _asks(experts) else _told(config, slots, experts)
    made = _run_experts(model, slots, routes, extras.inputs)
    blocks = _slot_blocks(config, slots, routes, made)
    kept = {key: value for key, value in batch.items() if _stays(config, key)}
    kept |= _expanded(model, kept, blocks)
    kept["mm_features"] = features
    kept["expert_features"] = {name: found for name, (found, _) in made.items()}
    kept["routes"] = routes
    return kept


def routed_generation(model: Any, kwargs: dict[str, Any], *, experts: Any, positions: Any) -> dict[str, Any]:
    """Returns what ``generate`` goes on with: blocks in place of slots, and padding of experts out of sight for good.

    Args:
        model: The ``ComposedModel``.
        kwargs: What ``generate`` got, with ``input_ids``.
        experts: As in :func:`route_batch`.
        positions: Function of ids and arguments that counts positions as ``generate`` does.
    """
    batch = route_batch(model, kwargs, experts=experts)
    batch.pop("routes")
    extras, _ = take_extras(model.config, batch)
    made = model.encode_experts(extras)
    batch = {key: value for key, value in batch.items() if _stays(model.config, key)}
    if made:
        batch["expert_features"] = made
    unseen_BL = unseen(model.config, batch["input_ids"], made)
    if unseen_BL is not None:
        # Positions would be counted over what is seen, and later steps would see what this mask alone leaves out.
        if batch.get("position_ids") is None:
            batch["position_ids"] = positions(batch["input_ids"], dict(batch))
        mask_BL = batch.get("attention_mask")
        mask_BL = torch.ones_like(batch["input_ids"]) if mask_BL is None else mask_BL
        batch["attention_mask"] = mask_BL.masked_fill(unseen_BL.to(mask_BL.device), 0)
    return batch


def _asks(experts: Any) -> bool:
    return isinstance(experts, str) and experts == "auto"


def _stays(config: Any, key: str) -> bool:
    gone = ("expert_features", "routes")
    return expert_names(config, key) is None and not key.endswith(ITEM_TOKENS) and key not in gone


def _slots(model: Any, input_ids: torch.Tensor, extras: Extras) -> tuple[list[_Slot], dict[str, ItemCounts]]:
    """Returns all slots in reading order, and the placeholder tokens of the items before them."""
    config = model.config
    modality_of = {index: modality for modality, index in model.ids.items()}
    slots: list[_Slot] = []
    tokens: dict[str, list[int]] = {modality: [] for modality in config.routers}
    for row, ids in enumerate(input_ids.tolist()):
        counts, last = dict.fromkeys(model.ids, 0), None
        for place, index in enumerate(ids):
            if index in modality_of:
                last = modality_of[index]
                counts[last] += 1
            elif index == config.expert_slot_id:
                if last not in tokens or not counts[last]:
                    raise ValueError(f"Row {row} has an <expert> slot at {place} that stands after no item.")
                slots.append(_Slot(row, place, last, len(tokens[last])))
                tokens[last].append(counts[last])
                counts[last] = 0
        if left := [modality for modality in tokens if tokens[modality] and counts[modality]]:
            raise ValueError(f"Row {row} has {left[0]} items with and without an <expert> slot.")
    for modality, stated in extras.item_tokens.items():
        if modality in tokens and tokens[modality] and stated != tokens[modality]:
            raise ValueError(f"{modality}{ITEM_TOKENS} says {stated}, and the slots say {tokens[modality]}.")
    return slots, {modality: ItemCounts(found) for modality, found in tokens.items() if found}


def _asked(
    model: Any, slots: Sequence[_Slot], items: Mapping[str, ItemCounts], features: Mapping[str, Features]
) -> list[list[str]]:
    chosen = {}
    for modality, counts in items.items():
        if modality not in features:
            raise ValueError(f"The batch has <expert> slots after {modality} items and no {modality} came.")
        logits_IC = model.ask_router(modality, features[modality])
        if len(logits_IC) != counts.count:
            raise ValueError(f"There are {counts.count} slots for {len(logits_IC)} {modality} items.")
        chosen[modality] = chosen_experts(logits_IC, model.config.routers[modality])
    return [chosen[slot.modality][slot.item] for slot in slots]


def _told(config: Any, slots: Sequence[_Slot], experts: Any) -> list[list[str]]:
    if isinstance(experts, Mapping):
        told = {
            modality: _told(config, [slot for slot in slots if slot.modality == modality], asked)
            for modality, asked in experts.items()
        }
        if missing := [slot.modality for slot in slots if slot.modality not in told]:
            raise ValueError(f"experts= says nothing of {missing[0]} items, and the batch has slots after them.")
        return [told[slot.modality][slot.item] for slot in slots]
    if isinstance(experts, str):
        names = _asked_names(config, experts)
        return [[name for name in names if config.experts[name]["modality"] == slot.modality] for slot in slots]
    if len(experts) != len(slots):
        raise ValueError(f"experts= names {len(experts)} items, and the batch has {len(slots)} slots.")
    routes = []
    for slot, asked in zip(slots, experts, strict=True):
        names = _asked_names(config, asked)
        for name in names:
            if config.experts[name]["modality"] != slot.modality:
                raise ValueError(f"The expert {name!r} reads {config.experts[name]['modality']}, not {slot.modality}.")
        routes.append(names)
    return routes


def _asked_names(config: Any, asked: str | Sequence[str] | None) -> list[str]:
    if asked is None or asked == NONE:
        return []
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in config.experts:
            raise ValueError(f"There is no expert {name!r}; this composition has {', '.join(config.experts)}.")
    return names


def _run_experts(
    model: Any, slots: Sequence[_Slot], routes: Sequence[Sequence[str]], inputs: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[ExpertFeatures, list[int]]]:
    """Runs each expert on its items; returns its features and which slots they belong to, in reading order."""
    made = {}
    for name, expert in model.experts.items():
        mine = [number for number, route in enumerate(routes) if name in route]
        if not mine:
            continue
        if name not in inputs:
            raise ValueError(f"Items go to the expert {name!r}, and none of its inputs ({name}__...) came.")
        total = sum(slot.modality == expert.entry["modality"] for slot in slots)
        rows = [slots[number].item for number in mine]
        made[name] = (expert({key: _picked(name, key, x, rows, total) for key, x in inputs[name].items()}), mine)
    return made


def _picked(name: str, key: str, value: Any, rows: list[int], total: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if len(value) != total:
        raise ValueError(f"{name}__{key} has {len(value)} rows for {total} items.")
    return value[torch.tensor(rows, device=value.device)]


def _slot_blocks(
    config: Any,
    slots: Sequence[_Slot],
    routes: Sequence[Sequence[str]],
    made: Mapping[str, tuple[ExpertFeatures, list[int]]],
) -> dict[tuple[int, int], list[int]]:
    """Returns for each slot, by row and place, the ids of what it becomes."""
    counts = {
        (name, number): count
        for name, (found, mine) in made.items()
        for number, count in zip(mine, found.counts, strict=True)
    }
    begin, end = config.domain_token_ids
    blocks = {}
    for number, (slot, route) in enumerate(zip(slots, routes, strict=True)):
        ids: list[int] = []
        for name in route:
            ids += [begin, *[config.expert_token_ids[name]] * counts[name, number], end]
        blocks[slot.row, slot.place] = ids
    return blocks


def _expanded(
    model: Any, batch: Mapping[str, Any], blocks: Mapping[tuple[int, int], list[int]]
) -> dict[str, torch.Tensor]:
    """Returns the row tensors of a batch with blocks in place of slots."""
    ids_BL = batch["input_ids"]
    rows, length = ids_BL.shape
    mask_BL = batch.get("attention_mask")
    real_BL = mask_BL if batch.get("padding_mask") is None else batch["padding_mask"]
    left = _pads_left(real_BL, batch.get("labels"))
    sources, filled = zip(*(_row_places(row, length, blocks) for row in range(rows)), strict=True)
    longest = max(len(places) for places in sources)
    if mask_BL is None and any(len(places) < longest for places in sources):
        mask_BL = torch.ones_like(ids_BL)
    given: dict[str, Any] = {**batch, "attention_mask": mask_BL}
    padding = {"labels": -100, "input_ids": _pad_id(model, ids_BL, real_BL)}
    on_blocks = {"labels": -100, "mm_token_type_ids": TYPE_IDS["expert"]}
    made = {}
    for key in _ROW_TENSORS:
        if not isinstance(given.get(key), torch.Tensor):
            continue
        new = [given[key][row, places] for row, places in enumerate(sources)]
        for values, block in zip(new, filled, strict=True):
            for place, index in block.items():
                # Masks and token types of a block are those of its slot.
                values[place] = index if key == "input_ids" else on_blocks.get(key, values[place])
        made[key] = torch.stack([_padded(x, longest, left=left, padding=padding.get(key, 0)) for x in new])
    if (positions := batch.get("position_ids")) is not None:
        made["position_ids"] = _moved_positions(positions, sources, longest, left=left, rows=rows)
    return _trimmed(made, left=left)


def _row_places(row: int, length: int, blocks: Mapping[tuple[int, int], list[int]]) -> tuple[list[int], dict[int, int]]:
    """Returns for each new place the old one it comes from, and new place -> id for the tokens of blocks."""
    places: list[int] = []
    filled: dict[int, int] = {}
    for place in range(length):
        block = blocks.get((row, place))
        if block is None:
            places.append(place)
            continue
        filled.update(enumerate(block, start=len(places)))
        places += [place] * len(block)
    return places, filled


def _moved_positions(
    positions: torch.Tensor, sources: Sequence[list[int]], longest: int, *, left: bool, rows: int
) -> torch.Tensor:
    """Returns positions in which blocks count on from their slot, and what follows comes after them."""
    positions = positions.expand(*positions.shape[:-2], rows, -1)
    made = []
    for row, places in enumerate(sources):
        old = torch.tensor(places, dtype=torch.long)
        counts = torch.bincount(old, minlength=positions.shape[-1])
        grown = torch.cat([torch.zeros(1, dtype=torch.long), (counts - 1).cumsum(0)[:-1]])
        first = counts.cumsum(0) - counts
        within = torch.arange(len(old)) - first[old]
        moved = positions[..., row, places] + (grown[old] + within).to(positions.device)
        made.append(_padded(moved, longest, left=left, padding=0))
    return torch.stack(made, dim=-2)


def _padded(x: torch.Tensor, length: int, *, left: bool, padding: int) -> torch.Tensor:
    missing = length - x.shape[-1]
    return torch.nn.functional.pad(x, (missing, 0) if left else (0, missing), value=padding)


def _trimmed(made: dict[str, torch.Tensor], *, left: bool) -> dict[str, torch.Tensor]:
    """Cuts columns at the padded side that are padding in every row."""
    real_BL = made.get("padding_mask", made.get("attention_mask"))
    if real_BL is None:
        return made
    used = (real_BL != 0).any(0).nonzero()[:, 0]
    part = slice(int(used[0]), None) if left else slice(None, int(used[-1]) + 1)
    return {key: value[..., part] for key, value in made.items()}


def _pads_left(mask_BL: torch.Tensor | None, labels: torch.Tensor | None) -> bool:
    if mask_BL is not None and bool((mask_BL[:, 0] == 0).any()):
        return True
    if mask_BL is not None and bool((mask_BL[:, -1] == 0).any()):
        return False
    # A full batch does not say; a prompt has to end where its answer begins.
    return labels is None


def _pad_id(model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor | None) -> int:
    for edge in (0, -1):
        if mask_BL is not None and bool((padded_B := mask_BL[:, edge] == 0).any()):
            # What the batch itself is padded with.
            return int(ids_BL[padded_B, edge][0])
    for config in (model.config, model.config.text_config):
        index = getattr(config, "pad_token_id", None)
        if index is not None:
            return int(index)
    return 0
