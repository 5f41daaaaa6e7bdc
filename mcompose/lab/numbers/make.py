"""Makes the family ``numbers``: base, donors, data and recipe, in one folder that appears when it is complete.

Each training runs in its own process with one thread, so the bytes do not depend on how many run at once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import platform
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose import __version__
from mcompose.lab.family import LabFamily, recipe_text
from mcompose.lab.family_folder import find_family, make_family
from mcompose.lab.media import load_digits
from mcompose.lab.numbers.tasks import TASK_NAMES, write_data
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import NumbersSettings
from mcompose.modalities import MODALITIES
from mcompose.progress import OnShare
from mcompose.whole_files import write_text

__all__ = ["make_numbers"]


_CONTEXT: Final = multiprocessing.get_context("spawn")
_PACKAGES: Final = ("torch", "transformers", "numpy", "scikit-learn")
# Costs of the trainings in CPU seconds, for the progress bar.
_SHARES: Final = {"base": 110.0, "encoder": 20.0, "donor": 40.0}


def make_numbers(
    folder: Path,
    *,
    seed: int = 0,
    settings: NumbersSettings | None = None,
    progress: OnShare | None = None,
    workers: int | None = None,
) -> LabFamily:
    """Makes the family, or opens it if it exists.

    Args:
        folder: Folder of the family; a folder with other contents is refused.
        seed: Seed of every weight and every item.
        settings: Sizes and training; None for those of the reports.
        progress: Called with the name of the current training and the finished share, 0 to 1.
        workers: Number of trainings at once, each in its own process; None for one per core, at most four. 0 trains in
            this process, one after the other, with the same bytes.

    Returns:
        The family.

    Raises:
        OutputError: The folder contains something else, or a family of another seed or other settings.
        RequestError: scikit-learn is not installed.
    """
    settings = settings or NumbersSettings()
    digest = settings.digest(seed)
    family = find_family(folder, digest=digest, seed=seed)
    if family is not None:
        return family
    load_digits(generator=generator_for(seed, "digits"))  # reports a missing extra before any work
    build = partial(_build, settings=settings, seed=seed, progress=progress, workers=workers)
    return make_family(folder, build, digest=digest)


def _build(
    folder: Path, *, settings: NumbersSettings, seed: int, progress: OnShare | None, workers: int | None
) -> dict[str, Any]:
    total = _SHARES["base"] + len(MODALITIES) * (_SHARES["encoder"] + _SHARES["donor"])
    done = _CONTEXT.Array("d", 1 + 2 * len(MODALITIES))
    count = min(4, os.cpu_count() or 1) if workers is None else workers
    weights = [_SHARES["base"]] + [_SHARES["encoder"]] * len(MODALITIES) + [_SHARES["donor"]] * len(MODALITIES)

    def report(label: str) -> None:
        if progress:
            progress(label, sum(w * d for w, d in zip(weights, done[:], strict=True)) / total)

    with _executor(count, done) as pool:
        try:
            base, encoders, donors = _train(pool, folder, settings, seed=seed, report=report)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_text(folder / "recipe.yaml", recipe_text(list(MODALITIES)))
    return {
        "family": "numbers",
        "seed": seed,
        "donors": list(MODALITIES),
        "tasks": list(TASK_NAMES),
        "text_ceiling": base.result(),
        "encoders": {m: encoders[i].result()[0] for i, m in enumerate(MODALITIES)},
        "single": {m: donors[i].result() for i, m in enumerate(MODALITIES)},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"mcompose": __version__, "python": platform.python_version()},
    }


def _train(
    pool: Executor, folder: Path, settings: NumbersSettings, *, seed: int, report: Callable[[str], None]
) -> tuple[Future[Any], list[Future[Any]], list[Future[Any]]]:
    base = pool.submit(_base_job, folder / "base", settings, seed)
    encoders = [pool.submit(_encoder_job, m, settings, seed, 1 + i) for i, m in enumerate(MODALITIES)]
    digits = load_digits(generator=generator_for(seed, "digits"))
    write_data(folder / "data", settings.data, seed=seed, digits=digits)
    _await([base, *encoders], "base and encoders", report)
    donors = [
        pool.submit(_donor_job, folder, m, settings, seed, encoders[i].result()[1], 1 + len(MODALITIES) + i)
        for i, m in enumerate(MODALITIES)
    ]
    _await(donors, "donors", report)
    return base, encoders, donors


def _executor(workers: int, done: Any) -> Executor:
    if not workers:
        return _Inline(done)
    return ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=(done,))


class _Inline(Executor):
    """Runs each job when it is submitted, in this process."""

    def __init__(self, done: Any) -> None:
        _share_progress(done)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs the job now; an error is raised at once."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _await(jobs: list[Future[Any]], label: str, report: Callable[[str], None]) -> None:
    waiting = set(jobs)
    while waiting:
        finished, waiting = wait_for(waiting, timeout=0.5)
        for job in finished:
            job.result()  # raises the error of a failed job at once
        report(label)


_done: Any = None


def _share_progress(done: Any) -> None:
    global _done  # each worker process has its own handle of the shared array
    _done = done


def _start_worker(done: Any) -> None:
    _share_progress(done)
    from transformers.utils import logging  # noqa: PLC0415 - workers only

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _reporter(place: int) -> Callable[[float], None]:
    def report(share: float) -> None:
        _done[place] = share

    return report


def _base_job(folder: Path, settings: NumbersSettings, seed: int) -> dict[str, float]:
    from mcompose.lab.checkpoints import make_tokenizer, save_source  # noqa: PLC0415 - workers only
    from mcompose.lab.fit import text_accuracy, train_base  # noqa: PLC0415 - workers only
    from mcompose.lab.randomness import deterministic_torch  # noqa: PLC0415 - workers only

    with deterministic_torch(seed, "base"):
        model = train_base(settings, seed=seed, progress=_reporter(0))
        save_source(folder, model, make_tokenizer())
        return text_accuracy(model, seed=seed, count=settings.checked)


def _encoder_job(modality: str, settings: NumbersSettings, seed: int, place: int) -> tuple[float, bytes]:
    from mcompose.lab.fit import text_config  # noqa: PLC0415 - workers only
    from mcompose.lab.numbers.donors import pretrain_encoder  # noqa: PLC0415 - workers only
    from mcompose.lab.randomness import deterministic_torch  # noqa: PLC0415 - workers only
    from mcompose.lab.towers import build_donor  # noqa: PLC0415 - workers only

    with deterministic_torch(seed, "donor", modality):
        donor = build_donor(modality, text_config(settings))
        digits = load_digits(generator=generator_for(seed, "digits"))
        seen = pretrain_encoder(donor, settings, seed=seed, digits=digits, progress=_reporter(place))
        weights = {name: value.numpy() for name, value in donor.model.state_dict().items()}
        return seen, pickle.dumps(weights)


def _donor_job(
    folder: Path, modality: str, settings: NumbersSettings, seed: int, weights: bytes, place: int
) -> dict[str, float]:
    import torch  # noqa: PLC0415 - workers only
    from transformers import LlamaForCausalLM  # noqa: PLC0415 - workers only

    from mcompose.lab.checkpoints import save_points_source, save_source  # noqa: PLC0415 - workers only
    from mcompose.lab.fit import text_config  # noqa: PLC0415 - workers only
    from mcompose.lab.numbers.donors import adopt_language_model, single_accuracy, train_donor  # noqa: PLC0415
    from mcompose.lab.randomness import deterministic_torch  # noqa: PLC0415 - workers only
    from mcompose.lab.towers import build_donor  # noqa: PLC0415 - workers only

    with deterministic_torch(seed, "donor", modality):
        donor = build_donor(modality, text_config(settings))
        arrays: dict[str, np.ndarray] = pickle.loads(weights)  # noqa: S301 - made by this run's own worker
        donor.model.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
        adopt_language_model(donor, LlamaForCausalLM.from_pretrained(folder / "base"))
        digits = load_digits(generator=generator_for(seed, "digits"))
        train_donor(donor, settings, seed=seed, digits=digits, progress=_reporter(place))
        if modality == "points":
            save_points_source(folder / modality, donor.model, donor.processor)
        else:
            save_source(folder / modality, donor.model, donor.processor, processor_code=donor.code)
        return single_accuracy(donor, seed=seed, digits=digits, count=settings.checked)
