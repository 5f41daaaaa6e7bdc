"""The whole benchmark on checkpoints of 0.01 GB: both tools run, their outputs agree, everything is saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def bench(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"examples.bench.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_mcompose_beside_mergekit(tmp_path: Path):
    text = bench(
        "merge", "--gb", "0.01", "--rounds", "2", "--peer-rounds", "1", "--methods", "linear", "ties",
        "--peer-dtype", "float32", "--settle", "0", "--folder", str(tmp_path),
    )  # fmt: skip
    file = next(tmp_path.glob("*/results-*.json"))
    results = json.loads(file.read_text())
    counted = {(run["label"], run["tool"]): 0 for run in results["runs"]}
    for run in results["runs"]:
        counted[run["label"], run["tool"]] += run["number"] > 0
    for method in ("linear", "ties"):
        assert [counted[method, tool] for tool in ("cp", "cat + cp", "mcompose", "mergekit")] == [2, 2, 2, 1]
    assert results["agreement"]["ties"]["equal"] == 1.0
    assert results["agreement"]["linear"]["within_one_step"] > 0.999
    assert results["machine"]["measuring_process_peak_bytes"] < 60e6
    assert bench("table", str(file)).strip() == text.strip()
    assert not any(folder.is_dir() and "-" in folder.name for folder in file.parent.iterdir())
