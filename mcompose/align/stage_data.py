"""The data of a stage, opened before the model is loaded, so that errors in them are reported in seconds."""

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
from mcompose.align.data.instructions import wording_of
from mcompose.align.data.labels import check_labels
from mcompose.align.data.masks import Mask, Masked
from mcompose.align.data.mixture import open_mixture
from mcompose.align.data.one_task import one_task_places
from mcompose.align.data.order import Ordered, OrderedStream
from mcompose.align.data.tiles import set_tiles
from mcompose.align.data.views import check_views, picture_alignment
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
    """Data of a stage: its samples, and the means to make batches of them.

    Args:
        mixture: Samples of the stage.
        processor: Processor of the checkpoint.
        digest: Digest of the files that list the samples.
        experts: Settings of the stage for the domain experts of its checkpoint.
    """

    mixture: Any
    processor: Any
    digest: str
    experts: ExpertStage

    @property
    def samples(self) -> int | None:
        """Number of samples of an epoch; None for a stream."""
        return len(self.mixture) if hasattr(self.mixture, "__len__") else None

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per dataset for the record: what was used and what was skipped."""
        return [row.row() if hasattr(row, "row") else dict(row) for row in self.mixture.report()]

    def notices(self) -> list[str]:
        """Returns sentences for the user about data and experts."""
        sentences = self.experts.notices()
        if self.experts.table is not None and hasattr(self.mixture, "other_domains"):
            for name, domain in self.mixture.other_domains().items():
                sentences.append(
                    f"Records of {name} have a 'domain' of their own, such as '{domain}', which is not used. "
                    "Only the 'domain' of a dataset counts. Split the file into one dataset per domain to use them."
                )
        return sentences

    def tasks(self, stage: Stage) -> tuple[str, ...]:
        """Returns the tasks whose losses are told apart; none where there is one, or the stage learns from pairs."""
        tasks = tuple(self.mixture.tasks)
        return tasks if len(tasks) > 1 and stage.dpo is None else ()

    def ordered(self, stage: Stage, plan: StepPlan) -> Any:
        """Returns the samples in the order of the stage, as a dataset.

        Raises:
            RequestError: A task fills no whole step, and every step is to have one task.
        """
        if self.samples is None:
            return OrderedStream(self.mixture, plan.micro)
        places, rates = None, None
        if stage.group_by_length:
            rates = token_rates(self.mixture, Collator(self.processor, max_length=None, routing=self.experts.routing))
        if stage.batches == "one_task":
            places = one_task_places(self.mixture, steps=plan.steps, batch_size=plan.batch, rates=rates)
        elif stage.group_by_length:
            places = grouped_places(self.mixture, total=plan.samples, batch_size=plan.batch, rates=rates)
        return Ordered(self.mixture, plan.samples, places=places)

    def batches(self, stage: Stage, model: Any, masks: Sequence[Mask] = (), *, plan: StepPlan | None = None) -> Masked:
        """Makes the collator of a stage.

        Args:
            stage: Stage of the recipe.
            model: Model that takes the batches; it decides which inputs they hold.
            masks: Masks to apply to every batch, before the stage's own.
            plan: Steps of the stage, for its own masks; None to leave them out.

        Raises:
            RequestError: The model does not support a setting of the stage.
        """
        if stage.packing and not can_pack(model):
            raise RequestError(
                "'packing' is not possible: this model would let packed samples attend to each other.",
                hint="Use 'group_by_length: true' instead.",
            )
        collator = Collator(
            self.processor,
            max_length=stage.max_length,
            domains=self.mixture.domains,
            positions=takes_positions(model),
            packing=stage.packing,
            media_keys=stage.feature_cache,
            routing=self.experts.routing,
            tasks=self.tasks(stage),
        )
        stage_mask = None if plan is None else self.experts.mask(plan)
        accepted = inspect.signature(model.forward).parameters
        masks = (*masks, *([] if stage_mask is None else [stage_mask]))
        collate = collator if stage.dpo is None else PairCollator(collator)
        return Masked(collate, masks, keep=[name for name in ("mm_token_type_ids", "domains") if name in accepted])


def open_data(stage: Stage, processor: Any, *, folder: Path, config: Mapping[str, Any] | None = None) -> StageData:
    """Opens the data of a stage and checks the labels of some samples.

    Args:
        stage: Stage of the recipe.
        processor: Processor of the checkpoint; its limit of tiles is changed if the stage sets one.
        folder: Folder of the recipe, where relative paths start.
        config: Config of the checkpoint, which lists its domain experts.

    Raises:
        RequestError: Data are missing or broken, or labels are not on the answers.
    """
    if stage.tiles is not None:
        set_tiles(processor, stage.tiles)
    mixture: Any = open_mixture(
        stage.data,
        folder=folder,
        seed=stage.seed,
        temperature=stage.temperature,
        align=picture_alignment(config or {}),
    )
    experts = open_experts(stage, config or {}, processor=processor, mixture=mixture)
    collator = Collator(processor, max_length=stage.max_length, domains=mixture.domains, routing=experts.routing)
    check_views(mixture, processor, max_length=stage.max_length)
    mixture = mixture.without_long(collator)
    if not hasattr(mixture, "__len__") and stage.steps is None:
        raise RequestError("A stream does not end, so its epochs cannot be counted.", hint="Set 'steps' in the stage.")
    if not hasattr(mixture, "__len__") and stage.group_by_length:
        raise RequestError("A stream cannot be grouped by length.", hint="Remove 'group_by_length', or 'streaming'.")
    if not hasattr(mixture, "__len__") and stage.batches == "one_task":
        raise RequestError("A stream cannot give batches of one task.", hint="Remove 'batches', or 'streaming'.")
    if not hasattr(mixture, "__len__") and stage.feature_cache:
        raise RequestError("The features of a stream cannot be cached.", hint="Remove 'feature_cache', or 'streaming'.")
    if stage.dpo is not None:
        for sample in mixture.samples():
            check_pair(sample)
    check_labels(mixture, collator)
    return StageData(mixture, processor, _digest(stage, folder), experts)


def _digest(stage: Stage, folder: Path) -> str:
    """Digests the local files that list samples, and tasks' words; media count by their paths in these files."""
    rows: list[list[Any]] = []
    for spec in stage.data:
        path = folder / Path(spec.path).expanduser()
        files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
        rows.append([spec.path, [digest_file(file).sha256 for file in files if file.is_file()]])
        if (wording := wording_of(spec, folder=folder)) is not None:
            rows[-1].append(wording.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
