"""The methods on singular vectors give the same bytes however many threads numpy's BLAS would take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mcompose.methods import merge_tensors
from mcompose.methods.core.singular import OneBlasThread

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


def blas_threads():
    """Threads of every OpenBLAS that is loaded."""
    return {library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"}


controlled = pytest.mark.skipif(not blas_threads(), reason="numpy's BLAS here cannot be asked for threads")


@controlled
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


@controlled
def test_the_number_of_blas_threads_is_given_back_by_the_last_who_leaves():
    one_thread, entered, leave = OneBlasThread(), threading.Event(), threading.Event()

    def hold():
        with one_thread:
            entered.set()
            leave.wait(10)

    with threadpool_limits(3, user_api="blas"):
        other = threading.Thread(target=hold)
        other.start()
        entered.wait(10)
        with pytest.raises(KeyError), one_thread:  # a second thread inside, which leaves first, by an error
            raise KeyError
        assert blas_threads() == {1}, "not given back while somebody is inside"
        leave.set()
        other.join()
        assert blas_threads() == {3}
        with one_thread:
            assert blas_threads() == {1}
        assert blas_threads() == {3}


@controlled
def test_a_merge_in_a_worker_is_on_one_thread_although_another_thread_set_a_number():
    one_thread, seen = OneBlasThread(), []

    def work():
        with one_thread:
            seen.append(blas_threads())
        seen.append(blas_threads())

    with threadpool_limits(3, user_api="blas"):  # from here on the number is this thread's, says threadpoolctl
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert seen == [{1}, {3}]
        threadpool_limits(2, user_api="blas")  # and it is again
        assert blas_threads() == {2}


@controlled
def test_a_merge_runs_on_one_blas_thread(monkeypatch):
    seen = []
    monkeypatch.setattr(
        np.linalg, "eigh", lambda matrix, eigh=np.linalg.eigh: seen.append(blas_threads()) or eigh(matrix)
    )
    deltas = [np.eye(2, dtype=np.float32), 2 * np.eye(2, dtype=np.float32)]
    with threadpool_limits(3, user_api="blas"):
        merged = merge_tensors("iso-c", deltas, base=0 * deltas[0])
    np.testing.assert_allclose(merged, 3 * np.eye(2), rtol=1e-6)
    assert seen
    assert all(threads == {1} for threads in seen)


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
