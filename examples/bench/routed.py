"""A model with decoupled parameter groups beside the same model without, on the same tokens.

    python -m examples.bench.routed
    python -m examples.bench.routed --hidden 1024 --layers 4 --rounds 15 --dtype bfloat16 --prompt short

The long prompt: text, an image of 576 vectors, text, a point cloud of 512 vectors, text. The short one: eight rows with
an image of 49 and a cloud of 32. Features are made beforehand, so that what is timed is the language model: the whole
prompt once (prefill), and single tokens after it (decode). All models run in turn, in changing order, after unmeasured
rounds; ratios are taken round by round, so that a noisy moment of the machine hits all. Text weights are the same
tensors in all. The floor is the same matrix products on tokens that are already in the order of their groups, the
minimal cost of a model with several sets of weights.
"""

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig

from mcompose.modeling import (
    ComposedConfig,
    ComposedForConditionalGeneration,
    add_groups,
    composed_config,
    fold_text,
    stored_source,
)
from mcompose.modeling.groups import linear as routed
from mcompose.modeling.groups.weight_routing import Route, Share, make_route
from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.towers.features import Features

IDS = {"image": 900, "points": 901}
PROMPTS = {"long": (1, {"image": 576, "points": 512}), "short": (8, {"image": 49, "points": 32})}
BOTH = ("image", "points")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS = ("dense", "low-rank", "low-rank text", "separate")


def config_of(hidden: int, layers: int) -> ComposedConfig:
    """Returns the configuration of a Llama with an image and a points source, with tiny encoders."""
    text = LlamaConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 256,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    sources = {
        "sees": stored_source(LlavaConfig(text_config=text, vision_config=vision), modalities=["image"]),
        "feels": stored_source(PointsConfig(text_config=text.to_dict()), modalities=["points"]),
    }
    return composed_config(text, sources, placeholders=IDS)


def routed_like(
    dense: ComposedForConditionalGeneration, variant: str, *, rank: int
) -> ComposedForConditionalGeneration:
    """Builds a routed model over the dense one's own tensors."""
    model = ComposedForConditionalGeneration(copy.deepcopy(dense.config)).to(dense.dtype).eval()
    model.load_state_dict(dense.state_dict(), assign=True)
    if variant == "dense":
        add_groups(model, BOTH)
        return model
    names = BOTH if variant == "low-rank" else ("text", *BOTH)
    add_groups(model, names, kind="low_rank", rank=rank, scale=2.0)
    if variant == "separate":
        fold_text(model)
    return model


def prompt(name: str, *, hidden: int, dtype: torch.dtype) -> dict[str, Any]:
    """Makes ids and features of one prompt."""
    rows, counts = PROMPTS[name]
    generator = torch.Generator().manual_seed(0)
    ids = [1, *range(10, 50)]
    for modality, index in IDS.items():
        ids += [index] * counts[modality] + list(range(60, 90))
    made = {
        m: Features(torch.randn(rows * count, hidden, generator=generator).to(dtype)) for m, count in counts.items()
    }
    return {"input_ids": torch.tensor([ids] * rows), "mm_features": made}


def ready(route: Route | None) -> Route | None:
    """Returns a route with the same products, over tokens in the order of their groups."""
    return route and Route(tokens=route.tokens, shares=in_a_row(route.shares), parts=in_a_row(route.parts))


def in_a_row(shares: list[Share]) -> list[Share]:
    """Returns shares of the same weights and sizes, over consecutive tokens."""
    counts = [len(s.index) if s.index is not None else s.stop - s.start for s in shares]
    stops = list(itertools.accumulate(counts))
    return [Share(s.weights, stop - count, stop) for s, count, stop in zip(shares, counts, stops, strict=True)]


@contextmanager
def moving_nothing() -> Iterator[None]:
    """Makes models compute the floor; their answers are meaningless."""
    with patch.object(routed, "make_route", lambda *args, **kwargs: ready(make_route(*args, **kwargs))):
        yield


