"""What the family ``smol`` is made with; its digest is what the cache compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mcompose.lab.settings import FitSettings

if TYPE_CHECKING:
    import torch

    from mcompose.lab.smol.objects import Thing
    from mcompose.lab.smol.towers import Shapes

__all__ = ["SmolParts", "SmolSettings"]


@dataclass(frozen=True)
class SmolSettings:
    """The whole family ``smol``.

    Args:
        version: Raised when the code changes what the same settings give.
        base: Tuning of the language model on text questions; made once for all seeds.
        points: Training of the point encoder as a classifier of kinds; the other encoders are pretrained.
        reader: Start of every donor: the projector is brought near the words of the kinds.
        projector: Stage 1 of every donor: the projector over the frozen base. It is cut short, so that language models
            carry the work: with 40 steps and a projector that goes on learning in stage 2, the base behind a donor's
            projector answered as well as the donor, and no merge had anything to lose.
        full: Stage 2 of every donor: the linear layers of the language model.
        train_projector: Whether stage 2 goes on training the projector, too.
        copies: Altered copies of each training object's picture and cloud.
        spoken: Training utterances of each kind.
        heard: Held-out utterances of each kind.
        noise: In sounds, as a share of the loudest sample.
        held_out: Share of each kind's objects that is never trained on.
        single: Questions per single task and modality.
        joint: Questions per joint task.
        text: Questions per text task.
        checked: Held-out questions behind each figure of the way.
    """

    version: int = 1
    base: FitSettings = field(default_factory=lambda: FitSettings(300, 2e-4, 12))
    points: FitSettings = field(default_factory=lambda: FitSettings(400, 2e-3, 32))
    reader: FitSettings = field(default_factory=lambda: FitSettings(50, 1e-3, 48))
    projector: FitSettings = field(default_factory=lambda: FitSettings(10, 1e-3, 8))
    full: FitSettings = field(default_factory=lambda: FitSettings(100, 1e-4, 8))
    train_projector: bool = False
    copies: int = 6
    spoken: int = 30
    heard: int = 6
    noise: float = 0.05
    held_out: float = 0.3
    single: int = 30
    joint: int = 90
    text: int = 20
    checked: int = 20

    def digest(self, seed: int) -> str:
        """Names the family that these settings and a seed give: 16 hexadecimal digits."""
        return _named({"seed": seed, **asdict(self)})

    def base_digest(self) -> str:
        """Names the base, which no seed changes."""
        return _named({"version": self.version, **asdict(self.base)})


def _named(told: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SmolParts:
    """What a family is built from; tests hand in small ones.

    Args:
        base: Folder of the tuned language model.
        things: Objects.
        library: The speech synthesiser's data.
        encoders: "image" and "audio" to the weights of their encoders.
        shapes: Sizes of the encoders; None for the real ones.
    """

    base: Path
    things: list[Thing]
    library: Path
    encoders: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    shapes: Shapes | None = None
