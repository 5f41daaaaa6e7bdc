"""DAMC compositions: one donor is reproduced to the bit, several share their text and keep their groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damc_sources import LINEARS, MODALITY, composed, logits, low_rank_sum, shown, write_donor
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mcompose.anatomy import read_anatomy
from mcompose.checkpoint import open_checkpoint
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.modeling.groups.linear import routed_linears

DAMC = {"method": "damc"}
DONOR = {"decouple": "donor"}
WORDS = 19
"""Tokens of the base; behind them every source has its own."""


@pytest.fixture(scope="module")
def donors(natives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("donors")
    kinds = {"sees": ("dense", "low-rank", "group", "folded"), "hears": ("dense", "low-rank"), "feels": ("dense",)}
    return {
        f"{name}-{kind}": write_donor(folder, natives, name, kind=kind, prefixes=name != "feels")
        for name in kinds
        for kind in kinds[name]
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", ["damc", "naivemc"])
@pytest.mark.parametrize("kind", ["dense", "low-rank", "group", "folded"])
def test_a_composition_of_one_donor_is_that_donor(natives, donors, tmp_path, kind, method):
    donor = donors[f"sees-{kind}"]
    ours = composed(tmp_path, natives, {"sees": donor}, {"method": method}, compose=DONOR)
    assert torch.equal(logits(ours, "image"), logits(donor, "image"))
    assert torch.equal(logits(ours), logits(donor))
    mine, theirs = weights(ours), weights(donor)
    assert set(mine) == set(theirs)
    for key, tensor in mine.items():
        rows = slice(WORDS if "embed" in key or "lm_head" in key else None)  # the others are no token of the base's
        assert torch.equal(tensor[rows], theirs[key][rows]), key


@pytest.mark.parametrize("name", ["sees", "hears", "feels"])
def test_one_ordinary_source_converted_is_that_source(natives, tmp_path, name):
    plain = composed(tmp_path, natives, {name: natives / name}, {"method": "naivemc"}, output="plain")
    ours = composed(tmp_path, natives, {name: natives / name}, DAMC, compose={"decouple": "convert"})
    modality = MODALITY[name]
    model, inputs = shown(ours, modality)
    assert [spec.low_rank for spec in model.model.specs.values()] == [False]
    other, _ = shown(plain, modality)
    with torch.no_grad():
        # Not the same operations: a group multiplies its own tokens only, and a product of fewer rows may round apart.
        torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits, rtol=1e-5, atol=1e-5)
        scrambled = [p for n, p in model.named_parameters() if f".groups.{modality}." in n]
        assert len(scrambled) == len(LINEARS) + 6  # weights, and the biases of q, k and v
        for parameter in scrambled:
            parameter.mul_(1.5)
        assert not torch.allclose(model(**inputs).logits, other(**inputs).logits, atol=1e-3)


@pytest.fixture(scope="module", params=["dense", "low-rank", "mixed"])
def both(request, natives, donors, tmp_path_factory):
    """Two donors in one, with coefficients of their own."""
    kinds = ("dense", "low-rank") if request.param == "mixed" else (request.param, request.param)
    sources = {name: donors[f"{name}-{kind}"] for name, kind in zip(("sees", "hears"), kinds, strict=True)}
    folder = tmp_path_factory.mktemp("both")
    merge_ = {**DAMC, "weights": {"sees": 0.7, "hears": 0.4}}
    return composed(folder, natives, sources, merge_, compose=DONOR), sources


def effective(donor: dict[str, torch.Tensor], linear: str, group: str, scale: float = 2.0) -> torch.Tensor:
    """A linear's matrix for one group of a donor, in float64, worked out from its file."""
    dense = f"{linear}.groups.{group}.weight"
    if dense in donor:
        return donor[dense].double()
    return donor[f"{linear}.weight"].double() + low_rank_sum(donor, linear, group, scale)


def test_the_text_group_is_the_base_plus_each_change_times_its_coefficient(both, natives):
    folder, sources = both
    ours, base = weights(folder), weights(natives / "base")
    donors = {name: weights(path) for name, path in sources.items()}
    for linear in LINEARS:
        origin = base[f"{linear.replace('.language_model', '')}.weight"].double()
        changes = {name: effective(donor, linear, "text") - origin for name, donor in donors.items()}
        wanted = origin + 0.7 * changes["sees"] + 0.4 * changes["hears"]
        torch.testing.assert_close(effective(ours, linear, "text"), wanted, rtol=1e-5, atol=1e-6)
        assert max(change.abs().max() for change in changes.values()) > 1e-3


