"""Runs one stage, from its recipe to its result.

::

    headers  ->  parts and learning rates         a misspelt part is found in milliseconds
    data     ->  mixture, labels checked          missing data are found in seconds
    model    ->  loaded, adapted, frozen, digested
    train    ->  training checkpoints, log        a killed run is resumed from the last one
    result   ->  delta, adapter, record           frozen parts are digested again
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from transformers.trainer_callback import PrinterCallback

from mcompose import __version__
from mcompose.align import processes
from mcompose.align.data.batching import from_worker
from mcompose.align.data.masks import Mask
from mcompose.align.experts.training import (
    MASK,
    FittedRouters,
    add_mask_token,
    fit_routers,
    hiding_notices,
    length_notices,
    routers_loss,
    wants_mask_token,
)
from mcompose.align.features.playback import FEATURES, check_cacheable, play_features
from mcompose.align.frozen import FrozenModules, check_unchanged, frozen_digests
from mcompose.align.load import load_model, load_processor, memory_names, set_values, stage_precision
from mcompose.align.lora import add_factors, under_factors
from mcompose.align.memory import explain_out_of_memory
from mcompose.align.parts import Training, plan_training, read_parts
from mcompose.align.plot import plot_losses, read_losses, read_task_losses, summary
from mcompose.align.preference import PreferenceLoss
from mcompose.align.results.delta import Trained, full_values, write_result
from mcompose.align.results.folder import CHECKPOINTS, LOG, PLOT, finish, is_done, lock_stage, prepare, stages_folder
from mcompose.align.results.lineage import Lineage, StageResult, open_lineage, open_result
from mcompose.align.stage import StepPlan, fingerprint, plan_steps, spec_table
from mcompose.align.stage_data import StageData, open_data
from mcompose.align.strategy import NewGroups, add_new_groups, apply_strategy, group_names
from mcompose.align.trainer import AlignTrainer, TrainerParts, last_checkpoint, training_arguments
from mcompose.align.watch import Divergence, StageWatch, interruptible
from mcompose.anatomy import part_label
from mcompose.errors import InterruptedRunError, McomposeError
from mcompose.part_names import LANGUAGE_PARTS
from mcompose.progress import LINE_SECONDS, ProgressBar, track
from mcompose.recipe import Stage, part_role

__all__ = ["StageOutcome", "StageRequest", "run_stage"]

_LIBRARIES = ("torch", "transformers", "peft")

_NO_PLOT = "The loss was not plotted: matplotlib is not installed. Run 'pip install matplotlib' to get the plot."


@dataclass(frozen=True)
class StageRequest:
    """Request to run one stage.

    Args:
        stage: Stage of the recipe.
        number: Position of the stage in the recipe, from 1.
        parent: Folder that the stage starts from: a checkpoint, or the result of another stage.
        folder: Folder for the result.
        data_folder: Folder of the recipe, where relative paths of data start.
        name: Name of the recipe.
        resume: Whether an interrupted run is resumed.
        report_to: Tracker: ``none``, ``tensorboard``, ``wandb`` or ``trackio``.
        quiet: Whether to hide progress.
        masks: Masks to apply to every batch, in order.
    """

    stage: Stage
    number: int
    parent: Path
    folder: Path
    data_folder: Path
    name: str = ""
    resume: bool = True
    report_to: str = "none"
    quiet: bool = False
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True)
class StageOutcome:
    """Result of one stage.

    Args:
        result: Files of the result; None in processes other than the main one.
        notices: Sentences to show to the user.
        again: Whether the result existed before this run.
    """

    result: StageResult | None
    notices: tuple[str, ...] = field(default_factory=tuple)
    again: bool = False


def run_stage(request: StageRequest) -> StageOutcome:
    """Runs one stage; a stage that is done already is not run again.

    Args:
        request: Stage to run, and where.

    Returns:
        The result.

    Raises:
        RequestError: The stage, its data or its parent cannot be used.
        NumericsError: The loss is not finite or diverges, or a frozen part changed.
        InterruptedRunError: The user stopped the run; the next run resumes it.
        McomposeError: Memory ran out.
    """
    processes.check_sharding(request.stage)
    lineage = open_lineage(request.parent)
    check_cacheable(request.stage, lineage.config)
    anatomy = lineage.anatomy
    stage, groups = apply_strategy(request.stage, lineage.config, anatomy)
    new_mask = wants_mask_token(stage) and not lineage.config.get("mask_token")
    if wants_mask_token(stage) and not new_mask:
        stage = stage.model_copy(update={"train": tuple(dict.fromkeys([*stage.train, MASK]))})
    training = plan_training(
        stage,
        read_parts(anatomy),
        matrices=[key for key, shape in lineage.shapes.items() if len(shape) == 2],
        tied=anatomy.tied,
        added=(*(groups.parts if groups else ()), *((MASK,) if new_mask else ())),
    )
    processor = load_processor(lineage.root.folder)
    data = open_data(stage, processor, folder=request.data_folder, config=lineage.config)
    plan = plan_steps(
        stage,
        samples=stage.batch_size if data.samples is None else data.samples,
        processes=processes.world_size(),
    )
    run = _Run(request, stage, lineage, training, groups, data, plan, new_mask)
    if is_done(request.folder, run.fingerprint) and request.resume:
        return StageOutcome(open_result(request.folder), again=True)
    if not processes.is_main():
        run.train()
        return StageOutcome(None)
    with lock_stage(request.folder):
        notice = prepare(request.folder, fingerprint=run.fingerprint, resume=request.resume)
        notices = run.train()
    return StageOutcome(open_result(request.folder), (notice, *notices) if notice else notices)


@dataclass(frozen=True)
class _Run:
    """One run of one stage, in one process."""

    request: StageRequest
    stage: Stage
    lineage: Lineage
    training: Training
    groups: NewGroups | None
    data: StageData
    plan: StepPlan
    new_mask: bool = False

    @cached_property
    def precision(self) -> str:
        """Precision in force: ``float32``, ``mixed`` or ``bfloat16``."""
        return stage_precision(self.stage.precision, self.lineage.dtypes.values())

    @cached_property
    def quiet(self) -> bool:
        """Whether this process hides progress: on request, or because the main process shows it."""
        return self.request.quiet or not processes.is_main()

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that decide the numbers."""
        return {"mcompose": __version__, **{name: version(name) for name in _LIBRARIES}}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides the result of this run."""
        return fingerprint(
            self.request.stage, parent=self.lineage.identity, data=self.data.digest, versions=self.versions
        )

    def train(self) -> tuple[str, ...]:
        """Trains and writes the result.

        Returns:
            Sentences to show to the user.

        Raises:
            McomposeError: See ``run_stage``.
        """
        main, notices = processes.is_main(), tuple(self.data.notices())
        samples = self.data.ordered(self.stage, self.plan)  # before the model is loaded: it may refuse the tasks
        with explain_out_of_memory(self.stage, self.plan, precision=self.precision):
            model = load_model(self.lineage, precision=self.precision)
            labels = self._labels(model)
            trained, patch = self._make_trainable(model)
            fitted = self._fit_routers(model)
            before = frozen_digests(model, labels) if main else {}
            wrapped = model
            if trained.names:
                wrapped, more = self._run_steps(model, trained, samples)
                notices += more
            elif main:
                fitted.log(self.request.folder / LOG)
        written = fitted.add_to(trained)
        values = full_values(wrapped, written.names)
        if main:
            after = frozen_digests(model, labels)
            check_unchanged(before, after)
            notices += tuple(hiding_notices(self.stage, self.request.folder / LOG))
            record = fitted.record(alone=not trained.names) | {"warnings": list(notices)}
            frozen = fitted.without_routers(after)
            notices += self._write(written, values, patch=patch, frozen=frozen, more=record)
        processes.barrier()
        return notices

    def _run_steps(self, model: Any, trained: Trained, samples: Any) -> tuple[Any, tuple[str, ...]]:
        """Trains; returns the model as the trainer wrapped it, and sentences to show to the user."""
        trainer, watch = self._trainer(model, trained, samples)
        processes.barrier()  # until the main process has prepared the folder
        if self.stage.dpo is not None:
            trainer.compute_reference(label=f"stage {self.request.number}, reference", quiet=self.quiet)
        checkpoint = last_checkpoint(self.request.folder / CHECKPOINTS)
        with self._features(trainer) as notices, interruptible(watch):
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except McomposeError as error:
                raise from_worker(error) from error
            finally:
                watch.close()
        self._check_finished(trainer, watch)
        return trainer.model, (*notices, *length_notices(self.stage, trainer.longest))

    def _fit_routers(self, model: Any) -> FittedRouters:
        """Fits routers separately if the stage asks for it; every process gets the same routers."""
        if not self.stage.fits_router:
            return FittedRouters()
        samples = self._samples("router features")
        folder = stages_folder(self.lineage.root.folder) / FEATURES
        return fit_routers(model, self.data.experts, samples, folder=folder, precision=self.precision)

    def _samples(self, purpose: str) -> Iterator[Any]:
        """Yields every sample of the stage once, with progress."""
        mixture, label = self.data.mixture, f"stage {self.request.number}, {purpose}"
        return track(mixture.samples(), label=label, total=len(mixture), unit="sample", quiet=self.quiet)

    def _features(self, trainer: AlignTrainer) -> AbstractContextManager[tuple[str, ...]]:
        """Replaces frozen encoders by their cached outputs if the stage asks for it."""
        if not self.stage.feature_cache:
            return nullcontext(())
        model, batches = cast("Any", trainer.model), cast("Any", trainer.data_collator)
        folder = stages_folder(self.lineage.root.folder) / FEATURES
        samples = self._samples("features")
        return play_features(model, batches.collate, samples, folder=folder, precision=self.precision)

    def _make_trainable(self, model: Any) -> tuple[Trained, dict[str, Any]]:
        """Adds groups and low-rank factors, and makes the trained parameters trainable, at full precision."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        patch, added = {}, {}  # of the config; name in memory to part
        names = memory_names(model, self.lineage.anatomy, keys=self._keys())
        if self.groups is not None:
            patch = add_new_groups(model, self.groups, seed=self.stage.seed)
            added = group_names(model, self.groups)
        if self.new_mask:
            patch |= add_mask_token(model)
            added |= {"model.mask_token": MASK}
        direct = {key: names[key] for key in self.training.direct}
        set_values(model, self.lineage, direct, dtype=dtype)
        factors = add_factors(model, self.training.lora, names, seed=self.stage.seed)
        direct = under_factors(model, direct)
        model.requires_grad_(requires_grad=False)
        parts = {direct[key]: part for key, part in self.training.direct.items()} | added | factors
        for name, parameter in model.named_parameters():
            if name in parts:
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad_()
        keys = {name: key for key, name in direct.items()} | {name: name for name in added}
        return Trained(keys, factors, parts, self.training.lora), patch

    def _keys(self) -> list[str]:
        return [*self.training.direct, *(key for part in self.training.lora for key in part.keys)]

    def _labels(self, model: Any) -> dict[str, str]:
        """Maps names in memory to labels of parts, for all tensors that have a name in memory."""
        anatomy = self.lineage.anatomy
        names = memory_names(model, anatomy, keys=anatomy.slots, strict=False)
        slots = {name: anatomy.slots[key] for key, name in names.items()}
        return {name: part_label(slot.name, slot.part) for name, slot in slots.items()}

    def _trainer(self, model: Any, trained: Trained, samples: Any) -> tuple[AlignTrainer, StageWatch]:
        stage, plan, request = self.stage, self.plan, self.request
        if stage.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        arguments = training_arguments(
            request.folder / CHECKPOINTS,
            stage,
            plan,
            precision=self.precision,
            report_to=request.report_to,
            unused=any(part_role(part)[0] not in LANGUAGE_PARTS for part in trained.parts.values()),
        )
        frozen = FrozenModules(model, checkpointing=stage.gradient_checkpointing)
        trainer = AlignTrainer(
            parts=TrainerParts(
                stage,
                plan,
                trained.parts,
                self.training.rates,
                frozen,
                router=routers_loss(model, self.data.experts),
                predicts=self.data.experts.predicts,
                tasks=self.data.tasks(stage),
                preference=None if stage.dpo is None else PreferenceLoss(float(stage.dpo.beta)),
            ),
            model=model,
            args=arguments,
            train_dataset=samples,
            data_collator=self.data.batches(stage, model, request.masks, plan=plan),
        )
        watch = StageWatch(
            request.folder / LOG if processes.is_main() else None,
            progress=ProgressBar(f"stage {request.number}", unit="step", quiet=self.quiet, every=LINE_SECONDS),
            steps=plan.steps,
            divergence=Divergence() if stage.stop_on_divergence else None,
            tokens=lambda: trainer.tokens,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        return trainer, watch

    def _check_finished(self, trainer: AlignTrainer, watch: StageWatch) -> None:
        done = trainer.state.global_step
        if done < self.plan.steps:
            raise InterruptedRunError(
                f"Stage {self.request.number} was stopped after step {done} of {self.plan.steps}.",
                hint="Run the same command again to resume it.",
            )

    def _write(
        self,
        trained: Trained,
        values: Mapping[str, torch.Tensor],
        *,
        patch: Mapping[str, Any],
        frozen: Mapping[str, Any],
        more: Mapping[str, Any],
    ) -> tuple[str, ...]:
        folder, request = self.request.folder, self.request
        digests = write_result(folder, trained, values, dtypes=self.lineage.dtypes)
        losses, tasks = read_losses(folder / LOG), read_task_losses(folder / LOG)
        title = f"{request.name} stage {request.number}".strip()
        plotted = plot_losses(losses, folder / PLOT, title=title, tasks=tasks)
        parent = Path(os.path.relpath(request.parent.resolve(), folder.resolve())).as_posix()
        record = {
            "format": 1,
            "stage": request.number,
            "recipe": request.name,
            "fingerprint": self.fingerprint,
            "parent": {"path": parent, "identity": self.lineage.identity},
            "settings": spec_table(request.stage),
            "precision": self.precision,
            "plan": {"steps": self.plan.steps, "batch": self.plan.batch, "warmup": self.plan.warmup},
            "data": self.data.rows(),
            "trained": part_sizes(trained, values),
            "frozen": dict(frozen),
            "losses": summary(losses),
            **({"task_losses": {task: summary(rows) for task, rows in tasks.items()}} if tasks else {}),
            "config": dict(patch),
            "versions": self.versions,
            **more,
            **digests,
        }
        finish(folder, record)
        return () if plotted else (_NO_PLOT,)


def part_sizes(trained: Trained, values: Mapping[str, torch.Tensor]) -> dict[str, dict[str, int]]:
    """Counts the trained tensors and parameters of each part."""
    sizes: dict[str, dict[str, int]] = {}
    for name in trained.names:
        size = sizes.setdefault(trained.parts[name], {"tensors": 0, "parameters": 0})
        size["tensors"] += 1
        size["parameters"] += values[name].numel()
    return sizes
