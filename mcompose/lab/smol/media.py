"""The family ``smol``: items of each modality, split by object and by voice, and their altered copies for training.

Held-out items share no mesh and no voice with the training items, and are not altered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mcompose.lab.randomness import generator_for
from mcompose.lab.smol.objects import Thing
from mcompose.lab.smol.questions import KINDS
from mcompose.lab.smol.settings import SmolSettings
from mcompose.lab.smol.speech import HELD_OUT_VOICES, VOICES, Utterance, place_sound, speak
from mcompose.lab.smol.towers import CLOUD_POINTS

__all__ = ["Items", "cloud_copy", "items_of", "split_things"]

_SPEEDS: Final = (170, 240)
_PITCHES: Final = (25, 75)


@dataclass(frozen=True)
class Items:
    """Items of one modality.

    Args:
        values: Items as the donor's ``prepare`` takes them: uint8 pictures, int16 waves, or float32 clouds.
        kinds: Index in ``KINDS`` of each item, (items,).
    """

    values: list[np.ndarray]
    kinds: np.ndarray

    def places(self) -> dict[int, np.ndarray]:
        """Returns kind -> indices of its items."""
        return {kind: np.flatnonzero(self.kinds == kind) for kind in range(len(KINDS))}


def split_things(things: list[Thing], *, share: float, seed: int) -> tuple[list[Thing], list[Thing]]:
    """Divides the objects of each kind into training and held-out objects.

    Args:
        things: All objects.
        share: Share of each kind that is held out; at least one object is.
        seed: The family's seed.

    Returns:
        Training objects and held-out objects, each in the order of ``things``.
    """
    generator = generator_for(seed, "smol split")
    held: set[int] = set()
    for kind in KINDS:
        own = np.flatnonzero([thing.kind == kind for thing in things])
        held |= set(generator.permutation(own)[: max(1, round(len(own) * share))].tolist())
    return [t for i, t in enumerate(things) if i not in held], [t for i, t in enumerate(things) if i in held]


def items_of(
    modality: str, things: list[Thing], settings: SmolSettings, *, seed: int, split: str, library: Path
) -> Items:
    """Makes the items of one modality and one split.

    Args:
        modality: "image", "audio" or "points".
        things: Objects of the split; not used for sounds.
        settings: Numbers of copies and utterances.
        seed: The family's seed.
        split: "train" (altered copies) or "test" (unaltered).
        library: Data folder of the speech synthesiser.

    Returns:
        The items.
    """
    generator = generator_for(seed, "smol items", modality, split)
    if modality == "audio":
        return _sounds(settings, split=split, library=library, generator=generator)
    shown = [thing for thing in things for _ in range(settings.copies if split == "train" else 1)]
    kinds = np.array([KINDS.index(thing.kind) for thing in shown])
    if modality == "image":
        values = [_picture(t.icon, generator) if split == "train" else t.icon for t in shown]
    else:
        values = [cloud_copy(t.cloud, generator=generator, altered=split == "train") for t in shown]
    return Items(values, kinds)


def _sounds(settings: SmolSettings, *, split: str, library: Path, generator: np.random.Generator) -> Items:
    voices, count = (VOICES, settings.spoken) if split == "train" else (HELD_OUT_VOICES, settings.heard)
    said = [
        Utterance(
            kind, voices[index % len(voices)], int(generator.integers(*_SPEEDS)), int(generator.integers(*_PITCHES))
        )
        for kind in KINDS
        for index in range(count)
    ]
    waves = [place_sound(wave, generator=generator, noise=settings.noise) for wave in speak(said, library)]
    return Items(waves, np.repeat(np.arange(len(KINDS)), count))


def _picture(icon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Alters a picture: mirrors it or not, crops it a little, makes it brighter or darker."""
    side = len(icon)
    cut = int(generator.integers(side * 3 // 4, side + 1))
    top, left = (int(generator.integers(side - cut + 1)) for _ in range(2))
    part = icon[top : top + cut, left : left + cut]
    if generator.integers(2):
        part = part[:, ::-1]
    bright = np.clip(part * generator.uniform(0.8, 1.2, size=3), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(bright).resize((side, side), Image.Resampling.BICUBIC))


def cloud_copy(cloud: np.ndarray, *, generator: np.random.Generator, altered: bool) -> np.ndarray:
    """Draws points of a cloud, and may alter them: turned about the vertical, mirrored, stretched, a little noisy.

    Args:
        cloud: Points, (points, 3); the second coordinate points upwards.
        generator: Source of randomness.
        altered: Whether to alter the points.

    Returns:
        float32 (``CLOUD_POINTS``, 3).
    """
    points = cloud[generator.choice(len(cloud), CLOUD_POINTS, replace=False)].astype(np.float64)
    if altered:
        angle = generator.uniform(-0.5, 0.5)
        points = points @ np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        points *= generator.uniform(0.85, 1.15, size=3) * np.array([generator.choice([-1.0, 1.0]), 1, 1])
        points += generator.normal(0, 0.01, size=points.shape)
    return points.astype(np.float32)
