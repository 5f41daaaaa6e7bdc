"""An alignment stage beside a bare PyTorch loop: the same model, batches, trained parameters and optimizer.

    python -m examples.bench.align
    python -m examples.bench.align --steps 30 --rounds 5 --train language

Builds a small vision-language model and data once (``build/bench/align``), then runs both in turn, interleaved, so that
a noisy moment of the machine hits both. One unmeasured run of each comes first; of every run the first step is left
out. The losses of both are compared: a fast loop that trains something else would not be comparable.
"""

import argparse
import itertools
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path("build/bench/align")
WORDS = [f"w{number}" for number in range(60)]


def build(folder: Path) -> None:
    """Writes the model, its processor and the data."""
    import numpy as np
    import torch
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<s>", "</s>", "<pad>", "USER", ":", "ASSISTANT", *WORDS]
    special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), words, strict=False))
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, pad_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(words))
        )
    model.save_pretrained(folder / "model")
    side = {"height": 112, "width": 112}
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=side), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder / "model")  # fmt: skip
    generator = np.random.default_rng(0)
    records = []
    for number in range(64):
        Image.fromarray(generator.integers(0, 255, (112, 112, 3)).astype(np.uint8)).save(folder / f"{number}.png")
        said = [" ".join(WORDS[i] for i in generator.integers(60, size=count)) for count in (12, 40)]
        turns = [{"from": "human", "value": f"<image> {said[0]}"}, {"from": "gpt", "value": said[1]}]
        records.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (folder / "data.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")


@dataclass
class Clock:
    """Records when each batch was made; used as a mask that changes nothing.

    Both loops make one batch a step, so the time between two marks is that of one step, whatever stands in it. All
    samples of the data have one length.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: int = 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Records the time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.tokens = int(batch["attention_mask"].sum())
        return batch

    def rates(self) -> tuple[float, float]:
        """Returns the median tokens per second by wall time and by CPU time; the first two steps are left out."""
        steps = [[b - a for a, b in itertools.pairwise(marks[2:])] for marks in (self.wall, self.cpu)]
        return self.tokens / statistics.median(steps[0]), self.tokens / statistics.median(steps[1])


def engine(folder: Path, stage: Any) -> tuple[Clock, list[float]]:
    """Runs mcompose; returns its clock and losses."""
    from mcompose.align.run import StageRequest, run_stage

    target, clock = folder / "stage", Clock()
    shutil.rmtree(target, ignore_errors=True)
    run_stage(StageRequest(stage, 1, folder / "model", target, folder, "bench", quiet=True, masks=(clock,)))
    rows = [json.loads(line) for line in (target / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return clock, [row["loss"] for row in rows]


def bare(folder: Path, stage: Any) -> tuple[Clock, list[float]]:
    """Runs a plain loop; returns its clock and losses."""
    import torch
    from torch.utils.data import DataLoader

    from mcompose.align.load import load_model, load_processor, memory_names
    from mcompose.align.parts import read_parts, select
    from mcompose.align.results.lineage import open_lineage
    from mcompose.align.schedule import rate_factor
    from mcompose.align.stage import plan_steps
    from mcompose.align.stage_data import open_data

    lineage = open_lineage(folder / "model")
    model = load_model(lineage, precision="float32")
    keys = [key for part in stage.train for key in select(part, read_parts(lineage.anatomy))]
    names = set(memory_names(model, lineage.anatomy, keys=keys).values())
    trained = [parameter.requires_grad_() for name, parameter in model.named_parameters() if name in names]
    model.train()
    if not any("vision" in name for name in names):
        model.model.vision_tower.eval()
    data = open_data(stage, load_processor(folder / "model"), folder=folder)
    plan = plan_steps(stage, samples=data.samples or 1)
    clock, losses = Clock(), []
    collate = data.batches(stage, model, (clock,))
    loader = DataLoader(data.ordered(stage, plan), batch_size=plan.micro, collate_fn=collate)
    optimizer = torch.optim.AdamW(trained, lr=stage.lr, weight_decay=stage.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, rate_factor(stage.schedule, steps=plan.steps, warmup=plan.warmup)
    )
    for batch in loader:
        batch.pop("tokens")
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, stage.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return clock, losses


def main() -> None:
    """Runs the benchmark and prints the table."""
    import torch

    from mcompose.recipe import Stage

    parser = argparse.ArgumentParser(description="An alignment stage beside a bare PyTorch loop.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--train", nargs="+", default=["projectors", "language"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (FOLDER / "data.jsonl").is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        build(FOLDER)
    stage = Stage(
        train=tuple(options.train), data=("data.jsonl",), steps=options.steps, batch_size=options.batch, lr=1e-3,
        max_length=256, precision="float32",
    )  # fmt: skip
    rates: dict[str, list[tuple[float, float]]] = {"bare": [], "mcompose": []}
    runs = {"bare": bare, "mcompose": engine}
    for number in range(options.rounds + 1):
        order = list(runs) if number % 2 else list(runs)[::-1]
        found = {name: runs[name](FOLDER, stage) for name in order}
        apart = max(abs(a - b) / abs(b) for a, b in zip(found["mcompose"][1], found["bare"][1], strict=True))
        if apart > 1e-3:
            raise SystemExit(f"The losses differ by {100 * apart:.3f} %, so the times cannot be compared.")
        said = []
        for name, (clock, _) in found.items():
            said.append(f"{name} {clock.rates()[0]:,.0f}")
            if number:
                rates[name].append(clock.rates())
        print(f"  {'warm-up' if not number else f'round {number}'}: {', '.join(said)} tokens/s", file=sys.stderr)
    for kind, index in (("wall", 0), ("CPU", 1)):
        for name, pairs in rates.items():
            values = [pair[index] for pair in pairs]
            print(f"{name:9} {statistics.median(values):9,.0f} tokens per second of {kind}"
                  f"  ({min(values):,.0f} to {max(values):,.0f})")  # fmt: skip
        ratios = [a[index] / b[index] for a, b in zip(rates["mcompose"], rates["bare"], strict=True)]
        print(f"ratio     {statistics.median(ratios):9.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
