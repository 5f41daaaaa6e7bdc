"""Reads images, sounds, videos and point clouds from files, in the form that processors take.

Images are read by Pillow, sounds from integer WAV files, videos from animated images or NPY files, point clouds from
NPY files. With PyAV installed, video files and other sound formats are decoded, and sounds are resampled. A file that
cannot be read is an error that names its path; nothing is ever substituted.
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

__all__ = ["FRAMES", "MediaError", "picture_size", "read_media"]

FRAMES: Final = 8
"""Number of frames read from a video file, evenly spread, as for the video encoders of arXiv 2402.12750. Animated
images and arrays are read whole."""

# Errors that Pillow, wave and numpy raise on damaged files.
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
_MOVING: Final = ("GIF", "WEBP", "PNG", "TIFF", "JPEG")  # listed, because Pillow also opens MPEG and cannot decode it
_MOVING_SUFFIXES: Final = frozenset({".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".jpg", ".jpeg"})
_INSTALL: Final = "Install PyAV to decode it: pip install av."


class MediaError(RequestError):
    """A media file that is missing or broken."""


@dataclass(frozen=True)
class _MediaStream:
    """An open media file.

    Args:
        stream: Content, open for reading.
        label: Name for messages: ``image photo.png``.
        suffix: File name extension in lower case; empty when unknown.
        rate: Sampling rate to return, in hertz; None keeps the file's.
    """

    stream: BinaryIO
    label: str
    suffix: str
    rate: int | None

    def begins_with(self, mark: bytes) -> bool:
        head = self.stream.read(len(mark))
        self.stream.seek(0)
        return head == mark


def read_media(source: Path | bytes, modality: str, *, sampling_rate: int | None = None) -> Any:
    """Reads one image, sound, video or point cloud.

    Args:
        source: A file, or the bytes of one.
        modality: "image", "audio", "video" or "points".
        sampling_rate: Sampling rate of the checkpoint, in hertz; None accepts any.

    Returns:
        image: RGB image; audio: float32 (samples,) in -1 to 1; video: (frames, height, width, 3), uint8 unless an NPY
        file has another type; points: float32 (points, channels).

    Raises:
        MediaError: The file is missing or broken.
        RequestError: Reading needs PyAV (a video file, a sound that is not WAV, another sampling rate), and it is not
            installed.
    """
    if isinstance(source, bytes):
        return _read(_MediaStream(io.BytesIO(source), f"{modality} inside the record", "", sampling_rate), modality)
    if not source.is_file():
        raise MediaError(f"The {modality} {source} is missing.")
    try:
        with source.open("rb") as stream:
            return _read(_MediaStream(stream, f"{modality} {source}", source.suffix.lower(), sampling_rate), modality)
    except OSError as error:
        raise MediaError(f"The {modality} {source} cannot be read: {_reason(error)}.") from error


def picture_size(source: Path | bytes) -> tuple[int, int]:
    """Returns width and height of a picture, from its header.

    Args:
        source: File, or its bytes.

    Raises:
        MediaError: It is no picture.
    """
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
            return picture.size
    except _BROKEN as error:
        name = str(source) if isinstance(source, Path) else "a picture given as bytes"
        raise MediaError(f"The image {name} cannot be read: {_reason(error)}.") from error


def _read(media: _MediaStream, modality: str) -> Any:
    try:
        return _READERS[modality](media)
    except _BROKEN as error:
        raise MediaError(f"The {media.label} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow can read"  # Pillow's own text contains a memory address
    return first_line(error)


def _picture(media: _MediaStream) -> Image.Image:
    with Image.open(media.stream) as picture:
        return picture.convert("RGB")


def _cloud(media: _MediaStream) -> np.ndarray:
    cloud = np.load(media.stream, allow_pickle=False).astype(np.float32)
    if cloud.ndim != 2 or not cloud.size:
        raise ValueError(f"a point cloud must have the shape (points, channels), not {cloud.shape}")
    return cloud


def _sound(media: _MediaStream) -> np.ndarray:
    if media.suffix != ".wav" and not media.begins_with(b"RIFF"):
        return _decoded_sound(media, why=f"The {media.label} is not a WAV file.")
    try:
        file = wave.open(media.stream)  # noqa: SIM115 - closing it is the caller's
    except wave.Error as error:
        if not str(error).startswith("unknown format"):
            raise
        return _decoded_sound(media, why=f"The {media.label} is not a WAV file of integers.")
    rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
    data = file.readframes(file.getnframes())
    expected = file.getnframes() * width * channels
    if len(data) != expected:
        raise ValueError(f"it ends after {len(data)} of {expected} bytes of sound")
    if not data:
        raise ValueError("it does not contain sound")
    if media.rate and rate != media.rate:
        why = f"The {media.label} has {rate} Hz, but this checkpoint needs {media.rate} Hz."
        return _decoded_sound(media, why=why)
    samples = _integers(data, width).astype(np.float32) / _FULL_SCALE[width]
    return samples.reshape(-1, channels).mean(axis=1) if channels > 1 else samples


def _integers(data: bytes, width: int) -> np.ndarray:
    if width == 1:  # the only width that WAV stores unsigned
        return np.frombuffer(data, dtype=np.uint8).astype(np.int16) - 128
    if width == 3:
        bytes_N3 = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        padded_N4 = np.concatenate([np.zeros((len(bytes_N3), 1), np.uint8), bytes_N3], axis=1)
        return np.ascontiguousarray(padded_N4).view("<i4")[:, 0] >> 8
    return np.frombuffer(data, dtype=f"<i{width}")


def _clip(media: _MediaStream) -> np.ndarray:
    if media.suffix == ".npy" or media.begins_with(b"\x93NUMPY"):
        frames = np.load(media.stream, allow_pickle=False)
        frames = np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    else:
        frames = _moving_picture(media)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"a video must have the shape (frames, height, width, 3), not {frames.shape}")
    return frames


def _moving_picture(media: _MediaStream) -> np.ndarray:
    try:
        with Image.open(media.stream, formats=_MOVING) as picture:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
    except UnidentifiedImageError:
        if media.suffix in _MOVING_SUFFIXES:
            raise
        return _film(media)


def _decoded_sound(media: _MediaStream, *, why: str) -> np.ndarray:
    av = _pyav(why)
    media.stream.seek(0)
    pieces = []
    try:
        with av.open(media.stream) as container:
            if container.streams.audio:
                rate = media.rate or container.streams.audio[0].rate
                resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
                pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
                pieces += resampler.resample(None)
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not pieces:
        raise ValueError("it does not contain sound")
    return np.concatenate([piece.to_ndarray().reshape(-1) for piece in pieces]).astype(np.float32)


def _film(media: _MediaStream) -> np.ndarray:
    """Decodes a video file in two passes, so that only the selected frames are in memory."""
    av = _pyav(f"The {media.label} is a video file.")
    try:
        total = sum(1 for _ in _decode_frames(av, media))
        selected = {int(index) for index in np.linspace(0, total - 1, min(FRAMES, total)).round()}
        frames = [
            frame.to_ndarray(format="rgb24") for i, frame in enumerate(_decode_frames(av, media)) if i in selected
        ]
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not frames:
        raise ValueError("it does not contain images")
    return np.stack(frames)


def _decode_frames(av: Any, media: _MediaStream) -> Any:
    media.stream.seek(0)
    with av.open(media.stream) as container:
        if container.streams.video:
            yield from container.decode(video=0)


def _pyav(why: str) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise RequestError(why, hint=_INSTALL) from error


_READERS: Final[dict[str, Callable[[_MediaStream], Any]]] = {
    "image": _picture,
    "audio": _sound,
    "video": _clip,
    "points": _cloud,
}
