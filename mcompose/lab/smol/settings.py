"""Settings of the family ``smol``; their digest is what the cache compares."""

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
    """Settings of the whole family ``smol``.

    Args:
        version: Increased when a change of the code makes the same settings give other bytes.
        base: Training of the language model on text questions; done once for all seeds.
        points: Training of the point encoder as a classifier of kinds; the other encoders are pretrained.
        reader: Initialisation of every donor: training of the projector to the embeddings of the kinds' names.
        projector: Stage 1 of every donor: the projector over the frozen base. It is short, so that the language models
            have to learn: with 40 steps and a projector that is trained in stage 2, too, the base behind a donor's
            projector answered as well as the donor, and no merge had anything to lose.
        full: Stage 2 of every donor: the linear layers of the language model.
        train_projector: Whether stage 2 trains the projector, too.
        copies: Altered copies of each training object's picture and cloud.
        spoken: Training utterances of each kind.
        heard: Held-out utterances of each kind.
        noise: Strength of the noise in sounds, as a share of the loudest sample.
        held_out: Share of each kind's objects that is held out.
        single: Questions per single task and modality.
        joint: Questions per joint task.
        text: Questions per text task.
        checked: Held-out questions per figure that is measured during the making.
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
        """Identifies the family that these settings and a seed give, by 16 hexadecimal digits."""
        return _digest({"seed": seed, **asdict(self)})

    def base_digest(self) -> str:
        """Identifies the base, which does not depend on the seed."""
        return _digest({"version": self.version, **asdict(self.base)})


def _digest(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SmolParts:
    """Parts that a family is built from; tests use small ones.

    Args:
        base: Folder of the trained language model.
        things: Objects.
        library: Data folder of the speech synthesiser.
        encoders: "image" and "audio" -> weights of their encoders.
        shapes: Sizes of the encoders; None for the real ones.
    """

    base: Path
    things: list[Thing]
    library: Path
    encoders: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    shapes: Shapes | None = None
