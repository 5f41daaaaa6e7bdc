"""From an expert's features to the language model's width: the projectors of experts.

Letters: I items, T vectors of one item, E width of the encoder, D width of the language model.

- ``mlp`` (the paper's): LayerNorm, Linear to D, then ``depth - 1`` times GELU and Linear; no vector is lost.
- ``linear``: one Linear.
- ``linear_norm`` (of mixed image encoders): one Linear, then LayerNorm.
- ``pixel_shuffle``: ``factor`` x ``factor`` neighbours of the ``grid`` (rows, columns; without it, as older checkpoints
  are, a square) become one vector, then as ``mlp``.
- ``resampler``: ``queries`` learned vectors read the features in one attention with ``heads`` heads.

Paper: Peng et al. 2024, arXiv 2412.05983, section 3.1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["build_projector", "draw_parameters"]


class Mlp(nn.Module):
    """LayerNorm, Linear, and further GELU and Linear.

    Args:
        width: E, or what neighbours make of it.
        text_width: D.
        depth: Number of linears.
    """

    def __init__(self, width: int, text_width: int, *, depth: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(nn.Linear(text_width if i else width, text_width) for i in range(depth))

    def forward(self, x_ITE: torch.Tensor, mask_IT: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (I, T, E) to (I, T, D); the mask is not needed."""
        del mask_IT
        x = self.layers[0](self.norm(x_ITE))
        for layer in self.layers[1:]:
            x = layer(nn.functional.gelu(x))
        return x


class Linear(nn.Linear):
    """One linear map."""

    def forward(self, x_ITE: torch.Tensor, mask_IT: torch.Tensor | None = None) -> torch.Tensor:  # pyright: ignore
        """Maps (I, T, E) to (I, T, D); the mask is not needed."""
        del mask_IT
        return super().forward(x_ITE)


class LinearNorm(nn.Module):
    """One linear map, then LayerNorm.

    Args:
        width: E.
        text_width: D.

    Paper: Lin et al. 2023, arXiv 2311.07575, as its code has it.
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, x_ITE: torch.Tensor, mask_IT: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (I, T, E) to (I, T, D); the mask is not needed."""
        del mask_IT
        return self.norm(self.linear(x_ITE))


class PixelShuffle(Mlp):
    """Folds neighbours into one vector before the linears.

    Args:
        width: E.
        text_width: D.
        factor: Side of a block of neighbours.
        grid: Rows and columns of the vectors of an item; None for a square.
        depth: Number of linears.
    """

    def __init__(
        self, width: int, text_width: int, *, factor: int, grid: tuple[int, int] | None = None, depth: int = 2
    ) -> None:
        super().__init__(width * factor**2, text_width, depth=depth)
        self.factor, self.grid = factor, grid

    def forward(self, x_ITE: torch.Tensor, mask_IT: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (I, T, E) to (I, T / factor^2, D).

        Raises:
            ValueError: The vectors are no grid whose sides the factor divides.
        """
        items, count, width = x_ITE.shape
        height, across = self.grid or (math.isqrt(count), math.isqrt(count))
        if height * across != count or height % self.factor or across % self.factor:
            raise ValueError(
                f"{count} vectors are no grid of {height} x {across} in blocks of {self.factor} x {self.factor}: the "
                "projector's 'factor' must divide both sides, and 'class_token' leave out what is before the grid."
            )
        f = self.factor
        x = x_ITE.reshape(items, height // f, f, across // f, f, width).transpose(2, 3)
        return super().forward(x.reshape(items, count // f**2, f * f * width))


class Resampler(nn.Module):
    """A fixed number of learned queries that read the features.

    Args:
        width: E.
        text_width: D.
        queries: Vectors of one item afterwards.
        heads: Attention heads; a divisor of D.

    Raises:
        ValueError: They do not divide D.
    """

    def __init__(self, width: int, text_width: int, *, queries: int, heads: int = 8) -> None:
        super().__init__()
        if text_width % heads:
            raise ValueError(
                f"the heads of a resampler must divide the language model's width, and {heads} heads do not divide "
                f"{text_width}."
            )
        self.heads = heads
        self.queries = nn.Parameter(torch.zeros(queries, text_width))
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, text_width)
        self.value = nn.Linear(width, text_width)
        self.out = nn.Linear(text_width, text_width)

    def forward(self, x_ITE: torch.Tensor, mask_IT: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (I, T, E) to (I, queries, D); what the mask calls padding is not read."""
        items = len(x_ITE)
        x = self.norm(x_ITE)
        q = self._split(self.queries.expand(items, -1, -1))
        seen = None if mask_IT is None else mask_IT[:, None, None, :]
        read = nn.functional.scaled_dot_product_attention(
            q, self._split(self.key(x)), self._split(self.value(x)), attn_mask=seen
        )
        return self.out(read.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def build_projector(settings: Mapping[str, Any], *, width: int, text_width: int) -> nn.Module:
    """Builds the projector of an expert.

    Args:
        settings: ``projector`` of its entry.
        width: E.
        text_width: D.
    """
    kind = settings["kind"]
    depth = settings.get("depth", 2)
    if kind == "linear":
        return Linear(width, text_width)
    if kind == "linear_norm":
        return LinearNorm(width, text_width)
    if kind == "pixel_shuffle":
        grid = settings.get("grid")
        grid = None if grid is None else (int(grid[0]), int(grid[1]))
        return PixelShuffle(width, text_width, factor=settings["factor"], grid=grid, depth=depth)
    if kind == "resampler":
        return Resampler(width, text_width, queries=settings["queries"], heads=settings.get("heads", 8))
    return Mlp(width, text_width, depth=depth)


@torch.no_grad()
def draw_parameters(module: nn.Module, *, seed: int, name: str) -> dict[str, torch.Tensor]:
    """Returns first values of a projector or a router, float32, that depend on seed and names alone.

    Matrices are normal with the variance of torch's own linear layers (1 / (3 * inputs)), norms are one, biases zero,
    queries are normal with standard deviation 0.02.

    Args:
        module: What the values are for; left as it is (it may be on the meta device).
        seed: The recipe's seed.
        name: Where the module stands, for example ``model.experts.charts.projector``.
    """
    drawn = {}
    for key, parameter in module.named_parameters():
        full = f"{name}.{key}"
        digest = hashlib.sha256(f"{seed}:{full}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        shape = tuple(parameter.shape)
        if len(shape) < 2:
            drawn[full] = torch.full(shape, 0.0 if key.endswith("bias") else 1.0)
            continue
        deviation = 0.02 if key.endswith("queries") else (3 * shape[1]) ** -0.5
        drawn[full] = torch.randn(shape, generator=generator) * deviation
    return drawn
