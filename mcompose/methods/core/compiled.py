"""Kernels: loops compiled to machine code once, cached on disk, and called without Numba.

Numba is used as compiler only, not at run time. The first call of a kernel compiles its loop
(``mcompose.methods.core.loops``) to an object file in the user's cache folder; later processes load that file with
llvmlite, which takes a few hundredths of a second, while importing Numba takes half a second. If the folder cannot be
written, every process compiles again; a file that other users may write is never run. Calls go through ctypes, which
releases the GIL.

Code is never fast-math and never fuses a product with a sum: the same numbers on every machine that has IEEE floats.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mcompose.errors import StorageError
from mcompose.on_disk import cache_folder
from mcompose.whole_files import write_bytes

__all__ = ["Kernel"]

_COMPILING = threading.Lock()
_SYMBOL = "kernel"
_C_TYPES: dict[str, Any] = {
    "address": ctypes.c_int64,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float,
}


class Kernel:
    """A loop that compiles itself when first called.

    Args:
        module: Module of ``mcompose.methods.core.loops``.
        name: The loop.
        arguments: Type of each argument: ``address`` (the caller may pass an array), ``int64``, ``uint64``,
            ``float32``.
    """

    def __init__(self, module: str, name: str, *arguments: str) -> None:
        self.module = module
        self.name = name
        self.arguments = arguments
        self._function: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> int:
        """Runs the loop; arrays must be contiguous.

        Returns:
            The loop's result; 0 when it does not return one.
        """
        function = self._function or self.compile()
        result, error = ctypes.c_int64(0), ctypes.c_void_p(None)
        plain = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        function(ctypes.byref(result), ctypes.byref(error), *plain)
        return result.value

    def compile(self) -> Callable[..., int]:
        """Loads the machine code from the cache, or compiles it; returns the C function."""
        with _COMPILING:
            if self._function is None:
                types = [ctypes.c_void_p, ctypes.c_void_p, *(_C_TYPES[name] for name in self.arguments)]
                self._function = ctypes.CFUNCTYPE(ctypes.c_int32, *types)(self._address())
            return self._function

    def _address(self) -> int:
        file = cache_folder("kernels") / f"{self.module}.{self.name}-{self._key()}.o"
        code = _read(file)
        if code is None:
            code = self._compiled()
            with suppress(StorageError):  # a folder that refuses it only means that the code is made again
                write_bytes(file, hashlib.sha256(code).digest() + code, mode=0o600, shared=True)
        return _linker().load(code)

    def _key(self) -> str:
        """Returns a key of everything that the machine code depends on: the loops' text, compiler and processor."""
        return hashlib.sha256(repr((_toolchain(), self.arguments)).encode()).hexdigest()[:32]

    def _compiled(self) -> bytes:
        from mcompose.methods.core.machine_code import compile_loop  # noqa: PLC0415 - Numba, only when code must be made

        return compile_loop(self.module, self.name, self.arguments, symbol=_SYMBOL)


class _Linker:
    """Loads object files into the process."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm  # noqa: PLC0415 - paid only when a merge runs

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm = llvm
        self._engines: list[Any] = []  # the code lives as long as its engine

    def load(self, code: bytes) -> int:
        """Returns the address of the function in an object file."""
        llvm = self._llvm
        target = llvm.Target.from_default_triple().create_target_machine(opt=0, jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._engines.append(engine)
        return engine.get_function_address(_SYMBOL)


@cache
def _linker() -> _Linker:
    return _Linker()


@cache
def _toolchain() -> tuple[Any, ...]:
    import llvmlite.binding as llvm  # noqa: PLC0415 - see above

    texts = [path.read_bytes() for path in sorted((Path(__file__).parent / "loops").glob("*.py"))]
    maker = (Path(__file__).parent / "machine_code.py").read_bytes()
    text = hashlib.sha256(b"\0".join([*texts, maker])).hexdigest()
    processor = (llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return (text, version("numba"), version("llvmlite"), *processor)


def _read(file: Path) -> bytes | None:
    """Returns the code in a file; None when it is missing or damaged, or when another user could have written it."""
    try:
        data, owner = file.read_bytes(), file.stat()
    except OSError:
        return None
    if owner.st_uid != os.geteuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None
