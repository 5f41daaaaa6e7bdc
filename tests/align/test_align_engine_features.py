"""``feature_cache`` on a stage: the losses and the result of the stage without it, and an encoder that hardly runs."""

import io
import re
import sys

import pytest
import torch
from align_folders import STAGE, build
from safetensors.torch import load_file
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from mcompose.align.plot import read_losses
from mcompose.align.results.folder import LOG
from mcompose.align.run import StageRequest, run_stage
from mcompose.errors import RequestError
from mcompose.progress import track
from mcompose.recipe import Stage

STEPS = 9
"""Three epochs of twelve samples, of which nine show a picture."""


@pytest.fixture
def home(tmp_path):
    return build(tmp_path).parent


def run(home, number, parent="out", *, quiet=True, **changes):
    stage = Stage(**{**STAGE, "steps": STEPS, "lr": 1e-3, **changes})
    return run_stage(StageRequest(stage, number, home / parent, home / str(number), home, "tiny", quiet=quiet))


def losses(home, number):
    return torch.tensor([loss for _, loss in read_losses(home / str(number) / LOG)])


@pytest.fixture
def encoded(monkeypatch):
    """One entry for each run of the encoder."""
    calls, plain = [], CLIPVisionEmbeddings.forward

    def forward(self, *args, **kwargs):
        calls.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionEmbeddings, "forward", forward)
    return calls


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-5),
        ({"packing": True, "train": ["projectors", "language"]}, 1e-5),
        ({"precision": "mixed"}, 1e-2),
    ],
    ids=["plain", "packed", "mixed"],
)
def test_losses_and_result_are_those_without_it_and_the_encoder_hardly_runs(home, encoded, changes, tolerance):
    assert run(home, 1, **changes).notices == ()
    assert len(encoded) == STEPS
    assert run(home, 2, feature_cache=True, **changes).notices == ()
    assert len(losses(home, 2)) == STEPS
    torch.testing.assert_close(losses(home, 2), losses(home, 1), rtol=tolerance, atol=0)
    plain, played = (load_file(home / number / "delta.safetensors") for number in ("1", "2"))
    assert played.keys() == plain.keys()
    for key, tensor in played.items():
        torch.testing.assert_close(tensor.float(), plain[key].float(), rtol=0.05, atol=1e-3)
    files = sorted((home / "out.stages" / "features").rglob("*.safetensors"))
    assert len(files) == 9
    encoded.clear()
    # Another run finds what this one stored; the few calls try out whether two items can be told apart.
    run(home, 3, feature_cache=True, seed=1, **changes)
    assert len(encoded) < STEPS / 2
    assert sorted((home / "out.stages" / "features").rglob("*.safetensors")) == files


def test_a_trained_encoder_is_not_played_back(home, encoded):
    run(home, 1, feature_cache=True, train=["encoders", "projectors"])
    assert len(encoded) == STEPS
    assert not list((home / "out.stages" / "features").rglob("*.safetensors"))


def test_what_cannot_be_kept_is_refused_before_anything_is_loaded(home):
    with pytest.raises(RequestError, match="'feature_cache' needs a composed checkpoint, but this is a 'llava'"):
        run(home, 1, parent="sees", feature_cache=True)
    data = [{"path": "data/data.jsonl", "streaming": True}]
    with pytest.raises(RequestError, match="features of a stream cannot be cached"):
        run(home, 1, feature_cache=True, data=data)
    assert not (home / "1").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_encoding_shows_how_far_it_is_unless_nobody_wants_to_know(home, monkeypatch, capsys):
    run(home, 1, quiet=False, feature_cache=True, steps=1)
    assert "stage 1, features: 12 of 12 samples\n" in capsys.readouterr().err
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        run(home, 2, quiet=False, feature_cache=True, steps=1)
        drawn = terminal.getvalue()
        run(home, 3, feature_cache=True, steps=1)
        assert terminal.getvalue() == drawn
    assert re.search(r"stage 2, features: 100%\|.*\| 12/12 \[", drawn)


def test_lines_come_as_samples_are_done_with(capsys):
    for item in track("abc", label="features", total=3, unit="sample", every=0.0):
        if item == "b":
            assert capsys.readouterr().err == "features: 1 of 3 samples\n"
    assert capsys.readouterr().err == "features: 2 of 3 samples\nfeatures: 3 of 3 samples\n"
