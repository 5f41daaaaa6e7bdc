"""From training to composition: donors that alignment trained and exported are what a DAMC recipe takes."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from damc_sources import LINEARS, MODALITY, composed, low_rank_sum, shown
from PIL import Image
from safetensors.torch import load_file

from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.pipeline.align import AlignOptions, align

SPECS = {"dense": {"kind": "dense"}, "low-rank": {"kind": "low-rank", "rank": 2}}
KINDS = [("dense", "dense"), ("low-rank", "low-rank"), ("dense", "low-rank")]
SHARES = {"sees": 0.7, "hears": 0.4}
DAMC = {"method": "damc", "weights": SHARES}


def write_media(folder: Path, name: str, number: int) -> str:
    random = np.random.default_rng(number)
    if name == "sees":
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(path)
        return path.name
    path = folder / f"{number}.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(random.integers(-9000, 9000, 6000, dtype=np.int16).tobytes())
    return path.name


def write_data(folder: Path, name: str) -> Path:
    """Four questions about a medium, and one about none."""
    folder.mkdir(parents=True)
    records = []
    for number, answer in enumerate("abcde"):
        turns = [{"from": "human", "value": "what is this ?"}, {"from": "gpt", "value": f"{answer} a b"}]
        record = {"conversations": turns}
        if number:
            record[MODALITY[name]] = write_media(folder, name, number)
            turns[0]["value"] = f"<{MODALITY[name]}> what is this ?"
        records.append(json.dumps(record))
    path = folder / "data.jsonl"
    path.write_text("\n".join(records) + "\n", encoding="utf-8")
    return path


def train(folder: Path, natives: Path, name: str, kind: str) -> tuple[Path, Path]:
    """What training began from, and the exported donor."""
    begun = f"{name}-{kind}"
    native = {name: natives / "base-too" / name}
    plain = composed(folder, natives, native, {"method": "naivemc"}, output=begun)
    stage = {
        "strategy": "modality+text", "groups": SPECS[kind], "steps": 2, "batch_size": 5, "lr": 1e-2,
        "max_length": 128, "data": [str(write_data(folder / f"{begun}-data", name))],
    }  # fmt: skip
    recipe = folder / f"{begun}.yaml"
    table = yaml.safe_load(recipe.read_text()) | {"align": {"stages": {1: stage}}}
    recipe.write_text(yaml.safe_dump(table, sort_keys=False))
    report = align(recipe, stage=1, options=AlignOptions(checkpoint=plain, export=True, quiet=True))
    assert report is not None
    assert report.checkpoint is not None
    return plain, report.checkpoint


@pytest.fixture(scope="module")
def donors(natives, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    return {(name, kind): train(folder, natives, name, kind) for name in ("sees", "hears") for kind in SPECS}


@pytest.fixture(scope="module")
def made(donors, natives, tmp_path_factory):
    """Kinds of the two donors to the composition, its text model, and the donors."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for kinds in KINDS:
        sources = {name: donors[name, kind][1] for name, kind in zip(("sees", "hears"), kinds, strict=True)}
        label = "-and-".join(kinds)
        ours = composed(folder, natives, sources, DAMC, output=label, compose={"decouple": "donor"})
        plain = composed(folder, natives, sources, DAMC, output=f"{label}-text", format="text")
        found[kinds] = (ours, plain, sources)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def effective(donor: dict[str, torch.Tensor], linear: str, group: str) -> torch.Tensor:
    """A linear's matrix for one group, in float64, worked out from the file alone."""
    dense = donor.get(f"{linear}.groups.{group}.weight")
    if dense is not None:
        return dense.double()
    factors = [donor.get(f"{linear}.groups.{group}.lora_{letter}.weight") for letter in "BA"]
    own = donor[f"{linear}.weight"].double()
    return own if factors[0] is None else own + 2.0 * factors[0].double() @ factors[1].double()


