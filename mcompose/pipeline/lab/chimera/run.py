"""``lab report chimera``: domain experts with and without masking of the generalist, on the family ``pictures``.

Every variant is composed and aligned in two stages, and asked about charts, tables, documents and general pictures.
The variant with the published ratio is also asked with the wrong expert, with none, and with the one that the data
name. What was trained or answered once is not done again: answers are kept by the bytes of weights and questions.

Paper: Peng et al. 2024, arXiv:2412.05983. Differs: wrong expert and forced none are controls that it does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcompose.lab import LabFamily
from mcompose.pipeline.align import AlignOptions, align
from mcompose.pipeline.lab.chimera.recipes import (
    CONCAT,
    MASKED,
    NAIVE,
    SINGLE,
    Training,
    Variant,
    variants_for,
    write_recipe,
)
from mcompose.pipeline.measure import quieten_loading
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.progress import remark
from mcompose.whole_files import write_json

__all__ = ["BASE", "COMPARED", "MEANS", "ROUTES", "Plan", "chimera_run", "domain_means", "gaps"]

BASE = "base"
ROUTES = ("wrong", "none", "told")
"""How the masked variant is asked besides by its router."""
MEANS = ("all", "special", "chart", "table", "document", "general")
"""Means over tasks, as :func:`domain_means` makes them."""
COMPARED = (
    (NAIVE, BASE),
    (CONCAT, NAIVE),
    (MASKED, CONCAT),
    (MASKED, NAIVE),
    ("gscm 0.5", CONCAT),
    ("gscm 1.0", CONCAT),
    (MASKED, SINGLE),
    (MASKED, f"{MASKED}, wrong"),
    (MASKED, f"{MASKED}, none"),
)
"""Differences on the same seed: what data, experts and masking bring, and what an expert's tokens are worth."""


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Args:
        training: The two stages of all variants.
        names: Which variants are trained, the masked one among them; empty for all.
        batch: Questions asked at once.
        questions: Of each task; None for all.
        probed: Held-out pictures a domain behind attention and costs.
    """

    training: Training = field(default_factory=Training)
    names: tuple[str, ...] = ()
    batch: int = 120
    questions: int | None = None
    probed: int = 40


def chimera_run(family: LabFamily, plan: Plan, *, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Trains and measures all variants on one family.

    Args:
        family: The family ``pictures``.
        plan: What to do.
        say: Told what is being done.

    Returns:
        Variant -> metric -> value; ``<one> - <other>`` are differences, ``router`` is the masked variant's router.
    """
    quieten_loading()
    say = say or (lambda what: _say(family, what))
    bench = _Bench(family, family.folder / "chimera", plan, say)
    variants = [one for one in variants_for(tuple(family.donors)) if not plan.names or one.name in plan.names]
    made = {variant.name: bench.trained(variant) for variant in variants}
    found = {BASE: bench.scores(BASE, family.base)}
    found |= {name: bench.scores(name, folder) for name, folder in made.items()}
    for route in ROUTES:
        name = f"{MASKED}, {route}"
        found[name] = bench.scores(name, made[MASKED], route=route)
    for variant in variants:
        if len(variant.experts) > 1:
            found[variant.name] |= bench.noted("attention", made[variant.name])
    found["router"] = bench.noted("router", made[MASKED])
    found["cost"] = bench.noted("cost", made[MASKED])
    return found | gaps(found)


