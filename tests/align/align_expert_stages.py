"""Stages over the checkpoint of ``align_experts``, and what reaches its network."""

import torch
from align_experts import build_experts, write_domains

from mcompose.align.load import load_model
from mcompose.align.results.lineage import open_lineage
from mcompose.align.run import StageRequest
from mcompose.align.stage import plan_steps
from mcompose.align.stage_data import open_data
from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.recipe import Stage

STAGE = {
    "train": ["projectors", "router", "separators", "language"],
    "steps": 3,
    "batch_size": 6,
    "lr": 1e-3,
    "max_length": 64,
    "warmup": 0,
}


def make_home(folder):
    """Checkpoint, processor and data."""
    out, processor = build_experts(folder)
    return out, processor, write_domains(folder / "data")


def requester(home, folder):
    """Makes requests of stages whose results go below a folder."""
    out, _, data = home

    def make(name="1", **changes):
        stage = Stage(**{**STAGE, "data": data, **changes})
        return StageRequest(stage, 1, out, folder / name, folder, "tiny", quiet=True)

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


def spied(monkeypatch):
    """The batches that reach the network."""
    Network = ComposedForConditionalGeneration
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
