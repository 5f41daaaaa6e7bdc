"""The data half of a stage, opened before any model is loaded: what is wrong with them is told in seconds."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.align.data.batching import grouped_places, token_rates
from mcompose.align.data.collator import Collator, can_pack, takes_positions
from mcompose.align.data.labels import check_labels
from mcompose.align.data.masks import Mask, Masked
from mcompose.align.data.mixture import open_mixture
from mcompose.align.data.order import Ordered, OrderedStream
from mcompose.align.data.tiles import set_tiles
from mcompose.align.experts.stage import ExpertStage, open_experts
from mcompose.align.preference import PairCollator, check_pair
from mcompose.align.stage import StepPlan
from mcompose.checkpoint import digest_file
from mcompose.errors import RequestError
from mcompose.recipe import Stage

__all__ = ["StageData", "open_data"]

_SUFFIXES = {".json", ".jsonl", ".parquet"}


@dataclass(frozen=True)
class StageData:
    """The samples of a stage and what makes batches of them.

    Args:
        mixture: Samples.
        processor: The checkpoint's.
        digest: Digest of the files that name the samples.
        experts: What the stage does about the experts of its checkpoint.
    """

    mixture: Any
    processor: Any
    digest: str
    experts: ExpertStage

    @property
    def samples(self) -> int | None:
        """Of an epoch; None for a stream."""
        return len(self.mixture) if hasattr(self.mixture, "__len__") else None

    def rows(self) -> list[dict[str, Any]]:
        """Returns what was taken from each dataset, for the record."""
        return [row.row() if hasattr(row, "row") else dict(row) for row in self.mixture.report()]

    def notices(self) -> list[str]:
        """Sentences for the user about data and experts."""
        found = self.experts.notices()
        if self.experts.table is not None and hasattr(self.mixture, "other_domains"):
            for name, domain in self.mixture.other_domains().items():
                found.append(
                    f"Records of {name} name domains of their own, such as '{domain}'; only that of the dataset "
                    "counts. Split the file, and write 'domain: ...' beside each part."
                )
        return found

    def ordered(self, stage: Stage, plan: StepPlan) -> Any:
        """Returns the samples in the order of the stage."""
        if self.samples is None:
            return OrderedStream(self.mixture, plan.micro)
        places = None
        if stage.group_by_length:
            collator = Collator(self.processor, max_length=None, routing=self.experts.routing)
            rates = token_rates(self.mixture, collator)
            places = grouped_places(self.mixture, total=plan.samples, batch_size=plan.batch, rates=rates)
        return Ordered(self.mixture, plan.samples, places=places)

    def batches(self, stage: Stage, model: Any, masks: Sequence[Mask] = (), *, plan: StepPlan | None = None) -> Masked:
        """Returns what makes the batches of a stage.

        Args:
            stage: The recipe's stage.
            model: Decides which inputs it is given.
            masks: Applied to every batch, before the stage's own.
            plan: Its steps, for the stage's own masks; None for none of them.

        Raises:
            RequestError: The model cannot take what the stage asks for.
        """
        if stage.packing and not can_pack(model):
            raise RequestError(
                "'packing' would let samples see one another in this model.", hint="Write 'group_by_length: true'."
            )
        collator = Collator(
            self.processor,
            max_length=stage.max_length,
            domains=self.mixture.domains,
            positions=takes_positions(model),
            packing=stage.packing,
            media_keys=stage.feature_cache,
            routing=self.experts.routing,
        )
        own = None if plan is None else self.experts.mask(plan)
        taken = inspect.signature(model.forward).parameters
        masks = (*masks, *([] if own is None else [own]))
        collate = collator if stage.dpo is None else PairCollator(collator)
        return Masked(collate, masks, keep=[name for name in ("mm_token_type_ids", "domains") if name in taken])


def open_data(stage: Stage, processor: Any, *, folder: Path, config: Mapping[str, Any] | None = None) -> StageData:
    """Opens the data of a stage and looks at some samples.

    Args:
        stage: The recipe's stage.
        processor: The checkpoint's; images are cut as the stage says from now on.
        folder: The recipe's folder.
        config: Config of the checkpoint, which tells of its experts.

    Raises:
        RequestError: Data are missing or broken, or labels do not stand where they should.
    """
    if stage.tiles is not None:
        set_tiles(processor, stage.tiles)
    mixture: Any = open_mixture(stage.data, folder=folder, seed=stage.seed, temperature=stage.temperature)
    experts = open_experts(stage, config or {}, processor=processor, mixture=mixture)
    collator = Collator(processor, max_length=stage.max_length, domains=mixture.domains, routing=experts.routing)
    mixture = mixture.without_long(collator)
    if not hasattr(mixture, "__len__") and stage.steps is None:
        raise RequestError("A stream has no end to count epochs by.", hint="Give the stage 'steps'.")
    if not hasattr(mixture, "__len__") and stage.group_by_length:
        raise RequestError("A stream cannot be grouped by length.", hint="Leave 'group_by_length' out.")
    if not hasattr(mixture, "__len__") and stage.feature_cache:
        raise RequestError("The features of a stream cannot be kept.", hint="Leave 'feature_cache' out.")
    if stage.dpo is not None:
        for sample in mixture.samples():
            check_pair(sample)
    check_labels(mixture, collator)
    return StageData(mixture, processor, _digest(stage, folder), experts)


def _digest(stage: Stage, folder: Path) -> str:
    """Of the local files that list samples; media are known by their paths in them."""
    rows = []
    for spec in stage.data:
        path = folder / Path(spec.path).expanduser()
        files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
        rows.append([spec.path, [digest_file(file).sha256 for file in files if file.is_file()]])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
