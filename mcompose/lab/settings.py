"""What a family is made with. Everything that changes its bytes is here, and its digest is what the cache compares."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

__all__ = ["DataSettings", "FitSettings", "NumbersSettings"]


def _check_tens(**counts: int) -> None:
    for name, count in counts.items():
        if count < 10 or count % 10:
            raise ValueError(f"{name} is {count}; every number needs as many items as the others, so use tens.")


@dataclass(frozen=True)
class FitSettings:
    """One training run.

    Args:
        steps: Optimiser steps.
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
        train_media: Items per modality that are kept for alignment, a multiple of 10.
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
    """The whole family ``numbers``.

    Args:
        version: Raised when the code changes what the same settings give.
        width: Width of the language model.
        layers: Its decoder layers.
        pool: Training items that are drawn for each modality, a multiple of 10; twice as many for
            images, whose shifts are cheap.
        checked: Held-out questions or items behind each figure of the way, a multiple of 10.
        base: Text training of the base.
        encoder: Modality -> training of its encoder as a classifier of numbers.
        projector: Stage 1 of every donor: projector over the frozen language model.
        full: Stage 2 of every donor: projector, and the linear layers of the language model.
        data: Sizes of the data on disk.
        keep_projector: Whether stage 2 leaves the projector as stage 1 made it.
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
        """Names the family that these settings and a seed give.

        Args:
            seed: The seed.

        Returns:
            16 hexadecimal digits.
        """
        told = {"seed": seed, **asdict(self)}
        if not self.keep_projector:
            del told["keep_projector"]  # families that were made before there was a choice
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
