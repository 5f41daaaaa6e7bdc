"""The figures of the composition report: what is kept of each donor, what is gained jointly, and by how much.

``family_scores`` gives shares of right answers; here they become retention (a composition's share over its donor's),
joint accuracy by the number of media asked about, and differences between two variants on the same seed.

Paper: Chen et al. 2024, arXiv:2402.12750, whose claim is that DAMC beats NaiveMC, the more so the more modalities.
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

__all__ = ["COLUMNS", "DIFFERENCE", "Subset", "differences", "pooled", "subsets", "summaries"]

DIFFERENCE = " - "
PAIRS = ("joint-sum", "joint-same", "joint-larger", "joint-which", "joint-common-2")
COMMON = {count: f"joint-common-{count}" for count in (2, 3, 4)}
COLUMNS = (
    "retention-mean", "retention-text", "joint-2", "joint-3", "joint-4",
    "joint-own-2", "joint-own-3", "joint-own-4", "joint-mean", "extra-parameters", "merge-seconds", "search-seconds",
)  # fmt: skip
"""What the report prints of each variant; ``--json`` has everything."""


def summaries(found: Mapping[str, Scores], *, donors: Sequence[str]) -> dict[str, dict[str, float]]:
    """Adds what is computed from other figures of the same variant, of the donors and of the text ceiling.

    ``retention-<modality>`` is the mean share of right answers to single questions, over that of the shared donor;
    ``retention-text`` is the same for text, over the base's. ``joint-2`` is the mean of all tasks about two media,
    ``joint-3`` and ``joint-4`` are the commonality questions about three and four, where a family asks them.

    Args:
        found: Variant -> metric -> value, with ``donor:<name>`` and ``text-ceiling``.
        donors: Their names.

    Returns:
        The same with more metrics.
    """
    whole = {name: _single(found[f"donor:{name}"], name) for name in donors}
    text = found["text-ceiling"]["text-mean"]
    made: dict[str, dict[str, float]] = {}
    for variant, scores in found.items():
        more: dict[str, float] = {}
        if variant != "text-ceiling":
            own = [name for name in donors if f"{name}-name" in scores]
            more = {f"retention-{name}": _kept(_single(scores, name), whole[name]) for name in own}
            more["retention-mean"] = statistics.fmean(more.values())
            more["retention-text"] = _kept(scores["text-mean"], text)
        more["joint-2"] = statistics.fmean(scores[name] for name in PAIRS if name in scores)
        more |= {f"joint-{count}": scores[COMMON[count]] for count in (3, 4) if COMMON[count] in scores}
        made[variant] = {**scores, **more}
    return made


def _kept(share: float, whole: float) -> float:
    """Returns what is kept of a share; who knows nothing has nothing to lose."""
    return share / whole if whole else 1.0


def _single(scores: Scores, name: str) -> float:
    kept = [value for metric, value in scores.items() if metric.startswith(f"{name}-") and not metric.endswith("_seen")]
    return statistics.fmean(kept)


def differences(found: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """By how much one variant beats another, on the same seed.

    Args:
        found: Variant -> metric -> value.
        pairs: The better one, as claimed, and the other.

    Returns:
        ``<one> - <other>`` -> joint, retention and mean metrics -> difference.
    """
    made = {}
    for one, other in pairs:
        if one in found and other in found:
            metrics = [
                name for name in found[one] if name.startswith(("joint-", "retention-")) and name in found[other]
            ]
            made[f"{one}{DIFFERENCE}{other}"] = {name: found[one][name] - found[other][name] for name in metrics}
    return made


@dataclass(frozen=True)
class Subset:
    """Some donors, and the commonality questions that show one input of each of them.

    Args:
        names: The donors.
        task: The task file.
        count: Its questions.
    """

    names: tuple[str, ...]
    task: Path
    count: int


def subsets(family: LabFamily, folder: Path) -> list[Subset]:
    """Sorts the joint commonality questions by the modalities that they show: for compositions of just those donors.

    Args:
        family: The family.
        folder: Where the task files go.

    Returns:
        All sets of two, three and four donors that some question is about.
    """
    made = []
    for inputs in COMMON:
        source = family.tasks.get(COMMON[inputs])
        if source is None:
            continue
        header, *rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for names in itertools.combinations(family.donors, inputs):
            mine = [_moved(row, source.parent, folder) for row in rows if _shown(row) == set(names)]
            if mine:
                title = f"{COMMON[inputs]}-{'-'.join(names)}"
                path = folder / f"{title}.jsonl"
                lines = [json.dumps(line, ensure_ascii=False) for line in ({**header, "task": title}, *mine)]
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
                made.append(Subset(names, path, len(mine)))
    return made


def _shown(row: Mapping[str, Any]) -> set[str]:
    return {entry["modality"] for entry in row["inputs"]}


def _moved(row: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Returns a question whose paths start from another folder."""
    start = os.path.relpath(old, new)
    inputs = [{**entry, "path": f"{Path(start, entry['path']).as_posix()}"} for entry in row["inputs"]]
    return {**row, "inputs": inputs}


def pooled(parts: Sequence[tuple[Subset, float]]) -> dict[str, float]:
    """Brings the scores of compositions of some donors together.

    Args:
        parts: Sets of donors and the share of right answers of their composition.

    Returns:
        ``joint-own-<k>``: the share over all questions about k media, each asked of the composition of its k donors.
    """
    made = {}
    for inputs in COMMON:
        mine = [(subset.count, value) for subset, value in parts if len(subset.names) == inputs]
        if mine:
            made[f"joint-own-{inputs}"] = sum(n * value for n, value in mine) / sum(n for n, _ in mine)
    return made
