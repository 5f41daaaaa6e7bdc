"""``search``: finds merge coefficients by validation score, by single-modality scores, or without labels.

::

    search_request      what the user asked for -> the space
    search_space        axes, weights that add up, gradients
    search_tasks        what is asked, and the number that comes of it
    search_consistency  AdaMMS's label-free rule
    search_study        trials in Optuna's journal; what comes next
    search_workers      processes, progress
    search_model        the model that is merged anew in place
    search_recipe       the recipe with what was found
    search_plot         the picture

A search can be resumed: finished trials are not run again, an interrupted one is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import LOCK_NAME, FolderLock
from mcompose.compose import Blueprint, ComposeOptions, compose, draw_blueprint, make_blueprint
from mcompose.errors import InterruptedRunError, OutputError, RequestError
from mcompose.pipeline.measure import quieten_loading
from mcompose.pipeline.search.objective import Objective, ObjectiveSpec, open_objective
from mcompose.pipeline.search.recipe_text import check_target, searched_path, searched_text
from mcompose.pipeline.search.report import PLOT_FILE, TABLE_FILE, SearchReport, write_results
from mcompose.pipeline.search.request import SpaceRequest, defaults_of, make_grid, make_space
from mcompose.pipeline.search.space import Settings, Space, applied
from mcompose.progress import OnCount, ProgressBar
from mcompose.recipe import load_recipe
from mcompose.whole_files import draft_of

if TYPE_CHECKING:
    from mcompose.pipeline.search.objective import Outcome
    from mcompose.pipeline.search.study import Study, StudyPlan
    from mcompose.pipeline.search.workers import TrialRunner
    from mcompose.recipe import LoadedRecipe

__all__ = ["SearchOptions", "search"]

TRIALS = 40
SCRATCH, COPY = "model", "model-"
JOURNAL = "study.journal"
_RESULTS = (TABLE_FILE, PLOT_FILE)
OWN = (JOURNAL, f"{JOURNAL}.lock", "study.lock", *_RESULTS, *(draft_of(Path(name)).name for name in _RESULTS))


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        space: Coefficients to vary.
        trials: Trials in all, those of earlier runs included; None for 40, or the whole grid.
        timeout: Seconds after which no trial begins.
        workers: Processes.
        seed: Seed of the suggestions.
        output: Folder of the search; None for ``<recipe>-search`` beside the recipe.
        resume: Go on with what the folder holds.
        threads: For merging.
        allow_different_base: Merge language models that do not seem to share a base.
        trust_remote_code: Run Python code that the checkpoint ships.
        quiet: No progress bar.
    """

    space: SpaceRequest = field(default_factory=SpaceRequest)
    trials: int | None = None
    timeout: float | None = None
    workers: int = 1
    seed: int = 0
    output: Path | None = None
    resume: bool = True
    threads: int | None = None
    allow_different_base: bool = False
    trust_remote_code: bool = False
    quiet: bool = False


def search(recipe: Path, questions: ObjectiveSpec, *, options: SearchOptions | None = None) -> SearchReport:
    """Searches the coefficients of a recipe and writes what it found as a recipe beside it.

    Args:
        recipe: The recipe file.
        questions: Tasks and objective of every trial.
        options: How to search.

    Returns:
        The report.

    Raises:
        RequestError: The recipe, the tasks and the space do not go together, or Optuna is not installed.
        OutputError: The folder holds another search, or something else.
        InterruptedRunError: Ctrl-C, or a grid that the time was too short for; finished trials are kept.
        NumericsError: No trial could be merged.
    """
    options = options or SearchOptions()
    if importlib.util.find_spec("optuna") is None:
        raise RequestError("A search needs Optuna.", hint="Install it: pip install 'mcompose[search]'.")
    loaded = load_recipe(recipe)
    objective = open_objective(questions)
    on_grid = questions.objective == "consistency"
    space = make_space(loaded, options.space, on_grid=on_grid)
    check_target(searched_path(recipe))
    blueprint = make_blueprint(loaded, weights=True)
    taken = () if blueprint.format == "text" else tuple(blueprint.sources.modalities)
    objective.check(taken, name=f"what '{recipe}' composes")
    folder = options.output or recipe.with_name(f"{recipe.stem}-search")
    plan = _study_plan(loaded, space, options, folder=folder, on_grid=on_grid)
    _check_reach(loaded, blueprint, plan)
    _check_folder(folder)
    lock = FolderLock.take(folder)
    try:
        study = _opened(plan, _identity(blueprint, plan, objective), resume=options.resume)
        _run(loaded, study, objective, blueprint, options)
        report = write_results(loaded, study, objective)
        _clear_models(folder)
        return report
    finally:
        lock.release()


