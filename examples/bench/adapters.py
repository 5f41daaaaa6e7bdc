"""A model with soft mixtures of low-rank experts beside the same model without, and beside LoRA of as many numbers.

    python -m examples.bench.adapters
    python -m examples.bench.adapters --hidden 1024 --layers 2 --rounds 15 --experts 16 --dtype bfloat16

Prompts, order of the runs and ratios are those of ``examples.bench.routed``. The floor is arithmetic alone: one and the
share of the experts' and the router's multiplications in those of the dense linears.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from examples.bench.routed import CLOCKS, PROMPTS, compared, config_of, decoding, interleaved, prompt
from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.modeling.adapters.layer import AdapterSet, adapter_sets

__all__ = ["adapted", "arithmetic", "main"]


def adapted(dense: ComposedForConditionalGeneration, sets: dict[str, Any]) -> ComposedForConditionalGeneration:
    """Builds a model with adapters that do something over the dense one's own tensors."""
    config = copy.deepcopy(dense.config)
    config.adapters = sets
    model = ComposedForConditionalGeneration(config).to(dense.dtype).eval()
    model.load_state_dict(dense.state_dict(), assign=True, strict=False)
    generator = torch.Generator().manual_seed(0)
    for _, one in adapter_sets(model):
        for parameter in (one.down, one.up, one.router):
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def with_lora(dense: ComposedForConditionalGeneration, numbers: int) -> tuple[Any, int]:
    """Puts PEFT's LoRA of about so many numbers on every linear of the language model; returns the model and rank."""
    linears = [module for module in dense.model.language_model.layers.modules() if isinstance(module, nn.Linear)]  # pyright: ignore
    rank = max(1, round(numbers / sum(one.in_features + one.out_features for one in linears)))
    names = sorted({name.rpartition(".")[2] for name, one in dense.named_modules() if any(one is m for m in linears)})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=rf".*language_model\.layers\..*\.({'|'.join(names)})")
    model = get_peft_model(copy.deepcopy(dense), config)  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.base_model.model.eval(), rank


def arithmetic(model: nn.Module) -> tuple[float, int]:
    """Returns one and the adapters' share of the linears' multiplications, and the adapters' numbers."""
    dense = extra = 0
    for module in model.modules():
        if hasattr(module, "adapters"):
            dense += module.in_features * module.out_features  # pyright: ignore
            extra += sum(_numbers(one) for one in module.adapters.values())  # pyright: ignore
    return 1 + extra / dense, extra


def _numbers(one: AdapterSet) -> int:
    return sum(parameter.numel() for parameter in (one.down, one.up, one.router))


@torch.no_grad()
def measure(dense: ComposedForConditionalGeneration, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all variants against the dense model."""
    whole = {"experts": args.experts, "rank": args.rank, "mode": "token", "on": "language"}
    share = {**whole, "experts": args.experts // 2}
    variants: dict[str, Callable[[], tuple[Any, float, int]]] = {
        "one set": lambda: _with(dense, {"mm": whole}),
        "two sets": lambda: _with(dense, {"mm": share, "mv": {**share, "modalities": ["image", "points", "text"]}}),
        "prefix": lambda: _with(dense, {"mm": {**whole, "mode": "prefix"}}),
    }
    rows = []
    inputs = prompt(args.prompt, hidden=args.hidden, dtype=dense.dtype)
    numbers = _with(dense, {"mm": whole})[2]
    lora, rank = with_lora(dense, numbers)
    for name, make in {**variants, f"lora {rank}": lambda: (lora, float("nan"), numbers)}.items():
        model, floor, size = make()
        runs = {"plain": _prefill(dense, inputs), "routed": _prefill(model, inputs)}
        prefill = compared(interleaved(runs, rounds=args.rounds, clock=args.clock))
        steps = {"plain": decoding(dense, inputs, args.tokens), "routed": decoding(model, inputs, args.tokens)}
        decode = compared(interleaved(steps, rounds=args.rounds, clock=args.clock))
        rows.append({"variant": name, "numbers": size, "floor": floor, "prefill": prefill, "decode": decode})
    return rows


def _with(dense: ComposedForConditionalGeneration, sets: dict[str, Any]) -> tuple[Any, float, int]:
    model = adapted(dense, sets)
    return model, *arithmetic(model)


def _prefill(model: Any, inputs: dict[str, Any]) -> Callable[[], object]:
    return lambda: model(**inputs, logits_to_keep=1, use_cache=False)


def main() -> None:
    """Measures every variant, prints one line for each and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=8, help="decoding steps of a round")
    parser.add_argument("--prompt", default="long", choices=PROMPTS)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    dense = ComposedForConditionalGeneration(config_of(args.hidden, args.layers)).to(getattr(torch, args.dtype)).eval()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = measure(dense, args)
    for row in rows:
        figures = [
            f"{kind} {row[kind]['ratio']:.3f} ({row[kind]['quarter']:.3f} to {row[kind]['three_quarters']:.3f})"
            for kind in ("prefill", "decode")
        ]
        floor = "" if row["floor"] != row["floor"] else f", floor {row['floor']:.3f}"
        print(f"{row['variant']:10} {row['numbers']:>12,} numbers: {', '.join(figures)} x dense{floor}")
    if args.json:
        args.json.write_text(json.dumps({"settings": {**vars(args), "json": ""}, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
