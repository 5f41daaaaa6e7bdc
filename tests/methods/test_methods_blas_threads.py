"""The methods on singular vectors give the same bytes however many threads numpy's BLAS would take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from mcompose.methods import merge_tensors
from mcompose.methods.core import blas_threads
from mcompose.methods.core.blas_threads import one_blas_thread

PROGRAM = """
import hashlib
import numpy as np
from mcompose.methods import merge_tensors

generator = np.random.default_rng(0)
deltas = [np.float32(generator.standard_normal((300, 700)) * 0.01) for _ in range(3)]
cases = [("tsv", {}), ("iso-c", {}), ("wudi", {"steps": 3}), ("wudi", {"solver": "closed"}), ("optmerge", {})]
for name, parameters in cases:
    for turned in (False, True):
        sources = [np.ascontiguousarray(delta.T) if turned else delta for delta in deltas]
        merged = merge_tensors(name, sources, base=np.zeros_like(sources[0]), **parameters)
        print(hashlib.sha256(np.ascontiguousarray(merged).tobytes()).hexdigest())
"""

openblas = pytest.mark.skipif(blas_threads._controls() is None, reason="numpy's BLAS here is not OpenBLAS")


@openblas
def test_the_number_of_blas_threads_does_not_reach_the_bytes():
    outputs = []
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout.split())
    assert len(outputs[0]) == 10
    assert outputs[0] == outputs[1] == outputs[2]


@openblas
def test_the_number_of_blas_threads_is_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(blas_threads, "_controls", lambda: (lambda: 7, calls.append))
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    entered.wait(10)
    with pytest.raises(KeyError), one_blas_thread():  # a second thread inside, which leaves first, by an error
        raise KeyError
    assert calls == [1], "set once, and not given back while somebody is inside"
    leave.set()
    other.join()
    assert calls == [1, 7]


def test_another_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(blas_threads, "_controls", lambda: None)
    deltas = [np.eye(2, dtype=np.float32), 2 * np.eye(2, dtype=np.float32)]
    np.testing.assert_allclose(merge_tensors("iso-c", deltas, base=0 * deltas[0]), 3 * np.eye(2), rtol=1e-6)


def test_several_threads_give_the_bytes_of_one():
    generator = np.random.default_rng(1)
    deltas = [np.float32(generator.standard_normal((120, 200))) for _ in range(2)]
    base = np.zeros_like(deltas[0])
    wanted = merge_tensors("tsv", deltas, base=base).tobytes()
    results = [b""] * 6

    def work(index):
        results[index] = merge_tensors("tsv", deltas, base=base).tobytes()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {wanted}