def gaps(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By how much one variant beats another in each domain, on the same seed.

    Args:
        found: Variant -> metric -> value.

    Returns:
        ``<one> - <other>`` -> domain -> difference, for every pair of ``COMPARED`` that was measured.
    """
    made = {}
    for one, other in COMPARED:
        if one in found and other in found:
            shared = [name for name in MEANS if name in found[one] and name in found[other]]
            made[f"{one} - {other}"] = {name: found[one][name] - found[other][name] for name in shared}
    return made


@dataclass(frozen=True)
class _Bench:
    """One family under comparison."""

    family: LabFamily
    folder: Path
    plan: Plan
    say: Callable[[str], None]

    def trained(self, variant: Variant) -> Path:
        """A variant's checkpoint after both stages."""
        from mcompose.align import (  # noqa: PLC0415 - torch and the trainer: seconds
            ExportRequest,
            export,
            open_lineage,
        )
        from mcompose.recipe import load_recipe  # noqa: PLC0415 - beside its neighbours

        path = self.folder / f"{variant.slug}.yaml"
        write_recipe(self.family, variant, path, training=self.plan.training)
        first = self._aligned(variant)
        self.say(f"stage 2, {variant.name}")
        stage = self.folder / f"{variant.slug}.stage2"
        align(path, stage=2, options=AlignOptions(checkpoint=first, output=stage, quiet=True))
        loaded = load_recipe(path)
        request = ExportRequest(
            self.folder / f"{variant.slug}.whole", loaded.raw, path.name, loaded.recipe.name,
            loaded.recipe.output.max_shard_size,
        )  # fmt: skip
        return export(open_lineage(stage), request)

    def _aligned(self, variant: Variant) -> Path:
        """Composition and stage 1 of a variant's group, made once."""
        path = self.folder / "groups" / f"{variant.group}.yaml"
        plain = Variant(variant.group, variant.experts, 0.0 if variant.experts else None)
        write_recipe(self.family, plain, path, training=self.plan.training)
        merge(path, options=MergeOptions(quiet=True))
        self.say(f"stage 1, {variant.group}")
        report = align(path, stage=1, options=AlignOptions(quiet=True))
        assert report is not None
        return report.folder

    def scores(self, name: str, checkpoint: Path, *, route: str = "auto") -> dict[str, float]:
        """Shares of right answers by task, and their means by domain."""
        from mcompose.pipeline.lab.chimera.measures import answered  # noqa: PLC0415 - torch

        tasks = list(self.family.tasks.values())

        def asked() -> dict[str, float]:
            self.say(f"measuring {name}")
            return answered(checkpoint, tasks, route=route, batch=self.plan.batch, limit=self.plan.questions)

        what = f"answers {route} {self.plan.questions} {' '.join(path.stem for path in tasks)}"
        return domain_means(self._kept(what, checkpoint, asked))

    def noted(self, what: str, checkpoint: Path) -> dict[str, float]:
        """What a checkpoint does inside: ``attention``, ``router`` or ``cost``."""
        from mcompose.pipeline.lab.chimera import measures as measures  # noqa: PLC0415 - torch

        def measured() -> dict[str, float]:
            self.say(f"measuring {what} of {checkpoint.name}")
            function = {"attention": measures.attention, "router": measures.router, "cost": measures.cost}[what]
            return function(checkpoint, self.family.folder / "data", limit=self.plan.probed)

        return self._kept(f"{what} {self.plan.probed}", checkpoint, measured)

    def _kept(self, what: str, checkpoint: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        digest = hashlib.sha256(what.encode())
        questions = sorted((self.family.folder / "data").glob("*.jsonl"))
        for path in [*sorted(checkpoint.glob("*.safetensors")), checkpoint / "config.json", *questions]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        known = self.folder / "answers" / f"{digest.hexdigest()[:32]}.json"
        if not known.is_file():
            found = measure()
            write_json(known, found)
        return json.loads(known.read_text(encoding="utf-8"))


def domain_means(scores: Mapping[str, float]) -> dict[str, float]:
    """Adds means over tasks.

    Args:
        scores: Task -> share of right answers; a task's name begins with its domain.

    Returns:
        First ``all`` (the mean of all domains), ``special`` (the mean of those with an expert) and each domain (the
        mean of its tasks), then the tasks.
    """
    groups: dict[str, list[float]] = {}
    for task, value in scores.items():
        groups.setdefault(task.partition("-")[0], []).append(value)
    means = {domain: sum(values) / len(values) for domain, values in groups.items()}
    special = [value for domain, value in means.items() if domain != "general"]
    found = {"all": sum(means.values()) / len(means), "special": sum(special) / max(1, len(special))}
    return {**found, **means, **scores}


def _say(family: LabFamily, what: str) -> None:
    remark(f"{family.folder.name}: {what}")
