"""Media from files, as processors take them; what cannot be read is an error with its path, never a substitute.

Images are whatever Pillow opens, sounds WAV of whole numbers, videos animated pictures or NPY, clouds NPY.
"""

from __future__ import annotations

import io
import struct
import wave
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mcompose.errors import RequestError

__all__ = ["MODALITIES", "read_media"]

MODALITIES: Final = ("image", "audio", "video", "points")
# What Pillow, wave and numpy raise on damaged files.
_BROKEN: Final = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    struct.error,
    wave.Error,
    zipfile.BadZipFile,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
_FULL_SCALE: Final = {1: 2**7, 2: 2**15, 3: 2**23, 4: 2**31}


def read_media(source: Path | bytes, modality: str, *, sampling_rate: int | None = None) -> Any:
    """Reads one item.

    Args:
        source: A file, or the bytes of one.
        modality: "image", "audio", "video" or "points".
        sampling_rate: What the checkpoint hears, in hertz; None accepts any.

    Returns:
        image: RGB picture; audio: float32 (samples,) in -1 to 1; video: uint8 (frames, height, width, 3);
        points: float32 (points, channels).

    Raises:
        RequestError: The file is missing, broken, or has another sampling rate.
    """
    named = f"{modality} {source}" if isinstance(source, Path) else f"{modality} inside the record"
    try:
        if isinstance(source, Path) and not source.is_file():
            raise RequestError(f"The {named} is missing.")
        opened = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
        return _decoded(opened, modality, sampling_rate)
    except _BROKEN as error:
        raise RequestError(f"The {named} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture that Pillow knows"  # its own words name a buffer's address
    return str(error).rstrip(".") or type(error).__name__


def _decoded(opened: io.BytesIO, modality: str, sampling_rate: int | None) -> Any:
    if modality == "image":
        with Image.open(opened) as picture:
            return picture.convert("RGB")
    if modality == "audio":
        return _sound(opened, sampling_rate)
    if modality == "video":
        return _clip(opened)
    cloud = np.load(opened, allow_pickle=False).astype(np.float32)
    if cloud.ndim != 2 or not cloud.size:
        raise ValueError(f"a cloud has the shape (points, channels), not {cloud.shape}")
    return cloud


def _sound(opened: io.BytesIO, wanted: int | None) -> np.ndarray:
    with wave.open(opened) as file:
        rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
        data = file.readframes(file.getnframes())
        expected = file.getnframes() * width * channels
    if len(data) != expected:
        raise ValueError(f"it ends after {len(data)} of {expected} bytes of sound")
    if not data:
        raise ValueError("it holds no sound")
    if wanted and rate != wanted:
        raise ValueError(f"it has {rate} Hz, and this checkpoint hears {wanted} Hz")
    samples = _integers(data, width).astype(np.float32) / _FULL_SCALE[width]
    return samples.reshape(-1, channels).mean(axis=1) if channels > 1 else samples


def _integers(data: bytes, width: int) -> np.ndarray:
    if width == 1:  # the one width that WAV stores without a sign
        return np.frombuffer(data, dtype=np.uint8).astype(np.int16) - 128
    if width == 3:
        bytes_N3 = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        padded_N4 = np.concatenate([np.zeros((len(bytes_N3), 1), np.uint8), bytes_N3], axis=1)
        return np.ascontiguousarray(padded_N4).view("<i4")[:, 0] >> 8
    return np.frombuffer(data, dtype=f"<i{width}")


def _clip(opened: io.BytesIO) -> np.ndarray:
    if opened.getbuffer()[:6] == b"\x93NUMPY":
        frames = np.load(opened, allow_pickle=False)
        frames = np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    else:
        with Image.open(opened) as picture:
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"a clip has the shape (frames, height, width, 3), not {frames.shape}")
    return frames
