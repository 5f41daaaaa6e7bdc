"""Initial values with which a small encoder learns to read within a minute.

The patch embedding starts as the whitened principal components of real patches, and positions start as sines and
cosines over rows and columns. The usual random initialisation needs several times as many steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mcompose.lab.pictures.encoders import Encoder
from mcompose.lab.pictures.reading import Pool

__all__ = ["start"]

_PATCHES = 20000
_MOST = 70  # rows or columns of patches
_FLOOR = 0.002  # of the largest variance: components below are noise and stay small


def start(encoder: Encoder, pool: Pool, *, generator: np.random.Generator) -> None:
    """Sets patch embedding and positions of a fresh encoder.

    Args:
        encoder: Encoder, changed in place.
        pool: Pictures whose patches give the principal components.
        generator: Source of randomness that chooses the patches.
    """
    model: Any = encoder.model
    weight, bias = _whitening(_patches(encoder, pool, generator), encoder.width)
    across, down = _waves(_MOST, encoder.width), _waves(_MOST, encoder.width)
    half = encoder.width // 2
    across[:, :half], down[:, half:] = 0, 0
    with torch.no_grad():
        if encoder.name == "chart":
            embeddings = model.embeddings
            embeddings.patch_projection.weight.copy_(weight)
            embeddings.patch_projection.bias.copy_(bias)
            embeddings.row_embedder.weight.copy_(down)
            embeddings.column_embedder.weight.copy_(across)
            return
        embeddings = model.embeddings
        side = encoder.side // encoder.patch
        grid = (down[:side, None] + across[None, :side]).flatten(0, 1)
        if encoder.name == "table":
            projection, positions = embeddings.patch_embeddings.projection, embeddings.position_embeddings[0]
        else:
            projection, positions = embeddings.patch_embedding, embeddings.position_embedding.weight
        positions[-len(grid) :] = grid
        projection.weight.copy_(weight.reshape(projection.weight.shape))
        if projection.bias is not None:
            projection.bias.copy_(bias)
        else:
            positions[-len(grid) :] += bias


def _patches(encoder: Encoder, pool: Pool, generator: np.random.Generator) -> np.ndarray:
    inputs = pool.rows(generator.choice(len(pool.pictures), size=min(400, len(pool.pictures)), replace=False))
    if "flattened_patches" in inputs:
        rows = inputs["flattened_patches"].flatten(0, 1)
        found = rows[rows[:, 0] > 0][:, 2:]
    else:
        pixels = torch.nn.functional.unfold(inputs["pixel_values"], encoder.patch, stride=encoder.patch)
        found = pixels.transpose(1, 2).flatten(0, 1)
    return found.numpy().astype(np.float64)[generator.permutation(len(found))[:_PATCHES]]


def _whitening(patches: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean = patches.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    variances, axes = variances[::-1][:width], axes[:, ::-1][:, :width]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    weight = (axes / np.sqrt(variances + _FLOOR * variances[0])).T
    return torch.from_numpy(weight).float(), torch.from_numpy(-weight @ mean).float()


def _waves(count: int, width: int) -> torch.Tensor:
    """Returns pairs of sine and cosine, with wavelengths from two to forty positions, (count, width)."""
    places = np.arange(count)[:, None]
    lengths = np.geomspace(3, 40, width // 4)
    angles = 2 * np.pi * places / lengths
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return torch.from_numpy(np.tile(waves, (1, 2))).float()
