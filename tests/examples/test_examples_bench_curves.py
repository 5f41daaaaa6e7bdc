"""The curves of cost against size, and what is extrapolated from samples, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.bench.build import build
from examples.bench.large import MODELS, extrapolation, line_through, report
from examples.bench.llama import of_size
from examples.bench.measure import Cost
from examples.bench.plot import curves, straightness
from examples.bench.scaling import checkpoints, linked
from examples.bench.turn import Job, Turn, clear, copy_jobs, take


def turn(label: str, number: int, wall: float, *, tool: str = "mcompose") -> Turn:
    cost = Cost(wall, user=2 * wall, system=wall, peak=200_000_000, anonymous=90_000_000, read=0, written=0)
    return Turn(label, tool, number, cost, cached=1.0, load=0.0)


def test_curves_hold_the_measured_rounds_of_their_unit():
    turns = [turn("0.5 GB", 0, 9.0), turn("0.5 GB", 1, 1.0), turn("0.5 GB", 2, 3.0), turn("2 sources", 1, 5.0)]
    results = {"runs": [row.to_dict() for row in turns]}
    assert curves(results, "GB", "wall") == {"mcompose": {0.5: [1.0, 3.0]}}
    assert curves(results, "sources", "user") == {"mcompose": {2.0: [10.0]}}


def test_straightness_is_one_on_a_line_and_less_off_it():
    assert straightness([1, 2, 4], [5.0, 7.0, 11.0]) == pytest.approx(1.0)
    assert straightness([1, 2, 3], [1.0, 3.0, 2.0]) == pytest.approx(0.25)  # r = 0.5


def test_a_whole_model_is_extrapolated_along_the_line_through_its_samples():
    assert line_through([1.0, 3.0], [2.0, 6.0], 10.0) == pytest.approx(20.0)
    samples = [1, 3]
    turns = [turn(f"linear {layers} layers", number, 3.0 * layers) for number in (0, 1, 2) for layers in samples]
    found = extrapolation(turns, "linear", samples)
    # Three seconds a layer and none for the embeddings, so sixty layers take 180 s on the clock and 540 s of CPU.
    assert found["wall"] == pytest.approx(180.0)
    assert found["cpu"] == pytest.approx(540.0)
    assert found["bytes"] == pytest.approx(65e9, rel=0.01)
    plans = [turn(f"plan {size}", 1, 0.5) for size in MODELS]
    text = report(turns + plans, {"linear": found})
    assert "| 70B | 138 | 1.50 | 0.50 | 200 |" in text
    assert "EXTRAPOLATED to the whole 65 GB: 180 s, CPU 540 s" in text


def test_known_models_have_their_known_sizes():
    billions = {name: model.nbytes / 2e9 for name, model in MODELS.items()}
    assert billions == pytest.approx({"7B": 6.738, "30B": 32.529, "70B": 68.977}, abs=0.001)


def test_a_size_is_met_within_half_a_layer():
    for gb in (0.02, 0.05, 0.25, 0.5, 1, 2, 4):
        model = of_size(gb)
        layer = (of_size(gb).nbytes - replace(model, layers=0).nbytes) / model.layers
        assert abs(model.nbytes - gb * 1e9) <= layer / 2
    assert (of_size(1).layers, of_size(2).layers) == (8, 16)


def test_sources_beyond_the_third_are_links_to_the_first_three(tmp_path: Path):
    with checkpoints(tmp_path, 0.01) as folder:
        assert linked(folder, 8) == list("abcdefgh")
        for name, original in zip("defgh", "abcab", strict=True):
            assert (folder / name / "model.safetensors").samefile(folder / original / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_were_there_are_kept(tmp_path: Path):
    model = of_size(0.01)
    build(tmp_path / model.name, model)
    with checkpoints(tmp_path, 0.01) as folder:
        linked(folder, 8)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "base", "c"]


def test_a_turn_runs_its_command_and_clears_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "two").write_bytes(b"2" * 3000)
    output = tmp_path / "out"
    output.write_bytes(b"old")
    copy, both = copy_jobs("linear", [tmp_path / "one", tmp_path / "two"], output=output)
    for job in (copy, both):
        found = take(job, number=1, settle=0)
        assert output.read_bytes() == b"1" * 1000
        assert found.to_dict()["written"] >= 1000
        clear(job)
        assert not output.exists()
    assert "round 1" in capsys.readouterr().err
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    clear(Job("linear", "mcompose", [], [], folder))
    assert not folder.exists()
