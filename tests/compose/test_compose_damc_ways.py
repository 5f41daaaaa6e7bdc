"""DAMC compositions of many kinds: converted, scaled, merged again, made dense, interrupted."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from damc_sources import LINEARS, MODALITY, composed, logits, shown, write_donor
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_sources import write_recipe
from transformers import AutoModelForImageTextToText

from mcompose.checkpoint import StagedOutput
from mcompose.errors import CompositionError, InterruptedRunError
from mcompose.ledger import Ledger
from mcompose.modeling import generate_files, register
from mcompose.pipeline.write import MergeOptions, merge

DONOR, CONVERT = {"decouple": "donor"}, {"decouple": "convert"}
DAMC = {"method": "damc"}


@pytest.fixture(scope="module")
def donors(natives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("donors")
    wanted = (("sees", "low-rank"), ("sees", "dense"), ("hears", "low-rank"), ("feels", "low-rank"))
    return {f"{name}-{kind}": write_donor(folder, natives, name, kind=kind, prefixes=True) for name, kind in wanted}


@pytest.fixture(scope="module")
def pair(natives, donors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return composed(
        folder, natives, {"eye": donors["sees-low-rank"], "ear": donors["hears-low-rank"]}, DAMC, compose=DONOR
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_a_composition_is_merged_again_with_a_further_donor(natives, donors, pair, tmp_path):
    sources = {"old": pair, "feels": donors["feels-low-rank"]}
    merge_ = {**DAMC, "weights": {"old": 2 / 3, "feels": 1 / 3}}
    ours = composed(tmp_path, natives, sources, merge_, compose=DONOR)
    table, mine = config(ours), weights(ours)
    assert set(table["sources"]) == {"eye", "ear", "feels"}
    old = config(pair)["routed_groups"]
    assert all(table["routed_groups"][modality] == old[modality] for modality in ("image", "audio"))
    assert table["prefix_tokens"] == dict.fromkeys(("image", "audio", "points"), 2)
    assert table["routed_groups"]["text"] == {"kind": "low_rank", "rank": [3, 4, 4], "scale": [2.0, 2.0, 2.0]}
    for key, tensor in weights(pair).items():
        if (
            (".groups." in key and ".groups.text." not in key)
            or ".towers." in key
            or ".base." in key
            or "fix_tokens." in key
        ):
            assert torch.equal(mine[key], tensor), key
    assert torch.equal(
        mine["model.suffix_tokens.points"], weights(donors["feels-low-rank"])["model.suffix_tokens.points"]
    )
    # With these shares it is what all three at once are.
    kinds = {"eye": "sees-low-rank", "ear": "hears-low-rank", "feels": "feels-low-rank"}
    at_once = composed(tmp_path, natives, {n: donors[k] for n, k in kinds.items()}, DAMC, compose=DONOR, output="once")
    theirs = weights(at_once)
    assert set(mine) == set(theirs)
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-6, msg=key)
    torch.testing.assert_close(
        logits(ours, "image", "audio", "points"), logits(at_once, "image", "audio", "points"), rtol=1e-3, atol=1e-4
    )
    parts = {row.part for row in Ledger.read(ours).tensors}
    assert {"encoder:eye", "encoder:ear", "encoder:feels", "group:points", "origin"} <= parts


def test_a_composition_merged_again_alone_is_itself(natives, pair, tmp_path):
    ours = composed(tmp_path, natives, {"old": pair}, DAMC, compose=DONOR)
    assert torch.equal(logits(ours, "image", "audio"), logits(pair, "image", "audio"))
    assert config(ours)["sources"].keys() == config(pair)["sources"].keys()


# The code that a composed checkpoint carried before it was generated: one file per source file.
OLD_CODE = [
    "chat_mcompose", "configuration_experts", "configuration_mcompose", "configuration_points", "expert_forward",
    "expert_places", "expert_projectors", "expert_references", "expert_router", "expert_routes", "experts",
    "families", "generation_mcompose", "hidden_tokens", "masks_bidirectional", "media_expansion", "media_features",
    "media_items", "media_prefixes", "modeling_mcompose", "modeling_points", "native_classes", "native_configs",
    "onnx_encoder", "onnx_graph", "outputs_mcompose", "own_code", "placement", "positions_composed",
    "positions_mrope", "processing_experts", "processing_frames", "processing_mcompose", "processing_points",
    "processing_tokens", "registration", "resampling", "routed", "routed_editing", "routed_groups", "routed_low_rank",
    "routed_routes", "source_processors", "text_head", "towers",
]  # fmt: skip


def test_an_older_checkpoint_with_many_code_files_is_merged_again_and_its_code_is_neither_run_nor_kept(
    natives, pair, tmp_path
):
    older = Path(shutil.copytree(pair, tmp_path / "older", ignore=shutil.ignore_patterns("*.py")))
    for name in OLD_CODE:
        (older / f"{name}.py").write_text('raise SystemExit("This code is not to be run.")\n', encoding="utf-8")
    register()
    assert AutoModelForImageTextToText.from_pretrained(older, trust_remote_code=True).config.model_type == "mcompose"
    ours = composed(tmp_path, natives, {"old": older}, DAMC, compose=DONOR)
    assert {path.name: path.read_text(encoding="utf-8") for path in ours.glob("*.py")} == generate_files("composed")
    assert torch.equal(logits(ours, "image", "audio"), logits(pair, "image", "audio"))


def test_half_of_a_composition_can_be_taken(natives, donors, pair, tmp_path):
    sources = {"old": pair, "other": donors["sees-dense"]}
    with pytest.raises(CompositionError, match="Sources 'old' and 'other' both bring 'image'"):
        composed(tmp_path, natives, sources, DAMC, compose=DONOR)
    ours = composed(tmp_path, natives, sources, DAMC, compose=DONOR, modalities={"old": ["audio"]})
    table, mine = config(ours), weights(ours)
    assert set(table["sources"]) == {"old", "other"}
    assert table["routed_groups"] == {"image": {"kind": "dense"}, "audio": config(pair)["routed_groups"]["audio"]}
    image = weights(donors["sees-dense"])
    assert all(torch.equal(mine[key], image[key]) for key in image if ".groups." in key)
    rows = [row for row in Ledger.read(ours).tensors if row.action == "dropped" and row.part == "group:image"]
    assert {row.sources for row in rows} == {("old",)}
    assert len(rows) == 2 * len(LINEARS)
    assert {row.note for row in rows} == {"image is not taken from here"}
    assert torch.isfinite(logits(ours, "image", "audio")).all()


def test_two_donors_of_one_modality_by_explicit_choice(natives, donors, tmp_path):
    sources = {"one": donors["sees-low-rank"], "two": donors["sees-dense"]}
    ours = composed(tmp_path, natives, sources, DAMC, compose=DONOR, modalities={"two": []})
    assert config(ours)["routed_groups"]["image"]["kind"] == "low_rank"
    text = weights(donors["sees-dense"])
    merged = weights(ours)
    one = weights(donors["sees-low-rank"])
    key = LINEARS[0]
    low = one[f"{key}.weight"] + 2.0 * (
        one[f"{key}.groups.text.lora_B.weight"] @ one[f"{key}.groups.text.lora_A.weight"]
    )
    torch.testing.assert_close(merged[f"{key}.weight"], (low + text[f"{key}.weight"]) / 2, rtol=1e-5, atol=1e-6)


def test_converted_sources_with_equal_language_models_are_their_average(natives, tmp_path):
    """NaiveMC and DAMC are one where every group is the merged text."""
    same = natives / "base-too"
    sources = {name: same / name for name in MODALITY}
    ours = composed(tmp_path, natives, sources, DAMC, compose=CONVERT)
    plain = composed(tmp_path, natives, sources, {"method": "naivemc"}, output="naive")
    mine, theirs = weights(ours), weights(plain)
    for linear in LINEARS:
        assert torch.equal(mine[f"{linear}.weight"], theirs[f"{linear}.weight"])
        torch.testing.assert_close(
            mine[f"{linear}.groups.audio.weight"], theirs[f"{linear}.weight"], rtol=1e-6, atol=1e-7
        )
    asked = ("image", "audio", "points")
    torch.testing.assert_close(logits(ours, *asked), logits(plain, *asked), rtol=1e-4, atol=1e-5)


def test_converted_groups_are_their_sources_language_models(natives, tmp_path):
    sources = {name: natives / name for name in ("sees", "hears")}
    ours = weights(composed(tmp_path, natives, sources, {**DAMC, "dtype": "bfloat16"}, compose=CONVERT))
    sees = weights(natives / "sees")
    for linear in LINEARS:
        theirs = sees[f"language_model.{linear.replace('.language_model', '')}.weight"]
        assert torch.equal(ours[f"{linear}.groups.image.weight"], theirs.bfloat16())
    assert ours[f"{LINEARS[0]}.groups.audio.bias"].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def adapter(natives, tmp_path_factory):
    """A LoRA on a source's language model: some linears only."""
    folder = tmp_path_factory.mktemp("adapter")
    targets = r".*language_model.*(q_proj|down_proj)"
    model = AutoModelForImageTextToText.from_pretrained(natives / "base-too" / "sees")
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder / "lora")
    shutil.copytree(natives / "base-too" / "sees", folder / "folded")
    model.merge_and_unload().save_pretrained(folder / "folded")
    return folder


