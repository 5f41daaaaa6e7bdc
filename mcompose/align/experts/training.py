"""What a stage does to a loaded model on account of its experts: the routers' loss or fit, and a mask's vector.

The routers' loss is made by the trainer, over whole steps; the network's own, which is that of one piece, is given no
weight. A separate fit sets the routers before the first step; then they are written with what was trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcompose.align.data.collator import Collator
from mcompose.align.data.samples import Sample
from mcompose.align.experts.gscm import shown_where_unserved
from mcompose.align.experts.router_loss import RouterLoss
from mcompose.align.experts.router_probe import Probe, fit_probe, pooled_items_of
from mcompose.align.experts.stage import ExpertStage
from mcompose.align.features.store import FeatureStore
from mcompose.align.results.delta import Trained
from mcompose.errors import RequestError
from mcompose.recipe import Masking, Stage
from mcompose.whole_files import write_text

__all__ = [
    "MASK",
    "FittedRouters",
    "add_mask_token",
    "fit_routers",
    "hiding_notices",
    "length_notices",
    "longest_sample",
    "routed",
    "routers_loss",
    "wants_mask_token",
]

MASK = "mask"
"""The part of the learned vector that stands for hidden tokens."""


@dataclass(frozen=True)
class FittedRouters:
    """Routers that were fitted by themselves.

    Args:
        probes: Modality to its router.
    """

    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Name of each in memory, and in the files, to its part."""
        return {f"model.routers.{modality}.weight": f"router:{modality}" for modality in self.probes}

    def add_to(self, trained: Trained) -> Trained:
        """Returns what was trained, with these."""
        direct = {**trained.direct, **{name: name for name in self.names}}
        return replace(trained, direct=direct, parts={**trained.parts, **self.names})

    def without_routers(self, digests: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the digests of what is frozen, without these."""
        return {part: digest for part, digest in digests.items() if part not in self.names.values()}

    def record(self, *, alone: bool) -> dict[str, Any]:
        """Returns what the record of a stage has on account of these.

        Args:
            alone: Whether the stage trains nothing else.
        """
        rows = {
            modality: {
                "items": probe.items,
                "iterations": len(probe.losses),
                "loss": probe.losses[-1],
                "accuracy": probe.accuracy,
            }
            for modality, probe in self.probes.items()
        }
        plan = {"steps": 0, "batch": sum(probe.items for probe in self.probes.values()), "warmup": 0}
        return {**({"router": rows} if rows else {}), **({"plan": plan} if alone else {})}

    def log(self, path: Path) -> None:
        """Writes the losses of all iterations, as the log of a stage that trains nothing else."""
        losses = [loss for probe in self.probes.values() for loss in probe.losses]
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
        write_text(path, "\n".join(lines) + "\n")


def routers_loss(model: Any, experts: ExpertStage) -> RouterLoss | None:
    """Returns the routers' loss of a stage; None when it does not train them.

    Args:
        model: A composed model; its own loss leaves the routers out from now on.
        experts: Experts of the stage.
    """
    if not experts.trains_router:
        return None
    model.config.router_loss_weight = 0.0
    return RouterLoss(experts.router.loss_weight, experts.weights())


def fit_routers(
    model: Any, experts: ExpertStage, samples: Iterable[Sample], *, folder: Path, precision: str
) -> FittedRouters:
    """Fits the routers of a model by themselves, where the stage says so.

    Args:
        model: A composed model in evaluation mode; its routers are changed in place.
        experts: Experts of the stage.
        samples: Samples of the stage, each once.
        folder: Where pooled features are kept; at most half of what is free is taken.
        precision: Precision of the stage.

    Returns:
        The routers; none without ``router.fit: separate``.

    Raises:
        RequestError: A router has no item to learn from, or a medium cannot be read.
        NumericsError: A feature is not finite.
    """
    if not experts.stage.fits_router:
        return FittedRouters()
    store = FeatureStore(folder / f"pooled-{precision}", max_bytes=0)
    store.max_bytes = store.used_bytes + shutil.disk_usage(store.folder).free // 2
    collator = Collator(experts.processor, max_length=None, routing=experts.routing)
    kind = next(model.parameters()).device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "mixed"):
        found = pooled_items_of(model, collator, samples, store=store)
    weights, probes = experts.weights(), {}
    for modality, items in found.items():
        if items.labels:
            probes[modality] = fit_probe(
                torch.stack(items.features),
                torch.tensor(items.labels),
                classes=len(weights[modality]),
                l2=experts.router.penalty,
                weights=weights[modality],
            )
            router = model.model.routers[modality]
            router.weight.data = probes[modality].weight.to(router.weight.device)
    if not probes:
        raise RequestError("The router has no item to be fitted on.", hint="Write 'domain: ...' beside the datasets.")
    return FittedRouters(probes)


def routed(model: Any, inputs: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """Returns a batch after the router itself has chosen experts.

    Args:
        model: A composed model.
        inputs: With slots for experts.
        stage: The recipe's stage; without ``gscm.domains``, samples that got no expert have nothing hidden.
    """
    made = model.route(**inputs)
    if stage.gscm is not None and stage.gscm.domains is not None:
        return made
    return shown_where_unserved(made, experts=list(model.config.expert_token_ids.values()))


def longest_sample(batch: Mapping[str, Any]) -> int:
    """Tokens of the longest sample of a batch, hidden ones included; 0 where samples are packed into one row."""
    real_BL = batch.get("padding_mask", batch.get("attention_mask"))
    return 0 if real_BL is None else int(real_BL.sum(-1).max())


def length_notices(stage: Stage, longest: int) -> list[str]:
    """Returns the warning for blocks that the router chose made samples longer than ``max_length``.

    Args:
        stage: The recipe's stage.
        longest: Tokens of its longest sample.
    """
    if stage.max_length is None or longest <= stage.max_length:
        return []
    return [
        f"Samples had up to {longest} tokens with the blocks that the router chose; max_length is {stage.max_length}, "
        "and counts a block as one token before it is chosen."
    ]


def hiding_notices(stage: Stage, log: Path) -> list[str]:
    """Returns the warning for a stage that has hidden no token.

    Args:
        stage: The recipe's stage.
        log: Its log.
    """
    if stage.gscm is None or stage.gscm.ratio == 0 or not log.is_file():
        return []
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not rows or any(row.get("hidden", 1) for row in rows):
        return []
    return [f"'gscm' hid nothing in this stage: {_why_nothing(stage, stage.gscm)}"]


def _why_nothing(stage: Stage, gscm: Masking) -> str:
    if stage.router is not None and stage.router.routing == "predicted":
        return "the router sent no sample of a masked domain to an expert, or the share came to none."
    if gscm.ratio == 1 or gscm.unit == "sample" or gscm.count == "bernoulli":
        return f"none of the draws at ratio {gscm.ratio:g} fell on one. Raise 'ratio' or take more samples."
    return (
        f"a share of {gscm.ratio:g} of each sample's {gscm.unit}s, rounded down, came to none. Raise 'ratio', take a "
        "smaller 'unit', or draw with 'count: bernoulli'."
    )


def wants_mask_token(stage: Stage) -> bool:
    """Returns whether a stage puts a learned vector in the place of hidden tokens."""
    return stage.gscm is not None and stage.gscm.ratio > 0 and stage.gscm.mechanism == "learned"


@torch.no_grad()
def add_mask_token(model: Any) -> dict[str, Any]:
    """Gives a composed model the vector that stands for hidden tokens: the mean of its embedding.

    Args:
        model: Changed in place.

    Returns:
        What changed in its config; the parameter is ``model.mask_token``.
    """
    table_VD = model.get_input_embeddings().weight
    model.model.mask_token = nn.Parameter(table_VD.float().mean(0).to(table_VD.dtype))
    model.config.mask_token = True
    return {"mask_token": True}
