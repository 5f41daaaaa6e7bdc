"""Merges whole tensors: the public function for one call, and the engine's function for devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcompose.errors import NumericsError, RequestError
from mcompose.methods.core.arrays import is_numpy, singles
from mcompose.methods.core.method import METHODS, Method, TensorTask
from mcompose.methods.core.randomness import addresses
from mcompose.methods.core.settings import arguments_for

__all__ = ["merge_tensors", "merge_whole"]


def merge_tensors(  # noqa: PLR0913 - the public form: everything that a merge depends on
    name: str,
    tensors: Sequence[Any],
    *,
    base: Any = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    tensor_name: str = "",
    sources: Sequence[str] | None = None,
    **parameters: Any,
) -> Any:
    """Merges tensors in one call.

    Args:
        name: Name of a merge method (``"ties"``).
        tensors: One tensor for each source, of numpy or torch, all of the same shape.
        base: Tensor of the base, where the method needs one.
        weights: One weight for each source; default: 1/M each.
        seed: Seed of random methods.
        tensor_name: Name of the tensor; random numbers depend on it.
        sources: Names of the sources; random numbers depend on them. Default: ``"0"``, ``"1"``, ...
        **parameters: Parameters of the method by recipe name (``lambda_`` for ``lambda``).

    Returns:
        The merged tensor, with the library, shape and element type of the first.

    Raises:
        RequestError: The name, a parameter or the number of sources is not valid.
        NumericsError: Shapes differ, or the settings do not have a result.

    Example:
        >>> merge_tensors("linear", [np.float32([0, 2]), np.float32([4, 4])], weights=[3, 1])
        array([1. , 2.5], dtype=float32)
    """
    method = METHODS.get(name)
    _check_call(method, tensors, base, weights)
    task = TensorTask(
        name=tensor_name,
        shape=tuple(tensors[0].shape),
        sources=tuple(sources) if sources is not None else tuple(str(index) for index in range(len(tensors))),
        weights=tuple(weights) if weights is not None else (1.0 / len(tensors),) * len(tensors),
        parameters={key.rstrip("_"): value for key, value in parameters.items()},
        seed=seed,
        has_base=base is not None and method.base != "unused",
    )
    merged = merge_whole(method, task, [singles(tensor) for tensor in tensors], None if base is None else singles(base))
    first = tensors[0]
    return merged.astype(first.dtype) if is_numpy(first) else merged.to(first.dtype)


def merge_whole(method: Method, task: TensorTask, sources: Sequence[Any], base: Any) -> Any:
    """Merges one tensor with the method's function.

    Args:
        method: The method.
        task: The tensor, with its settings.
        sources: float32 arrays of the task's shape, of numpy or of torch on any device.
        base: Array of the base; None without a base.

    Returns:
        The merged weights (base included), float32.

    Raises:
        RequestError: The settings are not valid for the method.
    """
    arguments = arguments_for(method, task)
    if method.random:
        arguments["keys"] = addresses(method.name, task)
    if method.space == "weights" and not (method.base == "optional" and base is not None):
        return _shaped(method.function(sources, **arguments), task)
    merged = method.function([_shaped(source - base, task) for source in sources], **arguments)
    return _shaped(base + merged, task)


def _shaped(array: Any, task: TensorTask) -> Any:
    return np.asarray(array, np.float32).reshape(task.shape) if is_numpy(array) else array


def _check_call(method: Method, tensors: Sequence[Any], base: Any, weights: Sequence[float] | None) -> None:
    if not len(tensors):
        raise RequestError(f"Method '{method.name}' needs at least one tensor.")
    shape = tuple(tensors[0].shape)
    for index, tensor in enumerate(tensors):
        if tuple(tensor.shape) != shape:
            raise NumericsError(f"Tensor {index} has shape {tuple(tensor.shape)}, tensor 0 has {shape}.")
    if method.base == "required" and base is None:
        raise RequestError(f"Method '{method.name}' needs a base.", hint="Pass `base=`.")
    if base is not None and tuple(base.shape) != shape:
        raise NumericsError(f"The base has shape {tuple(base.shape)}, tensor 0 has {shape}.")
    if weights is not None and not method.weighted:
        raise RequestError(f"Method '{method.name}' does not take weights.", hint="Leave `weights` out.")
