"""Prepares a loaded model for a stage with experts: loss or separate fit of the routers, and the mask's vector.

The trainer computes the routers' loss over whole steps; the network's own router loss, which covers one piece, gets
weight zero. A separate fit sets the routers before the first step; they are then written with the trained parameters.
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
"""Name of the part that holds the learned vector for hidden tokens."""


@dataclass(frozen=True)
class FittedRouters:
    """Routers that were fitted separately from training.

    Args:
        probes: Modality to its fitted router.
    """

    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Name of each router's weight, in memory and in the files, to its part."""
        return {f"model.routers.{modality}.weight": f"router:{modality}" for modality in self.probes}

    def add_to(self, trained: Trained) -> Trained:
        """Returns the trained parameters with the fitted routers added."""
        direct = {**trained.direct, **{name: name for name in self.names}}
        return replace(trained, direct=direct, parts={**trained.parts, **self.names})

    def without_routers(self, digests: Mapping[str, Any]) -> dict[str, Any]:
        """Returns digests of frozen parts without the fitted routers."""
        return {part: digest for part, digest in digests.items() if part not in self.names.values()}

    def record(self, *, alone: bool) -> dict[str, Any]:
        """Returns the entries of a stage's record about the fitted routers.

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
        """Writes the loss of every iteration as the log of a stage that trains nothing else."""
        losses = [loss for probe in self.probes.values() for loss in probe.losses]
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
        write_text(path, "\n".join(lines) + "\n")


def routers_loss(model: Any, experts: ExpertStage) -> RouterLoss | None:
    """Makes the routers' loss of a stage; None if the stage does not train routers.

    Args:
        model: Composed model; changed so that its own loss does not include the routers.
        experts: Settings of the stage for experts.
    """
    if not experts.trains_router:
        return None
    model.config.router_loss_weight = 0.0
    return RouterLoss(experts.router.loss_weight, experts.weights())


def fit_routers(
    model: Any, experts: ExpertStage, samples: Iterable[Sample], *, folder: Path, precision: str
) -> FittedRouters:
    """Fits the routers of a model separately, if the stage asks for it.

    Args:
        model: Composed model in evaluation mode; its routers are changed in place.
        experts: Settings of the stage for experts.
        samples: Samples of the stage, each once.
        folder: Folder for pooled features, which may fill half of the free disk space.
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
        raise RequestError(
            "The router cannot be fitted: no item has a label.", hint="Set 'domain' in the datasets of the stage."
        )
    return FittedRouters(probes)


def routed(model: Any, inputs: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """Routes a batch with the model's own router.

    Args:
        model: Composed model.
        inputs: Batch with slots for experts.
        stage: Stage of the recipe; without ``gscm.domains``, nothing is hidden in samples without an expert.
    """
    batch = model.route(**inputs)
    if stage.gscm is not None and stage.gscm.domains is not None:
        return batch
    return shown_where_unserved(batch, experts=list(model.config.expert_token_ids.values()))


def longest_sample(batch: Mapping[str, Any]) -> int:
    """Returns the tokens of the longest sample of a batch, hidden ones included; 0 for packed samples."""
    real_BL = batch.get("padding_mask", batch.get("attention_mask"))
    return 0 if real_BL is None else int(real_BL.sum(-1).max())


def length_notices(stage: Stage, longest: int) -> list[str]:
    """Warns if expert blocks that the router chose made samples longer than ``max_length``.

    Args:
        stage: Stage of the recipe.
        longest: Tokens of its longest sample.
    """
    if stage.max_length is None or longest <= stage.max_length:
        return []
    return [
        f"Samples had up to {longest} tokens with the expert blocks that the router chose, which is more than "
        f"max_length ({stage.max_length}): that limit counts a block as one token, since it is chosen later."
    ]


def hiding_notices(stage: Stage, log: Path) -> list[str]:
    """Warns if a stage with masking has not hidden any token.

    Args:
        stage: Stage of the recipe.
        log: Log of the stage.
    """
    if stage.gscm is None or stage.gscm.ratio == 0 or not log.is_file():
        return []
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not rows or any(row.get("hidden", 1) for row in rows):
        return []
    return [f"'gscm' hid nothing in this stage: {_why_nothing(stage, stage.gscm)}"]


def _why_nothing(stage: Stage, gscm: Masking) -> str:
    if stage.router is not None and stage.router.routing == "predicted":
        return "the router sent no sample of a masked domain to an expert, or the share was rounded down to zero."
    if gscm.ratio == 1 or gscm.unit == "sample" or gscm.count == "bernoulli":
        return f"no random draw at ratio {gscm.ratio:g} selected a token. Raise 'ratio' or use more samples."
    return (
        f"a share of {gscm.ratio:g} of each sample's {gscm.unit}s was rounded down to zero. Raise 'ratio', use a "
        "smaller 'unit', or use 'count: bernoulli'."
    )


def wants_mask_token(stage: Stage) -> bool:
    """Returns whether a stage replaces hidden tokens by a learned vector."""
    return stage.gscm is not None and stage.gscm.ratio > 0 and stage.gscm.mechanism == "learned"


@torch.no_grad()
def add_mask_token(model: Any) -> dict[str, Any]:
    """Adds the vector that replaces hidden tokens to a composed model; it starts as the mean of the embedding.

    Args:
        model: Composed model; changed in place.

    Returns:
        The changed fields of its config; the parameter is ``model.mask_token``.
    """
    table_VD = model.get_input_embeddings().weight
    model.model.mask_token = nn.Parameter(table_VD.float().mean(0).to(table_VD.dtype))
    model.config.mask_token = True
    return {"mask_token": True}
