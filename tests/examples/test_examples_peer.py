"""The adapter under mergekit's tests: its shims reach mcompose, and its plugin hides nothing.

The tests here are the project's own; mergekit's are fetched by the slow one only.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mergekit.merge_methods import merge_tensors, registered_methods

from examples.peer_tests import fetch
from examples.peer_tests.__main__ import ROOT, summary, to_text
from examples.peer_tests.applicable import NOT_APPLICABLE, matches, reason_for
from examples.peer_tests.shims import Bench, draws_for
from mcompose.methods import METHODS

FORMS = ["function", "program"]
SETTINGS = {
    "linear": {"weight": [0.5, 0.3, 0.2, 0.4]},
    "slerp": {"t": 0.3},
    "nuslerp": {"weight": [0.3, 0.7]},
    "passthrough": {"scale": 0.5},
    "karcher": {},
    "model_stock": {},
    "task_arithmetic": {"weight": [0.5, 0.3, 0.2], "lambda": 0.8},
    "ties": {"weight": [0.5, 0.3, 0.2], "density": 0.4},
    "breadcrumbs": {"weight": [0.5, 0.3, 0.2], "density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": [0.5, 0.3, 0.2], "density": [0.4, 0.6, 1.0], "rescale": True},
    "dare_linear": {"weight": [0.5, 0.3, 0.2], "density": 0.4},
    "dare_ties": {"weight": [0.5, 0.3, 0.2], "density": 0.4, "rescale": False},
    "della": {"weight": [0.5, 0.3, 0.2], "density": 0.4},
    "della_linear": {"weight": [0.5, 0.3, 0.2], "density": 0.4, "epsilon": 0.2},
}
COUNTS = {"slerp": 2, "nuslerp": 3, "passthrough": 1}


@pytest.fixture
def registry():
    """mergekit's registry, put back as it was."""
    kept = [(method, dict(vars(method))) for method in registered_methods()]
    yield
    for method, attributes in kept:
        vars(method).clear()
        vars(method).update(attributes)


def merged(name):
    generator = torch.Generator().manual_seed(3)
    tensors = [1.0 + torch.randn(8, 6, generator=generator) for _ in range(COUNTS.get(name, 4))]
    base = 0 if name not in {"linear", "karcher", "passthrough"} else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        return merge_tensors(tensors, name, base_index=base, parameters=SETTINGS[name])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_shim_gives_what_mergekit_gives(registry, monkeypatch, name, form):
    if METHODS.get(name).random:
        monkeypatch.setattr(torch, "bernoulli", draws_for(name))
    wanted = merged(name)
    bench = Bench(form)
    assert name in bench.install()
    torch.testing.assert_close(merged(name), wanted, rtol=4e-6, atol=4e-6)
    assert bench.calls == 1


def test_every_method_that_both_have_is_replaced(registry):
    assert sorted(Bench().install()) == sorted(SETTINGS)


def test_a_broken_function_shows(registry, monkeypatch):
    Bench().install()
    right = merged("ties")
    ties = METHODS.get("ties")
    broken = replace(ties, function=lambda deltas, **settings: ties.function(deltas, **settings) * 2)
    monkeypatch.setitem(METHODS._entries, "ties", broken)
    assert not torch.allclose(merged("ties"), right)


@pytest.mark.parametrize("form", FORMS)
def test_pruning_one_delta(form):
    delta = torch.tensor([[1.0, -4.0, 2.0, 0.5]], dtype=torch.bfloat16)
    bench = Bench(form)
    assert bench.sparsify(delta, 0.5, "magnitude").tolist() == [[0.0, -4.0, 2.0, 0.0]]
    assert bench.sparsify(delta, 0.5, "magnitude", rescale_norm="l1").tolist() == [[0.0, -5.0, 2.5, 0.0]]
    assert bench.sparsify(delta, density=0.5, method="magnitude_outliers", gamma=0.25).tolist() == [
        [1.0, 0.0, 2.0, 0.0]
    ]
    kept = bench.sparsify(torch.ones(1000), 0.3, "random")
    assert 200 < int(kept.sum()) < 400
    with pytest.raises(ValueError, match="l2"):
        bench.sparsify(delta, 0.5, "magnitude", rescale_norm="l2")


def test_the_table_names_tests_not_failures():
    assert reason_for("test_linear_ignores_ambient_autocast[cpu-dtype0]") is None
    assert reason_for("test_linear_ignores_ambient_autocast[cuda-dtype0]") == "needs a GPU (CUDA or MPS)"
    assert matches(
        "test_zero_density[l2]", NOT_APPLICABLE["norms that mcompose does not restore after pruning (l2, linf)"]
    )
    assert reason_for("test_zero_density[l1]") is None
    assert reason_for("test_that_nobody_has_written_yet") is None


