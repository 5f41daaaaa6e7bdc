"""``lab make`` and ``lab report``: small families, trained, composed and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mcompose.errors import RequestError, nearest_name
from mcompose.lab import (
    COLUMNS,
    READING,
    FitSettings,
    LabFamily,
    NumbersSettings,
    SmolSettings,
    family_scores,
    make_numbers,
    make_pictures,
    make_smol,
    plot_composition,
    plot_rows,
    table,
)
from mcompose.pipeline.lab.table import LabReport
from mcompose.pipeline.measure import EvaluateOptions, evaluate
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.progress import ProgressBar, remark
from mcompose.whole_files import write_text

__all__ = ["LabFamily", "MadeFamily", "compose", "make", "measure", "report"]

APART = NumbersSettings(projector=FitSettings(20, 2e-3), full=FitSettings(400, 1e-3), keep_projector=True)
"""Donors whose language models carry the work. With the plain settings the projectors do: the base, unchanged, answers
nearly as well behind the donors' towers as they do, and there is little for any method to lose. Here stage 1 is cut
short, and stage 2 leaves the projector alone. Chosen by what donors and the base answer to single questions."""
SMOL = SmolSettings()
FAMILIES: dict[str, Callable[..., LabFamily]] = {
    "numbers": make_numbers,
    "numbers-apart": partial(make_numbers, settings=APART),
    "smol": partial(make_smol, settings=SMOL),
    "pictures": make_pictures,
    "pictures-reading": partial(make_pictures, settings=READING),
}
REPORTS = {
    "numbers": ("numbers",),
    "composition": ("numbers-apart", "smol"),
    "chimera": ("pictures", "pictures-reading"),
    "sphinx": ("pictures", "pictures-reading"),
    "smola": ("pictures", "pictures-reading"),
}
"""Report to the families that it can be measured on; the first is the default."""
METHODS: dict[str, dict[str, Any]] = {"naivemc": {}, "ties": {"density": 0.5}, "dare_ties": {"density": 0.5}}
"""What a report compares, with the parameters that differ from the defaults; set before any was measured."""


@dataclass(frozen=True)
class MadeFamily:
    """A family that lies ready.

    Args:
        family: Where everything is.
    """

    family: LabFamily

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        family = self.family
        return {
            "name": family.name,
            "folder": str(family.folder),
            "base": str(family.base),
            "donors": {name: str(folder) for name, folder in family.donors.items()},
            "tasks": [str(path) for path in family.tasks.values()],
            "recipe": str(family.recipe),
            "figures": family.figures,
        }

    def to_text(self) -> str:
        """Returns the report as text."""
        family = self.family
        return (
            f"{family.folder}\n  base, donors {', '.join(family.donors)}, {len(family.tasks)} tasks\n"
            f"  compose them: mcompose merge {family.recipe}"
        )


def make(name: str, folder: Path, *, seed: int = 0) -> MadeFamily:
    """Trains one small family, or opens it when it is there.

    Args:
        name: One of ``FAMILIES``.
        folder: Where to.
        seed: Everything random follows from it.

    Returns:
        The family.

    Raises:
        RequestError: There is no such family, or the extra is not installed.
        OutputError: The folder holds something else.
    """
    _check(name)
    with ProgressBar(f"lab {name}, seed {seed}", unit="%") as bar:
        return MadeFamily(FAMILIES[name](folder, seed=seed, progress=lambda what, share: bar.move_to(share, what)))


def _check(name: str) -> None:
    if name not in FAMILIES:
        raise RequestError(f"'{name}' is not a lab family.", hint=nearest_name(name, FAMILIES))


def report(name: str, folder: Path, *, seeds: int, family: str = "") -> LabReport:
    """Reproduces a table over several seeds.

    Args:
        name: ``numbers``: plain methods on the family of that name. ``composition``: decoupled and converted donors,
            more methods, and searched coefficients, on families whose language models moved apart. ``chimera``: domain
            experts, with and without masking of the generalist. ``sphinx``: encoders and views. ``smola``: low-rank
            experts, and other ways to train a language model.
        folder: Where families, compositions and the plot go; what is finished is used again.
        seeds: How many seeds, from 0 on.
        family: What it is measured on; empty for the report's own.

    Returns:
        The table; the plot lies in ``folder``.

    Raises:
        McomposeError: Something could not be made, merged or measured.
    """
    if name not in REPORTS:
        raise RequestError(f"'{name}' is not a lab report.", hint=nearest_name(name, REPORTS))
    family = family or REPORTS[name][0]
    _check(family)
    if family not in REPORTS[name]:
        raise RequestError(
            f"The report {name} is not measured on {family}.", hint=f"It is on: {', '.join(REPORTS[name])}."
        )
    if name == "composition":
        return _composition_report(family, folder, seeds=seeds)
    if name == "chimera":
        from mcompose.pipeline.lab.chimera.report import chimera_report  # noqa: PLC0415 - stands above this file

        return chimera_report(_families(family, folder, seeds=seeds), folder)
    if name in ("sphinx", "smola"):
        from mcompose.pipeline.lab.mixes.run import mix_report  # noqa: PLC0415 - torch

        return mix_report(name, _families(family, folder, seeds=seeds), folder)
    runs = [family_table(one) for one in _families(family, folder, seeds=seeds)]
    rows = tuple(table(runs))
    plot = folder / f"{name}.png"
    plot_rows(rows, plot, title=f"{name}: zero-shot joint questions, {seeds} seed{'s' * (seeds > 1)}")
    return LabReport(name, rows, plot)


def _families(name: str, folder: Path, *, seeds: int) -> Iterator[LabFamily]:
    for seed in range(seeds):
        yield make(name, folder / f"{name}-{seed}", seed=seed).family


def _composition_report(name: str, folder: Path, *, seeds: int) -> LabReport:
    from mcompose.pipeline.lab.composition.run import Plan, composition_run  # noqa: PLC0415 - torch
    from mcompose.pipeline.lab.composition.variants import SMOL_GROWN, SMOL_VARIANTS  # noqa: PLC0415 - beside its neighbour

    plans = {
        "numbers-apart": Plan(APART),
        "smol": Plan(SMOL, SMOL_VARIANTS, trials=0, grown=SMOL_GROWN, batch=48, mixed=True, keep=False),
    }
    families = _families(name, folder, seeds=seeds)
    rows = tuple(table([composition_run(family, plans[name]) for family in families]))
    plot = folder / "composition.png"
    plot_composition(rows, plot, title=f"composition, {name}: {seeds} seed{'s' * (seeds > 1)}")
    known = {row.metric for row in rows}
    return LabReport("composition", rows, plot, tuple(metric for metric in COLUMNS if metric in known))


def family_table(family: LabFamily, methods: Sequence[str] = tuple(METHODS)) -> dict[str, dict[str, float]]:
    """Composes the donors of one family by several methods and measures everything.

    Args:
        family: The family.
        methods: Merge methods.

    Returns:
        Variant to metric to value.
    """
    return measure(family, {method: compose(family, method) for method in methods})


def measure(family: LabFamily, composed: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Asks the base, every donor and some compositions all that the family's tasks ask.

    Args:
        family: The family.
        composed: Variant to folder.

    Returns:
        Variant to metric to value.
    """
    return family_scores(family, evaluate=_scores, composed=composed, progress=_say)


def compose(family: LabFamily, method: str) -> Path:
    """Composes all donors of a family by one method; its folder lies beside the donors."""
    recipe = yaml.safe_load(family.recipe.read_text(encoding="utf-8"))
    recipe["name"] = f"{family.name}-{method}"
    recipe["merge"] |= {"method": method, "parameters": METHODS.get(method, {})}
    recipe["output"]["dir"] = f"composed/{method}"
    path = family.folder / f"recipe-{method}.yaml"
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return merge(path, options=MergeOptions(quiet=True)).result.folder


def _scores(checkpoint: Path, tasks: list[Path], *, leave_out: bool) -> list[Mapping[str, Any]]:
    options = EvaluateOptions(batch_size=128, leave_out=leave_out)
    return [vars(result) for result in evaluate(checkpoint, tasks, options=options).results]


def _say(variant: str) -> None:
    remark(f"measuring {variant}")
