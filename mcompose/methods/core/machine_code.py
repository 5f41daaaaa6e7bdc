"""Compiles a loop to an object file: Numba to LLVM's intermediate code, LLVM to machine code of this processor.

Imported only when the cache does not have the code. Numba wraps every function for Python; the wrappers and the
functions that they call are removed, so that the object file refers only to ``memset`` and similar functions, and any
process can load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba

__all__ = ["compile_loop"]

_LOOPS = "mcompose.methods.core.loops"
_FROM_C = ("llvm.", "memset", "memcpy", "memmove")


def compile_loop(module: str, name: str, arguments: Sequence[str], *, symbol: str) -> bytes:
    """Compiles one loop.

    Args:
        module: Module of ``mcompose.methods.core.loops``.
        name: Name of the function.
        arguments: Types, as in `compiled.Kernel`.
        symbol: Name of the function in the object file. Its C form is
            ``int32 symbol(int64 *result, void **error, arguments...)``.

    Returns:
        The object file.
    """
    function = getattr(import_module(f"{_LOOPS}.{module}"), name)
    types = [getattr(numba.types, "int64" if kind == "address" else kind) for kind in arguments]
    compiler: Any = numba.njit
    compiled = compiler(error_model="numpy", no_cpython_wrapper=True)(function)
    compiled.compile(tuple(types))
    (text,) = compiled.inspect_llvm().values()
    (overload,) = compiled.overloads.values()
    code = llvm.parse_assembly(text)
    for found in code.functions:
        if found.name == overload.fndesc.llvm_func_name:
            found.name = symbol
        elif not found.is_declaration:
            found.linkage = "internal"  # the next step drops what nothing calls
    machine = _machine()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(code, builder)
    foreign = [f.name for f in code.functions if f.is_declaration and not f.name.startswith(_FROM_C)]
    assert not foreign, f"loop '{name}' needs Python at run time: {foreign}"
    return machine.emit_object(code)


def _machine() -> llvm.TargetMachine:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )
