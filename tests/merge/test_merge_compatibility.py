"""Base compatibility: distances by hand, fine-tunes pass, strangers are refused."""

from __future__ import annotations

import numpy as np
import pytest
from merge_bench import HIDDEN, llama

from mcompose.errors import CompositionError
from mcompose.merge import check_same_base


def stranger(seed: int) -> dict:
    tensors = {}
    for index, (key, (dtype, shape, raw)) in enumerate(llama(1).items()):
        values = np.random.default_rng([99, seed, index]).normal(0, 0.02, shape).astype(np.float32)
        tensors[key] = (dtype, shape, values.tobytes() if "weight" in key else raw)
    return tensors


def test_fine_tunes_of_one_base_are_near(bench):
    base = bench.source("base", llama(0))
    sources = [bench.source("a", llama(1, scale=0.002)), bench.source("b", llama(2, scale=0.002))]
    figures = check_same_base(sources, base)
    assert [(f.source, f.reference) for f in figures] == [("a", "base"), ("b", "base")]
    assert all(abs(f.median - 0.1) < 0.02 and len(f.layers) == 2 for f in figures)
    assert set(figures[0].to_dict()) == {"source", "reference", "median", "largest"}


def test_the_distance_is_what_the_sampled_rows_give(bench):
    tensors = {"model.layers.0.w.weight": ("F32", (8, HIDDEN), np.ones((8, HIDDEN), np.float32).tobytes())}
    half = {"model.layers.0.w.weight": ("F32", (8, HIDDEN), np.full((8, HIDDEN), 0.5, np.float32).tobytes())}
    figures = check_same_base([bench.source("a", half)], bench.source("base", tensors))
    assert figures[0].median == 0.5


def test_models_that_were_trained_apart_are_refused_with_figures(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", stranger(1))]
    with pytest.raises(CompositionError, match=r"'b' and 'a' do not share a base.*1\.\d\d of their norm") as caught:
        check_same_base(sources)
    assert "--allow-different-base" in caught.value.hint
    figures = check_same_base(sources, allow_different=True)
    assert 1.0 < figures[0].median < 1.8


def test_settings_that_change_the_meaning_of_equal_weights_are_compared(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(1), num_attention_heads=8)]
    with pytest.raises(CompositionError, match="num_attention_heads is 8 in one and 4 in the other"):
        check_same_base(sources)
    old = bench.source("c", llama(1), rope_theta=10000)
    new = bench.source("d", llama(1), rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert check_same_base([old, new])[0].median == 0.0
    other = bench.source("e", llama(1), rope_parameters={"rope_theta": 500000.0})
    with pytest.raises(CompositionError, match=r"rope_theta is 500000.0 in one and 10000.0 in the other"):
        check_same_base([old, other])


def test_a_stretched_rope_is_another_base(bench):
    """Llama 3.1 has Llama 3's shapes and theta; its positions are stretched, and equal weights mean something else."""
    llama3 = {"rope_type": "llama3", "factor": 8.0}
    plain = bench.source("a", llama(1), rope_theta=500000.0)
    stretched = bench.source("b", llama(1), rope_theta=500000.0, rope_scaling=llama3)
    with pytest.raises(CompositionError, match="rope_type is llama3 in one and default in the other"):
        check_same_base([plain, stretched])
    further = bench.source("c", llama(1), rope_parameters={**llama3, "rope_theta": 500000.0, "factor": 32.0})
    with pytest.raises(CompositionError, match=r"rope factor is 32.0 in one and 8.0 in the other"):
        check_same_base([stretched, further])
    grid = bench.source("d", llama(1), rope_theta=500000.0, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 1]})
    assert len(check_same_base([plain, grid])) == 1
    assert len(check_same_base([plain, stretched], allow_different=True)) == 1


def test_models_without_a_common_layer_are_refused(bench):
    other = {"model.norm.weight": ("F32", (HIDDEN,), bytes(4 * HIDDEN))}
    with pytest.raises(CompositionError, match="do not have a layer in common"):
        check_same_base([bench.source("a", llama(1)), bench.source("b", other)])