OWN_TESTS = """
import pytest
import torch
from mergekit.merge_methods import merge_tensors

def halves():
    return merge_tensors([torch.zeros(3), torch.ones(3)], "linear", parameters={"weight": 1.0})

def test_right():
    assert halves().tolist() == [0.5, 0.5, 0.5]

def test_wrong():
    assert halves().tolist() == [0.0, 0.0, 0.0]

def test_idle():
    assert True

def test_skips_itself():
    halves()
    pytest.skip("on a whim")

def test_left_out():
    assert False

def test_gradients():
    result = halves()
    assert result.sum() == 1.5
    result.sum().backward()
    assert False

def half_of_thirds():
    some = [torch.tensor([value], dtype=torch.float64) for value in (100 / 3, 100 / 7, 1.5 - 100 / 3 - 100 / 7)]
    return merge_tensors(some, "linear", parameters={"weight": 1.0})

def test_digits():
    torch.testing.assert_close(half_of_thirds(), torch.tensor([0.5], dtype=torch.float64))

def test_digits_on_request():
    torch.testing.assert_close(half_of_thirds(), torch.tensor([0.5], dtype=torch.float64), rtol=0, atol=1e-12)
"""
OWN_TABLE = """
import examples.peer_tests.applicable as table

table.NOT_APPLICABLE.clear()
table.NOT_APPLICABLE["because"] = ("test_left*",)
table.GRADIENTS_LEFT_OUT = ("test_gradients",)
"""


def run_plugin(tmp_path, *flags):
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    (tmp_path / "own_table.py").write_text(OWN_TABLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "own_table", "-p", "examples.peer_tests.adapter", "-q", *flags]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    results = tmp_path / "results.json"
    command += ["-c", str(tmp_path / "pytest.ini"), "--peer-results", str(results), str(tmp_path / "test_own.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert results.is_file(), done.stdout + done.stderr
    return {row["test"]: row for row in json.loads(results.read_text())}


def test_the_plugin_hides_nothing(tmp_path):
    rows = run_plugin(tmp_path)
    outcomes = {name: row["outcome"] for name, row in rows.items()}
    assert outcomes == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_idle": "failed",
        "test_skips_itself": "failed",
        "test_left_out": "not applicable",
        "test_gradients": "passed",
        "test_digits": "passed",
        "test_digits_on_request": "failed",
    }
    assert "must reach mcompose's functions" in rows["test_idle"]["message"]
    assert "on a whim" in rows["test_skips_itself"]["message"]
    assert rows["test_left_out"]["reason"] == "because"
    assert rows["test_gradients"]["gradients left out"]
    assert rows["test_digits"]["float32 tolerances"]
    assert "float32 tolerances" not in rows["test_right"]


def test_wrong_numbers_are_noticed(tmp_path):
    outcomes = {name: row["outcome"] for name, row in run_plugin(tmp_path, "--peer-falsify").items()}
    assert outcomes["test_right"] == outcomes["test_gradients"] == outcomes["test_digits"] == "failed"


def test_the_summary_counts_and_spells_out_failures():
    file = fetch.FILES[0]
    good = {"file": file, "test": "a", "reason": None, "outcome": "passed", "gradients left out": True}
    left = {"file": file, "test": "b", "reason": "because", "outcome": "not applicable"}
    bad = {"file": file, "test": "c", "reason": None, "outcome": "failed", "message": "1 != 2"}
    found = summary({"function": [good, left, bad]}, [bad, left, bad])
    assert found["forms"]["function"] == {
        "passed": 1,
        "passed, gradients left out": 1,
        "not applicable": 1,
        "failed": 1,
    }
    assert found["not applicable"] == {"because": 1}
    assert found["notice wrong numbers"] == 2
    assert [row["test"] for row in found["failed"]] == ["c"]
    text = to_text(found)
    assert f"FAILED as function: {file} c\n1 != 2" in text
    assert "1  because" in text


def make_archive(folder: Path, extra: str) -> Path:
    archive = folder / f"mergekit-{fetch.VERSION}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*(f"tests/{file}" for file in fetch.FILES), "pyproject.toml", extra]:
            content = name.encode()
            member = tarfile.TarInfo(f"mergekit-{fetch.VERSION}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def test_only_the_wanted_files_are_unpacked(tmp_path):
    archive = make_archive(tmp_path, "../../outside.py")
    tests = fetch.unpack(archive, tmp_path / "unpacked")
    assert sorted(path.name for path in tests.iterdir()) == sorted(fetch.FILES)
    assert (tests.parent / "pyproject.toml").read_text() == "pyproject.toml"
    assert not list(tmp_path.rglob("outside.py"))


def test_another_archive_is_refused(tmp_path):
    make_archive(tmp_path, "more.py")
    with pytest.raises(SystemExit, match="Delete it and run the command again"):
        fetch.fetch(tmp_path)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_mergekits_own_tests_pass():
    done = subprocess.run(
        [sys.executable, "-m", "examples.peer_tests", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["tests"] == 436
    assert [found["forms"][form]["passed"] for form in FORMS] == [164, 164]
    assert sum(found["not applicable"].values()) == 272
    assert found["notice wrong numbers"] == 130


def test_falsified_numbers_differ_everywhere():
    right, wrong = Bench(), Bench(falsify=True)
    tensor = torch.tensor([0.0, -1.0, 2.0])
    assert right.merge("passthrough", [tensor], None, {}).tolist() == [0.0, -1.0, 2.0]
    assert np.allclose(wrong.merge("passthrough", [tensor], None, {}), [0.1, -1.0, 2.3])
