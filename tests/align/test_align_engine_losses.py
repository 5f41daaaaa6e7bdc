"""A stage against a loop written by hand: the same batches, seeds and optimizer give the same losses and weights."""

import json
import math
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from align_folders import STAGE, build, write_data
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForMultimodalLM

from mcompose.align.data.collator import Collator
from mcompose.align.data.mixture import open_mixture
from mcompose.align.load import load_processor
from mcompose.align.run import StageRequest, run_stage
from mcompose.modeling import register
from mcompose.recipe import Stage

IGNORED = -100


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return build(tmp_path_factory.mktemp("engine")).parent


def request(home, folder, **changes):
    return StageRequest(Stage(**{**STAGE, **changes}), 1, home / "out", folder, home, "tiny", quiet=True)


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def by_hand(home, stage, *, pieces=1):
    """Losses and final trained tensors of a plain loop, without mcompose's trainer."""
    register()
    model = AutoModelForMultimodalLM.from_pretrained(home / "out", dtype=torch.float32)
    model.train()
    model.model.towers["sees"].vision_tower.eval()
    trained = {n: p for n, p in model.named_parameters() if "multi_modal_projector" in n}
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    decayed = [p for p in trained.values() if p.ndim >= 2]
    rest = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr)
    mixture = open_mixture(stage.data, folder=home, seed=stage.seed)
    collator = Collator(load_processor(home / "out"), max_length=stage.max_length)
    micro, losses = stage.batch_size // pieces, []
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        places = range(step * stage.batch_size, (step + 1) * stage.batch_size)
        samples = [mixture.sample_at(*divmod(place, len(mixture))) for place in places]
        batches = [collator(samples[i : i + micro]) for i in range(0, len(samples), micro)]
        learnt = sum(int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches)
        total = 0.0
        for batch in batches:
            labels = batch.pop("labels")
            batch.pop("domains")
            logits = model(**batch, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / learnt
            if loss.requires_grad:  # else a piece without pictures
                loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {name: p.detach() for name, p in trained.items()}


@pytest.mark.parametrize("pieces", [1, 2])
def test_losses_and_weights_are_those_of_a_loop_by_hand(home, tmp_path, pieces):
    job = request(home, tmp_path / "1", accumulation=pieces, weight_decay=0.1, warmup=0)
    run_stage(job)
    losses, weights = by_hand(home, job.stage, pieces=pieces)
    torch.testing.assert_close(losses_of(tmp_path / "1"), losses, rtol=1e-6, atol=0)
    delta = load_file(tmp_path / "1" / "delta.safetensors")
    assert delta.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(delta[name], weight, rtol=1e-5, atol=1e-7)


def test_equal_requests_give_equal_bytes(home, tmp_path):
    for name in ("a", "b"):
        run_stage(request(home, tmp_path / name))
    for file in ("delta.safetensors", "stage.json", "run.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    run_stage(request(home, tmp_path / "c", seed=1))
    assert losses_of(tmp_path / "c") != losses_of(tmp_path / "a")


def test_what_is_frozen_is_what_it_was(home, tmp_path):
    record = run_stage(request(home, tmp_path / "1", train=["encoder:sees"], steps=2)).result.record
    parent = load_file(home / "out" / "model.safetensors")
    delta = load_file(tmp_path / "1" / "delta.safetensors")
    assert all(".vision_tower." in name for name in delta)
    # What a tower computes beside the features that are read has no gradient.
    moved = [name for name in delta if not torch.equal(delta[name], parent[name])]
    assert len(moved) > len(delta) / 2
    assert sum(part["tensors"] for part in record["frozen"].values()) + len(delta) == len(parent)
    assert set(record["frozen"]) == {"projector:sees", "language", "embedding", "head"}


def test_each_part_has_its_rate(home, tmp_path):
    """With a vanishing rate a part stays where it was; the other one is as if trained alone."""
    both = request(home, tmp_path / "1", train=["projectors", "head"], lr={"projector": 1e-2, "head": 1e-30}, steps=2)
    run_stage(both)
    delta, parent = load_file(tmp_path / "1" / "delta.safetensors"), load_file(home / "out" / "model.safetensors")
    assert torch.equal(delta["lm_head.weight"], parent["lm_head.weight"])
    key = "model.towers.sees.multi_modal_projector.linear_1.weight"
    assert (delta[key] - parent[key]).abs().max() > 1e-3


def test_checkpointing_activations_changes_no_loss(home, tmp_path):
    run_stage(request(home, tmp_path / "a", train=["projectors", "language"], lr=1e-3))
    run_stage(request(home, tmp_path / "b", train=["projectors", "language"], lr=1e-3, gradient_checkpointing=True))
    torch.testing.assert_close(losses_of(tmp_path / "a"), losses_of(tmp_path / "b"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_lower_precision_trains_and_keeps_the_dtype_of_the_files(home, tmp_path, precision):
    run_stage(request(home, tmp_path / "a"))
    record = run_stage(request(home, tmp_path / "b", precision=precision)).result.record
    assert record["precision"] == precision
    torch.testing.assert_close(losses_of(tmp_path / "b"), losses_of(tmp_path / "a"), rtol=0.05, atol=0)
    delta = load_file(tmp_path / "b" / "delta.safetensors")
    assert {tensor.dtype for tensor in delta.values()} == {torch.float32}
    rounded = all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in delta.values())
    assert rounded == (precision == "bfloat16")  # a master keeps what bfloat16 would lose


def test_a_master_starts_from_all_bits_of_the_file(home, tmp_path):
    run_stage(request(home, tmp_path / "1", precision="mixed", lr=1e-30, steps=1))
    delta, parent = load_file(tmp_path / "1" / "delta.safetensors"), load_file(home / "out" / "model.safetensors")
    assert all(torch.equal(delta[name], parent[name]) for name in delta)


def test_masks_see_batches_and_change_what_is_learnt(home, tmp_path):
    seen = []

    def hide_pictures(batch):
        seen.append((batch["positions"], sorted(batch)))
        hidden = batch["mm_token_type_ids"] == 1
        return {**batch, "attention_mask": batch["attention_mask"].masked_fill(hidden, 0)}

    job = request(home, tmp_path / "1", steps=2, warmup=0)
    run_stage(replace(job, masks=(hide_pictures,)))
    assert [positions for positions, _ in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert {"domains", "labels", "position_ids", "sees__pixel_values"} <= set(seen[0][1])
    run_stage(request(home, tmp_path / "2", steps=2, warmup=0))
    assert losses_of(tmp_path / "1")[0] != losses_of(tmp_path / "2")[0]


def test_a_finished_stage_is_not_run_again(home, tmp_path):
    run_stage(request(home, tmp_path / "1", steps=1))
    before = (tmp_path / "1" / "log.jsonl").stat().st_mtime_ns
    assert run_stage(request(home, tmp_path / "1", steps=1)).again
    assert (tmp_path / "1" / "log.jsonl").stat().st_mtime_ns == before
    other = run_stage(request(home, tmp_path / "1", steps=2))
    assert not other.again
    assert "discarded" in other.notices[0]
    assert other.result.record["plan"]["steps"] == 2


def test_grouping_by_length_pads_less_and_sees_the_same_samples(home, tmp_path):
    data, seen = [str(write_data(tmp_path / "data", count=40))], {}

    def watch(batch):
        seen.setdefault("padding", []).append(int((batch["attention_mask"] == 0).sum()))
        return batch

    sizes = []
    for name in (False, True):
        seen.clear()
        job = request(home, tmp_path / str(name), steps=None, batch_size=2, group_by_length=name, data=data)
        run_stage(replace(job, masks=(watch,)))
        sizes.append(sum(seen["padding"]))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_in_the_same_order_by_any_number_of_workers(home, tmp_path, workers):
    data = [{"path": "data/data.jsonl", "streaming": True}]
    run_stage(request(home, tmp_path / "1", data=data, steps=3, workers=workers))
    reference = request(home, tmp_path / "2", data=data, steps=3)
    run_stage(reference)
    assert losses_of(tmp_path / "1") == losses_of(tmp_path / "2")


def test_a_packed_piece_has_the_loss_of_its_rows(home, tmp_path):
    job = {"train": ["projectors", "language"], "lr": 1e-3, "steps": 2, "warmup": 0}
    run_stage(request(home, tmp_path / "1", **job))
    run_stage(request(home, tmp_path / "2", packing=True, **job))
    torch.testing.assert_close(losses_of(tmp_path / "2"), losses_of(tmp_path / "1"), rtol=1e-4, atol=0)


def test_epochs_are_counted_in_samples(home, tmp_path):
    job = request(home, tmp_path / "1", steps=None, epochs=1.5)
    assert run_stage(job).result.record["plan"]["steps"] == 5  # 18 samples in batches of 4


def test_a_plot_and_a_log_lie_beside_the_result(home, tmp_path):
    pytest.importorskip("matplotlib")
    run_stage(request(home, tmp_path / "1", steps=2))
    assert (tmp_path / "1" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "1" / "run").exists()
    shutil.rmtree(tmp_path / "1")


def test_a_picture_that_cannot_be_drawn_is_told_with_what_to_install(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run_stage(request(home, tmp_path / "1", steps=2))
    assert done.notices == (
        "The loss was not plotted: matplotlib is not installed. Run 'pip install matplotlib' to get the plot.",
    )
    assert not (tmp_path / "1" / "loss.png").exists()
    assert len(losses_of(tmp_path / "1")) == 2
