"""Media on disk, in formats that anyone can open: PNG, WAV, animated GIF and NPY. All keep every value exactly."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mcompose.lab.media import SAMPLE_RATE

__all__ = ["SUFFIXES", "write_media"]

SUFFIXES: Final = {"image": ".png", "audio": ".wav", "video": ".gif", "points": ".npy"}


def write_media(path: Path, modality: str, values: np.ndarray) -> None:
    """Writes one item.

    Args:
        path: File to write; the suffix fits the modality.
        modality: "image", "audio", "video" or "points".
        values: Item as ``mcompose.lab.media.draw`` returns it; an image is uint8 (height, width).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if modality == "image":
        Image.fromarray(values).save(path)
    elif modality == "audio":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(values.astype("<i2").tobytes())
    elif modality == "video":
        first, *rest = (Image.fromarray(frame) for frame in values)
        first.save(path, save_all=True, append_images=rest, duration=80, loop=0, optimize=False)
    else:
        np.save(path, values, allow_pickle=False)
