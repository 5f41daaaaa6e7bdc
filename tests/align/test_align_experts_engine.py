"""Stages of a checkpoint with experts, through collator and Trainer: what is hidden, trained, frozen, logged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from align_expert_stages import batches, make_home, requester, spied
from align_experts import EXPERTS, rows_of, values
from torch.nn import functional as F

from mcompose.align.data.collator import Collator
from mcompose.align.load import load_model
from mcompose.align.parts import read_parts
from mcompose.align.results.lineage import open_lineage
from mcompose.align.run import run_stage
from mcompose.errors import RequestError, UnknownNameError
from mcompose.modeling.experts import routing as expert_routes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("experts"))


@pytest.fixture
def stage_request(home, tmp_path):
    return requester(home, tmp_path)


def test_parts_of_experts_are_told_apart(home):
    found = read_parts(open_lineage(home[0]).anatomy)
    wanted = {"expert:maths", "expert:charts", "projector:maths", "projector:charts", "router:image", "separators"}
    assert wanted <= set(found)
    assert all(".encoder." in key for key in found["expert:charts"].keys)
    assert found["separators"].keys == ("model.domain_tokens",)


def test_the_collator_sends_items_to_the_experts_of_their_domain(home):
    ordered, masked, _ = batches(home)
    samples = [ordered[position][1] for position in range(18)]
    batch = masked.collate(samples, range(18))
    labels = {"charts": 2, "maths": 1, "photos": 0}
    pictured = [sample for sample in samples if sample.domain]
    assert batch["router_labels"].tolist() == [labels[sample.domain] for sample in pictured]
    for name, (side, tokens) in EXPERTS.items():
        mine = [sample for sample in pictured if sample.domain == name]
        assert batch[f"{name}__pixel_values"].shape == (len(mine), 3, side, side)
        index = home[1].tokenizer.convert_tokens_to_ids(f"<expert:{name}>")
        assert [int((row == index).sum()) for row in batch["input_ids"]] == [
            tokens if sample.domain == name else 0 for sample in samples
        ]
    assert (batch["labels"][batch["mm_token_type_ids"] == 5] == -100).all()
    text = masked.collate([sample for sample in samples if not sample.domain][:1], [0])
    assert "router_labels" not in text


def test_a_collator_without_routing_uses_no_expert(home):
    ordered, _, _ = batches(home)
    batch = Collator(home[1], max_length=None)([ordered[position][1] for position in range(18)])
    assert not any(name.startswith(tuple(EXPERTS)) for name in batch)
    assert not (batch["mm_token_type_ids"] == 5).any()


def test_frozen_groups_stay_and_trained_ones_move(home, stage_request):
    record = run_stage(stage_request(gscm=0.5)).result.record
    delta = values(stage_request().folder / "delta.safetensors")
    parent = values(home[0] / "model.safetensors")
    assert {"expert:maths", "expert:charts", "encoder:sees", "embedding", "head"} == set(record["frozen"])
    assert not any(".encoder." in name or "vision_tower" in name for name in delta)
    for part in ("experts.maths.projector", "experts.charts.projector", "routers.image", "domain_tokens"):
        assert any(part in name and not torch.equal(delta[name], parent[name]) for name in delta), part
    assert set(record["trained"]) == {"projectors", "router", "separators", "language"}


def test_the_first_loss_is_that_of_the_parts_by_hand(home, stage_request):
    """LM cross-entropy over the step, and the router's beside it."""
    run_stage(stage_request(steps=1, gscm=0.5, router={"weight": 0.3}))
    row = rows_of(stage_request().folder / "log.jsonl")[0]
    ordered, masked, model = batches(home, steps=1, gscm=0.5)
    batch = masked([ordered[position] for position in range(6)])
    batch.pop("tokens")
    labels_N, labels_BL = batch.pop("router_labels"), batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
        tower = model.model.towers["sees"].vision_tower(batch["sees__pixel_values"])
        router = F.cross_entropy(tower.last_hidden_state[:, 0] @ model.model.routers["image"].weight.T, labels_N)
    language = F.cross_entropy(logits.flatten(0, 1), labels_BL[:, 1:].flatten())
    assert row["router_loss"] == pytest.approx(float(router), rel=1e-5)
    assert row["loss"] == pytest.approx(float(language + 0.3 * router), rel=1e-5)
    assert 0 <= row["router_accuracy"] <= 1