def _study_plan(
    loaded: LoadedRecipe, space: Space, options: SearchOptions, *, folder: Path, on_grid: bool
) -> StudyPlan:
    from mcompose.pipeline.search.study import StudyPlan  # noqa: PLC0415 - Optuna is an extra

    merge = loaded.recipe.merge
    grid = make_grid(space) if on_grid else {}
    if options.trials is not None and options.trials < len(grid):
        raise RequestError(
            f"The grid has {len(grid)} points, and {options.trials} trials are allowed; the rule needs all.",
            hint="Allow more '--trials', or give a larger '--step'.",
        )
    authored = None if on_grid else space.values_of(merge, defaults_of(loaded))
    return StudyPlan(
        folder=folder,
        space=space,
        budget=len(grid) if on_grid else options.trials or TRIALS,
        seed=options.seed,
        authored=authored,
        authored_settings=None if authored is None else _authored(loaded, space),
        grid=grid,
    )


def _authored(loaded: LoadedRecipe, space: Space) -> Settings:
    """Returns the settings of the recipe as it is written."""
    merge = loaded.recipe.merge
    names = loaded.recipe.source_names
    given = {**defaults_of(loaded), **merge.parameters}
    weights = None if space.mode == "none" else merge.weights or dict.fromkeys(names, 1.0 / len(names))
    if weights is not None:
        weights = {name: weights[name] for name in names}
    return Settings(weights, {axis.label: given[axis.label] for axis in space.parameters})


def _check_reach(loaded: LoadedRecipe, blueprint: Blueprint, plan: StudyPlan) -> None:
    """Plans two merges from the ends of the space: refuses what the method refuses, and a search that moves nothing."""
    from mcompose.pipeline.search.model import varying_jobs  # noqa: PLC0415 - torch

    space = plan.space
    ends = list(plan.grid.values()) or [
        {axis.name: axis.choices[end] if axis.choices else (axis.low, axis.high)[end] for axis in space.axes}
        for end in (0, -1)
    ]
    first, last = (space.settings(values) for values in (ends[0], ends[-1]))
    assert first is not None, "ends of a space, and points of a grid, have settings"
    assert last is not None, "as above"
    known: Mapping[str, Any] = {
        job.name: job.segments for job in draw_blueprint(applied(loaded, first), blueprint.sources).plan.jobs
    }
    searched_text(loaded, last)  # refuses what could not be written in the end
    if not varying_jobs(draw_blueprint(applied(loaded, last), blueprint.sources).plan, known):
        raise RequestError(
            f"Nothing that '{loaded.path}' merges depends on what is searched.",
            hint="Its overrides or slices say weights and parameters of their own; take those out.",
        )


def _identity(blueprint: Blueprint, plan: StudyPlan, objective: Objective) -> dict[str, str]:
    """Returns what identifies a study, part by part."""
    asked = objective.to_json()
    parts = {
        "recipe or sources": blueprint.plan.fingerprint,
        "space": plan.space.to_json(),
        "objective": asked.pop("objective"),
        "tasks": asked,
    }
    if not plan.grid:  # the points of a grid are not suggestions
        parts["seed"] = plan.seed
    return {name: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:16] for name, v in parts.items()}