def adapted(folder: Path, natives: Path, adapter: Path, *others: dict, **changes) -> Path:
    sees = {"name": "sees", "model": f"local:{natives / 'base-too' / 'sees'}", "adapter": f"local:{adapter / 'lora'}"}
    recipe = write_recipe(
        folder / "adapted.yaml", base=f"local:{natives / 'base'}", sources=[sees, *others], output={"dir": "adapted"},
        **{"merge": DAMC, "compose": CONVERT, **changes},
    )  # fmt: skip
    merge(recipe)
    return folder / "adapted"


def test_an_adapter_is_converted_to_a_group_with_the_very_same_factors(natives, adapter, tmp_path):
    hears = {"name": "hears", "model": f"local:{natives / 'hears'}"}
    ours = adapted(tmp_path, natives, adapter, hears)
    table, mine = config(ours), weights(ours)
    spec = {"kind": "low_rank", "rank": 3, "scale": 2.0}
    assert table["routed_groups"] == {"image": spec, "audio": {"kind": "dense"}}
    assert table["routed_base"] == "separate"
    factors = load_file(adapter / "lora/adapter_model.safetensors")
    origin = weights(natives / "base-too" / "sees")
    for linear in LINEARS:
        native = f"language_model.{linear.replace('.language_model', '')}.weight"
        assert torch.equal(mine[f"{linear}.base.weight"], origin[native])
        inside = linear.split("layers.")[1]
        for letter in "AB":
            found = [tensor for key, tensor in factors.items() if f"layers.{inside}.lora_{letter}." in key]
            ours_ = mine[f"{linear}.groups.image.lora_{letter}.weight"]
            assert torch.equal(ours_, found[0]) if found else not ours_.any()
    # Media rows as the folded adapter, text rows as the merged language model: layer 0 sees both.
    folded = weights(adapter / "folded")
    model, inputs = shown(ours, "image", "audio")
    linear = model.model.language_model.layers[0].self_attn.q_proj
    seen = {}
    linear.register_forward_hook(lambda _, args, out: seen.update(x=args[0][0], y=out[0]))
    with torch.no_grad():
        model(**inputs)
    image = inputs["mm_token_type_ids"][0] == 1
    name = "language_model.model.layers.0.self_attn.q_proj"
    wanted = seen["x"][image] @ folded[f"{name}.weight"].T + folded[f"{name}.bias"]
    torch.testing.assert_close(seen["y"][image], wanted, rtol=1e-5, atol=1e-5)


