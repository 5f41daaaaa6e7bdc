"""Builds random Llama checkpoints in bfloat16: a base and three fine-tunes of it.

python -m examples.bench.build FOLDER GB
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from examples.bench.llama import Llama, of_size
from examples.bench.sparse import header

LABELS = ("base", "a", "b", "c")


def weights(shape: tuple[int, ...], *, index: int) -> list[np.ndarray]:
    """Draws one tensor of each checkpoint: N(0, 0.02), ones for norms, and fine-tunes N(0, 0.002) away from it."""
    origin = np.random.default_rng([0, index]).standard_normal(shape, dtype=np.float32) * 0.02
    origin = np.ones(shape, np.float32) if len(shape) == 1 else origin
    tunes = [np.random.default_rng([k, index]).standard_normal(shape, dtype=np.float32) for k in (1, 2, 3)]
    return [origin, *(origin + tune * 0.002 for tune in tunes)]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds finite float32 numbers to bfloat16, to nearest with ties to even; returns their bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def build(folder: Path, model: Llama) -> None:
    """Writes the four checkpoints, tensor by tensor; does nothing where they exist."""
    if all((folder / label / "config.json").is_file() for label in LABELS):
        return
    shapes = model.shapes()
    with ExitStack() as stack:
        files = []
        for label in LABELS:
            (folder / label).mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context((folder / label / "model.safetensors").open("wb")))
            files[-1].write(header(shapes))
        for index, shape in enumerate(shapes.values()):
            for file, tensor in zip(files, weights(shape, index=index), strict=True):
                file.write(bfloat16(tensor).data)
    for label in LABELS:
        (folder / label / "config.json").write_text(model.config())
    os.sync()


if __name__ == "__main__":
    build(Path(sys.argv[1]), of_size(float(sys.argv[2])))
