"""Checkpoints without weights: real headers, and holes for data, which read as zeros and take no disk."""

import json
import math
from pathlib import Path

from examples.bench.llama import Llama


def header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Makes the header of a safetensors file with these tensors in bfloat16, one after the other."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def build_sparse(folder: Path, model: Llama, *, shards: int) -> None:
    """Writes a sharded checkpoint of holes.

    Args:
        folder: Folder to write; an existing checkpoint is left as it is.
        model: Dimensions of the model.
        shards: Number of files, of about equal size.
    """
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    done = 0
    for name, shape in model.shapes().items():
        groups[min(shards - 1, done * shards // model.nbytes)][name] = shape
        done += 2 * math.prod(shape)
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = folder / f"model-{number:05}-of-{shards:05}.safetensors"
        opening = header(group)
        with file.open("wb") as out:
            out.write(opening)
            out.truncate(len(opening) + 2 * sum(math.prod(shape) for shape in group.values()))
        places |= dict.fromkeys(group, file.name)
    index = {"metadata": {"total_size": model.nbytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(model.config())