def test_the_language_model_tells_the_router_nothing(stage_request):
    """With weight zero the router stays; experts' projectors learn all the same."""
    run_stage(stage_request(router={"weight": 0.0}, weight_decay=0.0))
    run_stage(stage_request("2", router={"weight": 1.0}, weight_decay=0.0))
    one, two = (values(stage_request(name).folder / "delta.safetensors") for name in ("1", "2"))
    name = "model.routers.image.weight"
    assert not torch.equal(one[name], two[name])


def test_an_experts_encoder_learns_only_where_it_is_named(home, stage_request):
    """By factors, or itself; ``all`` leaves it alone."""
    lora = {"expert:maths": {"rank": 2, "targets": ["q_proj"]}}
    record = run_stage(stage_request("lora", train=["projectors"], lora=lora)).result.record
    assert {"expert:maths", "expert:charts"} <= set(record["frozen"])
    factors = values(stage_request("lora").folder / "adapter_model.safetensors")
    ups = [tensor for name, tensor in factors.items() if "lora_B" in name]
    assert ups
    assert all(tensor.abs().max() > 0 for tensor in ups[:1])
    assert all("experts.maths.encoder" in name for name in factors)
    run_stage(stage_request("named", train=["expert:charts"]))
    moved, parent = (values(path) for path in (stage_request("named").folder / "delta.safetensors",
                                               home[0] / "model.safetensors"))  # fmt: skip
    key = "model.experts.charts.encoder.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert all(name.startswith("model.experts.charts.encoder.") for name in moved)
    name = key if key in moved else next(n for n in moved if n.endswith("layers.0.self_attn.q_proj.weight"))
    assert not torch.equal(moved[name], parent[name])
    record = run_stage(stage_request("all", train=["all"], steps=1)).result.record
    assert set(record["frozen"]) == {"expert:maths", "expert:charts"}


def test_routing_by_prediction_asks_the_router(stage_request, monkeypatch):
    seen = spied(monkeypatch)
    run_stage(stage_request(router={"routing": "predicted"}, gscm=0.5, steps=2))
    assert all("mm_features" in batch and "routes" in batch for batch in seen)
    assert any(batch["routes"] for batch in seen)
    assert all("router_loss" in row for row in rows_of(stage_request().folder / "log.jsonl"))


@pytest.mark.parametrize(("chosen", "hidden"), [(0, 0), (1, 2)], ids=["none", "maths"])
def test_only_samples_that_the_router_sends_to_an_expert_have_tokens_hidden(stage_request, monkeypatch, chosen, hidden):
    """Domains without an expert stay whole too, wherever the router sends them."""

    def same_for_all(logits_IC, router):
        return [router["classes"][1 : 1 + chosen]] * len(logits_IC)

    monkeypatch.setattr(expert_routes, "chosen_experts", same_for_all)
    seen = spied(monkeypatch)
    run_stage(stage_request(router={"routing": "predicted"}, gscm=0.5, steps=2))
    counts = []
    for batch in seen:
        whole_BL = batch.get("padding_mask", batch["attention_mask"])
        counts += (whole_BL - batch["attention_mask"]).sum(-1).tolist()
    assert set(counts) == {0, hidden}
    log = rows_of(stage_request().folder / "log.jsonl")
    assert sum(row["hidden"] for row in log) == sum(counts)


@pytest.mark.parametrize("packing", [False, True])
def test_blocks_that_the_router_chose_are_told_when_they_pass_the_limit(stage_request, monkeypatch, packing):
    changes = {"router": {"routing": "predicted"}, "steps": 4, "packing": packing}
    seen = spied(monkeypatch)
    notices = run_stage(stage_request(**changes, max_length=16)).notices
    if packing:
        assert notices == ()
        return
    longest = max(int(batch["attention_mask"].sum(-1).max()) for batch in seen)
    assert longest > 16
    assert notices[0].startswith(f"Samples had up to {longest} tokens")
    assert run_stage(stage_request("wide", **changes, max_length=64)).notices == ()


def test_classes_that_no_data_teach_are_named(home, stage_request):
    data = [home[2][0], home[2][1]]  # the domains of both experts, and none besides
    [notice] = run_stage(stage_request(data=data, steps=1)).notices
    assert notice.startswith("This stage has no examples for 'none', so the image router")
    assert run_stage(stage_request("all", steps=1)).notices == ()


