"""Recipes of the composition with experts and of its baseline, and the commands that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from examples.real.expert_nets import NETS
from examples.real.expert_tables import DOMAINS

__all__ = ["EXPERTS", "PLAIN", "Plan", "Run", "run", "write_recipe"]

EXPERTS, PLAIN = "experts", "plain"
"""Names of the two recipes: the composition with experts, and the general model alone, trained on the same records for
the same number of steps."""
_RATES: Final = {1: 2e-3, 2: 3e-4}
_RATIO: Final = 0.3


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Args:
        steps: Steps of each stage.
        batch: Samples per step.
        tables: Training pictures of each domain with an expert; half as many of the other one.
        asked: Test pictures of each domain.
        seed: Seed of data, order and new weights.
    """

    steps: int = 60
    batch: int = 8
    tables: int = 240
    asked: int = 24
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Results of running a recipe.

    Args:
        merged: Checkpoint before training.
        trained: Checkpoint after both stages.
        reports: "merge", "1" and "2" -> JSON report of the command.
        minutes: Wall time of all commands, in minutes.
    """

    merged: Path
    trained: Path
    reports: Mapping[str, Any]
    minutes: float


def write_recipe(
    folder: Path, name: str, *, plan: Plan, general: Path, encoders: Mapping[str, Path], data: Mapping[str, list[Path]]
) -> Path:
    """Writes a recipe.

    Args:
        folder: Folder to write the recipe to.
        name: ``EXPERTS`` or ``PLAIN``.
        plan: Sizes of the run.
        general: Folder of the general model.
        encoders: Name of an expert -> its folder; not used in ``PLAIN``.
        data: "1" and "2" -> records of the stages, in the order of ``DOMAINS``.
    """
    with_experts = name == EXPERTS
    recipe: dict[str, Any] = {
        "schema": 1,
        "name": f"real-{name}",
        "sources": [{"name": "general", "model": f"local:{_from(folder, general)}", "modalities": ["image"]}],
        "merge": {"method": "naivemc", "dtype": "bfloat16", "seed": plan.seed},
    }
    if with_experts:
        experts = {expert: _expert(expert, _from(folder, path)) for expert, path in encoders.items()}
        recipe["compose"] = {"experts": experts, "router": {"feature": "class", "rule": "argmax"}}
    recipe["align"] = {
        "stages": {number: _stage(number, folder, plan, data[str(number)], experts=with_experts) for number in (1, 2)}
    }
    recipe["output"] = {"dir": name, "format": "composed"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def _expert(name: str, folder: str) -> dict[str, Any]:
    net = NETS[name]
    opened = "model.onnx" if net.output is None else {"file": "model.onnx", "output": net.output}
    return {"encoder": f"local:{folder}", "onnx": opened, "domain": name, "projector": net.projector}


def _stage(number: int, folder: Path, plan: Plan, records: Sequence[Path], *, experts: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"preset": f"chimera-stage{number}"}
    if not experts:
        made["train"] = ["projectors", "llm"][:number]
    if number == 2:
        made["gscm"] = _RATIO if experts else None
    data = [
        {"path": _from(folder, path), "domain": domain} for domain, path in zip(DOMAINS, records, strict=True)
    ]  # fmt: skip
    return {
        **made,
        "data": data,
        "steps": plan.steps,
        "batch_size": plan.batch,
        "lr": _RATES[number],
        "warmup": 0.1,
        "precision": "mixed",
        "gradient_checkpointing": False,
        "feature_cache": True,
        "seed": plan.seed,
    }


def _from(folder: Path, path: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def run(recipe: Path) -> Run:
    """Merges, trains both stages and exports, by the commands that a user would type.

    Args:
        recipe: Recipe to run; its output is written beside it.
    """
    started = time.monotonic()
    reports = {"merge": command("merge", recipe, "--quiet", "--json")}
    reports["1"] = command("align", recipe, "--stage", 1, "--quiet", "--json")
    reports["2"] = command("align", recipe, "--stage", 2, "--export", "--quiet", "--json")
    merged = recipe.parent / recipe.stem
    return Run(merged, Path(reports["2"]["checkpoint"]), reports, (time.monotonic() - started) / 60)


def command(*words: Any) -> Any:
    """Runs one command of mcompose.

    Args:
        words: Arguments of the command, with ``--json``.

    Returns:
        The parsed JSON report.
    """
    print("$ mcompose", *words, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mcompose", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)
