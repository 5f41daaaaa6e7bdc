"""The family ``smol``: words spoken by eSpeak NG, in many voices, speeds and pitches, with noise.

The synthesiser's library is called through ctypes in a process of its own, because it keeps global state.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.errors import RequestError
from mcompose.lab.media import SAMPLE_RATE

__all__ = ["HELD_OUT_VOICES", "SAMPLE_RATE", "SPOKEN_SAMPLES", "VOICES", "Utterance", "place_sound", "speak"]

SPOKEN_SAMPLES: Final = 10240
VOICES: Final = (
    *(f"{accent}+{timbre}" for accent in ("en-US", "en", "en-GB-scotland")
      for timbre in ("m1", "m3", "m7", "f1", "f3", "f5", "croak", "klatt3")),
)  # fmt: skip
HELD_OUT_VOICES: Final = tuple(f"{accent}+{timbre}" for accent in ("en-029", "en-US") for timbre in ("m4", "f2", "f4"))
"""Other timbres, and an accent that is never trained on."""
_SYNCHRONOUS: Final = 1
_RATE, _PITCH = 1, 3
_UTF8: Final = 1
_SEED: Final = 1


@dataclass(frozen=True)
class Utterance:
    """A word and how to speak it.

    Args:
        word: The word.
        voice: Name of a voice, with a timbre after ``+``.
        speed: Words per minute.
        pitch: Pitch, 0 to 100.
    """

    word: str
    voice: str
    speed: int
    pitch: int


def speak(utterances: Sequence[Utterance], library: Path) -> list[np.ndarray]:
    """Speaks words.

    Args:
        utterances: Words and how to speak them.
        library: Data folder of the synthesiser; its library is beside it.

    Returns:
        int16 waves at 16 kHz without silence at either end.

    Raises:
        RequestError: The synthesiser does not run on this machine.
    """
    asked = json.dumps([[u.word, u.voice, u.speed, u.pitch] for u in utterances])
    command = [sys.executable, "-m", "mcompose.lab.smol.speech", str(library)]
    done = subprocess.run(command, input=asked.encode(), capture_output=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        raise RequestError(
            f"eSpeak NG does not run on this machine: {done.stderr.decode(errors='replace').strip()[-200:]}"
        )
    waves, place = [], 0
    for _ in utterances:
        length = int.from_bytes(done.stdout[place : place + 4], "little")
        waves.append(np.frombuffer(done.stdout, "<i2", length, place + 4))
        place += 4 + 2 * length
    return waves


def place_sound(wave: np.ndarray, *, generator: np.random.Generator, noise: float) -> np.ndarray:
    """Places a word at random in a window of fixed length, with noise.

    Args:
        wave: Sound at 16 kHz, int16; the end is cut off where it does not fit.
        generator: Source of randomness for position, loudness and noise.
        noise: Strength of the noise, as a share of the loudest sample.

    Returns:
        int16 (``SPOKEN_SAMPLES``,).
    """
    word = wave[:SPOKEN_SAMPLES].astype(np.float64)
    word *= generator.uniform(0.3, 0.9) / max(np.abs(word).max(), 1.0)
    start = int(generator.integers(SPOKEN_SAMPLES - len(word) + 1))
    window = generator.normal(0, noise * max(np.abs(word).max(), 1e-3), size=SPOKEN_SAMPLES)
    window[start : start + len(word)] += word
    return np.rint(np.clip(window, -1, 1) * 32767).astype(np.int16)


def _trimmed(wave: np.ndarray, *, rate: int) -> np.ndarray:
    """Resamples a wave to 16 kHz and removes the silence at both ends."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * max(int(np.abs(wave).max()), 1))
    if not len(loud):
        return np.zeros(1, dtype=np.int16)
    kept = wave[loud[0] : loud[-1] + 1].astype(np.float64)
    length = round(len(kept) * SAMPLE_RATE / rate)
    smooth = np.convolve(kept, np.ones(2) / 2, mode="same") if rate > SAMPLE_RATE else kept
    return np.rint(np.interp(np.arange(length) * rate / SAMPLE_RATE, np.arange(len(kept)), smooth)).astype(np.int16)


def _main(library: Path) -> None:
    espeak: Any = ctypes.CDLL(str(library.parent / "libespeak-ng.so"))
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, str(library).encode(), 0)
    if rate <= 0:
        raise SystemExit("espeak_Initialize failed")
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def heard(samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(heard)
    for word, voice, speed, pitch in json.load(sys.stdin):
        if espeak.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"no voice is called {voice}")
        espeak.espeak_SetParameter(_RATE, speed, 0)
        espeak.espeak_SetParameter(_PITCH, pitch, 0)
        parts.clear()
        espeak.espeak_ng_SetRandSeed(_SEED)  # breath in a voice is noise
        text = word.encode() + b"\0"
        espeak.espeak_Synth(text, len(text), 0, 0, 0, _UTF8, None, None)
        espeak.espeak_Synchronize()
        wave = _trimmed(np.concatenate(parts), rate=rate) if parts else np.zeros(1, dtype=np.int16)
        sys.stdout.buffer.write(len(wave).to_bytes(4, "little") + wave.astype("<i2").tobytes())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
