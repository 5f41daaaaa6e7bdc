"""mergekit's published numerics tests against mcompose's merge functions.

    make peer-tests
    python -m examples.peer_tests --json

Downloads mergekit's source distribution (LGPL-3.0; kept in `build/peer-tests`, not a part of this project), and runs
its numerics tests with mcompose in the place of mergekit's kernels: once with the methods' functions, once with the
chunked programs that the engine runs. A third run returns wrong numbers on purpose and counts the tests that notice:
the others check only shapes, finite numbers, or the same result for another memory layout. Prints how many passed, and
why the rest do not apply; exits with 1 when one failed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.peer_tests.fetch import FILES, VERSION, fetch
from mcompose.cli.output import table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "peer-tests"
FORMS = ("function", "program")
REMARKS = ("gradients left out", "float32 tolerances")

Row = dict[str, Any]


def run(tests: Path, form: str, *, falsify: bool = False) -> list[Row]:
    """Runs the tests in a process of their own.

    Args:
        tests: Folder of the tests.
        form: ``function`` or ``program``.
        falsify: Whether mcompose returns wrong numbers.

    Returns:
        One row per test: file, test, outcome, reason, message.

    Raises:
        SystemExit: pytest could not run them.
    """
    results = FOLDER / f"{form}{'-falsified' if falsify else ''}.json"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "examples.peer_tests.adapter", "-p", "no:cacheprovider", "-q"]
    command += ["-c", str(tests.parent / "pyproject.toml"), "--rootdir", str(tests.parent), "--tb=short"]
    command += ["--peer-form", form, "--peer-results", str(results), *(["--peer-falsify"] if falsify else [])]
    command += [str(tests / file) for file in FILES]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode not in {0, 1} or not results.is_file():
        raise SystemExit(f"pytest could not run mergekit's tests:\n{done.stdout}{done.stderr}")
    return json.loads(results.read_text())


def summary(runs: Mapping[str, list[Row]], falsified: list[Row]) -> dict[str, Any]:
    """Counts the outcomes of the tests.

    Args:
        runs: Form -> rows.
        falsified: Rows of the run with wrong numbers.

    Returns:
        The report that ``--json`` prints.
    """
    first = next(iter(runs.values()))
    files = {file: {form: _outcomes(rows, file) for form, rows in runs.items()} for file in FILES}
    return {
        "peer": f"mergekit {VERSION}",
        "tests": len(first),
        "forms": {form: _outcomes(rows) for form, rows in runs.items()},
        "notice wrong numbers": _outcomes(falsified).get("failed", 0),
        "files": files,
        "not applicable": dict(Counter(row["reason"] for row in first if row["reason"]).most_common()),
        "failed": [{"form": form, **row} for form, rows in runs.items() for row in rows if row["outcome"] == "failed"],
    }


def _outcomes(rows: list[Row], file: str | None = None) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        if file in {None, row["file"]}:
            counts[row["outcome"]] += 1
            if row["outcome"] == "passed":
                counts.update(f"passed, {remark}" for remark in REMARKS if row.get(remark))
    return dict(counts)


def to_text(found: Mapping[str, Any]) -> str:
    """Formats the summary as tables.

    Args:
        found: Result of `summary`.

    Returns:
        The tables, the remarks and the failures.
    """
    rows = []
    for file, outcomes in found["files"].items():
        passed = [outcomes[form].get("passed", 0) for form in outcomes]
        failed = sum(outcomes[form].get("failed", 0) for form in outcomes)
        first = next(iter(outcomes.values()))
        rows.append([file, *passed, failed, first.get("not applicable", 0)])
    rows.append(["all", *(sum(row[k] for row in rows) for k in range(1, len(rows[0])))])
    header = [found["peer"], *(f"passed as {form}" for form in found["forms"]), "failed", "not applicable"]
    reasons = [[count, reason] for reason, count in found["not applicable"].items()]
    lines = [table(rows, header=header), "", table(reasons, header=["tests", "not applicable because"]), ""]
    for form, counts in found["forms"].items():
        remarks = (f"{counts.get(f'passed, {remark}', 0)} with {remark}" for remark in REMARKS)
        lines.append(f"passed as {form}: {', '.join(remarks)}")
    lines.append(f"{found['notice wrong numbers']} of the applicable tests fail when mcompose's numbers are made wrong")
    lines += [f"\nFAILED as {row['form']}: {row['file']} {row['test']}\n{row['message']}" for row in found["failed"]]
    return "\n".join(lines)


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description="mergekit's published numerics tests against mcompose")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if version("mergekit") != VERSION:
        raise SystemExit(f"The tests are those of mergekit {VERSION}; {version('mergekit')} is installed.")
    tests = fetch(FOLDER)
    found = summary({form: run(tests, form) for form in FORMS}, run(tests, FORMS[0], falsify=True))
    print(json.dumps(found, indent=1) if options.json else to_text(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
