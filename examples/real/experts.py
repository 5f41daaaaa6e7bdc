"""Chimera with real document networks: PP-OCRv6 and SLANet beside a general model of SmolLM2 and a ViT.

    python -m examples.real.experts             # the whole run: 40 minutes on one core
    python -m examples.real.experts --quick     # a short run to test the steps; its figures mean nothing

Each step uses the command that a user would type. It downloads the pinned packages, makes the encoders' folders
(``expert_nets``), draws tables (``expert_tables``), composes, trains both of Chimera's stages, exports, and evaluates
the result with its experts routed, switched off and chosen wrongly, beside a baseline without experts that is trained
on the same records for the same number of steps. The general model is that of ``run``: a LLaVA over both, briefly
trained on drawn shapes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from examples.real.assets import fetch
from examples.real.expert_measures import read_out
from examples.real.expert_nets import NETS, make_encoders
from examples.real.expert_runs import EXPERTS, PLAIN, Plan, Run, command, run, write_recipe
from examples.real.expert_tables import SPECIAL, write_data
from examples.real.sources import make_image_source
from mcompose.evaluate import load_evaluated_model
from mcompose.evaluate.routes import expert_for
from mcompose.lab.smol.encoders import dinov2_weights
from mcompose.lab.smol.parts import export_language
from mcompose.pipeline.lab.chimera.measures import cost, router

__all__ = ["QUICK", "main", "make_general", "measure"]

FOLDER: Final = Path("build/real")
QUICK: Final = Plan(steps=2, batch=2, tables=8, asked=2)
ROUTES: Final = ("told", "none", "wrong")
"""Forced routes beside the router's: each picture to its domain's expert, to none, and to another domain's."""
_BATCH: Final = 24

Scores = dict[str, float]
"""``<task> <metric>`` -> value."""


def make_general(folder: Path) -> Path:
    """Makes the general model, once: SmolLM2-135M-Instruct, the ViT, a projector trained on drawn shapes.

    Args:
        folder: Cache of this example and of ``run``.
    """
    made = folder / "sees"
    if not (made / "config.json").is_file():
        language = export_language(fetch("language", folder / "assets"), folder / "base")
        vision = dinov2_weights(fetch("vision", folder / "assets"))
        make_image_source(made, language=language, vision=vision, shapes=fetch("shapes", folder / "assets"))
    return made


def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Runs everything for one seed.

    Args:
        folder: Cache; the files of a seed are in ``experts/<seed>-<steps>`` below it.
        plan: Sizes of the run.

    Returns:
        "plan", "runs" (reports of the commands), "scores" (baseline, router and forced routes -> task and metric ->
        value), "router", "cost", and "read-out" (domain and encoder -> share of cells found, and number of cells).
    """
    own = folder / "experts" / f"{plan.seed}-{plan.steps}"
    encoders = make_encoders(folder / "experts" / "encoders", folder / "assets")
    data = write_data(
        own / "data", fetch("shapes", folder / "assets"), tables=plan.tables, asked=plan.asked, seed=plan.seed
    )
    general = make_general(folder)
    parts = {"plan": plan, "general": general, "encoders": encoders, "data": data}
    runs = {name: run(write_recipe(own, name, **parts)) for name in (EXPERTS, PLAIN)}
    tasks = data["tasks"]
    scores = {name: asked(one, tasks, own / f"answers-{name}") for name, one in runs.items()}
    for expert in ("none", *NETS):
        scores[expert] = asked(runs[EXPERTS], tasks, own / f"answers-{expert}", expert=expert)
    trained = runs[EXPERTS].trained
    limit = min(20, plan.asked)
    found = {
        "plan": asdict(plan),
        "runs": {name: {"minutes": one.minutes, **one.reports} for name, one in runs.items()},
        "scores": scores,
        "router": router(trained, own / "data/test", limit=limit),
        "cost": cost(trained, own / "data/test", limit=limit),
        "read-out": read_outs(trained, plan),
    }
    (own / "report.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    return found


def asked(one: Run, tasks: Sequence[Path], save: Path, *, expert: str = "auto") -> Scores:
    """Evaluates a checkpoint by ``mcompose eval``; with ``auto`` its router decides, if it has one."""
    words = ("--template", "chat", "--batch-size", _BATCH, "--save", save, "--no-resume", "--json")
    words += ("--experts", expert) if expert != "auto" else ()
    report = command("eval", one.trained, *tasks, *words)
    return {f"{row['task']} {row['metric']}": row["value"] for row in report["results"]}


def read_outs(trained: Path, plan: Plan) -> dict[str, tuple[float, int]]:
    """Measures what a linear read-out finds in each encoder's features, for both ways of drawing."""
    evaluated = load_evaluated_model(trained)
    counts = (min(plan.tables, 160), max(plan.asked, 8))
    pairs = [(domain, encoder) for domain in SPECIAL for encoder in ("general", domain)] + [(SPECIAL[1], SPECIAL[0])]
    return {
        f"{domain} by {encoder}": read_out(evaluated, encoder=encoder, domain=domain, counts=counts, seed=plan.seed)
        for domain, encoder in pairs
    }


def table(found: Mapping[str, Any]) -> str:
    """Returns the table that a run prints at its end."""
    scores: Mapping[str, Scores] = found["scores"]
    columns = ("no experts", "routed", *ROUTES)
    lines = ["| task | n | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for name in scores[PLAIN]:
        forced = [expert_for(name.partition("-")[0], list(NETS), route=route) for route in ROUTES]
        values = " | ".join(f"{scores[one][name]:.3f}" for one in (PLAIN, EXPERTS, *forced))
        lines.append(f"| {name} | {found['plan']['asked']} | {values} |")
    spent = found["cost"]
    lines.append("")
    lines.append(f"router: right of {found['router']['accuracy']:.3f} of test pictures")
    for name in NETS:
        with_it, without = spent[f"ms-{name}"], spent[f"ms-{name}-none"]
        lines.append(f"cost of {name}: {spent[f'tokens-{name}']:.0f} tokens, {with_it:.0f} ms instead of {without:.0f}")
    for name, (share, count) in found["read-out"].items():
        lines.append(f"numbers of {name}, linear read-out: {share:.3f} of {count} cells")
    for name, one in found["runs"].items():
        losses = [f"{one[stage]['losses']['mean_of_last_tenth']:.3f}" for stage in ("1", "2")]
        lines.append(f"{name}: {one['minutes']:.1f} minutes, losses at the end of both stages {' and '.join(losses)}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the example and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m examples.real.experts", description=__doc__)
    default = Plan()
    for name, what in (
        ("steps", "steps of each stage"),
        ("batch", "samples of a step"),
        ("tables", "training pictures of each domain with an expert"),
        ("asked", "test pictures of each domain"),
        ("seed", "of data, order and new weights"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name), help=f"{what}; %(default)s")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where all files go; %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch; %(default)s")
    parser.add_argument("--quick", action="store_true", help="the smallest run")
    given = parser.parse_args(words)
    plan = Plan(given.steps, given.batch, given.tables, given.asked, given.seed)
    torch.set_num_threads(given.threads)
    print(table(measure(given.folder, replace(QUICK, seed=given.seed) if given.quick else plan)))


if __name__ == "__main__":
    main()
