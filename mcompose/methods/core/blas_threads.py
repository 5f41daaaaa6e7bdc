"""Holds numpy's linear algebra to one thread: the bytes of a merge must not depend on how many cores there are.

BLAS and LAPACK cut their sums differently for every number of threads, so the last bits of a product or of an
eigenvector depend on it. One thread also is the faster choice here: the engine already merges several tensors at once.
Only OpenBLAS, which numpy's own packages bring, can be asked this way; with another BLAS the number of threads must be
held still from outside (``MKL_NUM_THREADS=1``).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

__all__ = ["one_blas_thread"]

SPELLINGS = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
"""OpenBLAS's functions, as numpy's wheels and as distributions name them."""

_LOCK = threading.Lock()
_inside = 0
_before = 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Runs a block with one BLAS thread; may be entered by several threads at once.

    The number is one for the whole process. The first to enter sets it, the last to leave gives it back.
    """
    global _inside, _before
    controls = _controls()
    if controls is None:
        yield
        return
    read, write = controls
    with _LOCK:
        if _inside == 0:
            _before = read()
            write(1)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                write(_before)


@cache
def _controls() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """OpenBLAS's two functions, found among the libraries that numpy has loaded."""
    np.linalg.norm(np.ones(1))
    library = ctypes.CDLL(sys.modules["numpy.linalg._umath_linalg"].__file__)
    for spelling in SPELLINGS:
        try:
            return library[spelling.format("get_num_threads")], library[spelling.format("set_num_threads")]
        except AttributeError:
            continue
    return None
