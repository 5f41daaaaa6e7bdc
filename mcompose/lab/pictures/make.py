"""Makes the family ``pictures``: experts, general model, data and recipe, in one folder that appears when complete.

Each training runs in its own process with one thread, so the bytes do not depend on how many run at once.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mcompose import __version__
from mcompose.lab.family import LabFamily
from mcompose.lab.family_folder import find_family, make_family
from mcompose.lab.pictures.picture import DOMAINS, EXPERTS, Picture
from mcompose.lab.pictures.questions import TASKS
from mcompose.lab.pictures.render import render, render_many
from mcompose.lab.pictures.settings import PicturesSettings
from mcompose.lab.pictures.tasks import recipe_text, write_pictures
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.progress import OnShare
from mcompose.whole_files import write_text

__all__ = ["make_pictures"]


_PACKAGES: Final = ("torch", "transformers", "numpy", "pillow", "scikit-learn", "matplotlib", "vega-datasets")
_JOBS: Final = ("data", "general", *EXPERTS)


def make_pictures(
    folder: Path,
    *,
    seed: int = 0,
    settings: PicturesSettings | None = None,
    progress: OnShare | None = None,
    workers: int | None = None,
) -> LabFamily:
    """Makes the family, or opens it if it exists.

    Args:
        folder: Folder of the family; a folder with other contents is refused. ``base`` is the general model; ``chart``,
            ``table`` and ``document`` are the experts, plain encoders with their image processors.
        seed: Seed of every weight and every picture.
        settings: Sizes and training; None for those of the reports.
        progress: Called with the name of each finished step and the finished share, 0 to 1.
        workers: Number of trainings at once, each in its own process; None for one per core, at most four. 0 trains in
            this process, one after the other, with the same bytes.

    Returns:
        The family; its donors are the experts.

    Raises:
        OutputError: The folder contains something else, or a family of another seed or other settings.
        RequestError: vega-datasets, matplotlib or scikit-learn is not installed.
    """
    settings = settings or PicturesSettings()
    digest = settings.digest(seed)
    family = find_family(folder, digest=digest, seed=seed)
    if family is not None:
        return family
    for kind in ("line", "digit"):  # reports a missing extra before any work
        render(kind, generator_for(seed, "extras"))
    build = partial(_build, settings=settings, seed=seed, progress=progress, workers=workers)
    return make_family(folder, build, digest=digest)


def _build(
    folder: Path, *, settings: PicturesSettings, seed: int, progress: OnShare | None, workers: int | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    count = min(4, os.cpu_count() or 1) if workers is None else workers
    if count:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_be_quiet) as pool:
            jobs: dict[Future[Any], str] = {pool.submit(_job, name, folder, settings, seed): name for name in _JOBS}
            try:
                for done, job in enumerate(as_completed(jobs), start=1):
                    found[jobs[job]] = job.result()
                    _report(progress, jobs[job], done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        for done, name in enumerate(_JOBS, start=1):
            found[name] = _job(name, folder, settings, seed)
            _report(progress, name, done)
    write_text(folder / "recipe.yaml", recipe_text())
    return {
        "family": settings.name,
        "seed": seed,
        "donors": list(EXPERTS),
        "domains": list(DOMAINS),
        "tasks": list(TASKS),
        "general": found["general"],
        "experts": {name: found[name] for name in EXPERTS},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"mcompose": __version__, "python": platform.python_version()},
    }


def _report(progress: OnShare | None, label: str, done: int) -> None:
    if progress:
        progress(label, done / len(_JOBS))


def _be_quiet() -> None:
    from transformers.utils import logging  # noqa: PLC0415 - workers only

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _job(name: str, folder: Path, settings: PicturesSettings, seed: int) -> dict[str, Any] | None:
    if name == "data":
        write_pictures(folder / "data", settings.data, seed=seed)
        return None
    started = time.process_time()
    figures = _general_job(folder, settings, seed) if name == "general" else _expert_job(name, folder, settings, seed)
    return figures | {"cpu_seconds": round(time.process_time() - started, 1)}


def _pictures(domain: str, settings: PicturesSettings, seed: int) -> tuple[list[Picture], list[Picture]]:
    train = render_many(domain, settings.pool, seed=seed, purpose="pool")
    return train, render_many(domain, settings.checked, seed=seed, purpose="check", split="test")


def _expert_job(name: str, folder: Path, settings: PicturesSettings, seed: int) -> dict[str, Any]:
    from mcompose.lab.pictures.encoders import build_encoder  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.pretrain import train_expert  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.probe import readable  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.reading import make_pool  # noqa: PLC0415 - workers only

    train, test = _pictures(name, settings, seed)
    with deterministic_torch(seed, "expert", name):
        encoder = build_encoder(name)
        train_expert(encoder, make_pool(encoder, train, domain=name), settings.experts[name], seed=seed)
        encoder.model.save_pretrained(folder / name)
        encoder.processor.save_pretrained(folder / name)
        some = train[: settings.probed]
        return {"readable": readable(encoder, name, some, test, settings=settings.probe, seed=seed)}


def _general_job(folder: Path, settings: PicturesSettings, seed: int) -> dict[str, Any]:
    from mcompose.lab.pictures.encoders import build_encoder  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.general import answer_accuracy, build_general_model, train_general_model  # noqa: PLC0415
    from mcompose.lab.pictures.pretrain import train_general  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.probe import readable  # noqa: PLC0415 - workers only
    from mcompose.lab.pictures.reading import encoded, make_pool, token_marks  # noqa: PLC0415 - workers only

    held = {domain: _pictures(domain, settings, seed) for domain in DOMAINS}
    with deterministic_torch(seed, "general"):
        encoder = build_encoder("general", general_side=settings.general_side)
        train = [picture for own, _ in held.values() for picture in own]
        test = [picture for _, own in held.values() for picture in own]
        pool = make_pool(encoder, train)
        taught = EXPERTS if settings.general_reads else ()
        reading = {name: make_pool(encoder, held[name][0], domain=name) for name in taught}
        train_general(encoder, pool, settings.general, seed=seed, reading=reading)
        read = {
            name: readable(
                encoder, name, held[name][0][: settings.probed], held[name][1], settings=settings.probe, seed=seed
            )
            for name in EXPERTS
        }
        general = build_general_model(settings, encoder)
        homes = [
            token_marks(one.marks, boxes)
            for one, boxes in zip(train, pool.boxes, strict=True)
            if settings.general_reads
        ]
        train_general_model(general, train, encoded(encoder, pool), settings, seed=seed, token_marks=homes)
        shown = encoded(encoder, make_pool(encoder, test))
        general.model.save_pretrained(folder / "base")
        general.processor.save_pretrained(folder / "base")
        return {
            "readable": read,
            "answer_accuracy": answer_accuracy(general, test, way="picture", seed=seed, seen=shown),
            "answered_as_words": answer_accuracy(general, test, way="words", seed=seed),
            "answered_as_marks": answer_accuracy(general, test, way="marks", seed=seed),
        }
