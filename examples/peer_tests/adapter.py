"""A pytest plugin: runs mergekit's tests with mcompose's functions in the place of mergekit's kernels.

    python -m pytest -p examples.peer_tests.adapter --peer-results FILE ...

It skips the tests that `applicable` names, checks that every other test reaches mcompose, and writes each test's
outcome. Two things are not required of mcompose: gradients (a test of values and gradients is run for its values), and
more digits than float32 has (float64 numbers may be compared at float32's tolerances; such tests are counted).
"""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit import sparsify

from examples.peer_tests.applicable import GRADIENTS_LEFT_OUT, NOT_APPLICABLE, matches, reason_for
from examples.peer_tests.shims import Bench, draws_for
from mcompose.methods import METHODS

FLOAT32 = {"rtol": 1.3e-6, "atol": 1e-5}
"""Torch's own tolerances for float32."""


class GradientsAsked(Exception):  # noqa: N818 - not an error: the end of the part about values
    """Raised where a test starts to check gradients."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the plugin's options."""
    group = parser.getgroup("peer tests")
    group.addoption("--peer-results", type=Path, help="file for the outcome of each test")
    group.addoption("--peer-form", default="function", choices=["function", "program"])
    group.addoption("--peer-falsify", action="store_true", help="hand back wrong numbers")


def pytest_configure(config: pytest.Config) -> None:
    """Puts mcompose in mergekit's place before the tests are imported."""
    bench = Bench(str(config.getoption("--peer-form")), falsify=bool(config.getoption("--peer-falsify")))
    bench.install()
    # One test file imports helpers that are not in the source distribution; the tests that use them are not applicable.
    lacking = types.ModuleType("tests.common")
    lacking.make_picollama = lacking.run_and_check_merge = None  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["tests.common"] = lacking
    config.pluginmanager.register(Peer(config, bench), "peer")


class Peer:
    """Hooks of the plugin while the tests run.

    Args:
        config: Configuration of pytest.
        bench: Object that replaced mergekit's kernels by mcompose's.
    """

    def __init__(self, config: pytest.Config, bench: Bench) -> None:
        self._file: Path | None = config.getoption("--peer-results")
        self._bench = bench
        self._rows: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skips tests that are not applicable, and gives the tests about pruning mcompose's `sparsify`."""
        names = [item.name for item in items]
        patterns = [pattern for group in (*NOT_APPLICABLE.values(), GRADIENTS_LEFT_OUT) for pattern in group]
        stale = [pattern for pattern in patterns if not any(matches(name, (pattern,)) for name in names)]
        if stale:
            raise pytest.UsageError(f"No test matches {stale}.")
        for item in items:
            assert isinstance(item, pytest.Function)
            assert item.module is not None
            if item.module.__name__.endswith("test_sparsify"):
                item.module.sparsify = self._bench.sparsify
            reason = reason_for(item.name)
            self._rows[item.nodeid] = {"file": item.path.name, "test": item.name, "reason": reason}
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        """Runs one test, and fails it when it does not reach mcompose."""
        before, row = self._bench.calls, self._rows[pyfuncitem.nodeid]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.testing, "assert_close", _forgiving(torch.testing.assert_close, row))
            name = str(pyfuncitem.callspec.params.get("method_name")) if hasattr(pyfuncitem, "callspec") else ""
            if name in METHODS and METHODS.get(name).random:
                patch.setattr(sparsify.torch, "bernoulli", draws_for(name))
            if matches(pyfuncitem.name, GRADIENTS_LEFT_OUT):
                patch.setattr(torch.Tensor, "backward", _stop)
                patch.setattr(torch.autograd, "grad", lambda *_, **__: ())
                row["gradients left out"] = True
            try:
                result = yield
            except GradientsAsked:
                result = True
        assert self._bench.calls > before, "an applicable test must reach mcompose's functions"
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records the outcome of a test; a skip that the table does not name counts as a failure."""
        row = self._rows[report.nodeid]
        if report.failed or (report.skipped and row["reason"] is None):
            row["outcome"], row["message"] = "failed", str(report.longrepr)
        elif report.skipped or report.when == "call":
            row.setdefault("outcome", "not applicable" if report.skipped else "passed")

    def pytest_sessionfinish(self) -> None:
        """Writes the results."""
        if self._file is not None:
            self._file.write_text(json.dumps(list(self._rows.values()), indent=1) + "\n")


def _stop(*_: Any, **__: Any) -> None:
    raise GradientsAsked


def _forgiving(strict: Any, row: dict[str, Any]) -> Any:
    """Makes an `assert_close` that also accepts float64 numbers within float32's tolerances, and records that."""

    def assert_close(actual: Any, expected: Any, **settings: Any) -> None:
        try:
            strict(actual, expected, **settings)
        except AssertionError:
            double = isinstance(actual, torch.Tensor) and actual.dtype == torch.float64
            if not double or "rtol" in settings or "atol" in settings:
                raise
            strict(actual, expected, **settings, **FLOAT32)
            row["float32 tolerances"] = True

    return assert_close