def seconds(run: Callable[[], object], clock: str) -> float:
    """Measures the time of one call: wall time, or CPU time where other processes use the machine."""
    now = CLOCKS[clock]
    started = now()
    run()
    return now() - started


def interleaved(runs: dict[str, Callable[[], object]], *, rounds: int, clock: str) -> dict[str, list[float]]:
    """Times all in turn, in changing order, after two unmeasured rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds + 2):
        for name in names if number % 2 else reversed(names):
            taken = seconds(runs[name], clock)
            if number >= 2:
                times[name].append(taken)
    return times


def decoding(model: ComposedForConditionalGeneration, inputs: dict[str, Any], tokens: int) -> Callable[[], object]:
    """Makes a function that runs some decoding steps after the prompt, always from the same position."""
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, logits_to_keep=1)
    step = torch.full((len(inputs["input_ids"]), 1), 7)

    def run() -> None:
        for _ in range(tokens):
            model(input_ids=step, past_key_values=cache)
        cache.crop(-tokens)

    return run


def quiet(times: list[float]) -> float:
    """Returns the mean of the fastest quarter, the time in the quiet moments of a shared machine."""
    return statistics.mean(sorted(times)[: max(len(times) // 4, 1)])


def compared(times: dict[str, list[float]], name: str = "routed") -> dict[str, float]:
    """Compares round by round: median and the middle half; ratio of quiet moments; the medians in milliseconds."""
    ratios = [mine / plain for mine, plain in zip(times[name], times["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": middle, "quarter": low, "three_quarters": high,
        "quiet_ratio": quiet(times[name]) / quiet(times["plain"]),
        "plain_ms": 1e3 * statistics.median(times["plain"]), "routed_ms": 1e3 * statistics.median(times[name]),
    }  # fmt: skip


@torch.no_grad()
def measure(dense: ComposedForConditionalGeneration, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures all figures of one variant."""
    model = routed_like(dense, variant, rank=args.rank)
    inputs = prompt(args.prompt, hidden=args.hidden, dtype=dense.dtype)

    def whole(one: ComposedForConditionalGeneration) -> object:
        return one(**inputs, logits_to_keep=1, use_cache=False)

    def floor() -> object:
        with moving_nothing():
            return whole(model)

    prefill = interleaved(
        {"plain": lambda: whole(dense), "routed": lambda: whole(model), "floor": floor},
        rounds=args.rounds,
        clock=args.clock,
    )
    steps = {name: decoding(one, inputs, args.tokens) for name, one in (("plain", dense), ("routed", model))}
    decode = interleaved(steps, rounds=args.rounds, clock=args.clock)
    return {
        "variant": variant,
        "prefill": compared(prefill),
        "floor": compared(prefill, "floor"),
        "decode": compared(decode),
    }


def main() -> None:
    """Measures every variant, prints one line for each and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--rank", type=int, default=64, help="of low-rank groups")
    parser.add_argument("--prompt", default="long", choices=PROMPTS)
    parser.add_argument("--tokens", type=int, default=8, help="decoding steps of one round")
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path("build/bench/routed.json"))
    args = parser.parse_args()
    dense = ComposedForConditionalGeneration(config_of(args.hidden, args.layers)).to(getattr(torch, args.dtype)).eval()
    rows = []
    for variant in args.variants:
        rows.append(row := measure(dense, variant, args))
        for kind in ("prefill", "floor", "decode"):
            found = row[kind]
            print(
                f"{variant:14} {kind:8} {found['ratio']:.3f} x ({found['quarter']:.3f} to {found['three_quarters']:.3f}"
                f", quiet {found['quiet_ratio']:.3f})   {found['plain_ms']:8.1f} ms -> {found['routed_ms']:8.1f} ms",
                flush=True,
            )
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    found = {
        "machine": machine,
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "settings": settings,
        "rows": rows,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
