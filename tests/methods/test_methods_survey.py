"""`ties-global` over several tensors: one threshold a source, found by threads in any order."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mcompose.methods import METHODS, TensorTask

SHAPES = {"wide": (40, 50), "narrow": (7,), "scalar": (), "empty": (0, 3)}
DENSITIES = (0.2, 0.5)


def make_model(seed=0):
    generator = np.random.default_rng(seed)
    base = {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    # One tensor moves much more than another: a threshold per tensor would keep other elements.
    spread = {"wide": 0.01, "narrow": 1.0, "scalar": 1.0, "empty": 1.0}
    sources = [
        {
            name: np.asarray(base[name] + spread[name] * generator.standard_normal(shape), np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in DENSITIES
    ]
    return base, sources


def make_task(name, shape, survey=None):
    return TensorTask(name, shape, ("a", "b"), (0.5, 0.5), {"density": list(DENSITIES)}, survey=survey)


def measure(base, sources, order, *, threads):
    method = METHODS.get("ties-global")
    survey = method.survey(make_task("model", (sum(value.size for value in base.values()),)))
    for index in range(survey.passes):

        def work(names, index=index):
            for name in names:
                survey.measure(index, [source[name].reshape(-1) for source in sources], base[name].reshape(-1))

        workers = [threading.Thread(target=work, args=(order[n::threads],)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        survey.finish(index)
    return survey


@pytest.mark.parametrize("threads", [1, 2])
def test_threshold_is_that_of_the_flattened_model(threads):
    base, sources = make_model()
    names = list(SHAPES)
    survey = measure(base, sources, names, threads=threads)
    assert survey.thresholds() == measure(base, sources, names[::-1], threads=1).thresholds()
    flat = [np.concatenate([np.abs(source[n] - base[n]).reshape(-1) for n in names]) for source in sources]
    for key, magnitudes, density in zip(survey.thresholds(), flat, DENSITIES, strict=True):
        rank = magnitudes.size - int(magnitudes.size * density)
        assert np.array(key, np.uint32).view(np.float32) == np.sort(magnitudes)[rank - 1]


def test_programs_prune_by_the_survey():
    base, sources = make_model()
    survey = measure(base, sources, list(SHAPES), threads=1)
    thresholds = [np.array(key, np.uint32).view(np.float32) for key in survey.thresholds()]
    for name, shape in SHAPES.items():
        program = METHODS.get("ties-global").program(make_task(name, shape, survey))
        assert program.passes == 0
        out = np.empty(base[name].size, np.float32)
        program.combine(0, [source[name].reshape(-1) for source in sources], base[name].reshape(-1), out)
        deltas = [source[name] - base[name] for source in sources]
        kept = [delta * (np.abs(delta) >= limit) for delta, limit in zip(deltas, thresholds, strict=True)]
        plus = kept[0] + kept[1] >= 0
        agree = [np.where(plus, value > 0, value < 0) for value in kept]
        number = np.maximum(agree[0].astype(np.float32) + agree[1], 1)
        wanted = base[name] + (kept[0] * agree[0] + kept[1] * agree[1]) / number
        np.testing.assert_array_equal(out.reshape(shape), wanted)


def test_only_ties_global_looks_at_the_whole_model():
    assert [method.name for method in METHODS if method.whole_model] == ["ties-global"]
