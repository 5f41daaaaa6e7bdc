"""Settings of the family ``pictures``: everything that changes its bytes. Their digest is what the cache compares."""

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
        test: Held-out pictures per domain.
        questions: Questions per task.
        train: Pictures per domain for alignment.
        asked: Largest number of training records per picture.
    """

    test: int = 240
    questions: int = 240
    train: int = 1500
    asked: int = 4


@dataclass(frozen=True)
class PicturesSettings:
    """Settings of the whole family.

    Args:
        name: Name of the family.
        version: Increased when a change of the code makes the same settings give other bytes.
        width: Hidden size of the language model.
        layers: Number of decoder layers of the language model.
        pool: Pictures per domain that encoders and the base are trained on.
        checked: Held-out pictures per domain for each figure that is measured during the making.
        experts: Domain -> training of its expert.
        general: Training of the general encoder.
        general_side: Height and width that the general encoder resizes pictures to, in pixels.
        general_reads: Whether the general encoder is trained to read, too, and the general model where to look.
        base: Training of the general model, on pictures, marks and words in turn.
        base_blind: Share of its first steps without pictures, in which it learns to look things up in marks and words.
        base_general: Share of its training pictures that are outside the experts' domains.
        probe: Training of the read-outs that the figures are measured with.
        probed: Number of pictures that a read-out is trained on.
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
        """Identifies the family that these settings and a seed give.

        Args:
            seed: Seed of the family.

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
"""Settings under which the general model reads what its encoder resolves, as large ones do. Then a model tends to
ignore the experts' tokens, which is why masking general tokens was proposed."""
