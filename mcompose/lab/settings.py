"""Settings of a family: everything that changes its bytes. The digest of the settings is what the cache compares."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

__all__ = ["DataSettings", "FitSettings", "NumbersSettings"]


def _check_tens(**counts: int) -> None:
    for name, count in counts.items():
        if count < 10 or count % 10:
            raise ValueError(
                f"{name} is {count}, but each of the ten numbers needs equally many items. Use a multiple of 10."
            )


@dataclass(frozen=True)
class FitSettings:
    """Settings of one training run.

    Args:
        steps: Number of optimiser steps.
        lr: Peak learning rate of AdamW; linear warm-up over a twentieth of the steps, then cosine to 2 %.
        batch: Examples per step.
    """

    steps: int
    lr: float
    batch: int = 32


@dataclass(frozen=True)
class DataSettings:
    """Sizes of the data on disk.

    Args:
        test_media: Held-out items per modality, a multiple of 10.
        train_media: Items per modality for alignment, a multiple of 10.
        single: Questions per single task and modality.
        joint: Questions per joint task.
    """

    test_media: int = 200
    train_media: int = 200
    single: int = 200
    joint: int = 400

    def __post_init__(self) -> None:
        _check_tens(test_media=self.test_media, train_media=self.train_media)


@dataclass(frozen=True)
class NumbersSettings:
    """Settings of the whole family ``numbers``.

    Args:
        version: Increased when a change of the code makes the same settings give other bytes.
        width: Hidden size of the language model.
        layers: Number of decoder layers of the language model.
        pool: Training items that are drawn for each modality, a multiple of 10; twice as many for
            images, whose shifted copies are cheap.
        checked: Held-out questions or items per figure that is measured during the making, a multiple of 10.
        base: Text training of the base.
        encoder: Modality -> training of its encoder as a classifier of numbers.
        projector: Stage 1 of every donor: the projector, over the frozen language model.
        full: Stage 2 of every donor: the projector, and the linear layers of the language model.
        data: Sizes of the data on disk.
        keep_projector: Whether stage 2 leaves the projector as it is after stage 1.
    """

    version: int = 1
    width: int = 128
    layers: int = 4
    pool: int = 6000
    checked: int = 400
    base: FitSettings = FitSettings(1200, 2e-3)
    encoder: dict[str, FitSettings] = field(
        default_factory=lambda: {
            "image": FitSettings(2000, 1e-3, 64),
            "audio": FitSettings(400, 2e-3, 64),
            "video": FitSettings(900, 2e-3, 64),
            "points": FitSettings(500, 4e-3, 64),
        }
    )
    projector: FitSettings = FitSettings(300, 2e-3)
    full: FitSettings = FitSettings(300, 1e-3)
    data: DataSettings = DataSettings()
    keep_projector: bool = False

    def __post_init__(self) -> None:
        _check_tens(pool=self.pool, checked=self.checked)

    def digest(self, seed: int) -> str:
        """Identifies the family that these settings and a seed give.

        Args:
            seed: Seed of the family.

        Returns:
            16 hexadecimal digits.
        """
        fields = {"seed": seed, **asdict(self)}
        if not self.keep_projector:
            del fields["keep_projector"]  # families that were made before this setting keep their digest
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
