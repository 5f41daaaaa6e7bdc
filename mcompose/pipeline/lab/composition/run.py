"""``lab report composition``: methods, decoupling and searched coefficients, compared on one family after the other.

For each family: decoupled donors are trained beside the shared ones; every variant composes all donors, and each set of
two and three; coefficients are searched by questions about one medium and about text, whose media nothing else shows.
What was trained, searched or answered once is not done again: answers are kept by the bytes of weights and questions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from mcompose.checkpoint import whole_folder
from mcompose.errors import RequestError
from mcompose.lab import (
    SEARCHED,
    LabFamily,
    NumbersSettings,
    SmolSettings,
    Subset,
    differences,
    family_scores,
    generator_for,
    load_digits,
    pool_scores,
    subsets,
    summaries,
    write_validation,
)
from mcompose.pipeline.lab.composition.answers import mixed_results
from mcompose.pipeline.lab.composition.decoupled_donors import DecoupledDonors, decoupled_donors
from mcompose.pipeline.lab.composition.variants import BASE, VARIANTS, Variant, searched_form, write_recipe
from mcompose.pipeline.measure import EvaluateOptions, evaluate, quieten_loading
from mcompose.pipeline.search.objective import ObjectiveSpec
from mcompose.pipeline.search.run import SearchOptions, search
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.progress import remark
from mcompose.whole_files import write_json

__all__ = ["COMPARED", "Plan", "composition_run"]

COMPARED = (
    ("damc", "naivemc"),
    ("damc-convert", "naivemc"),
    ("damc+search", "naivemc+search"),
    ("damc-convert+search", "naivemc+search"),
)
"""What the paper claims, and the same with searched coefficients on both sides."""


@dataclass(frozen=True)
class Plan:
    """What a run does; everything that decides its figures.

    Args:
        settings: What the families are made with.
        variants: What is compared.
        trials: Of each search; 0 for no searches.
        grown: Of what compositions of two and three donors are measured, too.
        batch: ObjectiveSpec asked at once.
        mixed: Whether questions are answered with matrix products in bfloat16, as donors were trained.
        keep: Whether compositions stay on disk after they were measured.
    """

    settings: NumbersSettings | SmolSettings = field(default_factory=NumbersSettings)
    variants: tuple[Variant, ...] = VARIANTS
    trials: int = 20
    grown: tuple[Variant, ...] = VARIANTS
    batch: int = 128
    mixed: bool = False
    keep: bool = True


@dataclass(frozen=True)
class _Bench:
    """One family under comparison."""

    family: LabFamily
    folder: Path
    decoupled: DecoupledDonors
    plan: Plan

    def donors(self, variant: Variant) -> Mapping[str, Path]:
        return self.decoupled.folders if variant.decouple == "donor" else self.family.donors

    def scores(self, checkpoint: Path, tasks: list[Path], *, leave_out: bool) -> list[Mapping[str, Any]]:
        """Evaluates, or finds what the same weights answered to the same questions."""
        key = _fingerprint(checkpoint, tasks, leave_out=leave_out, mixed=self.plan.mixed)
        known = self.folder / "answers" / f"{key}.json"
        if not known.is_file():
            if self.plan.mixed:
                results = mixed_results(checkpoint, tasks, batch=self.plan.batch, leave_out=leave_out)
            else:
                options = EvaluateOptions(batch_size=self.plan.batch, leave_out=leave_out)
                results = evaluate(checkpoint, tasks, options=options, quiet=True).results
            rows = [{"task": row.task, "metric": row.metric, "value": row.value} for row in results]
            write_json(known, rows)
        return json.loads(known.read_text(encoding="utf-8"))


def composition_run(family: LabFamily, plan: Plan) -> dict[str, dict[str, float]]:
    """Composes and measures one family.

    Args:
        family: The family.
        plan: What to do.

    Returns:
        Variant -> metric -> value; ``<one> - <other>`` are differences.
    """
    quieten_loading()
    decoupled = decoupled_donors(family, plan.settings, progress=lambda m: _say(family, f"training {m}, decoupled"))
    bench = _Bench(family, family.folder / "composition", decoupled, plan)
    questions = _validation(bench) if plan.trials else []
    made, costs = {}, {}
    for variant in plan.variants:
        made[variant.name], costs[variant.name] = _merged(bench, variant)
    for variant in plan.variants if plan.trials else ():
        form = searched_form(variant, sources=len(family.donors))
        if form is not None:
            name = variant.name + SEARCHED
            made[name], costs[name] = _searched(bench, form, questions)
    found = _measured(bench, made)
    whole = {name: _parameters(folder) for name, folder in made.items()}
    for name, cost in costs.items():
        found[name] |= cost | {"extra-parameters": float(whole[name] - whole[BASE])}
    for variant in plan.grown:
        _say(family, f"growing {variant.name}")
        found[variant.name] |= _grown(bench, variant)
    for folder in made.values() if not plan.keep else ():
        shutil.rmtree(folder)
    return found | differences(found, COMPARED)


def _validation(bench: _Bench) -> list[Path]:
    settings = bench.plan.settings
    if not isinstance(settings, NumbersSettings):
        raise RequestError(f"The family {bench.family.name} has no validation questions to search by.")
    folder = bench.folder / "validation"
    if not folder.is_dir():
        seed = int(bench.family.figures["seed"])
        digits = load_digits(generator=generator_for(seed, "digits"))
        with whole_folder(folder) as work:
            write_validation(work, settings.data, seed=seed, digits=digits)
    return sorted(folder.glob("*.jsonl"))


def _merged(bench: _Bench, variant: Variant) -> tuple[Path, dict[str, float]]:
    path = bench.folder / "recipes" / f"{variant.name}.yaml"
    report = merge(
        write_recipe(bench.family, variant, path, donors=bench.donors(variant)), options=MergeOptions(quiet=True)
    )
    trained = sum(one["seconds"] for one in bench.decoupled.figures.values()) if variant.decouple == "donor" else 0.0
    return report.result.folder, {"merge-seconds": report.seconds, "search-seconds": 0.0, "train-seconds": trained}


def _searched(bench: _Bench, form: Variant, questions: Sequence[Path]) -> tuple[Path, dict[str, float]]:
    _say(bench.family, f"searching {form.name}")
    path = write_recipe(bench.family, form, bench.folder / "searches" / f"{form.name}.yaml", donors=bench.donors(form))
    asked = ObjectiveSpec("validation", tuple(questions), batch_size=bench.plan.batch)
    options = SearchOptions(
        space=form.space(), trials=bench.plan.trials, seed=int(bench.family.figures["seed"]), quiet=True
    )
    found = search(path, asked, options=options)
    report = merge(found.recipe, options=MergeOptions(quiet=True))
    spent = sum(row.seconds for row in found.rows)
    best = found.best.score or 0.0
    return report.result.folder, {
        "merge-seconds": report.seconds, "search-seconds": spent, "train-seconds": 0.0, "validation": best,
    }  # fmt: skip


def _measured(bench: _Bench, made: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Donors of both kinds, the text ceiling, and all compositions."""
    family = bench.family
    found = family_scores(
        family, evaluate=bench.scores, composed=made, progress=lambda what: _say(family, f"measuring {what}")
    )
    apart = replace(family, donors=bench.decoupled.folders)
    alone = family_scores(apart, evaluate=bench.scores, composed={})
    found |= {f"{name}-decoupled": scores for name, scores in alone.items() if name.startswith("donor:")}
    return summaries(found, donors=list(family.donors))


