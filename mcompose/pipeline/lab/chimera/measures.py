"""What the Chimera report measures of a checkpoint: answers by route, the router, attention on experts, their cost.

Letters: B samples, H heads, L tokens.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from mcompose.evaluate import (
    NONE,
    Confusion,
    EvaluatedModel,
    EvaluateOptions,
    Item,
    attention_mass,
    confusion_matrix,
    evaluate_task,
    figures,
    load_evaluated_model,
    load_task,
)
from mcompose.media import read_media

__all__ = ["answered", "attention", "cost", "router"]

_ROUNDS: Final = 3
_CHUNK: Final = 60


def answered(
    checkpoint: Path, tasks: Sequence[Path], *, route: str = "auto", batch: int, limit: int | None = None
) -> dict[str, float]:
    """Asks tasks.

    Args:
        checkpoint: Its folder.
        tasks: Task files; pictures lie in a folder that is called as their domain.
        route: ``auto`` asks the router, where there is one; ``told``, ``wrong`` and ``none`` force experts.
        batch: Questions asked at once.
        limit: Only the first so many questions of each task.

    Returns:
        Task -> share of right answers.
    """
    evaluated = load_evaluated_model(checkpoint).sending_to(route)
    found = {}
    for path in tasks:
        task = load_task(path, limit=limit)
        items = tuple(replace(item, domain=_folder(item)) for item in task.items)
        made = evaluate_task(evaluated, replace(task, items=items), options=EvaluateOptions(batch_size=batch))
        found[task.name] = figures(task, made)[0].value
    return found


def _folder(item: Item) -> str:
    path = item.inputs[0].path
    return path.parent.name if path else ""


@dataclass(frozen=True)
class _Shown:
    """Held-out pictures of one domain."""

    domain: str
    images: list[Any]


def _shown(data: Path, *, limit: int | None) -> list[_Shown]:
    found: dict[str, list[Path]] = {}
    for line in (data / "labels.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["domain"], []).append(data / row["path"])
    return [_Shown(domain, [read_media(path, "image") for path in own[:limit]]) for domain, own in found.items()]


def _prepared(
    evaluated: EvaluatedModel, images: Sequence[Any], texts: Sequence[str], *, experts: Any = None
) -> dict[str, Any]:
    return evaluated.prepare_inputs(texts, {"image": [[image] for image in images]}, experts=experts)


@torch.inference_mode()
def confusion(checkpoint: Path, data: Path) -> Confusion:
    """What the router makes of all held-out pictures.

    Args:
        checkpoint: A composition with a router.
        data: The family's data.
    """
    evaluated = load_evaluated_model(checkpoint)
    classes = [NONE, *evaluated.model.config.experts]
    pairs: list[tuple[str | None, str]] = []
    for shown in _shown(data, limit=None):
        for start in range(0, len(shown.images), _CHUNK):
            some = shown.images[start : start + _CHUNK]
            inputs = _prepared(evaluated, some, ["<image>"] * len(some), experts="auto")
            routes = evaluated.model.route(**inputs)["routes"]
            pairs += [(shown.domain, route[0] if route else NONE) for route in routes]
    return confusion_matrix(pairs, classes=classes)


def router(checkpoint: Path, data: Path, *, limit: int) -> dict[str, float]:
    """Accuracy of the router on all held-out pictures, and the share of each label that goes to each class.

    Args:
        checkpoint: A composition with a router.
        data: The family's data.
        limit: Not used: pictures cost little here.
    """
    del limit
    found = confusion(checkpoint, data)
    made = {"accuracy": found.accuracy or 0.0}
    for label, row in zip(found.classes, found.counts, strict=True):
        for name, count in zip(found.classes, row, strict=True):
            made[f"{label} to {name}"] = count / max(1, sum(row))
    return made


@torch.inference_mode()
def attention(checkpoint: Path, data: Path, *, limit: int) -> dict[str, float]:
    """Share of the attention of answers that falls on experts' and on general tokens, over all layers and heads.

    Every question has its right answer after it, and its picture goes to the expert of its domain. Nothing is masked.

    Args:
        checkpoint: A composition with experts.
        data: The family's data.
        limit: Questions a task.

    Returns:
        ``attention-expert``, ``attention-general``, and ``attention-share``: the first over the sum of both.
    """
    evaluated = load_evaluated_model(checkpoint)
    evaluated.model.set_attn_implementation("eager")
    experts = list(evaluated.model.config.experts)
    on_expert, on_general = [], []
    for path in sorted(data.glob("*.jsonl")):
        domain = path.stem.partition("-")[0]
        if domain not in experts:
            continue
        items = load_task(path, limit=limit).items
        images = [read_media(entry.path, "image") for item in items for entry in item.inputs if entry.path is not None]
        inputs = _prepared(
            evaluated, images, [f"{item.prompt(item.inputs)} {item.answer}" for item in items], experts=domain
        )
        words = [len(item.answer.split()) for item in items]
        made = evaluated.model(**inputs, output_attentions=True).attentions
        queries_BL = _answers(inputs["input_ids"], words)
        ids_BL, config = inputs["input_ids"], evaluated.model.config
        for layer_BHLL in made:
            for marked, kept in (
                (ids_BL == config.expert_token_ids[domain], on_expert),
                (inputs["mm_token_type_ids"] == 1, on_general),
            ):
                kept.append(float(attention_mass(layer_BHLL, queries=queries_BL, keys=marked).mean()))
    expert, general = statistics.fmean(on_expert), statistics.fmean(on_general)
    return {
        "attention-expert": expert, "attention-general": general, "attention-share": expert / (expert + general),
    }  # fmt: skip


def _answers(ids_BL: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """The positions that predict the answers: rows are padded on the left, and an answer's words are its tokens."""
    marked_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    for row, count in enumerate(words):
        marked_BL[row, -count - 1 : -1] = True
    return marked_BL


