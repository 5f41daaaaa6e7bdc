"""Generalist-specialist collaboration masking: some tokens of the general encoder are hidden, so that experts count.

Of a sample whose domain has an expert, floor(ratio * n) of its n general tokens are hidden, drawn anew at every place
of the stage. Hidden means: nobody attends to them; positions, labels and the expert's tokens are as they were. It
happens in the batches of training only, so evaluation and generation see everything.

A batch with hidden tokens has ``attention_mask`` with zeros in their places, ``padding_mask`` as the attention mask
was, and ``hidden``: what the network is to do with them. Positions must not be counted from the mask with holes: they
are in the batch already, or the network counts them from ``padding_mask``.

Letters: B samples, L tokens, U units of a sample (tokens, tiles).

Paper: Peng et al. 2024, Chimera, arXiv:2412.05983, section 3.3; which samples are masked is said by its code only.
Differs: nothing by default. Ratio 1 follows the paper's ablation (a sample is hidden whole with probability 0.8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mcompose.align.data.masks import Batch, mask_generator
from mcompose.modeling import EXPERT_TYPE
from mcompose.recipe import Masking

__all__ = [
    "Gscm",
    "TileForm",
    "draw_units",
    "hidden_tokens",
    "hide",
    "ratio_schedule",
    "shown_where_unserved",
    "units_of",
    "unmask",
]

_PURPOSE = "gscm"
_SLACK = 1e-9  # of a product such as 0.29 * 100, which is a little less than 29


@dataclass(frozen=True)
class TileForm:
    """How the tokens of an image fall into tiles.

    Args:
        size: Tokens of a tile; None when every run of tokens is one.
        thumbnail: Which tile of several is the whole image made small: ``first``, ``last`` or ``none``.
    """

    size: int | None = None
    thumbnail: str = "none"


@dataclass(frozen=True)
class Gscm:
    """The mask of a stage; see ``masks.Mask``.

    Args:
        spec: The recipe's.
        seed: The stage's.
        ratio_at: Ratio of the sample at a position; see :func:`ratio_schedule`.
        domains: For each domain that ``domains`` in a batch counts: ids of the placeholders that are hidden.
        tiles: Placeholder's id to the form of its tiles.
        served: Whether only samples that hold tokens of an expert are masked: with noise, some get none.
    """

    spec: Masking
    seed: int
    ratio_at: Callable[[int], float]
    domains: Sequence[tuple[int, ...]]
    tiles: Mapping[int, TileForm]
    served: bool = False

    def __call__(self, batch: Batch) -> Batch:
        """Hides tokens of a batch.

        Args:
            batch: With ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (B, L), ``domains`` (B,) and
                ``positions``.

        Returns:
            The batch; the same when nothing is hidden.
        """
        hidden_BL = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for row, (domain, position) in enumerate(zip(batch["domains"].tolist(), batch["positions"], strict=True)):
            ids = self.domains[domain] if domain >= 0 else ()
            if ids and not (self.served and not (batch["mm_token_type_ids"][row] == EXPERT_TYPE).any()):
                hidden_BL[row] = torch.from_numpy(self._hidden(batch, row, ids, position))
        return hide(batch, hidden_BL & batch["attention_mask"].bool(), mechanism=self.spec.mechanism)

    def _hidden(self, batch: Batch, row: int, ids: tuple[int, ...], position: int) -> np.ndarray:
        ids_L, types_L = batch["input_ids"][row].numpy(), batch["mm_token_type_ids"][row].numpy()
        units_L = np.full(len(ids_L), -1)
        count = 0
        for index in ids:
            found_L, found = units_of(
                ids_L == index, ends_L=types_L == EXPERT_TYPE, form=self.tiles.get(index, TileForm()),
                unit=self.spec.unit, thumbnail=self.spec.include_thumbnail,
            )  # fmt: skip
            units_L = np.where(found_L >= 0, found_L + count, units_L)
            count += found
        generator = mask_generator(self.seed, position, purpose=_PURPOSE)
        chosen_U = draw_units(count, ratio=self.ratio_at(position), spec=self.spec, generator=generator)
        return np.append(chosen_U, False)[units_L]  # the last: what -1 takes


def ratio_schedule(spec: Masking, *, steps: int, batch: int) -> Callable[[int], float]:
    """Returns the ratio that is in force for each sample of a stage.

    Args:
        spec: The recipe's.
        steps: Optimizer steps of the stage.
        batch: Samples of a step over all processes.

    Returns:
        Position of a sample to ratio: ``spec.ratio`` from the end of the rise on.
    """
    rise = round(spec.rises_over * steps) if spec.rises_over < 1 else round(spec.rises_over)

    def ratio(position: int) -> float:
        step = position // batch
        if spec.schedule == "constant" or step >= rise:
            return spec.ratio
        share = (step + 1) / (rise + 1)
        return spec.ratio * (share if spec.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * share)))

    return ratio


def draw_units(count: int, *, ratio: float, spec: Masking, generator: np.random.Generator) -> np.ndarray:
    """Returns which units of a sample are hidden (U,).

    Args:
        count: Number of units.
        ratio: In force now.
        spec: The recipe's; at ratio 1 the sample is hidden whole, or not at all.
        generator: Generator of the sample.
    """
    if spec.ratio == 1 or spec.unit == "sample":
        share = ratio * spec.whole_share if spec.ratio == 1 else ratio
        return np.full(count, generator.random() < share)
    if spec.count == "bernoulli":
        return generator.random(count) < ratio
    chosen_U = np.zeros(count, dtype=bool)
    chosen_U[generator.choice(count, size=math.floor(ratio * count + _SLACK), replace=False)] = True
    return chosen_U


def units_of(
    general_L: np.ndarray, *, ends_L: np.ndarray, form: TileForm, unit: str, thumbnail: bool
) -> tuple[np.ndarray, int]:
    """Numbers the units of a sample that may be hidden.

    Args:
        general_L: Which tokens are the general encoder's (L,).
        ends_L: Which tokens belong to experts (L,): they stand between two images.
        form: Form of the tiles.
        unit: ``token``, ``tile`` or ``sample``.
        thumbnail: Whether thumbnails count.

    Returns:
        Number of each token's unit (L,), -1 where there is none; and how many units there are.
    """
    if unit != "tile" and thumbnail:
        return np.where(general_L, np.cumsum(general_L) - 1, -1), int(general_L.sum())
    tiles_L, kept = np.full(len(general_L), -1), 0
    for tiles in _images(general_L, ends_L, form):
        skipped = {"first": 0, "last": len(tiles) - 1}.get(form.thumbnail) if len(tiles) > 1 and not thumbnail else None
        for number, places in enumerate(tiles):
            if number != skipped:
                tiles_L[places] = kept
                kept += 1
    if unit == "tile":
        return tiles_L, kept
    return units_of(tiles_L >= 0, ends_L=ends_L, form=form, unit=unit, thumbnail=True)


def _images(general_L: np.ndarray, ends_L: np.ndarray, form: TileForm) -> list[list[np.ndarray]]:
    """Returns the tiles of each image: the places of each tile's tokens.

    With tiles of a fixed size an image is one run. Else a run is a tile, and all runs between two experts are one
    image; without experts every run is an image.
    """
    places = np.flatnonzero(general_L)
    if not len(places):
        return []
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    blocks = np.cumsum(ends_L)
    images: dict[int, list[np.ndarray]] = {}
    for number, run in enumerate(runs):
        if form.size is not None:
            images[number] = np.split(run, range(form.size, len(run), form.size))
        else:
            images.setdefault(int(blocks[run[0]]) if ends_L.any() else number, []).append(run)
    return list(images.values())


def hide(batch: Batch, hidden_BL: torch.Tensor, *, mechanism: str) -> Batch:
    """Returns a batch with some of its tokens hidden.

    Args:
        batch: With ``attention_mask`` (B, L).
        hidden_BL: Which.
        mechanism: ``mask``, ``drop`` or ``learned``.

    Returns:
        A new batch; the same one when nothing is to be hidden.
    """
    if not hidden_BL.any():
        return batch
    seen_BL = batch["attention_mask"]
    return {
        **batch,
        "attention_mask": seen_BL.masked_fill(hidden_BL, 0),
        "padding_mask": seen_BL,
        "hidden": mechanism,
    }


def hidden_tokens(batch: Batch) -> int:
    """Returns how many tokens of a batch are hidden."""
    if "padding_mask" not in batch:
        return 0
    return int((batch["padding_mask"].bool() & ~batch["attention_mask"].bool()).sum())


def shown_where_unserved(batch: Batch, *, experts: Sequence[int]) -> Batch:
    """Returns a batch with nothing hidden in samples that the router has sent to no expert.

    Args:
        batch: After routing.
        experts: Ids of the experts' placeholders.
    """
    if "padding_mask" not in batch:
        return batch
    ids_BL = batch["input_ids"]
    served_B1 = torch.isin(ids_BL, torch.tensor(experts, device=ids_BL.device)).any(-1, keepdim=True)
    return {**batch, "attention_mask": torch.where(served_B1, batch["attention_mask"], batch["padding_mask"])}


def unmask(batch: Batch) -> Batch:
    """A batch with nothing hidden, as evaluation has to see it."""
    if "padding_mask" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name not in ("padding_mask", "hidden")}
    return {**rest, "attention_mask": batch["padding_mask"]}
