"""What the family ``pictures`` is made with. Everything that changes its bytes is here; its digest names the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from mcompose.lab.settings import FitSettings

__all__ = ["READING", "PicturesData", "PicturesSettings"]

_GENERAL = FitSettings(700, 2e-3, 96)
_BASE = FitSettings(1500, 2e-3, 64)
_PROBE = FitSettings(300, 3e-3, 256)


@dataclass(frozen=True)
class PicturesData:
    """Sizes of the data on disk.

    Args:
        test: Held-out pictures a domain.
        questions: Questions a task.
        train: Pictures a domain that are kept for alignment.
        asked: Training records a picture, at most.
    """

    test: int = 240
    questions: int = 240
    train: int = 1500
    asked: int = 4


@dataclass(frozen=True)
class PicturesSettings:
    """The whole family.

    Args:
        name: Name of the family.
        version: Raised when the code changes what the same settings give.
        width: Width of the language model.
        layers: Its decoder layers.
        pool: Pictures a domain that encoders and the base learn from.
        checked: Held-out pictures a domain behind each figure.
        experts: Domain -> training of its expert.
        general: Training of the general encoder.
        general_side: It sees pictures with so many pixels a side.
        general_reads: Whether it is taught to read too, and the general model where to look for what is written.
        base: Training of the general model, on pictures, marks and words in turn.
        base_blind: Share of its steps that come before pictures, when it learns from marks and words to look things up.
        base_general: Share of pictures of no expert's domain among those it is trained on.
        probe: Training of the read-outs behind the figures.
        probed: Training pictures that a read-out learns from.
        data: Sizes of the data on disk.
    """

    name: str = "pictures"
    version: int = 3
    width: int = 128
    layers: int = 2
    pool: int = 3500
    checked: int = 300
    experts: dict[str, FitSettings] = field(
        default_factory=lambda: {
            "chart": FitSettings(450, 3e-3, 32),
            "table": FitSettings(400, 3e-3, 32),
            "document": FitSettings(350, 3e-3, 32),
        }
    )
    general: FitSettings = _GENERAL
    general_side: int = 32
    general_reads: bool = False
    base: FitSettings = _BASE
    base_blind: float = 0.6
    base_general: float = 0.65
    probe: FitSettings = _PROBE
    probed: int = 1500
    data: PicturesData = PicturesData()

    def digest(self, seed: int) -> str:
        """Names the family that these settings and a seed give.

        Args:
            seed: The seed.

        Returns:
            16 hexadecimal digits.
        """
        text = json.dumps({"seed": seed, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


READING = PicturesSettings(
    name="pictures-reading",
    general=FitSettings(900, 2e-3, 96),
    general_side=64,
    general_reads=True,
    base=FitSettings(3000, 2e-3, 64),
    base_blind=0.3,
    base_general=0.25,
)
"""The general model reads what its encoder resolves, as large ones do: the premise under which experts' tokens are
neglected, and masking the general ones was proposed."""
