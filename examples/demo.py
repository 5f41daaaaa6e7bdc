"""The main job on real input: four sources that each take one modality become one model that takes all four.

    make demo

Trains the lab's small family once (real handwritten digits, keypad tones, blinking clips, point clusters; about six
minutes on two cores), composes its four sources by NaiveMC, asks the result questions that no source was ever trained
on, and compares it with each source alone and with the same questions in words. A second run uses all results of the
first again.
"""

import json
import sys
import time
from pathlib import Path

from mcompose.cli.output import table
from mcompose.lab import plot_rows
from mcompose.lab import table as over_seeds
from mcompose.ledger import Ledger
from mcompose.pipeline import check
from mcompose.pipeline.lab import run as laboratory
from mcompose.pipeline.record import record_scores

FOLDER = Path("build/demo")


def scores(folder: Path, family: laboratory.LabFamily) -> dict[str, dict[str, float]]:
    """Composes and measures, or reads the scores of an earlier run on the same weights."""
    composed = laboratory.compose(family, "naivemc")
    digest = [row.digest for row in Ledger.read(composed).tensors]
    kept = folder / "scores.json"
    if kept.is_file():
        table = json.loads(kept.read_text())
        if table["tensors"] == digest:
            return table["scores"]
    found = laboratory.measure(family, {"naivemc": composed})
    kept.write_text(json.dumps({"tensors": digest, "scores": found}, indent=1) + "\n")
    return found


def main() -> None:
    """Runs the demo and prints the results."""
    started = time.monotonic()
    family = laboratory.make("numbers", FOLDER / "numbers").family
    found = scores(FOLDER, family)
    composed = family.folder / "composed" / "naivemc"
    groups = ["joint-common-2", "joint-common-3", "joint-common-4", "joint-mean", "single-mean", "text-mean"]
    rows = [[variant, *(values.get(group) for group in groups)] for variant, values in found.items()]
    print(table(rows, header=["variant", *groups]))
    plot = FOLDER / "joint.png"
    plot_rows(over_seeds([found]), plot, title="Zero-shot joint questions: four sources, one model")
    results = [
        {
            "task": name,
            "metric": "accuracy",
            "value": found["naivemc"][name],
            "n": len(path.read_text().splitlines()) - 1,
        }
        for name, path in family.tasks.items()
    ]
    record_scores(composed, results, plot=plot)
    print(f"\n{check.verify(composed).to_text()}")
    print(f"model {composed}\ncard  {composed / 'README.md'}\nplot  {plot}")
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
