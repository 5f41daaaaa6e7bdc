"""What the Chimera report compares, every variant as a recipe that a user could run by hand.

All variants see the same data in the same order, for as many steps, at the same learning rates. Those with the same
experts share their composition and the first stage, in which nothing is masked; only their second stages differ.

Paper: Peng et al. 2024, arXiv:2412.05983, table 11 (ablation of masking) and table 14 (a single expert).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mcompose.lab import LabFamily
from mcompose.pipeline.lab.relative import local_reference, relative_path
from mcompose.whole_files import write_text

__all__ = [
    "CONCAT",
    "MASKED",
    "NAIVE",
    "PLAIN",
    "SINGLE",
    "Stage",
    "Training",
    "Variant",
    "variants_for",
    "write_recipe",
]

NAIVE, CONCAT, MASKED, SINGLE = "naive finetune", "naive concat", "gscm 0.3", "single expert"
PLAIN = "plain"
"""Name of a composition without experts."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: In tables.
        experts: Which are composed.
        ratio: Of masking in stage 2; None without experts, where there is nothing to be hidden.
    """

    name: str
    experts: tuple[str, ...]
    ratio: float | None

    @property
    def group(self) -> str:
        """Variants of one group share composition and stage 1."""
        return "-".join(self.experts) or PLAIN

    @property
    def slug(self) -> str:
        """In names of files."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Stage:
    """One stage of all variants.

    Args:
        lr: Peak learning rate.
        steps: Optimizer steps.
        batch: Samples of a step.
    """

    lr: float
    steps: int
    batch: int = 32


@dataclass(frozen=True)
class Training:
    """The two stages. Their lengths and rates were chosen on one seed by what :data:`CONCAT` learns alone.

    Args:
        align: Stage 1: projectors, router, separators.
        instruct: Stage 2: the language model too.
    """

    align: Stage = Stage(2e-3, 400)
    instruct: Stage = Stage(5e-4, 400)


def variants_for(experts: tuple[str, ...]) -> tuple[Variant, ...]:
    """All that is trained on a family.

    Args:
        experts: Its experts; the first is also the single one.
    """
    return (
        Variant(NAIVE, (), None),
        Variant(CONCAT, experts, 0.0),
        Variant(MASKED, experts, 0.3),
        Variant("gscm 0.5", experts, 0.5),
        Variant("gscm 1.0", experts, 1.0),
        Variant(SINGLE, experts[:1], 0.3),
    )


def write_recipe(family: LabFamily, variant: Variant, path: Path, *, training: Training) -> Path:
    """Writes a variant's recipe.

    Args:
        family: The family ``pictures``.
        variant: The variant.
        path: Where to; its group's composition lies beside it.
        training: The stages.

    Returns:
        ``path``.
    """
    seed = int(family.figures["seed"])
    recipe: dict[str, Any] = {
        "schema": 1,
        "name": f"{family.name}-{variant.slug}",
        "sources": [{"name": "general", "model": local_reference(family.base, path), "modalities": ["image"]}],
        "merge": {"method": "naivemc", "dtype": "float32", "seed": seed},
    }
    if variant.experts:
        recipe["compose"] = {
            "experts": {name: _expert(family, name, path) for name in variant.experts},
            "router": {},
        }
    records = family.folder / "data" / "train"
    data = [_data(records / f"{domain}.jsonl", domain, path) for domain in family.figures["domains"]]
    stages = {1: training.align, 2: training.instruct}
    recipe["align"] = {
        "stages": {
            number: {**_parts(variant, number), "data": data, **_steps(settings, family)}
            for number, settings in stages.items()
        }
    }
    recipe["output"] = {"dir": variant.group, "format": "composed"}
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path


def _expert(family: LabFamily, name: str, path: Path) -> dict[str, Any]:
    """As the family's own recipe has it: padding of charts never reaches the language model."""
    own = yaml.safe_load(family.recipe.read_text(encoding="utf-8"))["compose"]["experts"][name]
    return {**own, "encoder": local_reference(family.donors[name], path)}


def _parts(variant: Variant, number: int) -> dict[str, Any]:
    """What a stage trains, and what it hides."""
    made: dict[str, Any] = {"preset": f"chimera-stage{number}"}
    if not variant.experts:
        made["train"] = ["projectors", "llm"][:number]
    if number == 2:
        made["gscm"] = None if variant.ratio is None else {"ratio": variant.ratio}
    return made


def _steps(settings: Stage, family: LabFamily) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "steps": settings.steps,
        "batch_size": settings.batch,
        "warmup": 0.03,
        "gradient_checkpointing": False,
        "feature_cache": True,
        "precision": "float32",
        "seed": int(family.figures["seed"]),
    }


def _data(records: Path, domain: str, path: Path) -> dict[str, str]:
    return {"path": relative_path(records, path), "domain": domain}
