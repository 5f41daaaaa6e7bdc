"""Stages of a checkpoint with experts, through collator and Trainer: what is hidden, trained, frozen, logged."""

from dataclasses import replace

import pytest
import torch
from align_experts import DOMAINS, EXPERTS, build_experts, rows_of, values, write_domains
from torch.nn import functional as F

from mcompose.align import run
from mcompose.align.collator import Collator
from mcompose.align.data import open_data
from mcompose.align.lineage import open_lineage
from mcompose.align.load import load_model
from mcompose.align.parts import parts_of
from mcompose.align.run import StageRequest, run_stage
from mcompose.align.stage import plan_steps
from mcompose.errors import RequestError, UnknownNameError
from mcompose.recipe import Stage

STAGE = {
    "train": ["projectors", "router", "separators", "language"],
    "steps": 3,
    "batch_size": 6,
    "lr": 1e-3,
    "max_length": 64,
    "warmup": 0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    out, processor = build_experts(folder)
    return out, processor, write_domains(folder / "data")


@pytest.fixture
def stage_request(home, tmp_path):
    out, _, data = home

    def make(name="1", **changes):
        stage = Stage(**{**STAGE, "data": data, **changes})
        return StageRequest(stage, 1, out, tmp_path / name, tmp_path, "tiny", quiet=True)

    return make


def batches(home, **changes):
    """Stage, model and what makes its batches, as a run has them."""
    out, processor, data = home
    stage = Stage(**{**STAGE, "data": data, **changes})
    lineage = open_lineage(out)
    opened = open_data(stage, processor, folder=out, config=lineage.config)
    plan = plan_steps(stage, samples=opened.samples)
    model = load_model(lineage, precision="float32")
    return opened.ordered(stage, plan), opened.batches(stage, model, plan=plan), model


def test_parts_of_experts_are_told_apart(home):
    found = parts_of(open_lineage(home[0]).anatomy)
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


def gradients(model, batch):
    """Loss, and the gradient of every trained parameter."""
    model.train()
    model.zero_grad()
    batch = {name: value for name, value in batch.items() if name not in ("tokens", "router_labels")}
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mechanism", ["mask", "drop"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_hidden_changes_nothing(home, mechanism, checkpointing):
    """The features of hidden tokens are replaced by noise: loss and gradients of the rest stay as they are.

    Through the collator, with padded rows. The projector of the general encoder is left out: it makes the hidden
    features, and gets no gradient from them either way (its gradient is compared with kept features unchanged).
    """
    ordered, masked, model = batches(home, gscm={"ratio": 0.5, "mechanism": mechanism})
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.language_model.requires_grad_()
    model.model.experts["charts"].projector.requires_grad_()
    batch = masked([ordered[position] for position in range(8)])
    hidden_BL = (batch["padding_mask"] - batch["attention_mask"]).bool()
    image_BL = batch["input_ids"] == home[1].ids["image"]
    assert hidden_BL.any()
    assert (hidden_BL <= image_BL).all()
    before, first = gradients(model, batch)
    rows_N = hidden_BL[image_BL]
    noise = torch.randn(int(rows_N.sum()), 32, generator=torch.Generator().manual_seed(0)) * 10

    def disturb(_module, _args, output):
        assert output.flatten(0, -2).shape[0] == len(rows_N)
        flat = output.flatten(0, -2).clone()
        flat[rows_N] += noise
        return flat.view_as(output)

    hook = model.model.towers["sees"].multi_modal_projector.register_forward_hook(disturb)
    after, second = gradients(model, batch)
    assert after == before
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    open_batch = {k: v for k, v in batch.items() if k not in ("padding_mask", "hidden")}
    seen = gradients(model, {**open_batch, "attention_mask": batch["padding_mask"]})[0]
    hook.remove()
    assert abs(seen - before) > 1e-4  # the noise is heard where nothing is hidden


def test_dropping_is_hiding(home):
    losses = []
    for mechanism in ("mask", "drop"):
        ordered, masked, model = batches(home, gscm={"ratio": 0.5, "mechanism": mechanism})
        model.model.language_model.requires_grad_()
        losses.append(gradients(model, masked([ordered[position] for position in range(8)])))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], gradient, rtol=1e-3, atol=1e-6)


def spied(monkeypatch):
    """The batches that reach the network."""
    from mcompose.modeling import ComposedForConditionalGeneration as Network

    seen, forward = [], Network.forward

    def watched(self, *args, **kwargs):
        seen.append({name: value for name, value in kwargs.items() if name != "num_items_in_batch"})
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Network, "forward", watched)
    return seen


def hidden_places(seen):
    return [
        torch.nonzero((batch["padding_mask"] - batch["attention_mask"]) if "padding_mask" in batch
                      else torch.zeros_like(batch["input_ids"])).tolist()
        for batch in seen
    ]  # fmt: skip


def test_masks_reach_the_network_with_positions_and_counts(home, stage_request, monkeypatch):
    seen = spied(monkeypatch)
    run_stage(stage_request(gscm=0.5, steps=4))
    samples = []
    ordered, _, _ = batches(home, steps=4)
    for number, batch in enumerate(seen):
        rows = [ordered[6 * number + inside][1] for inside in range(6)]
        hidden_BL = (batch.get("padding_mask", batch["attention_mask"]) - batch["attention_mask"]).bool()
        samples += rows
        # LLaVA's tiny pictures are 4 tokens: floor(0.5 * 4) = 2 where the domain has an expert.
        assert hidden_BL.sum(-1).tolist() == [2 if row.domain in EXPERTS else 0 for row in rows]
        whole_BL = batch.get("padding_mask", batch["attention_mask"])
        assert torch.equal(batch["position_ids"], (whole_BL.cumsum(-1) - 1).clamp(min=0))
        assert not (hidden_BL & (batch["input_ids"] != home[1].ids["image"])).any()
    assert {sample.domain for sample in samples} == {*DOMAINS, None}