def _grown(bench: _Bench, variant: Variant) -> dict[str, float]:
    """The composition of just those donors that a question is about."""
    parts: list[tuple[Subset, float]] = []
    for subset in subsets(bench.family, bench.folder / "subsets"):
        path = bench.folder / "grown" / f"{variant.name}-{'-'.join(subset.names)}.yaml"
        write_recipe(bench.family, variant, path, donors=bench.donors(variant), names=subset.names)
        folder = merge(path, options=MergeOptions(quiet=True)).result.folder
        (row,) = bench.scores(folder, [subset.task], leave_out=False)
        parts.append((subset, float(row["value"])))
        shutil.rmtree(folder)
    return pool_scores(parts)


def _parameters(folder: Path) -> int:
    from mcompose.checkpoint import open_checkpoint  # noqa: PLC0415 - as heavy as the merge that is over
    from mcompose.refs import ModelRef  # noqa: PLC0415 - as above

    tensors = open_checkpoint(ModelRef("local", str(folder.resolve()))).tensors
    return sum(prod(entry.shape) for entry in tensors.values())


def _fingerprint(checkpoint: Path, tasks: Sequence[Path], *, leave_out: bool, mixed: bool = False) -> str:
    digest = hashlib.sha256((b"leave out" if leave_out else b"whole") + (b", mixed" if mixed else b""))
    for path in [*sorted(checkpoint.glob("*.safetensors")), checkpoint / "config.json", *tasks]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def _say(family: LabFamily, what: str) -> None:
    remark(f"{family.folder.name}: {what}")
