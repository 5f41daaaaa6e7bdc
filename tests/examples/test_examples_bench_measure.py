"""The benchmark's instruments against loads of known size."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.bench import cache
from examples.bench.measure import run
from examples.bench.ratio import ratio

MB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_anonymous_memory_is_what_the_child_filled():
    idle = run(python("import time; time.sleep(0.5)"))
    full = run(python(f"import time; x = bytearray(b'1') * (200 * {MB}); time.sleep(0.5)"))
    grown = (full.anonymous - idle.anonymous) / MB
    assert 198 < grown < 205
    assert full.peak >= full.anonymous


def test_mapped_pages_are_in_the_peak_and_not_in_the_anonymous(tmp_path: Path):
    file = tmp_path / "data"
    file.write_bytes(b"1" * (300 * MB))
    code = f"import mmap, time; f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
    cost = run(python(code + "sum(m[k] for k in range(0, len(m), 4096)); time.sleep(0.5)"))
    assert cost.peak > 300 * MB
    assert cost.anonymous < 100 * MB


def test_the_measurers_own_memory_is_not_the_childs():
    """A child's ru_maxrss starts from its parent's peak: a large parent must not show in a small child."""
    code = "x = bytearray(b'1') * (400 << 20)\nfrom examples.bench.measure import run\n"
    code += "print(run(['sleep', '0.5']).peak)"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert 0 < int(told) < 20 * MB


@pytest.mark.cost
def test_cpu_seconds_are_those_the_child_burned():
    cost = run(python("import time\nwhile time.process_time() < 1.0: pass"))
    assert 0.98 < cost.cpu < 1.2
    assert cost.wall > 0.98


def test_waiting_costs_no_cpu():
    cost = run(["sleep", "0.5"])
    assert cost.cpu < 0.1
    assert cost.wall >= 0.5


@pytest.mark.cost
def test_a_measurement_ends_with_what_it_measures():
    assert run(["sleep", "0.5"]).wall < 0.7


def test_bytes_read_and_written_are_counted(tmp_path: Path):
    file = tmp_path / "data"
    file.write_bytes(b"1" * (8 * MB))
    cost = run(["dd", f"if={file}", f"of={tmp_path / 'copy'}", "bs=1M"])
    assert 8 * MB <= cost.read < 8.2 * MB
    assert 8 * MB <= cost.written < 8.2 * MB


def test_a_failing_command_is_shown_with_its_output():
    with pytest.raises(RuntimeError, match=r"(?s)failed.*no such source"):
        run(["sh", "-c", "echo no such source; exit 3"])


def test_thread_settings_of_the_caller_are_not_handed_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A tool that was told to use one thread would be measured at a fraction of its speed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KEPT", "yes")
    told = tmp_path / "environment"
    run(["sh", "-c", f"env > '{told}'"], env={"GIVEN": "8"})
    seen = dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
    assert (seen["KEPT"], seen["GIVEN"]) == ("yes", "8")
    assert "OMP_NUM_THREADS" not in seen


def test_ratios_round_by_round_by_hand():
    found = ratio([10.0, 12.0, 9.0], [2.0, 2.0, 3.0])  # 5, 6, 3
    assert (found.median, found.low, found.high, found.n) == (5.0, 3.0, 6.0, 3)
    assert found.best == 4.5  # 9 / 2
    assert str(found) == "5 (3 to 6)"


def test_a_tool_that_ran_less_often_is_set_against_with_its_last_run():
    found = ratio([100.0], [4.0, 5.0, 2.0, 10.0])  # 25, 20, 50, 10
    assert (found.median, found.low, found.high, found.best, found.n) == (22.5, 10.0, 50.0, 50.0, 4)


def test_cached_and_dropped_files_are_told_apart(tmp_path: Path):
    file = tmp_path / "data"
    file.write_bytes(b"1" * (64 * MB))
    file.read_bytes()
    share = cache.cached([file])
    if share is None:
        pytest.skip("this file system does not tell what is cached")
    assert share == 1.0
    if not cache.can_be_cold([file]):
        pytest.skip("the page cache cannot be dropped here")
    file.read_bytes()
    assert cache.cached([file]) == 1.0
