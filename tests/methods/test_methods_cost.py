"""What importing costs, and that machine code is compiled once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mcompose
from mcompose.methods.compiled import Kernel


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


def test_catalogue_needs_neither_torch_nor_numba():
    code = """
import sys, time
import numpy
start = time.process_time()
import mcompose.methods as m
m.METHODS.get("ties").program(m.TensorTask("w", (8, 8), ("a",), (1.0,), {"density": 0.2}))
print(time.process_time() - start, *[name for name in ("torch", "numba", "transformers") if name in sys.modules])
"""
    seconds, *heavy = run(code)
    assert heavy == []
    # 0.04 s of CPU on top of numpy when this was written; the bound leaves room for a busy machine.
    assert float(seconds) < 0.3


def test_second_run_loads_the_machine_code(tmp_path):
    code = """
import numpy as np
from mcompose.methods import kernels
out = np.empty(4, np.float32)
kernels.widen_bf16(np.zeros(4, np.uint16), out)
stats = kernels.widen_bf16.dispatcher.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
    first = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    second = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert first == ["0", "1"]
    assert second == ["1", "0"]


def test_no_place_for_the_cache_is_no_error(tmp_path):
    # Neither the source folder nor the user's cache folder takes files: the kernel is compiled for this run alone.
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from mcompose.methods import kernels
print(kernels.widen_bf16(np.array([0x7F80], np.uint16), np.empty(1, np.float32)))
"""
    assert run(code) == ["1"]


def test_a_full_disk_is_no_error(monkeypatch):
    import numba.core.caching as caching

    def refuse(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", refuse)

    def triple(values, out):
        for i in range(values.size):
            out[i] = np.float32(3) * values[i]

    kernel = Kernel(triple, "void", ("in float32", "out float32"))
    out = np.empty(2, np.float32)
    kernel(np.float32([1, 2]), out)
    assert out.tolist() == [3, 6]


def test_wrong_types_are_refused_not_converted():
    from mcompose.methods import kernels

    with pytest.raises(TypeError):
        kernels.count_nonfinite(np.zeros(4, np.float64))
