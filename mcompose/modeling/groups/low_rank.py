"""What low-rank groups are made of: products of two thin linears that are added to a base.

Letters: N tokens, I and O widths of a linear. Paper: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["LowRank", "Term", "is_bare", "linear_like", "summed"]


class Term(nn.Module):
    """A further term of low-rank groups that are sums: the groups have their own names in it."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleDict()


class LowRank(nn.Module):
    """``scale * B * A``.

    Args:
        linear: The linear that it adds to, for shape, dtype and device.
        rank: Rows of A.
        scale: The factor before B * A.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_A = linear_like(linear, rows=rank)
        self.lora_B = linear_like(linear, columns=rank)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, I) to (N, O)."""
        return self.lora_B(self.lora_A(x) * self.scale)

    @property
    def bare(self) -> bool:
        """Whether ``add_to`` computes what ``forward`` does."""
        return is_bare(self.lora_B)

    def add_to(self, y_NO: torch.Tensor, x_NI: torch.Tensor) -> None:
        """Adds in place what ``forward`` returns; autograd cannot follow it."""
        y_NO.addmm_(self.lora_A(x_NI), self.lora_B.weight.t(), alpha=self.scale)

    def product(self) -> torch.Tensor:
        """Returns the matrix (O, I) in float32 or wider."""
        wide = torch.promote_types(self.lora_A.weight.dtype, torch.float32)
        return self.scale * (self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide))


def summed(terms: Sequence[LowRank], x_NI: torch.Tensor) -> torch.Tensor:
    """Maps (N, I) to (N, O) by the sum of some products."""
    first, *others = (low(x_NI) for low in terms)
    for other in others:
        first = first + other
    return first


def is_bare(linear: nn.Module) -> bool:
    """Whether a linear's forward is its weight and no more: adapters change the class, offloading the instance."""
    return type(linear) is nn.Linear and "forward" not in vars(linear)


def linear_like(linear: nn.Linear, *, rows: int | None = None, columns: int | None = None) -> nn.Linear:
    """Returns a plain linear of the same shape, dtype and device, without values.

    Args:
        linear: The linear to be like.
        rows: Another number of outputs; then there is no bias.
        columns: Another number of inputs; then there is no bias.
    """
    made = nn.Linear(
        columns or linear.in_features,
        rows or linear.out_features,
        bias=linear.bias is not None and rows is None and columns is None,
        dtype=linear.weight.dtype,
        device="meta",  # drawing values that are overwritten would move the global generator
    )
    return made.to_empty(device=linear.weight.device)
