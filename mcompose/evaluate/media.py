"""Media from files, as processors take them; what cannot be read is an error with its path, never a substitute.

Pictures, 16-bit WAV at the right rate, animated pictures and NPY need nothing else. Other sounds, and films, are
decoded (and sounds resampled) by PyAV where it is installed.
"""

from __future__ import annotations

import importlib
import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mcompose.errors import RequestError

__all__ = ["FRAMES", "MediaError", "read_media"]

FRAMES: Final = 8
"""Frames taken of a film, evenly spread: what the video encoders of arXiv 2402.12750 see. Animated pictures and arrays
are given whole."""

_BROKEN: Final = (OSError, ValueError, EOFError, wave.Error, UnidentifiedImageError, SyntaxError)
_ANIMATED: Final = frozenset({".gif", ".webp", ".png", ".apng", ".tif", ".tiff"})
_INSTALL: Final = "Decoding it needs PyAV: pip install av."


class MediaError(RequestError):
    """A medium that is missing, broken, or of a kind that cannot be read here."""


def read_media(path: Path, modality: str, *, sampling_rate: int | None = None) -> Any:
    """Reads one item.

    Args:
        path: PNG or any other picture for images; a sound for audio; an animated picture, NPY or a film for video; NPY
            for points.
        modality: "image", "audio", "video" or "points".
        sampling_rate: What the checkpoint hears, in hertz; None accepts any.

    Returns:
        image: RGB picture; audio: float32 (samples,) in -1 to 1; video: uint8 (frames, height, width, 3);
        points: float32 (points, channels).

    Raises:
        MediaError: The file is missing or broken.
        RequestError: It has another sampling rate, or another form, and PyAV is not installed.
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
        raise MediaError(f"The {modality} {path} cannot be read: {error}.") from error


def _sound(path: Path, wanted: int | None) -> np.ndarray:
    if path.suffix.lower() != ".wav":
        return _decoded_sound(path, wanted, why=f"The audio {path} is no WAV file.")
    with wave.open(str(path)) as file:
        rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
        data = file.readframes(file.getnframes())
        expected = file.getnframes() * width * channels
    if len(data) != expected:
        raise MediaError(f"The audio {path} is no whole 16-bit WAV file.")
    if width != 2:
        return _decoded_sound(path, wanted, why=f"The audio {path} is no whole 16-bit WAV file.")
    if wanted and rate != wanted:
        why = f"The audio {path} has {rate} Hz, and this checkpoint hears {wanted} Hz."
        return _decoded_sound(path, wanted, why=why)
    samples = np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    return samples.reshape(-1, channels).mean(axis=1) if channels > 1 else samples


def _clip(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        frames = np.load(path, allow_pickle=False)
        return np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    if path.suffix.lower() not in _ANIMATED:
        return _film(path)
    with Image.open(path) as opened:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)])


def _pyav(path: Path, why: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise RequestError(why, hint=_INSTALL) from error


def _decoded_sound(path: Path, wanted: int | None, *, why: str) -> np.ndarray:
    av = _pyav(path, why)
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise ValueError("it holds no sound")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted or container.streams.audio[0].rate)
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        pieces += resampler.resample(None)
    samples = [piece.to_ndarray().reshape(-1) for piece in pieces]
    if not samples:
        raise ValueError("it holds no sound")
    return np.concatenate(samples).astype(np.float32)


def _film(path: Path) -> np.ndarray:
    """Two passes, so that no more than the wanted frames are held."""
    av = _pyav(path, f"The video {path} is a film.")
    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0)) if container.streams.video else 0
    if not total:
        raise ValueError("it holds no picture")
    wanted = {int(place) for place in np.linspace(0, total - 1, min(FRAMES, total)).round()}
    with av.open(str(path)) as container:
        return np.stack(
            [frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i in wanted]
        )
