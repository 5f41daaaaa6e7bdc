"""What the adapters know about the tokens of one forward pass.

Letters: B text rows, L tokens of a row, N tokens of all rows, S samples, T tokens of the longest sample.

A row is one sample, or several when rows are packed (positions begin again at 0). Modes that look at other tokens see
those of their own sample only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .mixing import SlotState

__all__ = ["ADAPTER_RUN", "AdapterRun", "Samples", "keep_states", "sample_places"]

ADAPTER_RUN = "adapter_run"
"""Keyword by which a pass travels to the layers."""


@dataclass(frozen=True)
class Samples:
    """Where the tokens of each sample are.

    Args:
        places_ST: Position of each token among all N; 0 where a sample has no more.
        real_ST: Whether there is a token.
    """

    places_ST: torch.Tensor  # noqa: N815 - shape suffix
    real_ST: torch.Tensor  # noqa: N815 - shape suffix

    def gathered(self, x_NX: torch.Tensor) -> torch.Tensor:
        """Returns (S, T, X) of values (N, X)."""
        return x_NX[self.places_ST.to(x_NX.device)]

    def put_back(self, x_STX: torch.Tensor, count: int) -> torch.Tensor:
        """Returns (N, X) of values (S, T, X); zeros where no sample has a token."""
        real_ST, places_ST = self.real_ST.to(x_STX.device), self.places_ST.to(x_STX.device)
        made = x_STX.new_zeros(count, *x_STX.shape[2:])
        return made.index_copy(0, places_ST[real_ST], x_STX[real_ST])


@dataclass
class AdapterRun:
    """One forward pass, as adapters see it.

    Args:
        origin: Modality -> bool (B, L): the tokens that come from its media; all others are text.
        real_BL: Real tokens; padding is none.
        prompt_BL: Tokens of the prompt, from which slots are made; None: all that are given are.
        samples: Where the samples are.
        states: Name of a linear and set -> what earlier tokens left behind; None without a cache.
        continued: Whether earlier tokens are in the cache.
        figures: Set -> modality -> figures of gates, where they are asked for.
        met: How many linears have used it.
    """

    origin: Mapping[str, torch.Tensor]
    real_BL: torch.Tensor  # noqa: N815 - shape suffix
    prompt_BL: torch.Tensor | None = None  # noqa: N815 - shape suffix
    samples: Samples | None = None
    states: dict[str, SlotState | torch.Tensor] | None = None
    continued: bool = False
    figures: dict[str, Any] | None = None
    met: int = 0
    _masks: dict[tuple[str, ...] | None, torch.Tensor] = field(default_factory=dict)

    def mask_of(self, modalities: tuple[str, ...] | None) -> torch.Tensor:
        """Returns bool (B, L): the tokens of some modalities; None stands for all."""
        if modalities not in self._masks:
            self._masks[modalities] = self._mask_of(modalities)
        return self._masks[modalities]

    def _mask_of(self, modalities: tuple[str, ...] | None) -> torch.Tensor:
        if modalities is None:
            return torch.ones_like(self.real_BL)
        made = torch.zeros_like(self.real_BL)
        text = torch.ones_like(self.real_BL)
        for modality, mask_BL in self.origin.items():
            mask_BL = mask_BL.to(made.device)
            text &= ~mask_BL
            if modality in modalities:
                made |= mask_BL
        return made | text if "text" in modalities else made


def sample_places(real_BL: torch.Tensor, position_ids: torch.Tensor | None) -> Samples:
    """Returns where each sample's tokens are: a row each, or where positions begin again, several in a row.

    Args:
        real_BL: Real tokens.
        position_ids: (B, L) where rows may be packed; None where a row is a sample.
    """
    batch, length = real_BL.shape
    starts_BL = torch.zeros_like(real_BL)
    starts_BL[:, 0] = True
    if position_ids is not None and length > 1:
        starts_BL[:, 1:] |= position_ids[:, 1:] <= position_ids[:, :-1]
    owner_N = starts_BL.reshape(-1).cumsum(0) - 1
    count_S = torch.bincount(owner_N)
    longest, samples = int(count_S.max()), len(count_S)
    first_S = count_S.cumsum(0) - count_S
    place_N = torch.arange(batch * length, device=real_BL.device) - first_S[owner_N]
    places_ST = torch.zeros(samples, longest, dtype=torch.long, device=real_BL.device)
    real_ST = torch.zeros(samples, longest, dtype=torch.bool, device=real_BL.device)
    places_ST[owner_N, place_N] = torch.arange(batch * length, device=real_BL.device)
    real_ST[owner_N, place_N] = True
    return Samples(places_ST, real_ST)


def keep_states(cache: Any, states: dict[str, SlotState | torch.Tensor]) -> None:
    """Keeps what the adapters made of earlier tokens beside a cache, and moves it along with beams.

    Args:
        cache: transformers' cache.
        states: Name of a linear and set -> its state.
    """
    first = not hasattr(cache, "adapter_states")
    cache.adapter_states = states
    if not first:
        return
    reorder, crop = cache.reorder_cache, cache.crop

    def reordered(beam_idx: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        made = reorder(beam_idx, *args, **kwargs)
        cache.adapter_states.update({key: _rows(state, beam_idx) for key, state in cache.adapter_states.items()})
        return made

    def cropped(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(state, SlotState) and state.top_RE is not None for state in cache.adapter_states.values()):
            raise ValueError("Adapters of the mode 'causal' keep running sums, from which no token can be taken back.")
        return crop(*args, **kwargs)

    cache.reorder_cache, cache.crop = reordered, cropped


def _rows(state: SlotState | torch.Tensor, index: torch.Tensor) -> SlotState | torch.Tensor:
    if isinstance(state, torch.Tensor):
        return state.index_select(0, index.to(state.device))
    parts = [
        None if part is None else part.index_select(0, index.to(part.device))
        for part in (state.slots_REK, state.mass_RE, state.top_RE)
    ]
    assert parts[0] is not None, "a state has slots"
    return SlotState(parts[0], parts[1], parts[2])