@pytest.mark.parametrize("name", ["sees", "hears"])
@pytest.mark.parametrize("kind", SPECS)
def test_training_moves_both_groups_and_nothing_else_of_the_language_model(donors, name, kind):
    plain, donor = donors[name, kind]
    before, after = weights(plain), weights(donor)
    for linear in LINEARS:
        for group in ("text", MODALITY[name]):
            moved = float((effective(after, linear, group) - before[f"{linear}.weight"].double()).abs().max())
            # Behind a medium's keys and values in the last layer nothing of it reaches an answer.
            reached = group == "text" or ".layers.0." in linear or linear.endswith(("k_proj", "v_proj"))
            assert moved > 1e-4 if reached else moved == 0, (linear, group)
    trained = {key for key in before if not torch.equal(before[key], after[key])}
    language = {key for key in trained if ".towers." not in key}
    assert language == ({f"{linear}.weight" for linear in LINEARS} if kind == "dense" else set())


@pytest.mark.parametrize(("name", "kind"), [("sees", "dense"), ("hears", "low-rank")])
def test_exports_call_groups_as_compositions_do(donors, made, name, kind):
    exported = {row.name: row.part for row in Ledger.read(donors[name, kind][1]).tensors}
    ours = made["dense", "low-rank"][0]
    held = {row.name: row.part for row in Ledger.read(ours).tensors if row.action != "dropped"}
    mine = [key for key in held if f".groups.{MODALITY[name]}." in key]
    assert mine
    for key in mine:
        assert exported[key] == held[key] == f"group:{MODALITY[name]}"
    text = f"{LINEARS[0]}.groups.text.lora_A.weight"
    assert exported.get(text) == ("group:text" if kind == "low-rank" else None)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_groups_and_towers_are_the_donors_bytes(made, kinds):
    ours, _, sources = made[kinds]
    mine, found = weights(ours), set()
    for name, donor in sources.items():
        for key, tensor in weights(donor).items():
            if f".groups.{MODALITY[name]}." in key or ".towers." in key:
                assert torch.equal(mine[key], tensor), key
                found.add(key)
    assert found == {key for key in mine if (".groups." in key or ".towers." in key) and ".groups.text." not in key}
    assert verify(ours).ok


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_the_shared_weights_are_the_base_plus_each_trained_change(made, natives, kinds):
    ours, _, sources = made[kinds]
    mine, base = weights(ours), weights(natives / "base")
    held = {name: weights(donor) for name, donor in sources.items()}
    for linear in LINEARS:
        origin = base[f"{linear.replace('.language_model', '')}.weight"].double()
        changes = sum(SHARES[name] * (effective(donor, linear, "text") - origin) for name, donor in held.items())
        text = mine[f"{linear}.weight"].double() + low_rank_sum(mine, linear, "text")
        torch.testing.assert_close(text, origin + changes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_donor_answers_its_own_modality_from_its_own_group(made, kinds):
    """Routed logits change when a donor's group does, and text alone does not see it."""
    ours, _, _ = made[kinds]
    for modality in ("image", "audio"):
        model, inputs = shown(ours, modality)
        _, alone = shown(ours)
        with torch.no_grad():
            before, text = model(**inputs).logits, model(**alone).logits
            for name, parameter in model.named_parameters():
                if f".groups.{modality}." in name:
                    parameter.mul_(1.5)
            assert not torch.allclose(model(**inputs).logits, before, atol=1e-4)
            assert torch.equal(model(**alone).logits, text)


PLAIN = """
import json, sys
sys.modules["mcompose"] = None
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
ids = torch.tensor([[1, 4, 5, 7, 8, 9, 10, 6, 5]])
for ours, text in json.loads(sys.argv[1]):
    model, report = AutoModelForMultimodalLM.from_pretrained(ours, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    alone = AutoModelForCausalLM.from_pretrained(text)
    close = 1e-4 if "text" in model.config.routed_groups else 0
    with torch.no_grad():
        found, wanted = model(input_ids=ids).logits, alone(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)
"""


def test_plain_transformers_answers_text_as_the_merged_text_model(made, tmp_path):
    """To the bit, unless the text group stays a sum of factors."""
    (tmp_path / "plain.py").write_text(PLAIN)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pairs = json.dumps([[str(ours), str(plain)] for ours, plain, _ in made.values()])
    command = [sys.executable, "plain.py", pairs]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
