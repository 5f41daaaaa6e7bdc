"""``feature_cache`` on a stage with experts: the losses and the result without it, and encoders that hardly run."""

import pytest
import torch
from align_expert_stages import batches, make_home, requester
from align_experts import EXPERTS
from safetensors.torch import load_file

from mcompose.align.features.cache import FeatureCache
from mcompose.align.features.store import FeatureStore
from mcompose.align.plot import read_losses
from mcompose.align.results.folder import LOG
from mcompose.align.run import run_stage
from mcompose.modeling.experts.expert import Expert


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("experts"))


@pytest.fixture
def encoded(monkeypatch):
    """The experts whose encoder ran, once for each time."""
    calls, plain = [], Expert.read

    def watched(self, given):
        calls.append(self.name)
        return plain(self, given)

    monkeypatch.setattr(Expert, "read", watched)
    return calls


def losses(folder):
    return torch.tensor([loss for _, loss in read_losses(folder / LOG)])


@pytest.mark.parametrize("changes", [{}, {"gscm": 0.5}, {"precision": "mixed"}], ids=["plain", "masked", "mixed"])
def test_losses_and_result_are_those_without_it_and_experts_hardly_run(home, tmp_path, encoded, changes):
    ask = requester(home, tmp_path)
    plain = run_stage(ask("plain", steps=9, **changes))
    assert len(encoded) >= 9
    encoded.clear()
    played = run_stage(ask("played", steps=9, feature_cache=True, **changes))
    assert played.notices == plain.notices
    torch.testing.assert_close(losses(tmp_path / "played"), losses(tmp_path / "plain"), rtol=1e-2, atol=1e-5)
    if changes.get("precision") != "mixed":
        torch.testing.assert_close(losses(tmp_path / "played"), losses(tmp_path / "plain"), rtol=1e-5, atol=0)
    wanted, found = (load_file(tmp_path / name / "delta.safetensors") for name in ("plain", "played"))
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor.float(), wanted[key].float(), rtol=0.05, atol=1e-3)
    encoded.clear()
    run_stage(ask("again", steps=9, feature_cache=True, seed=3, **changes))
    assert len(encoded) == 3 * len(EXPERTS)  # two alone and both together: whether items can be told apart


def test_items_sent_to_other_experts_are_encoded(home, tmp_path, encoded):
    ask = requester(home, tmp_path)
    noise = {"router": {"routing": "noise", "noise": 0.5}}
    run_stage(ask("plain", **noise))
    encoded.clear()
    run_stage(ask("played", feature_cache=True, **noise))
    torch.testing.assert_close(losses(tmp_path / "played"), losses(tmp_path / "plain"), rtol=1e-5, atol=0)
    run_stage(ask("quiet"))
    assert not torch.allclose(losses(tmp_path / "quiet"), losses(tmp_path / "plain"), rtol=1e-5, atol=0)


def test_items_of_one_forward_pass_are_not_played_to_what_comes_after(home, tmp_path, encoded):
    ordered, masked, model = batches(home)
    masked.collate.media_keys = True
    model.requires_grad_(False)
    samples = [ordered[position][1] for position in range(18)]
    expert = model.model.experts["maths"]
    with FeatureCache(model, masked.collate, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        cache.fill(samples)
        batch = masked.collate(samples, range(18))
        encoded.clear()
        model(**{name: value for name, value in batch.items() if name != "domains"})
        assert encoded == []
        others = batch["maths__pixel_values"].flip(0)
        features, _ = expert.encode({"pixel_values": others})
        assert encoded == ["maths"]
    wanted, _ = expert.encode({"pixel_values": others})
    torch.testing.assert_close(features, wanted, rtol=0, atol=0)


def test_an_expert_that_mixes_items_is_found_out(home, tmp_path):
    ordered, masked, model = batches(home)
    masked.collate.media_keys = True
    model.requires_grad_(False)
    expert = model.model.experts["maths"]
    own = expert.read
    expert.read = lambda given: own({n: x - x.mean(dim=0) for n, x in given.items()})
    samples = [ordered[position][1] for position in range(18)]
    with FeatureCache(model, masked.collate, store=FeatureStore(tmp_path / "s", max_bytes=10**9)) as cache:
        report = cache.fill(samples)
    assert report.uncached == {"maths": "its encoder does not treat items independently"}


def test_another_encoder_is_not_played_the_features_of_the_first(home, tmp_path, encoded):
    store = FeatureStore(tmp_path / "s", max_bytes=10**9)
    counts = []
    for changed in (False, False, True):
        ordered, masked, model = batches(home)
        masked.collate.media_keys = True
        model.requires_grad_(False)
        if changed:
            with torch.no_grad():
                next(model.model.experts["maths"].encoder.parameters()).add_(1e-3)
        encoded.clear()
        with FeatureCache(model, masked.collate, store=store) as cache:
            cache.fill([ordered[position][1] for position in range(18)])
        counts.append((encoded.count("maths"), encoded.count("charts")))
    assert counts[1] == (3, 3)
    assert counts[2] == (counts[0][0], 3)
    assert counts[0] > (3, 3)
