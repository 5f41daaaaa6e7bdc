"""Several low-rank donors keep their text factors side by side: the sum is the dense merge, in every way it is used."""

import json
from pathlib import Path

import pytest
import torch
from damc_sources import LINEARS, MODALITY, composed, logits, low_rank_sum, shown, write_donor
from safetensors.torch import load_file, save_file

from mcompose.errors import CompositionError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.modeling import ComposedForConditionalGeneration, ComposedProcessor, fold_text

DONOR, DENSE = {"decouple": "donor"}, {"decouple": "donor", "groups": "dense"}
SHARES = {"sees": 0.7, "hears": 0.4}
WORDS = 19
"""Tokens of the base; behind them every folder has its own."""


@pytest.fixture(scope="module")
def donors(natives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ranks 3, 4 and 4; the image and audio donors have vectors around their items."""
    folder = tmp_path_factory.mktemp("donors")
    return {n: write_donor(folder, natives, n, kind="low-rank", prefixes=n != "feels") for n in MODALITY}


@pytest.fixture(scope="module")
def pair(natives, donors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    two = {name: donors[name] for name in SHARES}
    return composed(folder, natives, two, {"method": "damc", "weights": SHARES}, compose=DONOR)


@pytest.fixture(scope="module")
def dense_pair(natives, donors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    two = {name: donors[name] for name in SHARES}
    return composed(folder, natives, two, {"method": "damc", "weights": SHARES}, compose=DENSE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def text_of(tensors: dict[str, torch.Tensor], linear: str) -> torch.Tensor:
    """The matrix that text tokens use."""
    return tensors[f"{linear}.weight"].double() + low_rank_sum(tensors, linear, "text")


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_factors_are_the_donors_own_and_the_base_is_stored_once(natives, donors, pair):
    mine, table, base = weights(pair), config(pair), weights(natives / "base")
    assert table["routed_groups"]["text"] == {"kind": "low_rank", "rank": [3, 4], "scale": [2.0, 2.0]}
    assert not any(".base." in key for key in mine)
    for linear in LINEARS:
        native = linear.replace(".language_model", "")
        for kind in ("weight", "bias"):
            assert f"{native}.{kind}" not in base or torch.equal(mine[f"{linear}.{kind}"], base[f"{native}.{kind}"])
        for place, (name, share) in zip((linear, f"{linear}.stack.0"), SHARES.items(), strict=True):
            a, b = (weights(donors[name])[f"{linear}.groups.text.lora_{x}.weight"] for x in "AB")
            assert torch.equal(mine[f"{place}.groups.text.lora_A.weight"], a)
            close(mine[f"{place}.groups.text.lora_B.weight"], share * b, 1e-7)


@pytest.mark.parametrize("asked", [(), ("image",), ("audio",), ("image", "audio")])
def test_it_answers_as_the_dense_merge(pair, dense_pair, asked):
    close(logits(pair, *asked), logits(dense_pair, *asked), 1e-4)


def test_its_weights_are_the_dense_merge_and_smaller(pair, dense_pair):
    mine, theirs = weights(pair), weights(dense_pair)
    for linear in LINEARS:
        close(text_of(mine, linear), theirs[f"{linear}.weight"].double())
        assert (text_of(mine, linear) - mine[f"{linear}.weight"].double()).abs().max() > 1e-3
    sizes = [sum(t.numel() for key, t in found.items() if ".layers." in key) for found in (mine, theirs)]
    assert sizes[0] < sizes[1]
    assert verify(pair).ok
    rows = {row.name: row for row in Ledger.read(pair).tensors}
    assert rows[f"{LINEARS[0]}.stack.0.groups.text.lora_A.weight"].sources == ("hears",)
    assert rows[f"{LINEARS[0]}.weight"].sources == ("sees", "hears", "base")


def test_folding_it_gives_the_dense_merge(pair, dense_pair, tmp_path):
    model = ComposedForConditionalGeneration.from_pretrained(pair)
    fold_text(model)
    model.save_pretrained(tmp_path)
    ComposedProcessor.from_pretrained(pair).save_pretrained(tmp_path)
    folded, theirs = weights(tmp_path), weights(dense_pair)
    for linear in LINEARS:
        close(folded[f"{linear}.weight"], theirs[f"{linear}.weight"])
        assert f"{linear}.base.weight" in folded
    close(logits(tmp_path, "image", "audio"), logits(pair, "image", "audio"), 1e-4)


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_it_is_merged_again_with_a_further_donor(natives, donors, pair, tmp_path, kind):
    """With a low-rank one as a longer sum; with a dense one as one tensor, as before."""
    more = donors["feels"] if kind == "low-rank" else write_donor(tmp_path, natives, "feels", kind="dense")
    merge_ = {"method": "damc", "weights": {"old": 0.6, "feels": 0.3}}
    ours = composed(tmp_path, natives, {"old": pair, "feels": more}, merge_, compose=DONOR)
    mine, old, new, base = weights(ours), weights(pair), weights(more), weights(natives / "base")
    for linear in LINEARS:
        origin = base[f"{linear.replace('.language_model', '')}.weight"].double()
        wanted = origin + 0.6 * (text_of(old, linear) - origin) + 0.3 * (text_of(new, linear) - origin)
        close(text_of(mine, linear), wanted)
    text = config(ours)["routed_groups"].get("text")
    assert text == ({"kind": "low_rank", "rank": [3, 4, 4], "scale": [2.0] * 3} if kind == "low-rank" else None)
    assert torch.isfinite(logits(ours, "image", "audio", "points")).all()
    again = composed(tmp_path, natives, {"whole": ours}, {"method": "damc"}, compose=DONOR, output="again")
    assert config(again)["routed_groups"] == config(ours)["routed_groups"]
    asked = ("image", "audio", "points")
    assert torch.equal(logits(again, *asked)[..., :WORDS], logits(ours, *asked)[..., :WORDS])


@pytest.mark.parametrize("method", ["naivemc", "ties"])
def test_other_methods_take_its_text_as_one_matrix(natives, pair, dense_pair, tmp_path, method):
    merge_ = {"method": method}
    mine, theirs = (
        weights(composed(tmp_path, natives, {"old": one}, merge_, format="text", output=f"{one.parent.name}-text"))
        for one in (pair, dense_pair)
    )
    assert set(mine) == set(theirs)
    for key, tensor in theirs.items():
        if method == "naivemc" or "norm" in key:
            close(mine[key], tensor)
    assert any(not torch.equal(mine[key], weights(natives / "base")[key]) for key in mine if "q_proj.weight" in key)


def test_coefficients_of_one_donor_alone_are_that_donor_with_its_vectors(natives, donors, tmp_path):
    """Shares of one and nothing: text, group, and the vectors around items are that donor's, end to end."""
    for name, other in (("sees", "hears"), ("hears", "sees")):
        merge_ = {"method": "damc", "weights": {name: 1.0, other: 0.0}}
        sources = {one: donors[one] for one in SHARES}
        ours = composed(tmp_path, natives, sources, merge_, compose=DONOR, output=f"only-{name}")
        modality = MODALITY[name]
        close(logits(ours, modality)[..., :WORDS], logits(donors[name], modality)[..., :WORDS], 1e-4)


def test_vectors_around_items_belong_to_their_donors_groups(donors, pair):
    model, inputs = shown(pair, "image", "audio")
    types, ids = inputs["mm_token_type_ids"][0], inputs["input_ids"][0]
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    with torch.no_grad():
        before = model(**inputs).logits
    handle.remove()
    for kind, name in ((1, "sees"), (3, "hears")):
        vectors = weights(donors[name])
        for side, count in (("prefix", 2), ("suffix", 1)):
            here = ids == getattr(model.config, f"{side}_token_ids")[MODALITY[name]]
            assert int(here.sum()) == count
            assert types[here].tolist() == [kind] * count
            assert torch.equal(seen[0][here], vectors[f"model.{side}_tokens.{MODALITY[name]}"])
    with torch.no_grad():
        model.model.prefix_tokens["audio"].add_(1.0)
        assert not torch.allclose(model(**inputs).logits, before, atol=1e-4)


def test_generation_is_the_same_with_and_without_a_cache(pair, dense_pair):
    asked = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    model, inputs = shown(pair, "image", "audio")
    other, _ = shown(dense_pair, "image", "audio")
    with torch.no_grad():
        found = model.generate(**inputs, **asked)
        assert torch.equal(model.generate(**inputs, **asked, use_cache=False), found)
        assert torch.equal(model.generate(**inputs, **asked, cache_implementation="static"), found)
        assert torch.equal(other.generate(**inputs, **asked), found)


def test_coefficients_follow_the_layers(natives, donors, tmp_path):
    merge_ = {"method": "damc", "weights": {"sees": [1.0, 0.25], "hears": [0.0, 0.5]}}
    sources = {name: donors[name] for name in SHARES}
    mine = weights(composed(tmp_path, natives, sources, merge_, compose=DONOR))
    held = {name: weights(donors[name]) for name in SHARES}
    for layer, shares in enumerate(({"sees": 1.0, "hears": 0.0}, {"sees": 0.25, "hears": 0.5})):
        linear = f"model.language_model.layers.{layer}.mlp.up_proj"
        wanted = sum(share * low_rank_sum(held[name], linear, "text") for name, share in shares.items())
        close(low_rank_sum(mine, linear, "text"), wanted)


def test_factors_that_would_be_larger_become_one_tensor(natives, tmp_path):
    sources = {n: write_donor(tmp_path, natives, n, kind="low-rank", rank=13) for n in SHARES}
    ours = composed(tmp_path, natives, sources, {"method": "damc", "weights": SHARES}, compose=DONOR)
    table, mine = config(ours), weights(ours)
    assert ("text" in table["routed_groups"], table["routed_base"]) == (False, "separate")
    for linear in LINEARS:
        wanted = mine[f"{linear}.base.weight"].double()
        for name, share in SHARES.items():
            wanted = wanted + share * low_rank_sum(weights(sources[name]), linear, "text")
        close(mine[f"{linear}.weight"].double(), wanted)


def test_donors_that_left_the_text_alone_share_the_base(natives, tmp_path):
    sources = {n: write_donor(tmp_path, natives, n, kind="group") for n in SHARES}
    ours = composed(tmp_path, natives, sources, {"method": "damc"}, compose=DONOR)
    table, mine, base = config(ours), weights(ours), weights(natives / "base")
    assert set(table["routed_groups"]) == {"image", "audio"}
    assert table.get("routed_base", "shared") == "shared"
    for linear in LINEARS:
        assert torch.equal(mine[f"{linear}.weight"], base[f"{linear.replace('.language_model', '')}.weight"])


def test_a_base_of_other_bits_is_told_when_a_rest_of_it_is_left(natives, donors, tmp_path):
    """Shares that add up to one leave nothing of the base, so that its bits do not matter."""
    other = tmp_path / "natives"
    other.mkdir()
    (other / "base").symlink_to(tmp_path / "moved")
    (tmp_path / "moved").mkdir()
    for path in (natives / "base").iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    tensors = weights(natives / "base")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, tmp_path / "moved" / "model.safetensors", metadata={"format": "pt"})
    sources = {name: donors[name] for name in SHARES}
    half = {"method": "damc", "weights": {"sees": 0.5, "hears": 0.5}}
    composed(tmp_path, other, sources, half, compose=DONOR)
    with pytest.raises(CompositionError, match="'sees' and 'base' are added to different tensors") as told:
        composed(tmp_path, other, sources, {"method": "damc", "weights": SHARES}, compose=DONOR, output="more")
    assert "groups: dense" in told.value.hint
