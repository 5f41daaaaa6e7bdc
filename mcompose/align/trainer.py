"""transformers' Trainer, adapted to stages: planned order, a learning rate per part, small training checkpoints.

The Trainer provides the loop, mixed precision, accumulation, DDP, FSDP and reporting. Changed here: samples come in the
planned order; each part has its own learning rate; a training checkpoint holds the trained parameters, not the model;
frozen modules stay in evaluation mode; floating-point operations are not counted. With domain experts, the router's
loss is normalised over the whole step, the router itself may choose the experts of items, and evaluation hides no
tokens. A stage with preference pairs uses their loss instead of the model's, averaged over pieces as Trainer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from mcompose.align import processes
from mcompose.align.experts.gscm import hidden_tokens, unmask
from mcompose.align.experts.router_loss import RouterLoss
from mcompose.align.experts.training import longest_sample, routed
from mcompose.align.frozen import FrozenModules
from mcompose.align.gates import GateFigures
from mcompose.align.preference import PreferenceLoss, pair_key, reference_log_probs
from mcompose.align.results.delta import full_values
from mcompose.align.schedule import rate_factor
from mcompose.align.stage import StepPlan
from mcompose.align.task_losses import TaskLosses
from mcompose.align.tensor_file import read_tensors, write_tensors
from mcompose.align.watch import COMPLETE
from mcompose.modeling import in_weights_dtype
from mcompose.progress import track
from mcompose.recipe import Stage

__all__ = ["AlignTrainer", "TrainerParts", "last_checkpoint", "parameter_groups", "training_arguments"]

WEIGHTS_FILE = "trained.safetensors"
"""File of a training checkpoint with the trained parameters, at full precision."""


@dataclass(frozen=True)
class TrainerParts:
    """Settings of a stage that the trainer needs beside Trainer's own arguments.

    Args:
        stage: Stage of the recipe.
        plan: Steps of the stage.
        names: Name in memory of each trained parameter to the name of its part.
        rates: Part to learning rate.
        frozen: Modules that stay in evaluation mode.
        router: Loss of the routers; None if they are not trained.
        predicts: Whether the router itself chooses experts in training.
        tasks: Tasks whose losses are told apart; ``tasks`` in a batch counts them.
        preference: Loss of preference pairs, which replaces the model's own; None without pairs.
    """

    stage: Stage
    plan: StepPlan
    names: Mapping[str, str]
    rates: Mapping[str, float]
    frozen: FrozenModules
    router: RouterLoss | None = None
    predicts: bool = False
    tasks: tuple[str, ...] = ()
    preference: PreferenceLoss | None = None


def training_arguments(
    folder: Path, stage: Stage, plan: StepPlan, *, precision: str, report_to: str = "none", unused: bool = False
) -> TrainingArguments:
    """Makes Trainer's arguments for a stage.

    Args:
        folder: Folder for training checkpoints.
        stage: Stage of the recipe.
        plan: Steps of the stage.
        precision: Precision in force: ``float32``, ``mixed`` or ``bfloat16``.
        report_to: Tracker: ``none``, ``tensorboard``, ``wandb`` or ``trackio``.
        unused: Whether a trained part may have no gradient in a step (a tower whose modality no sample has).
    """
    cpu = not torch.cuda.is_available()
    sharding: dict[str, Any] = {}
    if stage.sharding == "fsdp":
        wrap = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
        sharding = {"fsdp": True, "fsdp_config": wrap}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro,
        gradient_accumulation_steps=plan.pieces,
        max_grad_norm=stage.clip,
        seed=stage.seed,
        bf16=precision == "mixed",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=stage.save_every,
        save_total_limit=2,
        report_to=report_to,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=stage.workers,
        dataloader_pin_memory=not cpu,
        disable_tqdm=True,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes.world_size() > 1 else None,
        ddp_find_unused_parameters=unused,
        **sharding,
    )


def parameter_groups(
    model: torch.nn.Module, names: Mapping[str, str], rates: Mapping[str, float], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Makes the optimizer's groups: for each part, matrices with weight decay, and the rest without.

    Args:
        model: Model that holds the parameters.
        names: Name of each trained parameter to its part.
        rates: Part to learning rate.
        weight_decay: Weight decay of matrices.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[str, bool], list[Any]] = {}
    for name, part in names.items():
        parameter = parameters.get(name, parameters.get(f"module.{name}"))
        groups.setdefault((part, parameter is not None and parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": params, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0, "part": part}
        for (part, decays), params in groups.items()
    ]


class AlignTrainer(Trainer):
    """Trainer of one stage.

    Args:
        parts: Settings of the stage.
        **kwargs: Arguments of ``Trainer``.
    """

    def __init__(self, *, parts: TrainerParts, **kwargs: Any) -> None:
        self.parts = parts
        self.tokens = 0
        self.longest = 0
        self._hidden = 0
        self._task_losses = TaskLosses(parts.tasks)
        self._gates = GateFigures()
        super().__init__(**kwargs)
        # A hook of the model, so that DDP sees its result as part of the forward pass.
        self.model.register_forward_hook(self._connect_parameters)  # pyright: ignore[reportOptionalMemberAccess]

    def _connect_parameters(self, module: torch.nn.Module, _arguments: Any, output: Any) -> Any:
        """Gives trained parameters a zero gradient if the loss has none: only towers are trained, without media."""
        if not module.training or output.loss is None or output.loss.requires_grad:
            return output
        trained = [p for p in module.parameters() if p.requires_grad]
        output["loss"] = output.loss + 0.0 * torch.stack([p.sum().float() for p in trained]).sum()
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # pyright: ignore

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes AdamW over the trained parameters."""
        if self.optimizer is None:
            stage = self.parts.stage
            groups = parameter_groups(
                model or self.model,  # pyright: ignore[reportArgumentType]
                self.parts.names,
                self.parts.rates,
                weight_decay=stage.weight_decay,
            )
            self.optimizer = torch.optim.AdamW(groups, fused=torch.cuda.is_available() or None)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Makes the schedule of the learning rate, the same factor for every group."""
        if self.lr_scheduler is None:
            plan = self.parts.plan
            factor = rate_factor(self.parts.stage.schedule, steps=plan.steps, warmup=plan.warmup)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        network = self.accelerator.unwrap_model(self.model)
        return prepared if hasattr(network.config, "sources") else in_weights_dtype(network, prepared)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Returns the pieces of a step, and tells the routers' loss the sum of weights over the whole step."""
        pieces, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        router = self.parts.router
        if router is not None:
            local = router.begin_step([piece.get("router_labels") for piece in pieces])
            total = torch.tensor(local, dtype=torch.float64).to(device, torch.float32)
            router.set_total(float(self._summed(total)))
        return pieces, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the model's loss plus the routers', or the loss of pairs, with frozen modules in evaluation mode."""
        self.parts.frozen.evaluate()
        self.tokens += inputs.pop("tokens", 0)
        tasks = inputs.pop("tasks", None)
        if self.parts.preference is not None:
            self._hidden += hidden_tokens(inputs)
            return self._preference_loss(model, inputs, with_outputs=bool(kwargs.get("return_outputs")))
        if not model.training:
            inputs = unmask(inputs)
        labels = inputs.get("router_labels")
        if self.parts.predicts:
            with self.accelerator.autocast():
                inputs = routed(self.accelerator.unwrap_model(model), inputs, self.parts.stage)
            self.longest = max(self.longest, longest_sample(inputs))
        self._hidden += hidden_tokens(inputs)
        with_outputs = kwargs.pop("return_outputs", False)
        inputs = {**inputs, "use_cache": False}
        loss_and_outputs: Any = super().compute_loss(model, inputs, *args, return_outputs=True, **kwargs)
        loss, outputs = loss_and_outputs
        if tasks is not None and model.training:
            self._task_losses.add(outputs, inputs, tasks)
        self._gates.add(outputs.get("adapter_figures"))
        if self.parts.router is not None and labels is not None:
            # DDP averages gradients over processes; this loss is to be summed over them.
            loss = loss + self.parts.router(outputs["router_logits"], labels) * self.accelerator.num_processes
        return (loss, outputs) if with_outputs else loss

    def _preference_loss(self, model: Any, inputs: dict[str, Any], *, with_outputs: bool) -> Any:
        assert self.parts.preference is not None
        loss, outputs = self.parts.preference(model, inputs)
        if model.training and not loss.requires_grad:  # only towers are trained, without media
            loss = loss + 0.0 * torch.stack([p.sum().float() for p in model.parameters() if p.requires_grad]).sum()
        return (loss, outputs) if with_outputs else loss

    def compute_reference(self, *, label: str, quiet: bool) -> None:
        """Computes the untrained model's log-probabilities of every pair, which the loss of pairs needs.

        Args:
            label: Label of the progress bar.
            quiet: Whether to hide progress.
        """
        data: Any = self.train_dataset
        batches: Any = self.data_collator
        items = {pair_key(sample): (position, sample) for position, sample in map(data.__getitem__, range(len(data)))}
        pairs, size = list(items.values()), self.parts.plan.micro
        rows = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        tracked = track(rows, label=label, total=len(rows), unit="step", quiet=quiet)
        prepared = (([sample for _, sample in row], self._prepare_inputs(batches(row))) for row in tracked)
        with self.accelerator.autocast():
            batches.collate.reference = reference_log_probs(self.model, prepared)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the stage's own fields to a step's row.

        With masking: the number of hidden tokens. With routers: their loss, and their accuracy on labelled items.
        With several tasks: the loss and the number of learned tokens of each that the step had.
        With pairs: the mean margin of chosen over rejected answers, and the share of pairs whose margin is positive.
        With adapters: entropy and least share of their gates, by set and modality.
        """
        gscm = self.parts.stage.gscm
        if gscm is not None and gscm.ratio > 0 and "loss" in logs:
            hidden, self._hidden = torch.tensor([float(self._hidden)], device=self.args.device), 0
            logs = {**logs, "hidden": int(self._summed(hidden))}
        if self.parts.preference is not None and "loss" in logs:
            margins, right, pairs = self._summed(
                torch.tensor(self.parts.preference.take_totals(), device=self.args.device)
            ).tolist()
            logs = {**logs, "margin": margins / max(pairs, 1.0), "preference_accuracy": right / max(pairs, 1.0)}
        if self.parts.router is not None and "loss" in logs:
            totals = torch.tensor(self.parts.router.take_totals(), device=self.args.device)
            loss, right, known = self._summed(totals).tolist()
            logs = {**logs, "router_loss": loss, **({"router_accuracy": right / known} if known else {})}
        if self.parts.tasks and "loss" in logs:
            logs = {**logs, **self._task_losses.row(self._summed(self._task_losses.take(self.args.device)))}
        if "loss" in logs:
            logs = {**logs, **self._gates.take()}
        super().log(logs, start_time)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sums values over all processes."""
        summed: Any = self.accelerator.reduce(values, "sum")
        return summed

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0: counting would visit every parameter in every step."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 - Trainer's signature
        """Writes the trained parameters."""
        values = full_values(self.model, tuple(self.parts.names))  # pyright: ignore[reportArgumentType]
        if self.args.should_save:
            write_tensors(Path(output_dir or str(self.args.output_dir)) / WEIGHTS_FILE, values)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target: Any = self.model if model is None else model
        values = read_tensors(Path(resume_from_checkpoint) / WEIGHTS_FILE)
        parameters = {name.removeprefix("module."): value for name, value in target.named_parameters()}
        for name, value in values.items():
            parameter: Any = parameters[name]
            if hasattr(parameter, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - for sharded models only

                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete training checkpoint; None if there is none.

    Args:
        folder: Folder of the training checkpoints.
    """
    checkpoints = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
