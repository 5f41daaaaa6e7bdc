"""A training step with a share of the general tokens hidden: by the attention mask, and by taking them out.

    python -m examples.bench.hidden
    python -m examples.bench.hidden --hidden 1024 --layers 8 --rounds 11 --ratio 0.5

A row is text, an image of 576 general vectors, an expert's block of 256, a question and an answer. What is timed is
forward and backward of the whole language model; encoders run before, since nothing of theirs changes. Three kinds of
step run in turn, in changing order, after two unmeasured rounds: nothing hidden, hidden by ``mask``, hidden by
``drop``. Ratios are taken round by round. Both ways of hiding must give one loss and one gradient: a faster step that
trains something else would not be comparable.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from examples.bench.machine import machine
from examples.bench.ratio import ratio
from examples.bench.routed import CLOCKS, IDS, config_of, interleaved
from mcompose.align.data.masks import mask_generator
from mcompose.align.experts.gscm import draw_units, hide
from mcompose.modeling import ComposedForConditionalGeneration
from mcompose.modeling.towers.features import Features
from mcompose.recipe import Masking

TEXT, QUESTION, ANSWER = 24, 40, 60


def batch_of(rows: int, *, general: int, expert: int, hidden: int) -> dict[str, Any]:
    """Makes ids, labels and features of rows of one length.

    The expert's vectors are an item of another modality beside the image: to the language model both are the same.
    """
    counts = {"image": general, "points": expert}
    generator = torch.Generator().manual_seed(0)
    ids = [*range(10, 10 + TEXT)]
    for modality, index in IDS.items():
        ids += [index] * counts[modality]
    ids += [*range(100, 100 + QUESTION + ANSWER)]
    ids_BL = torch.tensor([ids] * rows)
    labels_BL = ids_BL.clone()
    labels_BL[:, :-ANSWER] = -100
    made = {name: Features(torch.randn(rows * n, hidden, generator=generator)) for name, n in counts.items()}
    mask_BL = torch.ones_like(ids_BL)
    positions_BL = torch.arange(len(ids)).expand(rows, -1)
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "position_ids": positions_BL, "labels": labels_BL,
            "mm_features": made}  # fmt: skip


def hiding(batch: dict[str, Any], *, share: float) -> dict[str, dict[str, Any]]:
    """The batch with nothing hidden, and with exactly a share of each row's general tokens, as stages hide them."""
    spec = Masking(ratio=share)
    general_BL = batch["input_ids"] == IDS["image"]
    hidden_BL = torch.zeros_like(general_BL)
    for row, general_L in enumerate(general_BL):
        places = general_L.nonzero()[:, 0]
        drawn = draw_units(len(places), ratio=share, spec=spec, generator=mask_generator(0, row, purpose="bench"))
        hidden_BL[row, places[torch.from_numpy(drawn)]] = True
    return {"full": batch, **{how: hide(dict(batch), hidden_BL, mechanism=how) for how in ("mask", "drop")}}


def stepping(model: ComposedForConditionalGeneration, batch: dict[str, Any]) -> Callable[[], float]:
    """Makes a function that runs forward and backward of one batch and returns the loss."""

    def step() -> float:
        model.zero_grad()
        loss: Any = model(**batch, use_cache=False).loss
        loss.backward()
        return loss.item()

    return step


def agree(model: ComposedForConditionalGeneration, steps: dict[str, Callable[[], float]]) -> dict[str, Any]:
    """Compares the losses of all steps, and the gradients of the two ways of hiding.

    Raises:
        SystemExit: The two ways give different losses or gradients, or hiding changes nothing.
    """
    losses, gradients = {}, {}
    for name, step in steps.items():
        losses[name] = step()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    apart = abs(losses["mask"] - losses["drop"]) / losses["mask"]
    turned = ((gradients["mask"] - gradients["drop"]).norm() / gradients["mask"].norm()).item()
    if apart > 1e-5 or turned > 1e-3:
        raise SystemExit(f"Losses differ by {apart:.2g} and gradients by {turned:.2g}: the times cannot be compared.")
    if losses["full"] == losses["mask"]:
        raise SystemExit("Nothing was hidden.")
    return {"losses": losses, "losses_apart": apart, "gradients_apart": turned}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all figures."""
    with torch.random.fork_rng():
        model = ComposedForConditionalGeneration(config_of(args.hidden, args.layers)).train()
    model.model.towers.requires_grad_(requires_grad=False)
    batch = batch_of(args.rows, general=args.general, expert=args.expert, hidden=args.hidden)
    batches = hiding(batch, share=args.ratio)
    steps = {name: stepping(model, one) for name, one in batches.items()}
    agreement = agree(model, steps)
    times = interleaved(dict(steps), rounds=args.rounds, clock=args.clock)
    tokens = {name: int(one["attention_mask"].sum()) for name, one in batches.items()}
    return {"tokens": tokens, "agreement": agreement, "times": times}


def lines(found: dict[str, Any]) -> list[str]:
    """Formats the result: every kind of step, and the ratios."""
    said = []
    for name, times in found["times"].items():
        low, high = min(times), max(times)
        said.append(f"{name:5} {1e3 * statistics.median(times):8.1f} ms a step ({1e3 * low:.1f} to {1e3 * high:.1f}), "
                    f"{found['tokens'][name]} tokens are seen")  # fmt: skip
    for over, under in (("mask", "drop"), ("full", "drop"), ("full", "mask")):
        quotient = ratio(found["times"][over], found["times"][under])
        said.append(f"{over} / {under}: {quotient}, best {quotient.best:.3g}, {quotient.n} rounds")
    agreement = found["agreement"]
    said.append(f"mask and drop: loss {agreement['losses']['mask']:.6f} and {agreement['losses']['drop']:.6f}, "
                f"gradients {agreement['gradients_apart']:.1e} apart")  # fmt: skip
    return said


def main() -> None:
    """Measures, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="width of the language model")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--general", type=int, default=576, help="general tokens of an image")
    parser.add_argument("--expert", type=int, default=256, help="expert tokens of an image")
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the general tokens that is hidden")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--out", type=Path, default=Path("build/bench/hidden.json"))
    args = parser.parse_args()
    before = {"machine": machine(), "threads": torch.get_num_threads()}
    found = measure(args)
    print("\n".join(lines(found)))
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = {**before, "load_after": os.getloadavg(), "settings": settings, **found}
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
