"""Metrics of the composition report: retention of each donor, joint accuracy, and differences between variants.

``family_scores`` returns shares of right answers. From these are computed: retention (a composition's share divided by
its donor's), joint accuracy by the number of media in a question, and differences between two variants on the same
seed.

Paper: Chen et al. 2024, arXiv:2402.12750, which claims that DAMC beats NaiveMC, by more the more modalities there are.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.lab.family import LabFamily
from mcompose.lab.report import Scores

__all__ = ["COLUMNS", "DIFFERENCE", "Subset", "differences", "pool_scores", "subsets", "summaries"]

DIFFERENCE = " - "
PAIRS = ("joint-sum", "joint-same", "joint-larger", "joint-which", "joint-common-2")
COMMON = {count: f"joint-common-{count}" for count in (2, 3, 4)}
COLUMNS = (
    "retention-mean", "retention-text", "joint-2", "joint-3", "joint-4",
    "joint-own-2", "joint-own-3", "joint-own-4", "joint-mean", "extra-parameters", "merge-seconds", "search-seconds",
)  # fmt: skip
"""Metrics that the report prints of each variant; ``--json`` has all."""


def summaries(found: Mapping[str, Scores], *, donors: Sequence[str]) -> dict[str, dict[str, float]]:
    """Adds the metrics that are computed from others: of the same variant, of the donors and of the text ceiling.

    ``retention-<modality>`` is the mean share of right answers to single questions, divided by that of the shared
    donor; ``retention-text`` is the same for text, divided by the base's. ``joint-2`` is the mean of all tasks about
    two media, ``joint-3`` and ``joint-4`` are the commonality questions about three and four, where a family has them.

    Args:
        found: Variant -> metric -> value, with ``donor:<name>`` and ``text-ceiling``.
        donors: Names of the donors.

    Returns:
        The same with more metrics.
    """
    whole = {name: _single(found[f"donor:{name}"], name) for name in donors}
    text = found["text-ceiling"]["text-mean"]
    results: dict[str, dict[str, float]] = {}
    for variant, scores in found.items():
        more: dict[str, float] = {}
        if variant != "text-ceiling":
            measured = [name for name in donors if f"{name}-name" in scores]
            more = {f"retention-{name}": _retention(_single(scores, name), whole[name]) for name in measured}
            more["retention-mean"] = statistics.fmean(more.values())
            more["retention-text"] = _retention(scores["text-mean"], text)
        more["joint-2"] = statistics.fmean(scores[name] for name in PAIRS if name in scores)
        more |= {f"joint-{count}": scores[COMMON[count]] for count in (3, 4) if COMMON[count] in scores}
        results[variant] = {**scores, **more}
    return results


def _retention(share: float, whole: float) -> float:
    """Divides a composition's share of right answers by the donor's; 1 where the donor has none right."""
    return share / whole if whole else 1.0


def _single(scores: Scores, name: str) -> float:
    """Returns the mean over a donor's single tasks."""
    return statistics.fmean(
        value for metric, value in scores.items() if metric.startswith(f"{name}-") and not metric.endswith("_seen")
    )


def differences(found: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Subtracts one variant's metrics from another's, on the same seed.

    Args:
        found: Variant -> metric -> value.
        pairs: Pairs of variants; the first is the one that is claimed to be better.

    Returns:
        ``<first> - <second>`` -> joint, retention and mean metrics -> difference.
    """
    results = {}
    for first, second in pairs:
        if first in found and second in found:
            metrics = [
                name for name in found[first] if name.startswith(("joint-", "retention-")) and name in found[second]
            ]
            results[f"{first}{DIFFERENCE}{second}"] = {
                name: found[first][name] - found[second][name] for name in metrics
            }
    return results


@dataclass(frozen=True)
class Subset:
    """A set of donors, and the commonality questions that show one input of each of them.

    Args:
        names: Names of the donors.
        task: Task file with the questions.
        count: Number of questions.
    """

    names: tuple[str, ...]
    task: Path
    count: int


def subsets(family: LabFamily, folder: Path) -> list[Subset]:
    """Groups the joint commonality questions by the modalities that they show, to test compositions of those donors.

    Args:
        family: The family.
        folder: Folder to write the task files to.

    Returns:
        All sets of two, three and four donors that some question is about.
    """
    found = []
    for inputs in COMMON:
        source = family.tasks.get(COMMON[inputs])
        if source is None:
            continue
        header, *rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for names in itertools.combinations(family.donors, inputs):
            chosen = [_rebase(row, source.parent, folder) for row in rows if _modalities(row) == set(names)]
            if chosen:
                title = f"{COMMON[inputs]}-{'-'.join(names)}"
                path = folder / f"{title}.jsonl"
                lines = [json.dumps(line, ensure_ascii=False) for line in ({**header, "task": title}, *chosen)]
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
                found.append(Subset(names, path, len(chosen)))
    return found


def _modalities(row: Mapping[str, Any]) -> set[str]:
    return {entry["modality"] for entry in row["inputs"]}


def _rebase(row: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Makes the paths of a question relative to another folder."""
    start = os.path.relpath(old, new)
    inputs = [{**entry, "path": f"{Path(start, entry['path']).as_posix()}"} for entry in row["inputs"]]
    return {**row, "inputs": inputs}


def pool_scores(parts: Sequence[tuple[Subset, float]]) -> dict[str, float]:
    """Averages the scores of compositions of two, three and four donors, weighted by their numbers of questions.

    Args:
        parts: Sets of donors, each with the share of right answers of their composition.

    Returns:
        ``joint-own-<k>``: the share over all questions about k media, each asked of the composition of its k donors.
    """
    results = {}
    for inputs in COMMON:
        same_size = [(subset.count, value) for subset, value in parts if len(subset.names) == inputs]
        if same_size:
            results[f"joint-own-{inputs}"] = sum(n * value for n, value in same_size) / sum(n for n, _ in same_size)
    return results
