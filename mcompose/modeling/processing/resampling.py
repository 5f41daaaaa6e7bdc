"""Changes the sampling rate of a sound: windowed-sinc interpolation, as far as two encoders need it.

An expert may hear at another rate than the general encoder beside it. Letters: T samples, U samples afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["resampled"]

_CROSSINGS = 16
_ROLLOFF = 0.95


def resampled(sound: Any, *, source: int, target: int) -> Any:
    """Returns a sound at another sampling rate; the same object when the rates are equal.

    Args:
        sound: Samples (T,): an array, a tensor or a list of numbers.
        source: Samples per second that it has.
        target: Samples per second that are wanted.

    Returns:
        Samples (U,), float32 numpy, with U = ceil(T * target / source).
    """
    if source == target:
        return sound
    x_T = torch.as_tensor(sound, dtype=torch.float32)
    shared = math.gcd(source, target)
    down, up = source // shared, target // shared
    cutoff = _ROLLOFF * min(1.0, up / down)  # of the source's Nyquist frequency
    half = math.ceil(_CROSSINGS / cutoff)
    taps_K = torch.arange(-half, half + 1, dtype=torch.float64)
    phases_P = torch.arange(up, dtype=torch.float64) * down / up  # places of the first outputs among the samples
    place_PK = taps_K - (phases_P - phases_P.floor())[:, None]
    window_PK = torch.cos(place_PK.div(half + 1).clamp(-1, 1) * math.pi / 2) ** 2
    kernel_PK = (torch.sinc(place_PK * cutoff) * window_PK * cutoff).float()
    length = math.ceil(len(x_T) * up / down)
    blocks = math.ceil(length / up)
    padded = torch.nn.functional.pad(x_T, (half, half + blocks * down + down))
    rows_PU = [
        torch.nn.functional.conv1d(padded[None, None, int(first) :], kernel[None, None], stride=down)[0, 0, :blocks]
        for first, kernel in zip(phases_P.floor(), kernel_PK, strict=True)
    ]
    return torch.stack(rows_PU, dim=1).flatten()[:length].numpy()
