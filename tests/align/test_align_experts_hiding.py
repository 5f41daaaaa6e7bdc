"""What is hidden of a batch changes nothing else, through collator and Trainer; and it is the same whoever draws it."""

import pytest
import torch
from align_expert_stages import batches, hidden_places, make_home, requester, spied
from align_experts import DOMAINS, EXPERTS, build_experts, rows_of, values, write_domains

from mcompose.align import run
from mcompose.align.run import run_stage
from mcompose.modeling import ComposedForConditionalGeneration


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("experts"))


@pytest.fixture
def stage_request(home, tmp_path):
    return requester(home, tmp_path)


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_features_are_not_heard_through_the_trainer(stage_request, monkeypatch, attention):
    """Whole runs, of which one has noise on the features of what is hidden: losses and results are the same."""
    Network = ComposedForConditionalGeneration
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


def test_named_domains_are_masked_and_no_others(stage_request, monkeypatch, home):
    seen = spied(monkeypatch)
    run_stage(stage_request(gscm={"ratio": 0.5, "domains": ["photos"]}, steps=2))
    ordered, _, _ = batches(home, steps=2)
    for number, batch in enumerate(seen):
        rows = [ordered[6 * number + inside][1] for inside in range(6)]
        hidden_BL = (batch.get("padding_mask", batch["attention_mask"]) - batch["attention_mask"]).bool()
        assert hidden_BL.sum(-1).tolist() == [2 if row.domain == "photos" else 0 for row in rows]


def test_positions_on_a_grid_are_counted_as_if_nothing_were_hidden(tmp_path, monkeypatch):
    """Qwen2-VL counts positions from the mask; with holes in it the count would be another."""
    out, processor = build_experts(tmp_path, native="qwen2_vl", feature="mean", tile="mean")
    make = requester((out, processor, write_domains(tmp_path / "data")), tmp_path)
    seen, prepare = [], run.AlignTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        handle = model.model.language_model.register_forward_pre_hook(
            lambda _module, _args, given: seen.append((given["position_ids"], given["attention_mask"])),
            with_kwargs=True,
        )
        try:
            return prepare(self, model, inputs, *args, **kwargs)
        finally:
            handle.remove()

    monkeypatch.setattr(run.AlignTrainer, "compute_loss", watched)
    losses = []
    for name, gscm in (("plain", None), ("mask", {"ratio": 0.5}), ("drop", {"ratio": 0.5, "mechanism": "drop"})):
        run_stage(make(name, gscm=gscm, steps=1, max_length=256))
        losses.append(rows_of(make(name).folder / "log.jsonl")[0]["loss"])
    (plain, _), (masked, mask_BL), (dropped, _) = seen
    assert plain.shape[0] == 3
    assert torch.equal(masked, plain)
    assert (mask_BL == 0).sum() > 0
    assert dropped.shape[-1] < plain.shape[-1]
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] != pytest.approx(losses[0], rel=1e-4)
