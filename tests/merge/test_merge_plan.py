"""Plans: which rows and names meet, what is refused and with which sentence, slices, fingerprints, speed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from merge_bench import HIDDEN, key_of, llama, slot_of

from mcompose.anatomy.part import Anatomy
from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import CompositionError, RecipeError, RequestError, UnknownNameError
from mcompose.merge import (
    Segment,
    SourceParts,
    TensorJob,
    build_plan,
    copy_job,
    language_jobs,
    moved_places,
)
from mcompose.recipe.schema import MergeSpec

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def loaded(source):
    from safetensors.torch import load_file

    return load_file(source.checkpoint.folder / "model.safetensors")


def test_vocabulary_rows_that_all_share_are_merged_and_the_rest_is_listed(bench):
    sees, hears = bench.source("sees", llama(1, rows=44)), bench.source("hears", llama(2, rows=42))
    base = bench.source("base", llama(0, rows=40))
    merged, rows = bench.merge({"method": "naivemc"}, [sees, hears], base, target=sees)
    a, b = loaded(sees), loaded(hears)
    for key in (EMBED, HEAD):
        assert torch.equal(merged[key][:40], (a[key][:40] * 0.5 + b[key][:40] * 0.5))
        assert torch.equal(merged[key][40:], a[key][40:])
        assert next(row.note for row in rows if row.name == key) == "rows 40-43 copied from sees"
    dropped = [row for row in rows if row.action == "dropped"]
    assert [(row.name, row.sources, row.note) for row in dropped] == [
        (EMBED, ("hears",), "rows 40-41 are not rows of every source"),
        (HEAD, ("hears",), "rows 40-41 are not rows of every source"),
    ]


def test_without_a_target_all_extra_rows_are_dropped(bench):
    sources = [bench.source("a", llama(1, rows=44)), bench.source("b", llama(2, rows=42))]
    merged, rows = bench.merge({"method": "naivemc"}, sources)
    assert merged[EMBED].shape == (42, HIDDEN)
    assert [row.sources for row in rows if row.action == "dropped"] == [("a",), ("a",)]


def test_one_source_keeps_all_its_rows(bench):
    source, base = bench.source("a", llama(1, rows=44)), bench.source("base", llama(0, rows=40))
    merged, rows = bench.merge({"method": "naivemc"}, [source], base)
    assert torch.equal(merged[EMBED], loaded(source)[EMBED])
    assert {row.action for row in rows} == {"copied"}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_rows_that_a_single_source_added_to_its_base_are_kept_and_not_merged(bench, method):
    """They have no base row to change from: reading on would take the next tensor's bytes for one."""
    source, base = bench.source("a", llama(1, rows=44)), bench.source("base", llama(0, rows=40))
    merge = {"method": method, "parameters": {"lambda": 0.5}}
    merged, rows = bench.merge(merge, [source], base, target=source)
    mine, theirs = loaded(source), loaded(base)
    for key in (EMBED, HEAD):
        assert torch.equal(merged[key][40:], mine[key][40:])
        torch.testing.assert_close(merged[key][:40], (mine[key][:40] + theirs[key]) / 2)
        assert next(row.note for row in rows if row.name == key) == "rows 40-43 copied from a"


def test_kept_rows_follow_the_output_dtype(bench):
    sees = bench.source("sees", llama(1, rows=44, dtype="BF16"))
    hears = bench.source("hears", llama(2, rows=40, dtype="F16"))
    merged, rows = bench.merge({"method": "naivemc", "dtype": "float32"}, [sees, hears], target=sees)
    assert merged[EMBED].dtype == torch.float32
    assert torch.equal(merged[EMBED][40:], loaded(sees)[EMBED][40:].float())
    assert "rows 40-43 cast from sees" in {row.note for row in rows}


def test_tied_heads_stay_tied_and_a_stored_copy_is_listed(bench):
    stored = llama(1)
    sources = [bench.source("a", stored, tied=True), bench.source("b", llama(2, tied=True), tied=True)]
    merged, rows = bench.merge({"method": "naivemc"}, sources)
    assert HEAD not in merged
    assert [(r.name, r.sources) for r in rows if r.action == "dropped"] == [(HEAD, ("a",))]


def test_a_tied_source_lends_its_embedding_to_a_head_of_its_own(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2, tied=True), tied=True)]
    merged, _ = bench.merge({"method": "naivemc"}, sources)
    a, b = (loaded(source) for source in sources)
    assert torch.equal(merged[HEAD], a[HEAD] * 0.5 + b[EMBED] * 0.5)


def test_computed_buffers_of_old_files_are_dropped_and_listed(bench):
    old = llama(1) | {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (2,), bytes(8))}
    sources = [bench.source("a", old), bench.source("b", llama(2))]
    merged, rows = bench.merge({"method": "naivemc"}, sources)
    assert not any("inv_freq" in key for key in merged)
    assert [r.note for r in rows if r.action == "dropped"] == ["a buffer that the model computes from its config"]


def without(tensors: dict, *ends: str) -> dict:
    return {key: value for key, value in tensors.items() if not key.endswith(ends)}


