"""Positions of one image or video as its own class counts them, for families without a rule in ``families.py``.

Letters: K axes of M-RoPE (time, height, width), G vectors that one item becomes.

The tower of a source is its native base model without the language model, so its ``get_rope_index`` can be asked: for
one item alone, with a text token behind it. What it says of the item holds wherever the item begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AskedItem", "asks_native", "native_items"]

_ASKED = ("input_ids", "mm_token_type_ids", "image_grid_thw")


@dataclass(frozen=True)
class AskedItem:
    """One image, video or frame.

    Args:
        tower: The source's tower.
        modality: "image" or "video".
        grid: Its grid (1, 3), as the processor says it.
        kind: Type of its tokens.
        size: How many tokens it takes.
    """

    tower: Any
    modality: str
    grid: torch.Tensor
    kind: int
    size: int

    def positions(self, start: int) -> torch.Tensor:
        """Returns the positions (K, G) of an item that begins at ``start``."""
        return self._ask()[:, : self.size] + start

    def after(self, positions: torch.Tensor, start: int) -> int:
        """Returns where the text after the item goes on."""
        return int(self._ask()[0, self.size]) + start

    def _ask(self) -> torch.Tensor:
        types = torch.tensor([[self.kind] * self.size + [0]])
        given = {f"{self.modality}_grid_thw": self.grid.cpu().clone()}  # some classes write into it
        found, _ = self.tower.get_rope_index(torch.ones_like(types), mm_token_type_ids=types, **given)
        return found[:, 0].long()


def asks_native(tower: Any) -> bool:
    """Returns whether a tower says itself how positions count over its items, from grids and types of tokens alone."""
    function = getattr(tower, "get_rope_index", None)
    return function is not None and all(name in inspect.signature(function).parameters for name in _ASKED)


def native_items(tower: Any, modality: str, kind: int, inputs: Mapping[str, Any], merge: int) -> list[AskedItem]:
    """Returns a source's items, in order; a video whose class puts text between its frames is an item a frame.

    Args:
        tower: The source's tower.
        modality: "image" or "video".
        kind: Type of the modality's tokens.
        inputs: The processor outputs of this modality, by native name.
        merge: Patches of a side that become one token.
    """
    grids = inputs.get(f"{modality}_grid_thw")
    if grids is None:
        return []
    items = []
    for grid in grids:
        frames, whole = int(grid[0]), int(grid.prod()) // merge**2
        item = AskedItem(tower, modality, grid[None], kind, whole)
        items += [item] if modality == "image" or frames == 1 or _is_whole(item) else _frames(item, frames)
    return items


def _is_whole(item: AskedItem) -> bool:
    """Returns whether the class takes a video as one item: it cannot count one whose frames it takes apart."""
    try:
        item.positions(0)
    except (RuntimeError, StopIteration):
        return False
    return True


def _frames(item: AskedItem, frames: int) -> list[AskedItem]:
    grid = item.grid.clone()
    grid[:, 0] = 1
    return [AskedItem(item.tower, item.modality, grid, item.kind, item.size // frames)] * frames
