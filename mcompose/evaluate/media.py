"""Reads media files into what processors take."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from mcompose.errors import RequestError

__all__ = ["read_media"]


def read_media(path: Path, modality: str, *, sampling_rate: int = 16000) -> Any:
    """Reads one medium.

    Args:
        path: The file: PNG, JPEG, ... for images; WAV (PCM) for sounds; GIF for videos; NPY for points.
        modality: ``image``, ``audio``, ``video`` or ``points``.
        sampling_rate: Rate that the processor expects, in Hz; sounds are resampled to it.

    Returns:
        A PIL image (RGB); a float32 array (samples,) in -1 to 1; a uint8 array (frames, height, width, 3); a float32
        array (points, channels).

    Raises:
        RequestError: The file is missing or broken; the message names it.
    """
    try:
        if modality == "image":
            return _image(path)
        if modality == "audio":
            return _sound(path, sampling_rate)
        if modality == "video":
            return _video(path)
        return np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise RequestError(f"The {modality} file '{path}' is missing.") from None
    except (OSError, ValueError, EOFError, wave.Error) as error:
        raise RequestError(f"The {modality} file '{path}' cannot be read: {error}.") from error


def _image(path: Path) -> Any:
    from PIL import Image  # noqa: PLC0415 - needed for pictures only

    with Image.open(path) as picture:
        return picture.convert("RGB")


def _sound(path: Path, rate: int) -> np.ndarray:
    with wave.open(str(path)) as sound:
        channels, width, own_rate = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
        raw = sound.readframes(sound.getnframes())
    if width not in {1, 2, 4}:
        raise ValueError(f"samples of {8 * width} bits are not supported; convert it to 16-bit WAV")
    kind = {1: np.uint8, 2: np.int16, 4: np.int32}[width]
    samples = np.frombuffer(raw, kind).astype(np.float64)
    samples = (samples - 128) / 128 if width == 1 else samples / 2.0 ** (8 * width - 1)
    mono = samples.reshape(-1, channels).mean(axis=1)
    return _resampled(mono, own_rate, rate).astype(np.float32)


def _resampled(samples: np.ndarray, own_rate: int, rate: int) -> np.ndarray:
    if own_rate == rate or not samples.size:
        return samples
    from scipy.signal import resample_poly  # noqa: PLC0415 - needed for sounds of another rate only

    return resample_poly(samples, rate, own_rate)


def _video(path: Path) -> np.ndarray:
    from PIL import Image, ImageSequence  # noqa: PLC0415 - needed for videos only

    if path.suffix.lower() not in {".gif", ".webp", ".png", ".apng"}:
        raise ValueError("only GIF, WEBP and APNG are read; convert it, or load frames in Python")
    with Image.open(path) as clip:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(clip)])
