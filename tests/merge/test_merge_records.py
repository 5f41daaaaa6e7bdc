"""What a merge remembers of its bytes, and whom it names when numbers break."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import xxhash
from merge_bench import HIDDEN, llama, three
from safetensors.torch import save_file

from mcompose.checkpoint import StagedOutput, open_adapter, read_tensor
from mcompose.errors import NumericsError
from mcompose.merge import execute

QUERY = "model.layers.0.self_attn.q_proj.weight"


def digest(raw) -> str:
    return "xxh3:" + xxhash.xxh3_128_hexdigest(np.ascontiguousarray(raw).tobytes())


def bytes_of(source, name):
    return read_tensor(source.checkpoint.tensors[name])


@pytest.mark.parametrize("method", [{"method": "linear"}, {"method": "ties", "parameters": {"density": 0.3}}])
def test_the_ledger_tells_the_bytes_that_every_input_gave(bench, method):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    _, rows = bench.merge(method, sources, base)
    merged = [row for row in rows if row.action == "merged"]
    assert len(merged) == len(rows) > 5
    inputs = [*sources, base] if method["method"] == "ties" else sources
    for row in merged:
        assert row.inputs == tuple(digest(bytes_of(source, row.name)) for source in inputs)


def test_tensors_that_an_earlier_run_made_keep_the_digests_of_their_inputs(bench):
    plan = bench.plan({"method": "linear"}, three(bench))
    whole = {row.name: row for row in bench.run(plan, out="whole")}

    class Enough(BaseException):
        pass

    def stop_after_three(staged):
        record = staged.record

        def counted(name, **facts):
            record(name, **facts)
            if len(staged.finished) == 3:
                raise Enough

        staged.record = counted

    with StagedOutput.open(bench.folder / "out", fingerprint=plan.fingerprint) as staged:
        stop_after_three(staged)
        with pytest.raises(Enough):
            execute(plan, staged, threads=1)
    rows = bench.run(plan)
    assert {row.name: row for row in rows} == whole
    assert all(row.inputs for row in rows)


def test_copied_tensors_have_one_digest(bench):
    _, rows = bench.merge({"method": "naivemc"}, three(bench)[:1])
    assert {row.action for row in rows} == {"copied"}
    assert all(row.digest and not row.inputs for row in rows)


@pytest.mark.parametrize("method", ["naivemc", "slerp"])
def test_an_adapter_that_overflows_is_named_and_not_the_method(bench, method):
    folder = bench.folder / "adapter"
    folder.mkdir()
    name = QUERY.removesuffix(".weight")
    factors = {
        f"base_model.model.{name}.lora_A.weight": torch.full((4, HIDDEN), 1e30),
        f"base_model.model.{name}.lora_B.weight": torch.full((HIDDEN, 4), 1e30),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    )
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2), adapter=open_adapter(folder))]
    merge = {"method": method} | ({"parameters": {"t": 0.5}} if method == "slerp" else {})
    wanted = f"'{QUERY}' of source 'b' is not finite at element 0 after its adapter is folded"
    with pytest.raises(NumericsError, match=re.escape(wanted)):
        bench.merge(merge, sources)
