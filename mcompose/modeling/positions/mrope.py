"""Positions for language models with M-RoPE, over a batch that mixes sources with and without it.

Letters: B text rows, L tokens, G vectors that one image, or one frame or video, becomes.

M-RoPE gives every token three positions (time, height, width). Text, sound, points, and the images of sources that
count in one dimension advance all three together; an image or a video of an M-RoPE source is laid out on its grid.
Each family's own arithmetic is in ``families.Mrope``, and is tested against the native ``get_rope_index``. Paper:
Wang et al. 2024, arXiv 2409.12191, section 2.1 (multimodal rotary position embedding).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..families import TYPE_IDS, Mrope

__all__ = ["Grid", "Item", "grids_of", "mrope_positions", "text_positions"]


class Item(Protocol):
    """One image, video or frame whose positions are known."""

    @property
    def size(self) -> int:
        """How many tokens it takes."""
        ...

    def positions(self, start: int) -> torch.Tensor:
        """Returns the positions (3, G) of an item that begins at ``start``."""
        ...

    def after(self, positions: torch.Tensor, start: int) -> int:
        """Returns where the text after the item goes on."""
        ...


@dataclass(frozen=True)
class Grid:
    """One image, video or frame on its grid.

    Args:
        frames: Positions in time.
        height: Positions in height, after merging.
        width: Positions in width, after merging.
        stride: Distance in positions between two frames.
        advance: As in ``Mrope.advance``.
    """

    frames: int
    height: int
    width: int
    stride: float
    advance: str

    @property
    def size(self) -> int:
        """How many tokens it takes."""
        return self.frames * self.height * self.width

    def positions(self, start: int) -> torch.Tensor:
        """Returns the positions (3, G) of an item that begins at ``start``."""
        time = (torch.arange(self.frames) * self.stride).long()
        axes = torch.meshgrid(time, torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return torch.stack(axes).reshape(3, -1) + start

    def after(self, positions: torch.Tensor, start: int) -> int:
        """Returns where the text after the item goes on."""
        return start + max(self.height, self.width) if self.advance == "side" else int(positions.max()) + 1


def grids_of(config: PreTrainedConfig, rule: Mrope, modality: str, inputs: Mapping[str, Any]) -> list[Grid]:
    """Returns the grids of a source's items, in order.

    Args:
        config: The source's configuration.
        rule: Its family's way of counting.
        modality: "image" or "video".
        inputs: The processor outputs of this modality, by native name.
    """
    grid_thw = inputs.get(f"{modality}_grid_thw")
    if grid_thw is None:
        return []
    vision = config.vision_config
    merge = vision.spatial_merge_size
    rate = 1.0
    if rule.rate is not None and (modality == "video" or rule.image_rate):
        rate = getattr(config, rule.rate, None) or getattr(vision, rule.rate)
    seconds = inputs.get(rule.seconds) if rule.seconds is not None and modality == "video" else None
    grids = []
    for index, (frames, height, width) in enumerate(grid_thw.tolist()):
        every = float(seconds[index]) if seconds is not None else rule.default_seconds
        stride = rate * every if modality == "video" else rate
        shape = (height // merge, width // merge, stride, rule.advance)
        apart = rule.frames_apart and modality == "video"
        grids += [Grid(1, *shape)] * frames if apart else [Grid(frames, *shape)]
    return grids


def text_positions(
    attention_mask: torch.Tensor | None, *, rows: int, length: int, device: torch.device
) -> torch.Tensor:
    """Returns plain positions (B, L): counted over real tokens, 0 on padding."""
    if attention_mask is None:
        return torch.arange(length, device=device).expand(rows, -1)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0).masked_fill(attention_mask == 0, 0)


def mrope_positions(
    types_BL: torch.Tensor,
    grids: Mapping[str, Sequence[Item]],
    *,
    attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns positions for every token, and what later tokens have to add to their plain position.

    Args:
        types_BL: mm_token_type_ids.
        grids: Modality -> grids of its items over the whole batch, in reading order; modalities that are absent count
            in one dimension.
        attention_mask: 2-D mask (B, L) of real tokens, or None.

    Returns:
        Positions (3, B, L), zero on padding, and deltas (B, 1).

    Raises:
        ValueError: When grids and placeholders do not match.
    """
    rows, length = types_BL.shape
    waiting = {TYPE_IDS[modality]: iter(items) for modality, items in grids.items()}
    positions_3BL = torch.zeros((3, rows, length), dtype=torch.long)
    deltas = []
    types_cpu = types_BL.cpu()
    for row in range(rows):
        real = torch.ones(length, dtype=torch.bool) if attention_mask is None else attention_mask[row].bool().cpu()
        one = _row(types_cpu[row][real].tolist(), waiting)
        positions_3BL[:, row, real] = one
        deltas.append(int(one.max()) + 1 - one.shape[1] if one.numel() else 0)
    device = types_BL.device
    return positions_3BL.to(device), torch.tensor(deltas, device=device)[:, None]


def _row(types: list[int], waiting: Mapping[int, Iterator[Item]]) -> torch.Tensor:
    pieces, start, index = [torch.zeros((3, 0), dtype=torch.long)], 0, 0
    while index < len(types):
        kind = types[index]
        if kind in waiting:
            grid = next(waiting[kind], None)
            if grid is None or types[index : index + grid.size] != [kind] * grid.size:
                raise ValueError("The placeholders of an image or video do not match its grid.")
            piece = grid.positions(start)
            index, start = index + grid.size, grid.after(piece, start)
        else:
            end = index + 1
            while end < len(types) and types[end] not in waiting:
                end += 1
            piece = (torch.arange(end - index) + start).expand(3, -1)
            start += end - index
            index = end
        pieces.append(piece)
    return torch.cat(pieces, dim=1)
