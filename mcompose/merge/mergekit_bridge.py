"""mergekit's methods as ``Method`` objects, under ``mergekit:<name>``; the only module that imports mergekit.

mergekit (LGPL-3.0) is imported when one of its methods is requested; its code is neither copied nor changed. The entry
of its registry (parameters, scope, contract) becomes a ``Method``, which calls the public ``merge_tensors`` with whole
float32 tensors. Its random methods use torch's global generator: the bridge seeds it for one tensor at a time, by the
tensor's address, so that the result does not depend on earlier calls.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import merge_tensors, registered_methods
from mergekit.merge_methods.base import BasePolicy, MergeMethodSpec, ParameterScope

from mcompose.errors import RequestError, UnknownNameError, nearest_name
from mcompose.merge.catalogue import MERGEKIT_PREFIX
from mcompose.methods import METHODS, REQUIRED, Method, Parameter, TensorTask

__all__ = ["bridge_method", "bridge_names"]

DETERMINISTIC = (
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "karcher", "linear", "model_stock", "multislerp", "nearswap",
    "nuslerp", "passthrough", "ram", "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties",
)  # fmt: skip
"""Methods that do not draw random numbers and may run in parallel; all others are treated as random."""

_RANDOM_LOCK = threading.Lock()
_BASE: dict[BasePolicy, Any] = {BasePolicy.REQUIRED: "required", BasePolicy.OPTIONAL: "optional"}


def bridge_names() -> tuple[str, ...]:
    """Returns the recipe names of mergekit's methods without a native implementation."""
    return tuple(MERGEKIT_PREFIX + name for name in sorted(_specs()) if name not in METHODS)


@cache
def bridge_method(name: str) -> Method:
    """Returns one of mergekit's methods.

    Args:
        name: ``mergekit:sce``.

    Returns:
        The method. Its function takes ``(sources, *, base, task, **parameters)``.

    Raises:
        UnknownNameError: mergekit does not have this method.
    """
    bare = name.removeprefix(MERGEKIT_PREFIX)
    spec = _specs().get(bare)
    if spec is None:
        hint = nearest_name(bare, sorted(_specs()))
        raise UnknownNameError(f"mergekit does not have a method '{bare}'.", hint=hint)
    base = _BASE.get(spec.contract.base, "unused")
    fewest, most = _source_counts(spec)
    return Method(
        name=MERGEKIT_PREFIX + bare,
        title=f"{spec.pretty_name or bare} (mergekit)",
        paper=_paper(spec.reference_url or ""),
        function=_Call(bare),
        space="weights",
        base=base,
        parameters=tuple(_parameter(p) for p in spec.parameters if p.name != "weight" and p.default is not None),
        min_sources=fewest,
        max_sources=most,
        symmetric=False,
        random=bare not in DETERMINISTIC,
        weighted=any(p.name == "weight" for p in spec.parameters),
    )


class _Call:
    """Calls one of mergekit's methods on whole tensors.

    Args:
        name: Name of the method in mergekit.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, sources: Sequence[Any], *, base: Any, task: TensorTask, **arguments: Any) -> Any:
        """Merges float32 arrays of numpy or torch; returns a torch tensor."""
        tensors = [_as_torch(tensor) for tensor in ([] if base is None else [base]) + list(sources)]
        parameters = {_recipe_name(key): _listed(value) for key, value in arguments.items()}
        with _one_torch_thread(), _seeded_generator(self._name, task, tensors[0].device):
            try:
                return merge_tensors(
                    tensors,
                    self._name,
                    parameters=parameters,
                    base_index=None if base is None else 0,
                    name=task.name,
                    dtype=torch.float32,
                )
            except ValueError as error:
                raise RequestError(f"mergekit's '{self._name}' refuses '{task.name}': {error}") from error


@cache
def _specs() -> dict[str, MergeMethodSpec]:
    methods: Any = registered_methods()
    values = methods.values() if isinstance(methods, dict) else methods
    specs: list[MergeMethodSpec] = [method.spec for method in values]
    return {spec.name: spec for spec in specs}


def _source_counts(spec: MergeMethodSpec) -> tuple[int, int | None]:
    """Returns the fewest and most sources without the base, which mergekit counts where it is required."""
    contract = spec.contract
    own = 1 if contract.base == BasePolicy.REQUIRED else 0
    fewest = max(contract.min_inputs - own, contract.min_non_base or 0, 1)
    limits = [] if contract.max_inputs is None else [contract.max_inputs - own]
    limits += [] if contract.max_non_base is None else [contract.max_non_base]
    return fewest, min(limits, default=None)


def _parameter(spec: Any) -> Parameter:
    kind = spec.value_type if spec.value_type in (float, int, bool) else float
    default = REQUIRED if spec.required else spec.default
    return Parameter(spec.name, default, per_source=spec.scope != ParameterScope.SHARED, kind=kind)


def _paper(url: str) -> str:
    found = re.search(r"arxiv\.org/abs/([\d.]+)", url)
    return f"arXiv:{found[1]}" if found else url


def _recipe_name(name: str) -> str:
    return {"weights": "weight", "lambda_": "lambda"}.get(name, name)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_torch(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor


@contextmanager
def _seeded_generator(name: str, task: TensorTask, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators by the tensor's address, and restores them afterwards."""
    if name in DETERMINISTIC:
        yield
        return
    address = repr((task.seed, name, task.name, task.sources)).encode()
    seed = int.from_bytes(hashlib.sha256(address).digest()[:8], "little") >> 1
    with _RANDOM_LOCK, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


class _Threads:
    """Number of running calls, and torch's number of threads before the first."""

    lock = threading.Lock()
    running = 0
    before = 1


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Sets torch to one thread: it splits sums by threads, so that their number would change the result."""
    with _Threads.lock:
        if _Threads.running == 0:
            _Threads.before = torch.get_num_threads()
        _Threads.running += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Threads.lock:
            _Threads.running -= 1
            if _Threads.running == 0:
                torch.set_num_threads(_Threads.before)
