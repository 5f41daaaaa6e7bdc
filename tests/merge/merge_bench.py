"""Small checkpoints written byte by byte, and merges of them read back by the safetensors library."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcompose.anatomy.part import EMBEDDING, HEAD, LANGUAGE, Anatomy, Slot
from mcompose.checkpoint import StagedOutput, encode, open_checkpoint
from mcompose.errors import StorageError
from mcompose.merge import Contribution, Segment, SourceParts, build_plan, execute, language_jobs
from mcompose.recipe.schema import MergeSpec

HIDDEN, ROWS, LAYERS = 24, 40, 2


def slot_of(key: str) -> Slot:
    name = key.removeprefix("model.")
    layer = int(name.split(".")[1]) if name.startswith("layers.") else None
    part = {"embed_tokens.weight": EMBEDDING, "lm_head.weight": HEAD}.get(name, LANGUAGE)
    return Slot(key, name, part, layer)


def key_of(name: str, part: str) -> str:
    return name if part == HEAD else f"model.{name}"


def write_file(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, position = {}, 0
    for key, (dtype, shape, raw) in tensors.items():
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in tensors.values()))


def llama(seed: int, *, dtype: str = "F32", rows: int = ROWS, scale: float = 0.02, layers: int = LAYERS, tied=False):
    """Key to (dtype, shape, bytes): a decoder with biases, norms and two vocabulary tables; fine-tunes of one base."""
    shapes = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[prefix + "self_attn.q_proj.bias"] = (HIDDEN,)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, 2 * HIDDEN)
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (rows, HIDDEN)
    tensors = {}
    for index, (key, shape) in enumerate(shapes.items()):
        columns = shape[1:] or (1,)
        base = np.random.default_rng(index).normal(0, 0.02, (64, *columns))[: shape[0]]
        delta = np.random.default_rng([seed, index]).normal(0, scale, (64, *columns))[: shape[0]]
        values = (base + (delta if seed else 0)).reshape(shape).astype(np.float32)
        tensors[key] = (dtype, shape, encode(values, dtype).tobytes())
    return tensors


@dataclass
class Bench:
    """Makes sources in a folder, merges them, reads the result."""

    folder: Path
    config: dict = field(default_factory=lambda: {"hidden_size": HIDDEN, "num_attention_heads": 4})

    def source(self, name: str, tensors: dict, *, tied: bool = False, adapter=None, **config) -> SourceParts:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        write_file(folder / "model.safetensors", tensors)
        text_config = {**self.config, **config}
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **text_config}))
        checkpoint = open_checkpoint(folder)
        slots = {key: slot_of(key) for key in checkpoint.tensors}
        layers = 1 + max((slot.layer for slot in slots.values() if slot.layer is not None), default=-1)
        anatomy = Anatomy("llama", "LlamaForCausalLM", True, slots, text_config, layers, tied=tied)
        return SourceParts(name, checkpoint, anatomy, None if adapter is None else adapter.bind(checkpoint.tensors))

    def plan(self, merge: dict, sources, base=None, *, target=None, shard=10**9, extra=()):
        jobs, dropped = language_jobs(MergeSpec.model_validate(merge), sources, base, key_of=key_of, target=target)
        return build_plan([*jobs, *extra], dropped, max_shard_size=shard)

    def run(self, plan, *, out: str = "out", **options):
        with StagedOutput.open(self.folder / out, fingerprint=plan.fingerprint, durable=False) as staged:
            done = execute(plan, staged, **options)
            staged.finish()
        return list(done.rows)

    def merge(self, merge: dict, sources, base=None, *, target=None, out: str = "out", **options):
        """Merges and returns (tensors read by the safetensors library, ledger rows)."""
        plan = self.plan(merge, sources, base, target=target)
        rows = self.run(plan, out=out, **options)
        return self.read(out), rows

    def read(self, out: str = "out"):
        from safetensors.torch import load_file

        tensors = {}
        for path in sorted((self.folder / out).glob("*.safetensors")):
            tensors |= load_file(path)
        return tensors

    def bytes_of(self, out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / out).glob("model*"))}


def three(bench, dtype="F32", **options):
    return [bench.source(name, llama(seed, dtype=dtype, **options)) for seed, name in enumerate("abc", start=1)]


def ten_rows(entry) -> tuple[Segment, ...]:
    """Rows that come about in every way but folding, from one source's tensor of 36 rows or more."""
    pair = (Contribution("a", entry), Contribution("a", entry, first_row=6))
    return (
        Segment(0, 4, "merged", pair, method="linear", weights=(0.5, 0.5)),
        Segment(4, 7, "created"),
        Segment(7, 9, "copied", (Contribution("a", entry, first_row=30),)),
        Segment(9, 10, "cast", (Contribution("a", entry, first_row=2),)),
    )


def fill_disk(monkeypatch, *, after: int) -> list[int]:
    """Lets so many writes pass and refuses all others; gives the offsets that are asked for."""
    written: list[int] = []
    write = StagedOutput.pwrite_all

    def limited(self, shard, offset, data):
        written.append(offset)
        if len(written) > after:
            raise StorageError("the disk is full")
        write(self, shard, offset, data)

    monkeypatch.setattr(StagedOutput, "pwrite_all", limited)
    return written
