"""A model with decoupled parameter groups beside the same model without, on the same tokens.

    python -m examples.bench.routed
    python -m examples.bench.routed --hidden 1024 --layers 4 --rounds 15 --dtype bfloat16

One prompt: text, an image of 576 vectors, text, a point cloud of 512 vectors, text. Features are made beforehand, so
that what is timed is the language model: the whole prompt once (prefill), and single tokens after it (decode). Both
models run in turn, in changing order, after unmeasured rounds; the ratio is taken round by round, so that a noisy
moment of the machine hits both. Text weights are the same tensors in both.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

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
from mcompose.modeling.configuration_points import PointsConfig
from mcompose.modeling.towers import Features

IDS = {"image": 900, "points": 901}
COUNTS = {"image": 576, "points": 512}
LOW_RANK = {"kind": "low_rank", "rank": 64, "scale": 2.0}
BOTH = ("image", "points")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS = ("dense", "low-rank", "low-rank text", "separate")


def config_of(hidden: int, layers: int) -> ComposedConfig:
    """A Llama with an image and a points source, whose towers are tiny."""
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


def routed_like(dense: ComposedForConditionalGeneration, variant: str) -> ComposedForConditionalGeneration:
    """A routed model over the dense one's own tensors."""
    model = ComposedForConditionalGeneration(copy.deepcopy(dense.config)).to(dense.dtype).eval()
    model.load_state_dict(dense.state_dict(), assign=True)
    if variant == "dense":
        add_groups(model, BOTH)
        return model
    add_groups(model, BOTH if variant == "low-rank" else ("text", *BOTH), **LOW_RANK)
    if variant == "separate":
        fold_text(model)
    return model


def prompt(hidden: int, dtype: torch.dtype) -> dict[str, object]:
    """Ids and features of one prompt."""
    generator = torch.Generator().manual_seed(0)
    ids = [1, *range(10, 50)]
    for modality, index in IDS.items():
        ids += [index] * COUNTS[modality] + list(range(60, 90))
    made = {m: Features(torch.randn(count, hidden, generator=generator).to(dtype)) for m, count in COUNTS.items()}
    return {"input_ids": torch.tensor([ids]), "mm_features": made}


def seconds(run: Callable[[], object], clock: str) -> float:
    """Time of one call: on the wall, or on the processor where others keep the machine busy."""
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


def decoding(model: ComposedForConditionalGeneration, inputs: dict[str, object], tokens: int) -> Callable[[], object]:
    """Some decoding steps after the prompt, always from the same place."""
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, logits_to_keep=1)
    step = torch.tensor([[7]])

    def run() -> None:
        for _ in range(tokens):
            model(input_ids=step, past_key_values=cache)
        cache.crop(-tokens)

    return run


def quiet(times: list[float]) -> float:
    """Mean of the fastest quarter: what a machine that others use does in its quiet moments."""
    return statistics.mean(sorted(times)[: max(len(times) // 4, 1)])


def compared(times: dict[str, list[float]]) -> dict[str, float]:
    """Ratio round by round: median and the middle half; ratio of quiet moments; the medians in milliseconds."""
    ratios = [routed / plain for routed, plain in zip(times["routed"], times["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": middle, "quarter": low, "three_quarters": high,
        "quiet_ratio": quiet(times["routed"]) / quiet(times["plain"]),
        "plain_ms": 1e3 * statistics.median(times["plain"]), "routed_ms": 1e3 * statistics.median(times["routed"]),
    }  # fmt: skip


@torch.no_grad()
def measure(dense: ComposedForConditionalGeneration, variant: str, args: argparse.Namespace) -> dict[str, object]:
    """Both figures of one variant."""
    routed = routed_like(dense, variant)
    inputs = prompt(args.hidden, dense.dtype)
    both = {"plain": dense, "routed": routed}
    prefill = {name: lambda m=model: m(**inputs, logits_to_keep=1, use_cache=False) for name, model in both.items()}
    decode = {name: decoding(model, inputs, args.tokens) for name, model in both.items()}
    return {
        "variant": variant,
        "prefill": compared(interleaved(prefill, rounds=args.rounds, clock=args.clock)),
        "decode": compared(interleaved(decode, rounds=args.rounds, clock=args.clock)),
    }


def main() -> None:
    """Measures every variant, prints one line for each and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
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
        for kind in ("prefill", "decode"):
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
