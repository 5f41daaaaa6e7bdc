"""Functions for arrays of numpy or torch. Torch is never imported here: the methods of the tensor are used."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["as_kind", "descending_order", "doubles", "is_numpy", "ranks_in_rows", "singles", "to_numpy"]


def is_numpy(array: Any) -> bool:
    """Returns whether an array is numpy's (array or scalar) and not a torch tensor."""
    return isinstance(array, (np.ndarray, np.generic))


def doubles(array: Any) -> Any:
    """Widens to float64."""
    return array.astype(np.float64) if is_numpy(array) else array.double()


def singles(array: Any) -> Any:
    """Converts to float32."""
    return np.asarray(array).astype(np.float32) if is_numpy(array) else array.float()


def to_numpy(array: Any) -> np.ndarray:
    """Converts an array of either library to numpy."""
    return np.asarray(array) if is_numpy(array) else array.detach().cpu().numpy()


def as_kind(array: np.ndarray, like: Any) -> Any:
    """Converts a numpy array to the library and device of ``like``."""
    if is_numpy(like):
        return array
    return like.new_tensor(array)


def descending_order(magnitudes: Any) -> Any:
    """Returns the indices of a one-dimensional array from the largest element down; ties in element order."""
    if is_numpy(magnitudes):
        return np.argsort(-magnitudes, kind="stable")
    return magnitudes.argsort(descending=True, stable=True)


def ranks_in_rows(magnitudes: Any) -> Any:
    """Returns the rank of each element in its row, 0 for the smallest; ties in element order."""
    if is_numpy(magnitudes):
        return np.argsort(np.argsort(magnitudes, axis=1, kind="stable"), axis=1, kind="stable")
    return magnitudes.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