def test_a_source_with_an_adapter_converted_alone_keeps_its_text_factors_too(natives, adapter, tmp_path):
    ours = adapted(tmp_path, natives, adapter)
    spec = {"kind": "low_rank", "rank": 3, "scale": 2.0}
    assert config(ours)["routed_groups"] == {"text": spec, "image": spec}
    assert "routed_base" not in config(ours) or config(ours)["routed_base"] == "shared"
    assert not any(".base." in key for key in weights(ours))
    folded = composed(tmp_path, natives, {"sees": adapter / "folded"}, {"method": "naivemc"}, output="folded")
    torch.testing.assert_close(logits(ours, "image"), logits(folded, "image"), rtol=1e-4, atol=1e-4)


def test_groups_are_made_dense_where_the_recipe_says_so(natives, donors, tmp_path):
    sources = {"sees": donors["sees-low-rank"], "hears": donors["hears-low-rank"]}
    ours = composed(tmp_path, natives, sources, DAMC, compose={**DONOR, "groups": "dense"})
    kept = composed(tmp_path, natives, sources, DAMC, compose=DONOR, output="kept")
    table, mine, theirs = config(ours), weights(ours), weights(kept)
    assert table["routed_groups"] == {"image": {"kind": "dense"}, "audio": {"kind": "dense"}}
    for linear in LINEARS:
        a, b = (theirs[f"{linear}.groups.image.lora_{letter}.weight"] for letter in "AB")
        wanted = theirs[f"{linear}.weight"] + 2.0 * (b @ a)
        torch.testing.assert_close(mine[f"{linear}.groups.image.weight"], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(ours, "image", "audio"), logits(kept, "image", "audio"), rtol=1e-4, atol=1e-4)
    rows = {row.name: row for row in Ledger.read(ours).tensors}
    assert rows[f"{LINEARS[0]}.groups.image.weight"].action == "folded"


