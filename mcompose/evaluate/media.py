"""Media from files, as processors take them; what cannot be read is an error with its path, never a substitute."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mcompose.errors import RequestError

__all__ = ["read_media"]

_BROKEN: Final = (OSError, ValueError, EOFError, wave.Error, UnidentifiedImageError, SyntaxError)


def read_media(path: Path, modality: str, *, sampling_rate: int | None = None) -> Any:
    """Reads one item.

    Args:
        path: PNG or any other picture for images; WAV; an animated picture or NPY for video; NPY for points.
        modality: "image", "audio", "video" or "points".
        sampling_rate: What the checkpoint hears, in hertz; None accepts any.

    Returns:
        image: RGB picture; audio: float32 (samples,) in -1 to 1; video: uint8 (frames, height, width, 3);
        points: float32 (points, channels).

    Raises:
        RequestError: The file is missing, broken, or has another sampling rate.
    """
    try:
        if modality == "image":
            with Image.open(path) as opened:
                return opened.convert("RGB")
        if modality == "audio":
            return _sound(path, sampling_rate)
        if modality == "video":
            return _clip(path)
        return np.load(path, allow_pickle=False).astype(np.float32)
    except _BROKEN as error:
        raise RequestError(f"The {modality} {path} cannot be read: {error}.") from error


def _sound(path: Path, wanted: int | None) -> np.ndarray:
    with wave.open(str(path)) as file:
        rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
        data = file.readframes(file.getnframes())
        expected = file.getnframes() * width * channels
    if width != 2 or len(data) != expected:
        raise RequestError(f"The audio {path} is no whole 16-bit WAV file.")
    if wanted and rate != wanted:
        raise RequestError(f"The audio {path} has {rate} Hz, and this checkpoint hears {wanted} Hz.")
    samples = np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    return samples.reshape(-1, channels).mean(axis=1) if channels > 1 else samples


def _clip(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        frames = np.load(path, allow_pickle=False)
        return np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    with Image.open(path) as opened:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)])