def test_text_alone_is_answered_as_by_the_plainly_merged_language_model(both, natives, tmp_path):
    """To the bit, unless the text group stays a sum of factors."""
    folder, sources = both
    merge_ = {**DAMC, "weights": {"sees": 0.7, "hears": 0.4}}
    plain = composed(tmp_path, natives, sources, merge_, format="text")
    model, inputs = shown(folder)
    alone = AutoModelForCausalLM.from_pretrained(plain)
    fields = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        close = 1e-4 if "text" in model.model.specs else 0
        torch.testing.assert_close(model(**fields).logits, alone(**fields).logits, rtol=close, atol=close)
        asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
        assert torch.equal(model.generate(**fields, **asked), alone.generate(**fields, **asked))


@pytest.mark.parametrize("role", ["self_attn.q_proj", "mlp.gate_proj"])
def test_every_token_goes_through_the_weights_of_its_origin(both, role):
    """Against the donors' own files: the text rows use the sum, each medium's rows their donor's group."""
    folder, sources = both
    model, inputs = shown(folder, "image", "audio")
    seen = {}
    linear = dict(routed_linears(model))[f"model.language_model.layers.0.{role}"]
    linear.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    with torch.no_grad():
        model(**inputs)
    kinds = inputs["mm_token_type_ids"][0]
    assert sorted(set(kinds.tolist())) == [0, 1, 3]
    name = f"model.language_model.layers.0.{role}"
    ours = weights(folder)
    x, y = seen["x"][0].double(), seen["y"][0].double()
    for kind, source in ((0, None), (1, "sees"), (3, "hears")):
        donor = ours if source is None else weights(sources[source])
        matrix = effective(donor, name, MODALITY[source] if source else "text")
        stem = f"{name}.groups.{MODALITY[source]}.bias" if source else ""
        bias = donor.get(stem, donor.get(f"{name}.bias"))
        wanted = x[kinds == kind] @ matrix.T + (0 if bias is None else bias.double())
        torch.testing.assert_close(y[kinds == kind], wanted, rtol=1e-5, atol=1e-5)


def test_groups_vectors_and_towers_are_their_donors_bits(both):
    folder, sources = both
    ours, kept = weights(folder), 0
    for name, path in sources.items():
        for key, tensor in weights(path).items():
            if f".groups.{MODALITY[name]}." in key or "fix_tokens." in key or ".towers." in key:
                assert torch.equal(ours[key], tensor), key
                kept += 1
    assert kept > 2 * len(LINEARS) + 6
    assert {key for key in ours if "fix_tokens." in key} == {
        f"model.{side}_tokens.{modality}" for side in ("prefix", "suffix") for modality in ("image", "audio")
    }


def test_every_tensor_has_one_row_in_the_ledger_and_is_verified(both):
    folder, _ = both
    rows = Ledger.read(folder).tensors
    assert [row.name for row in rows if row.action != "dropped"] == list(weights(folder))
    assert verify(folder).ok
    parts = {row.part for row in rows}
    assert {"group:image", "group:audio", "encoder:sees", "projector:hears"} <= parts
    low_rank = any("lora_A" in row.name for row in rows)
    assert ("origin" in parts) is low_rank
    for row in rows:
        if row.part.startswith("group:") and row.part != "group:text":
            assert row.action == "copied"
            assert row.sources == ({"group:image": "sees", "group:audio": "hears"}[row.part],)
    # Nothing of a donor disappears unsaid: what is not in a row's inputs is listed as dropped.
    for row in rows:
        assert row.action != "dropped" or "rows" in row.note, row


def test_inspect_and_diff_tell_groups_apart(both):
    folder, sources = both
    checkpoint = open_checkpoint(folder)
    anatomy = read_anatomy(checkpoint.config, checkpoint.shapes)
    assert not anatomy.refusal
    assert len(anatomy.by_name("language")) == 2 * (7 + 3 + 2) + 1
    for modality in ("image", "audio"):
        assert len(anatomy.by_name(f"group:{modality}")) in (2 * len(LINEARS), len(LINEARS) + 6)
    from mcompose.pipeline.check import diff
    from mcompose.refs import ModelRef

    report = diff(ModelRef("local", str(folder)), ModelRef("local", str(sources["sees"])))
    states = {group.part: group.counts for group in report.parts}
    assert states["group:image"].keys() == {"equal"}
    assert states["group:audio"].keys() == {"only_a"}


PLAIN = """
import sys
sys.modules["mcompose"] = None
import torch
from transformers import AutoModelForMultimodalLM
where, inputs, out = sys.argv[1:]
model, report = AutoModelForMultimodalLM.from_pretrained(where, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).logits, out)
"""


@pytest.mark.parametrize("both", ["mixed", "low-rank"], indirect=True)
def test_it_loads_where_mcompose_is_not(both, tmp_path):
    folder, _ = both
    model, inputs = shown(folder, "image", "audio")
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    (tmp_path / "plain.py").write_text(PLAIN)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "plain.py", str(folder), "inputs.pt", "logits.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.no_grad():
        wanted = model(**inputs).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), wanted, rtol=0, atol=1e-5)
