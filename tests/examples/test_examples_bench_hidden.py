"""The benchmark of hidden tokens: what it hides, and that it compares nothing that learns something else."""

import json
import math
import sys

import pytest
import torch

from examples.bench import hidden
from examples.bench.routed import IDS, config_of
from mcompose.modeling import ComposedForConditionalGeneration


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        made = ComposedForConditionalGeneration(config_of(256, 1)).train()
    made.model.towers.requires_grad_(requires_grad=False)
    return made


@pytest.fixture(scope="module")
def batches():
    return hidden.hiding(hidden.batch_of(2, general=25, expert=6, hidden=256), share=0.3)


def test_exactly_a_share_of_the_general_tokens_is_hidden(batches):
    assert (batches["full"]["attention_mask"] == 1).all()
    for how in ("mask", "drop"):
        gone_BL = batches[how]["attention_mask"] == 0
        assert gone_BL.sum(-1).tolist() == [math.floor(0.3 * 25)] * 2
        assert (batches[how]["input_ids"][gone_BL] == IDS["image"]).all()
        assert batches[how]["hidden"] == how


def test_both_ways_learn_the_same_and_another_mask_is_refused(model, batches):
    steps = {name: hidden.stepping(model, batch) for name, batch in batches.items()}
    found = hidden.agree(model, steps)
    assert found["losses"]["mask"] == pytest.approx(found["losses"]["drop"], rel=1e-5)
    assert found["losses"]["full"] != found["losses"]["mask"]
    with pytest.raises(SystemExit, match="the times cannot be compared"):
        hidden.agree(model, {**steps, "drop": steps["full"]})
    with pytest.raises(SystemExit, match="Nothing was hidden"):
        hidden.agree(model, dict.fromkeys(steps, steps["full"]))


def test_the_figures_are_printed_and_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "hidden.json"
    asked = ["--hidden", "256", "--layers", "1", "--rows", "1", "--general", "20", "--expert", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["hidden", *asked, "--out", str(out)])
    hidden.main()
    found = json.loads(out.read_text())
    assert {name: len(times) for name, times in found["times"].items()} == {"full": 2, "mask": 2, "drop": 2}
    assert found["tokens"]["full"] - found["tokens"]["drop"] == 6
    assert "mask / drop:" in capsys.readouterr().out
