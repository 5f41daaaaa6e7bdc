"""The check that two tools' outputs agree, and the table, against figures worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.bench.agree import agree, on_the_cut, steps
from examples.bench.build import build
from examples.bench.llama import Llama, of_size
from examples.bench.sparse import build_sparse
from examples.bench.table import render


def bf16(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bfloat16)


def write(folder: Path, **tensors: torch.Tensor) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")


def test_steps_count_bfloat16_values_across_zero():
    # 1 + 2**-7 is the next value after 1; the smallest subnormals lie one step either side of zero.
    tiny = 2.0**-133
    assert steps(bf16(1.0, 1.0, tiny, 0.0), bf16(1.0, 1 + 2**-7, -tiny, -0.0)).tolist() == [0, 1, 2, 0]


def test_the_cut_is_every_element_that_ties_with_the_last_one_kept():
    base = bf16(0, 0, 0, 0, 0)
    first, second = bf16(1, -2, 2, 3, 0), bf16(5, 1, 1, 1, 4)
    # density 0.4 keeps 2 of 5: 3 and one of the two 2s; then 5 and 4.
    assert on_the_cut(base, [first], 0.4).tolist() == [False, True, True, False, False]
    assert on_the_cut(base, [first, second], 0.4).tolist() == [False, True, True, False, True]


def test_elements_are_counted_outside_threshold_ties(tmp_path: Path):
    write(tmp_path / "base", w=bf16(0, 0, 0, 0, 0))
    for name in ("a", "b", "c"):
        write(tmp_path / name, w=bf16(1, -2, 2, 3, 0))
    write(tmp_path / "mcompose-ties", w=bf16(1.0, 9.0, 9.0, 3.0, 0.5))
    write(tmp_path / "mergekit-ties", w=bf16(1.0, 0.0, 0.0, 4.0, 0.5))
    # density 0.2 keeps one of five, the 3: it is the cut itself, and alone.
    found = agree(tmp_path, "ties")
    assert found == {
        "kind": "elements", "left_out": 0.2, "equal": 0.5, "within_one_step": 0.5, "largest_difference": 9.0,
    }  # fmt: skip
    assert agree_linear(tmp_path) == pytest.approx(0.4)


def agree_linear(folder: Path) -> object:
    for tool in ("mcompose", "mergekit"):
        (folder / f"{tool}-ties").rename(folder / f"{tool}-linear")
    return agree(folder, "linear")["equal"]


def test_moments_of_masked_merges(tmp_path: Path):
    write(tmp_path / "base", w=bf16(1, 1, 1, 1))
    write(tmp_path / "mcompose-dare_ties", w=bf16(1, 2, 1, 0))
    write(tmp_path / "mergekit-dare_ties", w=bf16(1, 1, 3, 1))
    found = agree(tmp_path, "dare_ties")
    assert found["mcompose"] == {"changed": 0.5, "mean": 0.0, "magnitude": 0.5, "deviation": pytest.approx(0.5**0.5)}
    assert found["mergekit"] == {"changed": 0.25, "mean": 0.5, "magnitude": 0.5, "deviation": pytest.approx(0.75**0.5)}


def test_outputs_with_other_tensors_are_refused(tmp_path: Path):
    write(tmp_path / "mcompose-linear", w=bf16(1))
    write(tmp_path / "mergekit-linear", w=bf16(1), v=bf16(1))
    with pytest.raises(ValueError, match="different names"):
        agree(tmp_path, "linear")


def test_built_checkpoints_are_a_base_and_fine_tunes_of_it(tmp_path: Path):
    model = of_size(0.01)
    build(tmp_path, model)
    found = {label: load_file(tmp_path / label / "model.safetensors") for label in ("base", "a", "b", "c")}
    for tensors in found.values():
        assert {name: tuple(x.shape) for name, x in tensors.items()} == model.shapes()
    name = "model.layers.0.mlp.up_proj.weight"
    change = {k: (found[k][name].float() - found["base"][name].float()).numpy() for k in ("a", "b", "c")}
    assert found["base"][name].float().std() == pytest.approx(0.02, rel=0.01)
    assert change["a"].std() == pytest.approx(0.002, rel=0.02)
    assert abs(np.corrcoef(change["a"].ravel(), change["b"].ravel())[0, 1]) < 0.01
    assert sum(file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors")) == pytest.approx(
        model.nbytes, rel=0.001
    )


def test_sparse_checkpoints_have_the_size_and_take_no_disk(tmp_path: Path):
    model = Llama(layers=8, hidden=1024, intermediate=4096, key_value=1024)
    build_sparse(tmp_path / "big", model, shards=3)
    files = sorted((tmp_path / "big").glob("*.safetensors"))
    assert len(files) == 3
    sizes = [file.stat().st_size for file in files]
    assert sum(sizes) == pytest.approx(model.nbytes, rel=0.001)
    assert max(sizes) < 1.2 * min(sizes)
    assert sum(file.stat().st_blocks * 512 for file in files) < 1e6
    found = {name: x for file in files for name, x in load_file(file).items()}
    assert {name: tuple(x.shape) for name, x in found.items()} == model.shapes()
    places = json.loads((tmp_path / "big" / "model.safetensors.index.json").read_text())["weight_map"]
    assert list(places) == list(model.shapes())


def row(tool: str, number: int, wall: float, peak: float) -> dict[str, object]:
    return {
        "label": "linear", "tool": tool, "number": number, "wall": wall, "user": wall, "system": 0.5,
        "peak": peak, "anonymous": peak / 2, "read": 3e9, "written": 1e9, "cached": 1.0, "load": 0.1,
    }  # fmt: skip


def test_the_table_leaves_out_the_warm_up_and_tells_n():
    machine = {
        "processor": "Test CPU", "cores": 2, "memory_bytes": 8e9, "load_before": [0.1, 0, 0],
        "versions": {"mergekit": "0.1.5"},
    }  # fmt: skip
    results = {
        "machine": machine,
        "settings": {"checkpoint_bytes": 1e9, "cache": "warm", "peer_dtype": "bfloat16"},
        "agreement": {"linear": {
            "kind": "elements", "left_out": 0.0, "equal": 0.995, "within_one_step": 1.0, "largest_difference": 0.5,
        }},
        "runs": [
            row("mcompose", 0, 99.0, 9e9), row("mcompose", 1, 2.0, 2e8), row("mcompose", 2, 4.0, 2e8),
            row("mergekit", 1, 20.0, 3e9), row("cp", 1, 1.0, 2e6), row("cp", 2, 1.0, 2e6),
        ],
    }  # fmt: skip
    text = render(results)
    assert "| linear | mcompose | 2 | 3.00 (2.00 to 4.00) | 3.50 | 0.50 | 200 | 100 | 3.00 | 1.00 |" in text
    assert "| linear | mergekit | 1 | 20.00" in text
    # wall: 20/2 and 20/4; CPU: 20.5/2.5 and 20.5/4.5; memory: 15; to cp: 2 and 4.
    ratios = "7.5 (5 to 10), best 10 | 6.38 (4.56 to 8.2) | 15 (15 to 15) | 15 (15 to 15) | 3 (2 to 4), best 2 | -"
    assert f"| linear | {ratios} |" in text
    assert "linear: 99.500% of the elements are equal, 100.000% within" in text