def test_domains_in_records_are_not_read_in_silence(home, stage_request, tmp_path):
    lines = Path(home[2][0]["path"]).read_text(encoding="utf-8").splitlines()
    mixed = Path(home[2][0]["path"]).with_name("mixed.jsonl")
    mixed.write_text("".join(json.dumps({**json.loads(line), "domain": "maths"}) + "\n" for line in lines))
    [notice] = run_stage(stage_request(data=[*home[2], {"path": str(mixed)}], steps=1)).notices
    assert "such as 'maths', which is not used. Only the 'domain' of a dataset counts" in notice
    told = [*home[2], {"path": str(mixed), "domain": "maths"}]
    assert run_stage(stage_request("told", data=told, steps=1)).notices == ()


def test_a_stage_that_hides_nothing_says_so(stage_request):
    [notice] = run_stage(stage_request(gscm=0.2, steps=2)).notices  # floor(0.2 * 4 tokens) = 0
    assert notice.startswith("'gscm' hid nothing in this stage: a share of 0.2 of each sample's tokens")
    assert run_stage(stage_request("more", gscm=0.25, steps=2)).notices == ()


def test_a_learned_mask_is_a_new_part(stage_request, home):
    record = run_stage(stage_request(gscm={"ratio": 0.5, "mechanism": "learned"})).result.record
    assert record["config"] == {"mask_token": True}
    assert record["trained"]["mask"] == {"tensors": 1, "parameters": 32}
    folder = stage_request().folder
    learned = values(folder / "delta.safetensors")["model.mask_token"]
    table = values(home[0] / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert (learned - table.mean(0)).abs().max() > 1e-5
    model = load_model(open_lineage(folder), precision="float32")
    torch.testing.assert_close(model.model.mask_token, learned, rtol=0, atol=0)
    again = replace(stage_request("2", gscm={"mechanism": "learned", "ratio": 0.5}), number=2, parent=folder)
    assert run_stage(again).result.record["trained"]["mask"]["tensors"] == 1


def test_the_router_is_fitted_by_itself_from_kept_features(home, stage_request, monkeypatch):
    job = stage_request(train=[], router={"fit": "separate"})
    outcome = run_stage(job)
    record = outcome.result.record
    fitted = values(job.folder / "delta.safetensors")
    assert list(fitted) == ["model.routers.image.weight"]
    assert record["router"]["image"]["items"] == 18
    assert record["router"]["image"]["accuracy"] == 1.0  # the shades tell the domains apart
    assert record["plan"]["steps"] == 0
    assert "router:image" not in record["frozen"]
    assert record["losses"]["first"] == pytest.approx(float(torch.log(torch.tensor(3.0))))
    kept = list((home[0].parent / "out.stages" / "features" / "pooled-float32").rglob("*.safetensors"))
    assert len(kept) == 18
    with monkeypatch.context() as patch:  # the second time nothing is encoded
        patch.setattr("mcompose.align.experts.router_probe._encoded", None)
        again = run_stage(stage_request("2", router={"fit": "separate"}, train=["projectors"]))
    both = values(stage_request("2").folder / "delta.safetensors")
    torch.testing.assert_close(both["model.routers.image.weight"], fitted["model.routers.image.weight"])
    assert again.result.record["plan"]["steps"] == 3
    assert again.result.record["trained"]["router:image"]["tensors"] == 1


def test_cached_features_train_the_router_alike(stage_request):
    run_stage(stage_request("plain", train=["projectors", "router"]))
    run_stage(stage_request("cached", train=["projectors", "router"], feature_cache=True))
    rows = [rows_of(stage_request(name).folder / "log.jsonl") for name in ("plain", "cached")]
    for key in ("loss", "router_loss"):
        torch.testing.assert_close(*[[row[key] for row in some] for some in rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gscm": {"domains": ["chart"]}}, UnknownNameError, "'gscm.domains' names 'chart'"),
        ({"router": {"general": ["photo"]}}, UnknownNameError, "'router.general' names the domain 'photo'"),
        ({"router": {"class_weights": {"chart": 2}}}, UnknownNameError, "'chart', which is not a class"),
        ({"tiles": 6}, RequestError, "'tiles' cannot be set"),
        ({"gscm": 0.3, "train": ["projectors"], "data": "photos"}, RequestError, "'gscm' would hide nothing"),
        ({"train": ["router"], "data": "photos"}, RequestError, "No data of this stage belong"),
        ({"train": ["expert:tables"]}, UnknownNameError, "no part 'expert:tables'"),
    ],
)
def test_what_cannot_be_is_told(home, stage_request, changes, error, words):
    if changes.get("data") == "photos":
        changes = {**changes, "data": [home[2][2]]}
    with pytest.raises(error, match=words):
        run_stage(stage_request(**changes))