@pytest.mark.parametrize("kind", ["dense", "low-rank"])
def test_modality_weights_scale_groups_around_the_base_and_leave_the_text_alone(natives, donors, tmp_path, kind):
    donor = donors[f"sees-{kind}"]
    plain = weights(composed(tmp_path, natives, {"sees": donor}, DAMC, compose=DONOR, output="plain"))
    base = weights(natives / "base")
    for share, layers in ((0.25, (0.25, 0.25)), ([0.5, 1.0], (0.5, 1.0))):
        merge_ = {**DAMC, "parameters": {"modality_weights": {"sees": share}}}
        folder = composed(tmp_path, natives, {"sees": donor}, merge_, compose=DONOR, output=f"out{layers[1]}")
        mine, spec = weights(folder), config(folder)["routed_groups"]["image"]
        assert torch.equal(mine[f"{LINEARS[0]}.weight"], plain[f"{LINEARS[0]}.weight"])
        for layer, one in enumerate(layers):
            linear = f"model.language_model.layers.{layer}.mlp.up_proj"
            if kind == "dense":
                origin = base[f"{linear.replace('.language_model', '')}.weight"]
                wanted = origin + one * (plain[f"{linear}.groups.image.weight"] - origin)
                torch.testing.assert_close(mine[f"{linear}.groups.image.weight"], wanted, rtol=1e-5, atol=1e-6)
                continue
            a, b, b0 = (
                table[f"{linear}.groups.image.lora_{letter}.weight"]
                for table, letter in ((mine, "A"), (mine, "B"), (plain, "B"))
            )
            torch.testing.assert_close(spec["scale"] * (b @ a), one * 2.0 * (b0 @ a), rtol=1e-5, atol=1e-7)
            assert isinstance(share, list) or torch.equal(b, b0)


def test_coefficients_follow_the_layers(natives, donors, tmp_path):
    sources = {"sees": donors["sees-dense"], "hears": donors["hears-low-rank"]}
    merge_ = {**DAMC, "weights": {"sees": [1.0, 0.0], "hears": [0.0, 1.0]}}
    ours = weights(composed(tmp_path, natives, sources, merge_, compose=DONOR))
    sees, hears = weights(donors["sees-dense"]), weights(donors["hears-low-rank"])
    first, last = (f"model.language_model.layers.{layer}.self_attn.k_proj" for layer in (0, 1))
    assert torch.equal(ours[f"{first}.weight"], sees[f"{first}.weight"])
    a, b = (hears[f"{last}.groups.text.lora_{letter}.weight"] for letter in "AB")
    torch.testing.assert_close(ours[f"{last}.weight"], hears[f"{last}.weight"] + 2.0 * (b @ a), rtol=1e-5, atol=1e-6)


def test_another_method_merges_the_text_and_groups_are_kept(natives, donors, tmp_path):
    sources = {"sees": donors["sees-dense"], "hears": donors["hears-low-rank"]}
    merge_ = {"method": "ties", "parameters": {"density": 0.5}}
    ours = composed(tmp_path, natives, sources, merge_, compose=DONOR)
    text = composed(tmp_path, natives, sources, merge_, output="text", format="text")
    mine, alone = weights(ours), weights(text)
    for linear in LINEARS:
        assert torch.equal(mine[f"{linear}.weight"], alone[f"{linear.replace('.language_model', '')}.weight"])
    assert torch.equal(
        mine[f"{LINEARS[3]}.groups.image.weight"], weights(donors["sees-dense"])[f"{LINEARS[3]}.groups.image.weight"]
    )


def test_an_interrupted_merge_goes_on_to_the_same_bytes(natives, donors, tmp_path, monkeypatch):
    sources = {"sees": donors["sees-dense"], "hears": donors["hears-low-rank"]}
    whole = composed(tmp_path, natives, sources, DAMC, compose=DONOR, output="whole")
    record, told = StagedOutput.record, []

    def record_and_stop(self, *args, **facts):
        record(self, *args, **facts)
        told.append(args)
        if len(told) == 60:
            raise KeyboardInterrupt

    entries = [{"name": name, "model": f"local:{path}"} for name, path in sources.items()]
    recipe = write_recipe(
        tmp_path / "again.yaml", base=f"local:{natives / 'base'}", sources=entries, merge=DAMC, compose=DONOR,
        output={"dir": "again"},
    )  # fmt: skip
    monkeypatch.setattr(StagedOutput, "record", record_and_stop)
    with pytest.raises(InterruptedRunError):
        merge(recipe, options=MergeOptions(threads=1, quiet=True))
    monkeypatch.setattr(StagedOutput, "record", record)
    report = merge(recipe, options=MergeOptions(threads=2, quiet=True))
    assert report.result.resumed >= 60
    digests = [
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for folder in (whole, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
