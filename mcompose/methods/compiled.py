"""Kernels: plain Python loops that Numba compiles to machine code the first time they are called.

The idea: declare the types once (``@kernel("int64", "in uint16", "out float32")``), compile on first use,
keep the machine code on disk. Importing this module or a kernel costs nothing, so `plan` and `--help` never
pay for Numba. Kernels release the GIL and never use fast-math: the same numbers on every machine that has
IEEE floats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Kernel", "kernel"]

_COMPILING = threading.Lock()


class Kernel:
    """A loop that compiles itself when first called.

    Args:
        function: The loop, in the subset of Python that Numba takes.
        returns: Numba's name of the type returned (``"void"``, ``"int64"``).
        arguments: One type an argument: a scalar (``"float32"``), ``"in float32"`` for a contiguous array
            that is only read, ``"out float32"`` for one that is written, ``"in2 float32"`` for one of two
            dimensions.
    """

    def __init__(self, function: Callable[..., Any], returns: str, arguments: tuple[str, ...]) -> None:
        self.function = function
        self.returns = returns
        self.arguments = arguments
        self.dispatcher: Any = None
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any) -> Any:
        """Runs the loop on aligned, contiguous arrays of the declared types."""
        dispatcher = self.dispatcher or self.compile()
        return dispatcher(*arguments)

    def compile(self) -> Callable[..., Any]:
        """Compiles the loop, or loads the machine code that an earlier run kept; returns it."""
        with _COMPILING:
            if self.dispatcher is None:
                self.dispatcher = self._compiled()
            return self.dispatcher

    def _compiled(self) -> Any:
        import numba  # noqa: PLC0415 - half a second, paid only when a merge runs

        signature = getattr(numba.types, self.returns)(*(_numba_type(text) for text in self.arguments))
        try:
            return numba.njit(signature, nogil=True, cache=True)(self.function)
        except (RuntimeError, OSError):
            # No folder takes the cache: Numba has tried __pycache__, then the user's own cache folder.
            return numba.njit(signature, nogil=True)(self.function)


def kernel(returns: str, *arguments: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Declares a kernel; see `Kernel` for the spelling of the types."""

    def declare(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, returns, arguments)

    return declare


def _numba_type(text: str) -> Any:
    from numba import types  # noqa: PLC0415 - see above

    place, _, element = text.rpartition(" ")
    if not place:
        return getattr(types, element)
    dimensions = 2 if place.endswith("2") else 1
    return types.Array(getattr(types, element), dimensions, "C", readonly=place.startswith("in"))
