"""The arithmetic of soft mixtures of low-rank experts.

Letters: R rows (samples), L tokens of a row, N tokens of all rows, E experts, K rank, I and O widths of a linear.

Expert e maps a token x to ``(x down_e^T) up_e``. What is mixed are the E x K numbers between the two products, so any
number of experts costs two matrix products. With logits ``l`` (one per token and expert) the modes are:

- ``token``: ``C`` = softmax of l over experts; each token mixes the experts by its own C. Causal.
- ``slot``: ``D`` = softmax of l over the tokens of a row; slot e is the mean of its tokens under D, goes through expert
  e, and each token mixes the slots by its C. Not causal.
- ``prefix``: as ``slot``, with D over the prompt alone; later tokens only combine. Causal behind the prompt.
- ``causal``: as ``slot``, with D at token t over tokens up to t.
- ``merged``: one expert a row, the experts' mean under the softmax of the logits of the prompt's mean token.

Paper: Wu et al. 2023, arXiv 2312.00968 (Omni-SMoLA), by Puigcerver et al. 2023, arXiv 2308.00951 (Soft MoE: ``slot``);
Zadouri et al. 2023, arXiv 2309.05444 (``token``); Muqeeth et al. 2023, arXiv 2306.03745 (``merged``).
Differs: the body of arXiv 2312.00968 was not available: ``slot`` follows its abstract and Soft MoE. ``prefix`` is the
nearest that a decoder can do; ``causal`` is ours and experimental. One slot an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

__all__ = [
    "SlotState",
    "combine_weights",
    "gate_figures",
    "merged_gates",
    "router_logits",
    "running_slots",
    "slots_of",
]

_EPS = 1e-6


@dataclass
class SlotState:
    """What earlier tokens of each row left behind.

    Args:
        slots_REK: Slots, or running sums of them.
        mass_RE: Running sum of weights, on the scale of ``top_RE``; None for frozen slots.
        top_RE: Largest logit so far; None for frozen slots.
    """

    slots_REK: torch.Tensor  # noqa: N815 - shape suffix
    mass_RE: torch.Tensor | None = None  # noqa: N815 - shape suffix
    top_RE: torch.Tensor | None = None  # noqa: N815 - shape suffix


def router_logits(x: torch.Tensor, router_EI: torch.Tensor, scale: torch.Tensor | None, normalise: str) -> torch.Tensor:
    """Returns float32 logits (..., E) of tokens (..., I).

    Args:
        x: Tokens.
        router_EI: The router.
        scale: Learned scale of normalised logits; None for 1.
        normalise: "l2": token and router rows have length 1; "rms": their root mean square is 1; "none".
    """
    x, router_EI = _wide(x), _wide(router_EI)
    if normalise == "l2":
        x, router_EI = functional.normalize(x, dim=-1, eps=_EPS), functional.normalize(router_EI, dim=-1, eps=_EPS)
    elif normalise == "rms":
        x = x * (x.square().mean(-1, keepdim=True) + _EPS).rsqrt()
    logits = functional.linear(x, router_EI)
    return logits if scale is None else logits * _wide(scale)


def combine_weights(logits: torch.Tensor) -> torch.Tensor:
    """Returns how a token mixes experts or slots: the softmax over the last dimension."""
    return logits.softmax(-1)


def slots_of(h_RLEK: torch.Tensor, logits_RLE: torch.Tensor, seen_RL: torch.Tensor) -> SlotState:
    """Returns the slots of each row: means of its tokens under the softmax of the logits over tokens.

    Args:
        h_RLEK: Tokens after the first product.
        logits_RLE: Their logits.
        seen_RL: Which tokens are dispatched; a row without any has slots of zero.
    """
    weights_RLE = logits_RLE.masked_fill(~seen_RL[..., None], -torch.inf)
    weights_RLE = torch.nan_to_num(weights_RLE.softmax(1)) * seen_RL[..., None]
    return SlotState(torch.einsum("rle,rlek->rek", weights_RLE, _wide(h_RLEK)))


def running_slots(
    h_RLEK: torch.Tensor, logits_RLE: torch.Tensor, seen_RL: torch.Tensor, state: SlotState | None
) -> tuple[torch.Tensor, SlotState]:
    """Returns the slots (R, L, E, K) that each token sees: of itself and the tokens before it.

    Args:
        h_RLEK: Tokens after the first product.
        logits_RLE: Their logits.
        seen_RL: Which tokens are dispatched.
        state: What tokens of earlier calls left behind.

    Returns:
        The slots, and the state after the last token.
    """
    logits_RLE = logits_RLE.double().masked_fill(~seen_RL[..., None], -torch.inf)
    own_RE = logits_RLE.amax(1)
    top_RE = own_RE if state is None or state.top_RE is None else torch.maximum(own_RE, state.top_RE)
    finite_RE = torch.where(top_RE.isfinite(), top_RE, torch.zeros_like(top_RE))
    weights_RLE = (logits_RLE - finite_RE[:, None]).exp()
    mass_RLE = weights_RLE.cumsum(1)
    sums_RLEK = (weights_RLE[..., None] * h_RLEK.double()).cumsum(1)
    if state is not None and state.top_RE is not None and state.mass_RE is not None:
        shrink_RE = (state.top_RE - finite_RE).exp()
        mass_RLE = mass_RLE + (state.mass_RE * shrink_RE)[:, None]
        sums_RLEK = sums_RLEK + (state.slots_REK * shrink_RE[..., None])[:, None]
    slots_RLEK = sums_RLEK / mass_RLE[..., None].clamp(min=torch.finfo(torch.float64).tiny)
    return slots_RLEK.to(_wide(h_RLEK).dtype), SlotState(sums_RLEK[:, -1], mass_RLE[:, -1], top_RE)


def merged_gates(
    x_RLI: torch.Tensor, seen_RL: torch.Tensor, router_EI: torch.Tensor, scale: torch.Tensor | None, normalise: str
) -> torch.Tensor:
    """Returns the share (R, E) of each expert in the one that a row uses; zeros for a row without tokens.

    Args:
        x_RLI: Tokens.
        seen_RL: Which of them are averaged.
        router_EI: The router.
        scale: As :func:`router_logits` takes it.
        normalise: The same.
    """
    count_R1 = seen_RL.sum(1, keepdim=True)
    x_RLI = _wide(x_RLI)
    mean_RI = torch.einsum("rl,rli->ri", seen_RL.to(x_RLI.dtype), x_RLI) / count_R1.clamp(min=1)
    gates_RE = combine_weights(router_logits(mean_RI, router_EI, scale, normalise))
    return gates_RE * (count_R1 > 0)


def gate_figures(gates_NE: torch.Tensor) -> dict[str, Any]:
    """Returns the mean entropy of gates in nats, and the mean share (E,) of each expert."""
    entropy = -(gates_NE * gates_NE.clamp(min=1e-12).log()).sum(-1)
    return {"entropy": entropy.mean(), "share": gates_NE.mean(0)}


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Returns values in float32, or wider where they are: gates and slots are sums that half precision would spoil."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
