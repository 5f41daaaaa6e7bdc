"""Shims that pass the arguments of mergekit's kernels to mcompose's methods, and return the results as torch tensors.

They replace the kernel of every method that both have, in mergekit's registry, so that all ways to call it
(``merge_tensors``, ``merge_state_dicts``, ``get(...)``, the graph) reach mcompose; and ``sparsify`` in the tests about
it. Two forms of mcompose's methods can be tested: the ``function`` (whole arrays, through the public `merge_tensors`)
and the ``program`` (the chunked form that the engine runs).
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import TensorBatch, TensorGroup, registered_methods

from mcompose.methods import METHODS, Program, TensorTask, merge_tensors
from mcompose.methods.core.randomness import address, uniforms

__all__ = ["Bench", "by_program", "draws_for"]

PRUNING = {
    "magnitude": "ties",
    "magnitude_outliers": "breadcrumbs",
    "random": "dare_linear",
    "della_magprune": "della_linear",
}
"""mergekit's ways to sparsify a tensor -> the methods that do the same to a single delta of weight one."""


class Bench:
    """Replaces mergekit's kernels by mcompose's, and counts the calls.

    Args:
        form: ``function`` or ``program``.
        falsify: Whether to return wrong numbers, to see which tests notice.
    """

    def __init__(self, form: str = "function", *, falsify: bool = False) -> None:
        self.form = form
        self.falsify = falsify
        self.calls = 0

    def install(self) -> list[str]:
        """Replaces the kernels of mergekit's registered methods; returns the names of the replaced ones."""
        replaced = []
        for method in registered_methods():
            name = method.spec.name
            if name not in METHODS:
                continue
            batched = method.supports_batching
            seam = "implementation" if hasattr(method, "implementation") else "merge_group"
            object.__setattr__(method, seam, self.batch_kernel(name) if batched else self.group_kernel(name))
            replaced.append(name)
        return replaced

    def group_kernel(self, name: str) -> Callable[..., torch.Tensor]:
        """Makes a kernel that takes one tensor of every model."""

        def kernel(group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
            takes_base = METHODS.get(name).base != "unused"
            entries = group.non_base if takes_base else group.entries
            base = group.base.tensor if takes_base and group.base else None
            settings = {
                key: value.values_for(entries) if hasattr(value, "values_for") else value
                for key, value in parameters.items()
            }
            return self.merge(name, [entry.tensor for entry in entries], base, settings)

        return kernel

    def batch_kernel(self, name: str) -> Callable[..., torch.Tensor]:
        """Makes a kernel that takes several stacked tensors of every model, with one row of coefficients each."""

        def kernel(batch: TensorBatch, **parameters: Any) -> torch.Tensor:
            tensors = list(batch.tensors)
            if name == "slerp" and batch.base_index:  # mergekit's base is where slerp starts
                tensors.reverse()
            merged = []
            for index in range(tensors[0].shape[0]):
                settings = {
                    key: value[index].tolist() if isinstance(value, torch.Tensor) else value
                    for key, value in parameters.items()
                }
                merged.append(self.merge(name, [tensor[index] for tensor in tensors], None, settings))
            return torch.stack(merged)

        return kernel

    def sparsify(
        self, tensor: torch.Tensor, density: float, method: str, rescale_norm: str | None = None, **settings: float
    ) -> torch.Tensor:
        """Replaces mergekit's ``sparsify``: prunes one delta, which is the merge of one source on a base of zeros."""
        name = PRUNING[str(getattr(method, "value", method))]
        if rescale_norm not in {None, "l1"}:
            raise ValueError(f"mcompose does not restore the norm {rescale_norm}")
        known = {parameter.name for parameter in METHODS.get(name).parameters}
        taken = {key: value for key, value in settings.items() if key in known}
        taken |= {"weight": [1.0], "density": density, "normalize": False, "rescale": rescale_norm is not None}
        return self.merge(name, [tensor], torch.zeros_like(tensor), taken)

    def merge(
        self, name: str, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, settings: dict[str, Any]
    ) -> torch.Tensor:
        """Merges one tensor by mcompose.

        Args:
            name: Name of the method.
            tensors: One tensor per source.
            base: Tensor of the base, or None.
            settings: mergekit's parameters, with mergekit's defaults filled in.

        Returns:
            The merged tensor, with the dtype of the first.
        """
        self.calls += 1
        method = METHODS.get(name)
        left_out = {"weight", *method.mergekit_ignored}
        parameters = {key: value for key, value in settings.items() if key not in left_out and value is not None}
        if name == "passthrough":  # mergekit has one scale per model, and here is one model
            parameters = {key: value[0] for key, value in parameters.items() if value[0] is not None}
        weights = settings.get("weight")
        sources = [str(_draw()) if method.random else str(index) for index in range(len(tensors))]
        arrays = [_to_numpy(tensor) for tensor in tensors]
        origin = None if base is None else _to_numpy(base)
        if self.form == "program":
            shape, count = arrays[0].shape, len(arrays)
            shares = tuple(weights) if weights is not None else (1.0 / count,) * count
            task = TensorTask("", shape, tuple(sources), shares, parameters, has_base=origin is not None)
            assert method.program is not None
            merged = by_program(method.program(task), arrays, origin)
        else:
            merged = merge_tensors(name, arrays, base=origin, weights=weights, sources=sources, **parameters)
        if self.falsify:
            merged = merged * np.float32(1.1) + np.float32(0.1)
        return torch.from_numpy(np.asarray(merged)).to(tensors[0].dtype)


def by_program(program: Program, arrays: Sequence[np.ndarray], base: np.ndarray | None) -> np.ndarray:
    """Runs a program as the engine does, in three or four chunks.

    Args:
        program: A new program.
        arrays: One array per source, float32.
        base: Array of the base, or None.

    Returns:
        The merged weights.
    """
    shape = arrays[0].shape
    size = prod(shape)
    multiple = program.chunk_multiple or max(size, 1)
    step = max(1, size // 3 // multiple) * multiple
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    origin = None if base is None else np.ascontiguousarray(base).reshape(-1)
    out = np.empty(size, np.float32)
    for index in range(program.passes + 1):
        for start in range(0, size, step):
            cut = slice(start, start + step)
            chunks, under = [array[cut] for array in flat], None if origin is None else origin[cut]
            if index < program.passes:
                program.measure(index, start, chunks, under)
            else:
                program.combine(start, chunks, under, out[cut])
    return out.reshape(shape)


def draws_for(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Makes Bernoulli draws for mergekit's own reference, with the masks that mcompose's method draws.

    mergekit draws masks from torch's global generator. Here that generator only seeds the masks, equally for both
    sides, so that everything but the generator is compared.

    Args:
        name: Name of the method.
    """

    def bernoulli(chance: torch.Tensor) -> torch.Tensor:
        return (uniforms(address(0, name, "", str(_draw())), chance.float()) < chance).to(chance.dtype)

    return bernoulli


def _draw() -> int:
    return int(torch.randint(2**62, ()))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()
