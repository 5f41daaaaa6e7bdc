"""transformers' Trainer with what a stage needs of it: our order, our groups of parameters, small saved points.

The Trainer brings the loop, mixed precision, accumulation, DDP, FSDP and reporting. Changed here: samples come in the
order that was laid out; each part has its own learning rate; a saved point holds the trained parameters and not the
model; frozen modules stay in evaluation mode; nothing counts floating-point operations. With domain experts, the
router's loss is that of the whole step, items may be routed by the router itself, and evaluation hides no token. A
stage that learns from pairs has their loss instead of the model's, divided as Trainer divides means.
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
from mcompose.align.experts.gscm import hidden_tokens, unhidden
from mcompose.align.experts.router_loss import RouterLoss
from mcompose.align.experts.training import longest_sample, routed
from mcompose.align.frozen import FrozenModules
from mcompose.align.preference import PreferenceLoss, pair_key, reference_of
from mcompose.align.results.delta import full_values
from mcompose.align.schedule import rate_factor
from mcompose.align.stage import StepPlan
from mcompose.align.tensor_file import read_tensors, write_tensors
from mcompose.align.watch import COMPLETE
from mcompose.progress import track
from mcompose.recipe import Stage

__all__ = ["AlignTrainer", "TrainerParts", "last_point", "parameter_groups", "training_arguments"]

POINT = "trained.safetensors"
"""Trained parameters of a saved point, at full precision."""


@dataclass(frozen=True)
class TrainerParts:
    """What the trainer is told beside Trainer's own arguments.

    Args:
        stage: The recipe's stage.
        plan: Steps of the stage.
        names: Trained parameters in memory, to the name of their part.
        rates: Part to learning rate.
        frozen: Modules that stay in evaluation mode.
        router: The routers' loss; None when they are not trained.
        predicts: Whether the router itself chooses experts in training.
        preference: The loss of pairs of answers, instead of the model's own; None without.
    """

    stage: Stage
    plan: StepPlan
    names: Mapping[str, str]
    rates: Mapping[str, float]
    frozen: FrozenModules
    router: RouterLoss | None = None
    predicts: bool = False
    preference: PreferenceLoss | None = None


def training_arguments(
    folder: Path, stage: Stage, plan: StepPlan, *, precision: str, report_to: str = "none", unused: bool = False
) -> TrainingArguments:
    """Trainer's arguments of a stage.

    Args:
        folder: Folder of the training checkpoints.
        stage: The recipe's stage.
        plan: Steps of the stage.
        precision: ``float32``, ``mixed`` or ``bfloat16``.
        report_to: ``none``, ``tensorboard``, ``wandb`` or ``trackio``.
        unused: Whether a step may leave a trained part without gradient (a tower whose modality no sample shows).
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
    """Optimizer groups: per part, matrices with weight decay and the rest without.

    Args:
        model: Holds the parameters.
        names: Trained parameters to their part.
        rates: Part to learning rate.
        weight_decay: On matrices.
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
    """Runs one stage.

    Args:
        parts: Parts that are trained, with their rates.
        **kwargs: Trainer's own.
    """

    def __init__(self, *, parts: TrainerParts, **kwargs: Any) -> None:
        self.parts = parts
        self.tokens = 0
        self.longest = 0
        self._hidden = 0
        super().__init__(**kwargs)
        # Inside the model, so that DDP sees it as part of the forward pass.
        self.model.register_forward_hook(self._reach_parameters)  # pyright: ignore[reportOptionalMemberAccess]

    def _reach_parameters(self, module: torch.nn.Module, _arguments: Any, output: Any) -> Any:
        """Gives a piece without media a gradient of zero when only towers are trained: it has none otherwise."""
        if not module.training or output.loss is None or output.loss.requires_grad:
            return output
        trained = [p for p in module.parameters() if p.requires_grad]
        output["loss"] = output.loss + 0.0 * torch.stack([p.sum().float() for p in trained]).sum()
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # pyright: ignore

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the trained parameters."""
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
        """Warm-up and fall, the same for every group."""
        if self.lr_scheduler is None:
            plan = self.parts.plan
            factor = rate_factor(self.parts.stage.schedule, steps=plan.steps, warmup=plan.warmup)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Returns the pieces of a step; what the routers' loss is divided by is known from then on."""
        pieces, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        router = self.parts.router
        if router is not None:
            mine = router.begin_step([piece.get("router_labels") for piece in pieces])
            total = torch.tensor(mine, dtype=torch.float64).to(device, torch.float32)
            router.share(float(self._summed(total)))
        return pieces, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the model's own loss and the routers', with frozen modules in evaluation mode."""
        self.parts.frozen.evaluate()
        self.tokens += inputs.pop("tokens", 0)
        if self.parts.preference is not None:
            self._hidden += hidden_tokens(inputs)
            return self._preference_loss(model, inputs, asked=bool(kwargs.get("return_outputs")))
        if not model.training:
            inputs = unhidden(inputs)
        labels = inputs.get("router_labels")
        if self.parts.predicts:
            with self.accelerator.autocast():
                inputs = routed(self.accelerator.unwrap_model(model), inputs, self.parts.stage)
            self.longest = max(self.longest, longest_sample(inputs))
        self._hidden += hidden_tokens(inputs)
        asked = kwargs.pop("return_outputs", False)
        given = {**inputs, "use_cache": False}
        both: Any = super().compute_loss(model, given, *args, return_outputs=True, **kwargs)
        loss, outputs = both
        if self.parts.router is not None and labels is not None:
            # Gradients are averaged over processes, and the loss is a share of the sum over them.
            loss = loss + self.parts.router(outputs["router_logits"], labels) * self.accelerator.num_processes
        return (loss, outputs) if asked else loss

    def _preference_loss(self, model: Any, inputs: dict[str, Any], *, asked: bool) -> Any:
        assert self.parts.preference is not None
        loss, outputs = self.parts.preference(model, inputs)
        if model.training and not loss.requires_grad:  # only towers are trained, and the batch shows them nothing
            loss = loss + 0.0 * torch.stack([p.sum().float() for p in model.parameters() if p.requires_grad]).sum()
        return (loss, outputs) if asked else loss

    def refer(self, *, label: str, quiet: bool) -> None:
        """Asks the model about every pair of the stage before it is trained, for the loss of pairs.

        Args:
            label: What the progress is called.
            quiet: Show none.
        """
        data: Any = self.train_dataset
        batches: Any = self.data_collator
        items = {pair_key(sample): (position, sample) for position, sample in map(data.__getitem__, range(len(data)))}
        waiting, size = list(items.values()), self.parts.plan.micro
        rows = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        seen = track(rows, label=label, total=len(rows), unit="step", quiet=quiet)
        made = (([sample for _, sample in row], self._prepare_inputs(batches(row))) for row in seen)
        with self.accelerator.autocast():
            batches.collate.reference = reference_of(self.model, made)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what is particular to a stage to a step's row.

        Of masking: how many tokens were hidden. Of routers: their loss, and their share of labelled items that was
        right. Of pairs: the mean margin of the chosen answers over the rejected ones, and the share of pairs where it
        is positive.
        """
        gscm = self.parts.stage.gscm
        if gscm is not None and gscm.ratio > 0 and "loss" in logs:
            hidden, self._hidden = torch.tensor([float(self._hidden)], device=self.args.device), 0
            logs = {**logs, "hidden": int(self._summed(hidden))}
        if self.parts.preference is not None and "loss" in logs:
            margins, right, pairs = self._summed(
                torch.tensor(self.parts.preference.told(), device=self.args.device)
            ).tolist()
            logs = {**logs, "margin": margins / max(pairs, 1.0), "preference_accuracy": right / max(pairs, 1.0)}
        if self.parts.router is not None and "loss" in logs:
            said = torch.tensor(self.parts.router.told(), device=self.args.device)
            loss, right, known = self._summed(said).tolist()
            logs = {**logs, "router_loss": loss, **({"router_accuracy": right / known} if known else {})}
        super().log(logs, start_time)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        summed: Any = self.accelerator.reduce(values, "sum")
        return summed

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it walks over every parameter in every step."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 - Trainer's signature
        """Writes the trained parameters."""
        values = full_values(self.model, tuple(self.parts.names))  # pyright: ignore[reportArgumentType]
        if self.args.should_save:
            write_tensors(Path(output_dir or str(self.args.output_dir)) / POINT, values)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target: Any = self.model if model is None else model
        values = read_tensors(Path(resume_from_checkpoint) / POINT)
        parameters = {name.removeprefix("module."): value for name, value in target.named_parameters()}
        for name, value in values.items():
            parameter: Any = parameters[name]
            if hasattr(parameter, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - for sharded models only

                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def last_point(folder: Path) -> Path | None:
    """Returns the newest training checkpoint that is whole.

    Args:
        folder: Folder of the training checkpoints.
    """
    points = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(points, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