REFUSALS = {
    "a bias in one only": (
        lambda bench: [bench.source("a", llama(1)), bench.source("b", without(llama(2), ".bias"))],
        {"method": "naivemc"},
        CompositionError,
        r"q_proj.bias' and 1 more tensors are in 'a' but not in 'b'. .*: one language model has biases",
    ),
    "another depth": (
        lambda bench: [bench.source("a", llama(1, layers=3)), bench.source("b", llama(2))],
        {"method": "naivemc"},
        CompositionError,
        r"'layers.2.self_attn.q_proj.weight' and 3 more tensors are in 'a' but not in 'b'",
    ),
    "another shape": (
        lambda bench: [
            bench.source("a", llama(1)),
            bench.source("b", llama(2) | {"model.norm.weight": ("F32", (2,), bytes(8))}),
        ],
        {"method": "naivemc"},
        CompositionError,
        r"'norm.weight' is 24 in 'a' and 2 in 'b'",
    ),
    "no base": (
        lambda bench: [bench.source("a", llama(1)), bench.source("b", llama(2))],
        {"method": "ties"},
        RecipeError,
        r"'ties' merges changes from a base.*Add 'base' to the recipe",
    ),
    "too many": (
        lambda bench: [bench.source(name, llama(1)) for name in "abc"],
        {"method": "slerp", "parameters": {"t": 0.5}},
        RequestError,
        r"'slerp' takes exactly 2 source",
    ),
    "unknown method": (
        lambda bench: [bench.source(name, llama(1)) for name in "ab"],
        {"method": "tise"},
        UnknownNameError,
        r"'tise' is not a known merge method. Did you mean 'ties'",
    ),
    "unknown parameter": (
        lambda bench: [bench.source(name, llama(1)) for name in "ab"],
        {"method": "linear", "parameters": {"normalise": True}},
        RequestError,
        r"no parameter 'normalise'. Did you mean 'normalize'",
    ),
    "integers and floats": (
        lambda bench: [
            bench.source("a", llama(1)),
            bench.source("b", llama(2) | {"model.norm.weight": ("I32", (24,), bytes(96))}),
        ],
        {"method": "linear"},
        CompositionError,
        r"'norm.weight' is I32 in 'b' and F32 in 'a'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_merged_is_refused_with_a_sentence(bench, case):
    make, merge, error, sentence = REFUSALS[case]
    with pytest.raises(error, match=f"(?s){sentence}") as caught:
        bench.plan(merge, make(bench))
    assert caught.value.exit_code == 2


def test_two_jobs_for_one_key_are_refused(bench):
    source = bench.source("a", llama(1))
    job = copy_job("x", source.entry(EMBED), "encoder", source="a")
    other = copy_job("x", source.entry(HEAD), "encoder", source="b")
    with pytest.raises(CompositionError, match="Two tensors would be written as 'x'"):
        build_plan([job, other], max_shard_size=10**6)


def test_overrides_choose_settings_by_part_and_layer(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    merge = {
        "method": "linear",
        "weights": {"a": 0.5, "b": 0.5},
        "overrides": [{"match": {"part": "language", "layers": [1, 1]}, "weights": {"a": 1.0, "b": 0.0}}],
    }
    merged, _ = bench.merge(merge, sources)
    a, b = (loaded(source) for source in sources)
    key = "model.layers.{}.mlp.down_proj.weight"
    assert torch.equal(merged[key.format(1)], a[key.format(1)])
    assert torch.equal(merged[key.format(0)], a[key.format(0)] * 0.5 + b[key.format(0)] * 0.5)


def test_slices_stack_and_merge_layers(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    merge = {
        "method": "linear",
        "slices": [
            {"sources": [{"source": "a", "layer_range": [0, 2]}]},
            {"sources": [{"source": "a", "layer_range": [1, 2]}, {"source": "b", "layer_range": [0, 1]}]},
        ],
        "weights": {"a": 1.0, "b": 1.0},
    }
    merged, rows = bench.merge(merge, sources)
    a, b = (loaded(source) for source in sources)
    assert moved_places(MergeSpec.model_validate(merge), 2) == (("a", 0), ("a", 1), ("a", 1))
    for end in ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "input_layernorm.weight"):
        assert torch.equal(merged[f"model.layers.0.{end}"], a[f"model.layers.0.{end}"])
        assert torch.equal(merged[f"model.layers.1.{end}"], a[f"model.layers.1.{end}"])
        both = (a[f"model.layers.1.{end}"] + b[f"model.layers.0.{end}"]) / 2
        assert torch.equal(merged[f"model.layers.2.{end}"], both)
    assert torch.equal(merged[EMBED], a[EMBED])
    assert torch.equal(merged[HEAD], (a[HEAD] + b[HEAD]) / 2)
    dropped = {(row.sources[0], row.name) for row in rows if row.action == "dropped"}
    assert ("b", "model.layers.1.mlp.down_proj.weight") in dropped
    assert ("b", EMBED) in dropped
    assert not any(source == "a" for source, _ in dropped)


def test_a_slice_over_all_layers_is_an_ordinary_merge(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    whole = [{"sources": [{"source": name, "layer_range": [0, 2]} for name in "ab"]}]
    sliced = bench.plan({"method": "naivemc", "slices": whole}, sources)
    assert sliced.fingerprint == bench.plan({"method": "naivemc"}, sources).fingerprint


def test_slices_beyond_the_source_are_refused(bench):
    merge = {"method": "passthrough", "slices": [{"sources": [{"source": "a", "layer_range": [1, 4]}]}]}
    with pytest.raises(RecipeError, match="use layer 2 of 'a'"):
        bench.plan(merge, [bench.source("a", llama(1))])


def test_the_fingerprint_changes_with_what_decides_the_bytes_and_with_nothing_else(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    plain = bench.plan({"method": "linear"}, sources).fingerprint
    assert bench.plan({"method": "linear"}, sources).fingerprint == plain
    assert bench.plan({"method": "naivemc"}, sources).fingerprint != plain
    assert bench.plan({"method": "linear", "weights": {"a": 1, "b": 2}}, sources).fingerprint != plain
    assert bench.plan({"method": "linear", "dtype": "bfloat16"}, sources).fingerprint != plain
    assert bench.plan({"method": "linear"}, sources, shard=4000).fingerprint != plain
    changed = bench.source("b", llama(3))
    assert bench.plan({"method": "linear"}, [sources[0], changed]).fingerprint != plain


def test_the_plan_prints_as_json(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    plan = bench.plan({"method": "linear", "weights": {"a": 1, "b": 2}}, sources)
    printed = json.loads(json.dumps(plan.to_dict()))
    assert printed["bytes_to_write"] == sum(len(raw) for _, _, raw in llama(1).values())
    assert printed["bytes_to_read"] == 2 * printed["bytes_to_write"]
    assert printed["actions"] == {"merged": len(llama(1))}
    first = printed["jobs"][0]
    assert (first["name"], first["method"], first["weights"]) == (EMBED, "linear", [1, 2])
    assert str(bench.folder) not in json.dumps(printed)


class SparseCheckpoint:
    """The headers of a model that nobody has the disk for."""

    def __init__(self, name: str, layers: int, hidden: int, rows: int) -> None:
        shapes = {EMBED: (rows, hidden), "model.norm.weight": (hidden,), HEAD: (rows, hidden)}
        for layer in range(layers):
            for end in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
                shapes[f"model.layers.{layer}.{end}.weight"] = (hidden, hidden)
            for end in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
                shapes[f"model.layers.{layer}.{end}.weight"] = (3 * hidden, hidden)
            for end in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{end}.weight"] = (hidden,)
        self.tensors, position = {}, 0
        for key, shape in shapes.items():
            nbytes = 2 * int(np.prod(shape))
            self.tensors[key] = TensorEntry(key, "BF16", shape, Path(f"/nowhere/{name}"), position, nbytes)
            position += nbytes


def sparse_source(name: str) -> SourceParts:
    checkpoint = SparseCheckpoint(name, layers=80, hidden=8192, rows=32000)
    slots = {key: slot_of(key) for key in checkpoint.tensors}
    return SourceParts(name, checkpoint, Anatomy("llama", "LlamaForCausalLM", True, slots, {}, 80))


def plan_70b(method: str):
    """The plan of a recipe of four sources and a base, and its CPU seconds."""
    sources, base = [sparse_source(name) for name in "abcd"], sparse_source("base")
    began = time.process_time()
    jobs, dropped = language_jobs(MergeSpec(method=method), sources, base, key_of=key_of)
    plan = build_plan(jobs, dropped, max_shard_size=5 * 10**9)
    return plan, time.process_time() - began


@pytest.mark.cost
@pytest.mark.parametrize("method", ["naivemc", "ties"])
def test_a_70b_recipe_is_planned_in_well_under_a_second(method):
    assert min(plan_70b(method)[1] for _ in range(3)) < 1.0


@pytest.mark.parametrize("method", ["naivemc", "ties"])
def test_a_70b_recipe_is_planned_whole(method):
    plan, _ = plan_70b(method)
    assert len(plan.jobs) == 723
    assert plan.bytes_to_write > 140e9
    assert plan.peak_memory < 400 * 2**20


def test_planning_needs_no_heavy_library():
    program = (
        "import sys; import mcompose.merge\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'numba', 'safetensors', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(("density", "told"), [(1.0, True), (0.5, False), ({"a": 1.0, "b": 0.9}, False)])
def test_a_density_that_drops_nothing_is_told(density, told):
    jobs = [TensorJob("w", "language", 0, "F32", (2, 2), (_ties_segment(density),))]
    plan = build_plan(jobs, max_shard_size=10**6)
    assert [text for text in plan.warnings if "keeps every element" in text] == (
        ["'ties' with a density of 1 keeps every element; set 'merge.parameters.density' below 1 to drop some."] * told
    )


def _ties_segment(density):
    values = tuple(density.values()) if isinstance(density, dict) else density
    return Segment(0, 2, "merged", (), method="ties", weights=(0.5, 0.5), parameters={"density": values})