def _opened(plan: StudyPlan, identity: Mapping[str, str], *, resume: bool) -> Study:
    """Opens the study of the folder, whose lock is held."""
    from mcompose.pipeline.search.study import open_study  # noqa: PLC0415 - Optuna is an extra

    folder = plan.folder
    if not resume:
        _clear_models(folder)
        for name in OWN:
            (folder / name).unlink(missing_ok=True)
    _mend(folder / JOURNAL)
    study = open_study(plan)
    known = study.attribute("identity")
    if known is None:
        study.note("identity", dict(identity))
    # a search from before seeds were recorded resumes with any seed
    other = next((name for name, value in identity.items() if known and known.get(name, value) != value), None)
    if other is not None:
        raise OutputError(
            f"'{folder}' holds a search that differs in its {other}.",
            hint="Name another folder with -o DIR, or begin anew with --no-resume.",
        )
    study.give_back_all()
    return study


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds anything but a search: what is in it will be replaced and cleared away."""
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME) if folder.is_dir() else []
    own = {*OWN, *(path.name for path in _models(folder))} if JOURNAL in names else {}
    foreign = [name for name in names if name not in own]
    if foreign:
        raise OutputError(
            f"The folder '{folder}' holds something else: '{foreign[0]}'.", hint="Name another with -o DIR."
        )


def _models(folder: Path) -> list[Path]:
    """Returns the composition that trials start from, and copies of it."""
    return [path for path in folder.iterdir() if path.name == SCRATCH or path.name.startswith((f"{SCRATCH}.", COPY))]


def _clear_models(folder: Path) -> None:
    for path in _models(folder):
        shutil.rmtree(path)


def _mend(journal: Path) -> None:
    """Cuts a last line off that a killed process has left half-written."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


def _run(
    loaded: LoadedRecipe, study: Study, objective: Objective, blueprint: Blueprint, options: SearchOptions
) -> None:
    from mcompose.pipeline.search.workers import SearchBar, run_trials  # noqa: PLC0415 - Optuna is an extra

    plan = study.plan
    if study.is_done():
        return
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    try:
        scratch = _scratch(loaded, study, blueprint, options)
        make = partial(open_runner, loaded.path, scratch, objective.questions, options)
        bar = SearchBar(plan.budget, quiet=options.quiet)
        run_trials(study, make, workers=options.workers, deadline=deadline, bar=bar)
    except (KeyboardInterrupt, InterruptedRunError) as error:
        done = sum(row.finished for row in study.rows())
        raise InterruptedRunError(
            f"Interrupted: {done} of {plan.budget} trials are done and kept in '{plan.folder}'.",
            hint="Run the same command again to resume; '--no-resume' starts anew.",
        ) from error


def _scratch(loaded: LoadedRecipe, study: Study, blueprint: Blueprint, options: SearchOptions) -> Path:
    """Returns the composition that trials start from, made now or by an interrupted run; nothing is written into it."""
    scratch = study.plan.folder / SCRATCH
    if scratch.is_dir() and study.attribute("scratch") == blueprint.plan.fingerprint:
        return scratch
    compose(
        loaded,
        output=scratch,
        options=ComposeOptions(
            threads=options.threads,
            allow_different_base=options.allow_different_base,
            progress=ProgressBar("compose", quiet=options.quiet),
        ),
    )
    study.note("scratch", blueprint.plan.fingerprint)
    return scratch


class _MergedModel:
    """Tells what settings are worth by merging them into the loaded model."""

    def __init__(self, model: Any, objective: Objective) -> None:
        self._model, self._objective = model, objective

    def __call__(self, settings: Settings, *, on_progress: OnCount | None = None) -> Outcome:
        digest = self._model.merge(settings)
        return replace(self._objective.evaluate(self._model.subject, on_progress=on_progress), digest=digest)


def open_runner(recipe: Path, scratch: Path, questions: ObjectiveSpec, options: SearchOptions) -> TrialRunner:
    """Loads everything that a trial needs; in the process that will run it.

    Args:
        recipe: The recipe file.
        scratch: Folder of the composition that trials start from.
        questions: Tasks and objective.
        options: How to search.

    Returns:
        The function of the trials.
    """
    from mcompose.pipeline.search.model import TrialModel  # noqa: PLC0415 - torch, seconds

    quieten_loading()
    model = TrialModel(
        load_recipe(recipe), scratch, threads=options.threads, trust_remote_code=options.trust_remote_code
    )
    return _MergedModel(model, open_objective(questions))
