"""Reads images, sounds, videos and point clouds from files, in the form that processors take.

Images are read by Pillow, sounds from integer WAV files, videos from animated images or NPY files, point clouds from
NPY files. With PyAV installed, video files and other sound formats are decoded, and sounds are resampled. A
file that cannot be read is an error that names its path; nothing is ever substituted.
"""

from __future__ import annotations

import importlib
import io
import math
import wave
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from mcompose.errors import RequestError, first_line

__all__ = ["FRAMES", "MediaError", "picture_size", "read_media"]

FRAMES: Final = 8
"""Number of frames read from a video file, evenly spread, as for the video encoders of arXiv 2402.12750. Animated
images and arrays are read whole."""

MOST_PIXELS: Final = 2**27
"""Pixels of a picture that is read; a larger one is refused from its header."""
MOST_VALUES: Final = 2**30
"""Values of a film, sound or array that is read; what would unfold to more is refused before it is decoded."""
_PICTURES: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
"""Formats by content; Pillow also opens some that start other programs, such as PostScript."""
_ORIENTATION: Final = 0x0112
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
        image: RGB image, upright as its EXIF orientation says, greys of 16 bits scaled to 8; audio: float32 (samples,)
        in -1 to 1; video: (frames, height, width, 3), uint8 unless an NPY file has another type of whole numbers;
        points: float32 (points, 3), finite; colours and normals behind the coordinates are left off.

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
    """Returns width and height of a picture as it is seen, from its header.

    Args:
        source: File, or its bytes.

    Raises:
        MediaError: It is no picture.
    """
    try:
        with Image.open(
            source if isinstance(source, Path) else io.BytesIO(source), formats=_known(_PICTURES)
        ) as picture:
            width, height = picture.size
            return (height, width) if picture.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)
    except Exception as error:
        name = str(source) if isinstance(source, Path) else "a picture given as bytes"
        raise MediaError(f"The image {name} cannot be read: {_reason(error)}.") from error


def _read(media: _MediaStream, modality: str) -> Any:
    try:
        return _READERS[modality](media)
    except RequestError:
        raise
    except Exception as error:  # a damaged file may break any line of a decoder
        raise MediaError(f"The {media.label} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow can read"  # Pillow's own text contains a memory address
    return first_line(error) or type(error).__name__


def _picture(media: _MediaStream) -> Image.Image:
    with Image.open(media.stream, formats=_known(_PICTURES)) as picture:
        _check_pixels(picture)
        return _eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")


@cache
def _known(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those formats that the installed Pillow can open."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def _check_pixels(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the {MOST_PIXELS:,} that are read")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales deep greys to 8 bits, which Pillow itself would clip."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    top = float(values.max(initial=0))
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and 255 < top < 2**16)
    if deep:
        return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))
    if not (values.min(initial=0) >= 0 and top <= 255):  # also for NaN
        raise ValueError(f"greys from {values.min():g} to {top:g} have no known scale; save it with 8 or 16 bits")
    return Image.fromarray(values.round().astype(np.uint8))


def _array(media: _MediaStream) -> np.ndarray:
    """Reads an NPY file of numbers."""
    if media.begins_with(b"PK"):
        raise ValueError("it is an archive of arrays (.npz); save one array, with numpy.save")
    _check_array(media.stream)
    media.stream.seek(0)
    return np.load(media.stream, allow_pickle=False)


def _check_array(stream: Any) -> None:
    """Checks size and type of an array by its header."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds '{dtype}', and not numbers")
    if any(isinstance(side, bool) for side in shape) or math.prod(shape) > MOST_VALUES:
        raise ValueError(f"an array of {' x '.join(map(str, shape))[:80]} values is more than is read")


def _cloud(media: _MediaStream) -> np.ndarray:
    cloud = _array(media).astype(np.float32)
    if cloud.ndim != 2 or not cloud.size or cloud.shape[1] < 3:
        raise ValueError(f"a point cloud must have the shape (points, 3 or more), not {cloud.shape}")
    if not np.isfinite(cloud).all():
        raise ValueError("a value is not finite")
    return np.ascontiguousarray(cloud[:, :3])


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
    if width not in _FULL_SCALE:
        raise ValueError(f"samples of {8 * width} bits are not read")
    if file.getnframes() * channels > MOST_VALUES:
        raise ValueError(f"{file.getnframes():,} samples are more than is read")
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
    if media.suffix in (".npy", ".npz") or media.begins_with(b"\x93NUMPY"):
        frames = _array(media)
        frames = np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    else:
        frames = _moving_picture(media)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"a video must have the shape (frames, height, width, 3), not {frames.shape}")
    return _whole_numbers(frames)


def _whole_numbers(frames: np.ndarray) -> np.ndarray:
    """Returns frames whose values go from 0 to 255; numbers with a point that go to 1 are scaled to that."""
    if frames.dtype.kind != "f" or not frames.size:
        return frames
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"values from {low:g} to {high:g} are neither 0 to 1 nor 0 to 255")
    return (frames * 255).round().astype(np.uint8) if high <= 1 else frames.round().astype(np.uint8)


def _moving_picture(media: _MediaStream) -> np.ndarray:
    try:
        with Image.open(media.stream, formats=_known(_MOVING)) as picture:
            _check_pixels(picture)
            count = getattr(picture, "n_frames", 1)
            if count * picture.size[0] * picture.size[1] * 3 > MOST_VALUES:
                raise ValueError(f"{count} frames of {picture.size[0]} x {picture.size[1]} are more than is read")
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
                pieces = _up_to(MOST_VALUES, (p for f in container.decode(audio=0) for p in resampler.resample(f)))
                pieces += resampler.resample(None)
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not pieces:
        raise ValueError("it does not contain sound")
    return np.concatenate([piece.to_ndarray().reshape(-1) for piece in pieces]).astype(np.float32)


def _up_to(limit: int, pieces: Iterable[Any]) -> list[Any]:
    kept, total = [], 0
    for piece in pieces:
        total += piece.samples
        if total > limit:
            raise ValueError(f"more than {limit:,} samples are not read")
        kept.append(piece)
    return kept


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