def test_nothing_is_hidden_where_the_model_evaluates(stage_request, monkeypatch):
    """The same batch through the trainer, in training and in evaluation mode."""
    seen = spied(monkeypatch)

    def both_ways(self, **_):
        batch = next(iter(self.get_train_dataloader()))
        for mode in (True, False):
            self.model.train(mode)
            self.compute_loss(self.model, dict(batch))
        raise KeyboardInterrupt

    monkeypatch.setattr(run.AlignTrainer, "train", both_ways)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_request(gscm=0.5))
    training, evaluation = seen
    assert (training["attention_mask"] != training["padding_mask"]).any()
    assert not {"padding_mask", "hidden"} & set(evaluation)
    assert torch.equal(evaluation["attention_mask"], training["padding_mask"])


def test_masks_are_the_same_after_an_interruption_and_in_pieces(stage_request, monkeypatch):
    seen = spied(monkeypatch)
    run_stage(stage_request("whole", gscm=0.5, steps=4))
    whole = hidden_places(seen)
    assert whole[0] != whole[3]  # other samples, or the same ones drawn anew
    seen.clear()
    stopped = stage_request("stopped", gscm=0.5, steps=4, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(run.AlignTrainer, "compute_loss", stop_after(run.AlignTrainer.compute_loss, 3))
        with pytest.raises(KeyboardInterrupt):
            run_stage(stopped)
    seen.clear()
    run_stage(stopped)
    assert hidden_places(seen) == whole[2:]
    assert [row["loss"] for row in rows_of(stopped.folder / "log.jsonl")] == [
        row["loss"] for row in rows_of(stopped.folder.parent / "whole" / "log.jsonl")
    ]
    seen.clear()
    run_stage(stage_request("pieces", gscm=0.5, steps=4, accumulation=2))
    joined = [one + [[row + 3, place] for row, place in two] for one, two in
              zip(hidden_places(seen)[::2], hidden_places(seen)[1::2], strict=True)]  # fmt: skip
    assert joined == whole
    torch.testing.assert_close(
        *[[row[key] for row in rows_of(stopped.folder.parent / name / "log.jsonl") for key in ("loss", "router_loss")]
          for name in ("pieces", "whole")], rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def stop_after(function, count):
    calls = []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return function(self, *args, **kwargs)

    return stopping


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_features_are_not_heard_through_the_trainer(stage_request, monkeypatch, attention):
    """Whole runs, of which one has noise on the features of what is hidden: losses and results are the same."""
    from mcompose.modeling import ComposedForConditionalGeneration as Network

    forward = Network.forward

    def noisy(self, *args, **kwargs):
        self.set_attn_implementation(attention)
        image_BL = kwargs["input_ids"] == self.config.image_token_id
        hidden_BL = (kwargs.get("padding_mask", kwargs["attention_mask"]) - kwargs["attention_mask"]).bool()
        rows_N, made = hidden_BL[image_BL], self.model.encode_media

        def disturbed(*given, **named):
            features = made(*given, **named)
            if "image" in features:
                x_ND = features["image"].x_ND
                features["image"].x_ND = torch.where(rows_N[:, None], x_ND + loud[0] * torch.ones_like(x_ND), x_ND)
            return features

        self.model.encode_media = disturbed
        try:
            return forward(self, *args, **kwargs)
        finally:
            del self.model.encode_media

    loud = [0.0]
    monkeypatch.setattr(Network, "forward", noisy)
    for name, loudness in (("quiet", 0.0), ("loud", 50.0)):
        loud[0] = loudness
        run_stage(stage_request(name, gscm=0.5, train=["router", "separators", "language"]))
    logs = [[row["loss"] for row in rows_of(stage_request(name).folder / "log.jsonl")] for name in ("quiet", "loud")]
    assert logs[0] == logs[1]
    one, two = (values(stage_request(name).folder / "delta.safetensors") for name in ("quiet", "loud"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_routing_by_prediction_asks_the_router(stage_request, monkeypatch):
    seen = spied(monkeypatch)
    run_stage(stage_request(router={"routing": "predicted"}, gscm=0.5, steps=2))
    assert all("mm_features" in batch and "routes" in batch for batch in seen)
    assert any(batch["routes"] for batch in seen)
    assert all("router_loss" in row for row in rows_of(stage_request().folder / "log.jsonl"))


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
        patch.setattr("mcompose.align.router_probe._encoded", None)
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
        ({"router": {"class_weights": {"chart": 2}}}, UnknownNameError, "'chart', which is no class"),
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


def test_named_domains_are_masked_and_no_others(stage_request, monkeypatch, home):
    seen = spied(monkeypatch)
    run_stage(stage_request(gscm={"ratio": 0.5, "domains": ["photos"]}, steps=2))
    ordered, _, _ = batches(home, steps=2)
    for number, batch in enumerate(seen):
        rows = [ordered[6 * number + inside][1] for inside in range(6)]
        hidden_BL = (batch.get("padding_mask", batch["attention_mask"]) - batch["attention_mask"]).bool()
        assert hidden_BL.sum(-1).tolist() == [2 if row.domain == "photos" else 0 for row in rows]
