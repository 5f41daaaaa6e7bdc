"""Media that show a number: digits, keypad tones, blinks and clusters.

- image: a handwritten digit, 8 x 8 (scikit-learn's own data, real), enlarged to 16 x 16.
- audio: the telephone keypad's tone of the digit (DTMF), 0.4 s at 16 kHz, in noise.
- video: a spot at a random place that blinks n times, 27 frames of 16 x 16, in noise.
- points: n clusters in 3-D, 128 points in all whatever n is, with stray points.

All but the digits are drawn on demand; each item depends only on its number and on the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mcompose.errors import RequestError

__all__ = [
    "FRAMES",
    "IMAGE_SIDE",
    "KEYPAD",
    "NUM_POINTS",
    "SAMPLES",
    "SAMPLE_RATE",
    "DigitImages",
    "draw",
    "load_digits",
]

IMAGE_SIDE: Final = 16
SAMPLE_RATE: Final = 16000
SAMPLES: Final = 6400
FRAMES: Final = 27
NUM_POINTS: Final = 128

# Row and column frequency of each key, in hertz (ITU-T Q.23).
KEYPAD: Final = {
    0: (941, 1336),
    1: (697, 1209), 2: (697, 1336), 3: (697, 1477),
    4: (770, 1209), 5: (770, 1336), 6: (770, 1477),
    7: (852, 1209), 8: (852, 1336), 9: (852, 1477),
}  # fmt: skip

_SPOT = 8
_STRAY_POINTS = 12
_CLUSTER_RADIUS = 0.03
_CLUSTER_GAP = 0.45


@dataclass(frozen=True)
class DigitImages:
    """Handwritten digits, split by image.

    Args:
        train: Number -> images, uint8 (count, 16, 16).
        test: Number -> held-out images of the same shape.
    """

    train: dict[int, np.ndarray]
    test: dict[int, np.ndarray]


def load_digits(*, generator: np.random.Generator, test_share: float = 0.25) -> DigitImages:
    """Reads scikit-learn's digits and splits them.

    Args:
        generator: Source of randomness that chooses the held-out images.
        test_share: Share of each digit's images that is held out.

    Returns:
        Training and test images; no image is in both.

    Raises:
        RequestError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise RequestError(
            "The lab's handwritten digits need scikit-learn.", hint="Install it: pip install 'mcompose[lab]'."
        ) from error
    data: Any = load()
    pixels = np.clip(np.rint(data.images * (255 / 16)), 0, 255).astype(np.uint8)
    images = pixels.repeat(2, axis=1).repeat(2, axis=2)
    train, test = {}, {}
    for number in range(10):
        shuffled = images[data.target == number]
        shuffled = shuffled[generator.permutation(len(shuffled))]
        held_out = round(len(shuffled) * test_share)
        test[number], train[number] = shuffled[:held_out], shuffled[held_out:]
    return DigitImages(train, test)


def draw(modality: str, number: int, *, generator: np.random.Generator) -> np.ndarray:
    """Draws one item.

    Args:
        modality: "audio", "video" or "points".
        number: Number that it shows, 0 to 9.
        generator: Source of randomness.

    Returns:
        audio: int16 (6400,); video: uint8 (27, 16, 16); points: float32 (128, 3).
    """
    return {"audio": _tone, "video": _blinks, "points": _clusters}[modality](number, generator)


def _tone(number: int, generator: np.random.Generator) -> np.ndarray:
    seconds = np.arange(SAMPLES) / SAMPLE_RATE
    row, column = KEYPAD[number]
    phases = generator.uniform(0, 2 * np.pi, size=2)
    wave = np.sin(2 * np.pi * row * seconds + phases[0]) + np.sin(2 * np.pi * column * seconds + phases[1])
    wave = wave * generator.uniform(0.3, 1.0) + generator.normal(0, 0.7, size=SAMPLES)
    return np.rint(np.clip(wave / 6, -1, 1) * 32767).astype(np.int16)


def _blinks(number: int, generator: np.random.Generator) -> np.ndarray:
    # Distinct draws from FRAMES - number + 1 places, spread by their rank, leave a dark frame between any two.
    places = generator.choice(FRAMES - number + 1, size=number, replace=False)
    lit = np.sort(places) + np.arange(number)
    top, left = generator.integers(0, IMAGE_SIDE - _SPOT + 1, size=2)
    clip = generator.normal(60, 20, size=(FRAMES, IMAGE_SIDE, IMAGE_SIDE))
    clip[lit, top : top + _SPOT, left : left + _SPOT] += generator.uniform(110, 130)
    return np.rint(np.clip(clip, 0, 255)).astype(np.uint8)


def _clusters(number: int, generator: np.random.Generator) -> np.ndarray:
    stray = NUM_POINTS if number == 0 else _STRAY_POINTS
    parts = [generator.uniform(-1, 1, size=(stray, 3))]
    if number:
        centres = _far_apart(number, generator)
        shares = generator.dirichlet(np.full(number, 8.0))
        sizes = generator.multinomial(NUM_POINTS - stray - 4 * number, shares) + 4
        for centre, size in zip(centres, sizes, strict=True):
            parts.append(centre + generator.normal(0, _CLUSTER_RADIUS, size=(size, 3)))
    cloud = np.concatenate(parts)
    return cloud[generator.permutation(len(cloud))].astype(np.float32)


def _far_apart(number: int, generator: np.random.Generator) -> list[np.ndarray]:
    centres: list[np.ndarray] = []
    while len(centres) < number:
        centre = generator.uniform(-0.9, 0.9, size=3)
        if all(np.linalg.norm(centre - other) >= _CLUSTER_GAP for other in centres):
            centres.append(centre)
    return centres
