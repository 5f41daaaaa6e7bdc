"""Media from files, as processors take them; what cannot be read is an error with its path, never a substitute.

Images are whatever Pillow opens, sounds WAV of whole numbers, videos animated pictures or NPY, clouds NPY. Films and
other sounds are decoded, and sounds of another sampling rate resampled, by PyAV where it is installed.
"""

from __future__ import annotations

import importlib
import io
import struct
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mcompose.errors import RequestError, first_line

__all__ = ["FRAMES", "MediaError", "read_media"]

FRAMES: Final = 8
"""Frames taken of a film, evenly spread: what the video encoders of arXiv 2402.12750 see. Animated pictures and arrays
are given whole."""

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
_MOVING: Final = ("GIF", "WEBP", "PNG", "TIFF", "JPEG")  # named, since Pillow opens MPEG as well and cannot decode it
_MOVING_SUFFIXES: Final = frozenset({".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".jpg", ".jpeg"})
_INSTALL: Final = "Decoding it needs PyAV: pip install av."


class MediaError(RequestError):
    """A medium that is missing or broken."""


@dataclass(frozen=True)
class _Opened:
    """A medium as a stream: what sentences call it, its file's ending, and the sampling rate that is wanted of it."""

    stream: BinaryIO
    named: str
    suffix: str
    rate: int | None

    def begins(self, mark: bytes) -> bool:
        head = self.stream.read(len(mark))
        self.stream.seek(0)
        return head == mark


def read_media(source: Path | bytes, modality: str, *, sampling_rate: int | None = None) -> Any:
    """Reads one item.

    Args:
        source: A file, or the bytes of one.
        modality: "image", "audio", "video" or "points".
        sampling_rate: What the checkpoint hears, in hertz; None accepts any.

    Returns:
        image: RGB picture; audio: float32 (samples,) in -1 to 1; video: (frames, height, width, 3), uint8 unless an NPY
        holds other numbers; points: float32 (points, channels).

    Raises:
        MediaError: The file is missing or broken.
        RequestError: It is a film, another sound than WAV, or has another sampling rate, and PyAV is not installed.
    """
    if isinstance(source, bytes):
        return _read(_Opened(io.BytesIO(source), f"{modality} inside the record", "", sampling_rate), modality)
    if not source.is_file():
        raise MediaError(f"The {modality} {source} is missing.")
    try:
        with source.open("rb") as stream:
            return _read(_Opened(stream, f"{modality} {source}", source.suffix.lower(), sampling_rate), modality)
    except OSError as error:
        raise MediaError(f"The {modality} {source} cannot be read: {_reason(error)}.") from error


def _read(opened: _Opened, modality: str) -> Any:
    try:
        return _READERS[modality](opened)
    except _BROKEN as error:
        raise MediaError(f"The {opened.named} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture that Pillow knows"  # its own words name a buffer's address
    return first_line(error)


def _picture(opened: _Opened) -> Image.Image:
    with Image.open(opened.stream) as picture:
        return picture.convert("RGB")


def _cloud(opened: _Opened) -> np.ndarray:
    cloud = np.load(opened.stream, allow_pickle=False).astype(np.float32)
    if cloud.ndim != 2 or not cloud.size:
        raise ValueError(f"a cloud has the shape (points, channels), not {cloud.shape}")
    return cloud


def _sound(opened: _Opened) -> np.ndarray:
    if opened.suffix != ".wav" and not opened.begins(b"RIFF"):
        return _decoded_sound(opened, why=f"The {opened.named} is no WAV file.")
    try:
        file = wave.open(opened.stream)  # noqa: SIM115 - closing it is the caller's
    except wave.Error as error:
        if not str(error).startswith("unknown format"):
            raise
        return _decoded_sound(opened, why=f"The {opened.named} is no WAV file of whole numbers.")
    rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
    data = file.readframes(file.getnframes())
    expected = file.getnframes() * width * channels
    if len(data) != expected:
        raise ValueError(f"it ends after {len(data)} of {expected} bytes of sound")
    if not data:
        raise ValueError("it holds no sound")
    if opened.rate and rate != opened.rate:
        why = f"The {opened.named} has {rate} Hz, and this checkpoint hears {opened.rate} Hz."
        return _decoded_sound(opened, why=why)
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


def _clip(opened: _Opened) -> np.ndarray:
    if opened.suffix == ".npy" or opened.begins(b"\x93NUMPY"):
        frames = np.load(opened.stream, allow_pickle=False)
        frames = np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    else:
        frames = _moving_picture(opened)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"a clip has the shape (frames, height, width, 3), not {frames.shape}")
    return frames


def _moving_picture(opened: _Opened) -> np.ndarray:
    try:
        with Image.open(opened.stream, formats=_MOVING) as picture:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
    except UnidentifiedImageError:
        if opened.suffix in _MOVING_SUFFIXES:
            raise
        return _film(opened)


def _decoded_sound(opened: _Opened, *, why: str) -> np.ndarray:
    av = _pyav(why)
    opened.stream.seek(0)
    pieces = []
    try:
        with av.open(opened.stream) as container:
            if container.streams.audio:
                rate = opened.rate or container.streams.audio[0].rate
                resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
                pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
                pieces += resampler.resample(None)
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not pieces:
        raise ValueError("it holds no sound")
    return np.concatenate([piece.to_ndarray().reshape(-1) for piece in pieces]).astype(np.float32)


def _film(opened: _Opened) -> np.ndarray:
    """Two passes, so that no more than the wanted frames are held."""
    av = _pyav(f"The {opened.named} is a film.")
    try:
        total = sum(1 for _ in _pictures(av, opened))
        wanted = {int(place) for place in np.linspace(0, total - 1, min(FRAMES, total)).round()}
        frames = [frame.to_ndarray(format="rgb24") for i, frame in enumerate(_pictures(av, opened)) if i in wanted]
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not frames:
        raise ValueError("it holds no picture")
    return np.stack(frames)


def _pictures(av: Any, opened: _Opened) -> Any:
    opened.stream.seek(0)
    with av.open(opened.stream) as container:
        if container.streams.video:
            yield from container.decode(video=0)


def _pyav(why: str) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise RequestError(why, hint=_INSTALL) from error


_READERS: Final[dict[str, Callable[[_Opened], Any]]] = {
    "image": _picture,
    "audio": _sound,
    "video": _clip,
    "points": _cloud,
}
