"""What importing costs, and that machine code is compiled once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mcompose
from mcompose.methods.core.compiled import Kernel


def run(code, **environment):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(mcompose.__file__).parents[1])} | environment,
        timeout=170,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


CATALOGUE = """
import sys, time
import numpy
start = time.process_time()
import mcompose.methods as m
m.METHODS.get("ties").program(m.TensorTask("w", (8, 8), ("a",), (1.0,), {"density": 0.2}))
print(time.process_time() - start, *[name for name in ("torch", "numba", "transformers") if name in sys.modules])
"""


def test_catalogue_needs_neither_torch_nor_numba():
    assert run(CATALOGUE)[1:] == []


@pytest.mark.cost
def test_catalogue_is_light():
    # 0.04 s of CPU on top of numpy when this was written
    assert min(float(run(CATALOGUE)[0]) for _ in range(3)) < 0.3


CONVERT = """
import sys
import numpy as np
from mcompose.methods.core import kernels
print(kernels.convert(np.array([0x7F80, 0x3F80], np.uint16), np.empty(2, np.float32)), "numba" in sys.modules)
"""


def test_second_run_loads_the_machine_code_without_numba(tmp_path):
    assert run(CONVERT, XDG_CACHE_HOME=str(tmp_path)) == ["1", "True"]
    assert run(CONVERT, XDG_CACHE_HOME=str(tmp_path)) == ["1", "False"]


@pytest.mark.parametrize("damage", [b"", b"x" * 31, b"x" * 5000])
def test_damaged_machine_code_is_made_again(tmp_path, damage):
    run(CONVERT, XDG_CACHE_HOME=str(tmp_path))
    (kept,) = (tmp_path / "mcompose" / "kernels").iterdir()
    good = kept.read_bytes()
    kept.write_bytes(damage or good[:-1])
    assert run(CONVERT, XDG_CACHE_HOME=str(tmp_path)) == ["1", "True"]
    assert kept.read_bytes() == good


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_machine_code_that_others_may_write_is_not_run(tmp_path, mode):
    run(CONVERT, XDG_CACHE_HOME=str(tmp_path))
    (kept,) = (tmp_path / "mcompose" / "kernels").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.chmod(mode)
    assert run(CONVERT, XDG_CACHE_HOME=str(tmp_path)) == ["1", "True"]
    assert kept.stat().st_mode & 0o777 == 0o600


def test_no_place_for_the_cache_is_no_error(tmp_path):
    # A file where the folder should be: nobody, root included, can write below it.
    (tmp_path / "mcompose").write_text("")
    assert run(CONVERT, XDG_CACHE_HOME=str(tmp_path)) == ["1", "True"]


def test_a_disk_that_refuses_is_no_error_and_leaves_no_half_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = Kernel("pruning", "uniforms", "uint64", "address", "int64", "address")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the system takes the first bytes and refuses the others
    try:
        kernel.compile()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out = np.empty(2, np.float32)
    kernel(7, out, 2, np.empty(2048, np.float32))
    assert out[0] != out[1]
    assert list((tmp_path / "mcompose" / "kernels").iterdir()) == []


def test_machine_code_needs_nothing_but_the_c_library(tmp_path):
    import llvmlite.binding as llvm

    from mcompose.methods.core.machine_code import compile_loop

    code = compile_loop("pruning", "uniforms", ("uint64", "address", "int64", "address"), symbol="kernel")
    found = llvm.ObjectFileRef.from_data(code)
    assert [section.name() for section in found.sections() if section.is_text()]


def test_wrong_types_are_refused_not_converted():
    from mcompose.methods.core import kernels

    with pytest.raises(TypeError):
        kernels.convert(np.zeros(4, np.int32), np.zeros(4, np.float32))
    with pytest.raises(TypeError):
        kernels.convert(np.zeros(8, np.float32)[::2], np.zeros(4, np.float32))
    with pytest.raises(TypeError):
        kernels.convert(np.zeros(3, np.float32), np.zeros(4, np.float32))
    sources, out = [np.zeros(4, np.float32)] * 2, np.zeros(4, np.float32)
    for weights in (np.ones(2), np.ones(3, np.float32), np.ones(4, np.float32)[::2]):
        with pytest.raises(TypeError, match="2 float32 weights are needed"):
            kernels.weighted_sum(sources, weights, out)