@torch.inference_mode()
def cost(checkpoint: Path, data: Path, *, limit: int) -> dict[str, float]:
    """Tokens and milliseconds of a picture with its expert and without one.

    One picture at a time, as a user asks: processor, encoders, and the first word of an answer; seconds of this
    process's own computing, the fastest of three rounds.

    Args:
        checkpoint: A composition with experts.
        data: The family's data.
        limit: Pictures a domain.

    Returns:
        ``tokens-<domain>``: of the expert; ``ms-<domain>`` and ``ms-<domain>-none``: with and without it; ``tokens``,
        ``ms`` and ``ms-none``: their means; ``tokens-general``: of a picture without one.
    """
    evaluated = load_evaluated_model(checkpoint)
    experts = list(evaluated.model.config.experts)
    made: dict[str, float] = {}
    for shown in _shown(data, limit=limit):
        if shown.domain in experts:
            for name, expert in (("", shown.domain), ("-none", NONE)):
                lengths, spent = _spent(evaluated, shown.images, expert)
                made[f"length-{shown.domain}{name}"] = lengths
                made[f"ms-{shown.domain}{name}"] = spent
    return _with_means(made, experts)


def _spent(evaluated: EvaluatedModel, images: Sequence[Any], expert: str) -> tuple[float, float]:
    """Mean tokens, and milliseconds of computing, of one picture."""
    best = float("inf")
    lengths: list[int] = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        lengths = []
        for image in images:
            inputs = _prepared(evaluated, [image], ["<image>"], experts=expert)
            evaluated.model(**inputs, logits_to_keep=1)
            lengths.append(inputs["input_ids"].shape[1])
        best = min(best, time.process_time() - started)
    return statistics.fmean(lengths), 1000 * best / len(images)


def _with_means(made: Mapping[str, float], experts: Sequence[str]) -> dict[str, float]:
    there = [name for name in experts if f"ms-{name}" in made]
    tokens = {f"tokens-{name}": made[f"length-{name}"] - made[f"length-{name}-none"] for name in there}
    times = {key: value for key, value in made.items() if key.startswith("ms-")}
    return {
        "tokens": statistics.fmean(tokens.values()),
        "ms": statistics.fmean(made[f"ms-{name}"] for name in there),
        "ms-none": statistics.fmean(made[f"ms-{name}-none"] for name in there),
        **tokens,
        **times,
    }
