"""New tensors: what they begin with, that seed and name alone decide it, and in whatever pieces they are made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from merge_bench import HIDDEN, ROWS, llama, three
from safetensors.torch import load_file

from mcompose.merge import Contribution, new_job, start_of
from mcompose.merge import stream as stream_module
from mcompose.methods.core.randomness import address, uniforms, uniforms_from

WIDE = "model.experts.charts.projector.layers.0.weight"


def made(bench, jobs, *, out="out", **options):
    plan = bench.plan({"method": "linear"}, three(bench), extra=jobs)
    rows = {row.name: row for row in bench.run(plan, out=out, **options)}
    return {job.name: bench.read(out)[job.name] for job in jobs}, rows, plan


def test_draws_are_the_same_in_any_pieces():
    key = address(7, "first values", "x", "0")
    whole = uniforms(key, np.zeros(100_000, np.float32))
    pieces = [uniforms_from(key, start, count) for start, count in ((0, 1), (1, 70_000), (70_001, 29_999))]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_linear_layer_begins_as_torchs_own_do(bench):
    job = new_job(WIDE, (64, 400), "projector:charts", seed=3)
    values, rows, _ = made(bench, [job])
    made_of = values[WIDE]
    assert (made_of.dtype, made_of.shape) == (torch.float32, (64, 400))
    bound = 1 / 400**0.5
    reference = torch.nn.Linear(400, 64).weight.detach()
    assert made_of.abs().max() <= bound
    assert made_of.abs().max() > 0.99 * bound
    assert float(made_of.std() / reference.std()) == pytest.approx(1, abs=0.02)
    assert abs(float(made_of.mean())) < 0.02 * bound
    assert abs(float(np.corrcoef(made_of.flatten()[:-1], made_of.flatten()[1:])[0, 1])) < 0.03
    row = rows[WIDE]
    assert (row.action, row.part, row.sources, row.note) == (
        "created",
        "projector:charts",
        (),
        "new: drawn by the seed",
    )


def test_norms_biases_and_queries():
    assert start_of("norm.weight", (8,)) == {"fill": 1.0}
    assert start_of("layers.0.bias", (8,)) == {"fill": 0.0}
    assert start_of("queries", (4, 8))["bound"] == pytest.approx(0.02 * 3**0.5)


def test_seed_and_name_decide_and_threads_do_not(bench, monkeypatch):
    jobs = [new_job(f"model.routers.{kind}.weight", (3, 5000), "router", seed=1) for kind in ("image", "audio")]
    one, _, plan = made(bench, jobs, out="one", threads=1)
    two, _, _ = made(bench, jobs, out="two", threads=2)
    assert bench.bytes_of("one") == bench.bytes_of("two")
    assert not torch.equal(*one.values())
    other, _, other_plan = made(bench, [new_job(jobs[0].name, (3, 5000), "router", seed=2)], out="other")
    assert not torch.equal(other[jobs[0].name], one[jobs[0].name])
    assert plan.fingerprint != other_plan.fingerprint
    monkeypatch.setattr(stream_module, "CHUNK", 4096)
    small, _, _ = made(bench, jobs, out="small")
    assert all(torch.equal(small[name], two[name]) for name in small)


def test_rows_that_are_the_mean_of_a_table(bench):
    source = bench.source("table", llama(4, dtype="BF16"))
    entry = source.entry("model.embed_tokens.weight")
    name = "model.domain_tokens"
    table = Contribution("table", entry)
    job = new_job(name, (2, HIDDEN), "separators", seed=0, start={"rows": ROWS - 3}, table=table)
    values, rows, _ = made(bench, [job])
    held = load_file(source.checkpoint.folder / "model.safetensors")["model.embed_tokens.weight"]
    expected = held[: ROWS - 3].double().mean(0).float()
    assert torch.equal(values[name][0], expected)
    assert torch.equal(values[name][1], expected)
    assert (rows[name].sources, rows[name].note, len(rows[name].inputs)) == (("table",), "new: mean of 37 rows", 1)


def test_the_other_dtypes_round_once(bench):
    job = new_job(WIDE, (8, 16), "projector:charts", seed=3)
    values, _, _ = made(bench, [job, replace(job, name="half", address=WIDE, dtype="BF16")])
    assert torch.equal(values["half"], values[WIDE].bfloat16())
