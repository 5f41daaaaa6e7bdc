"""A family of tiny trained checkpoints that the tests of this room share; nobody writes into their folders."""

from __future__ import annotations

import pytest

from mcompose.lab import DataSettings, FitSettings, NumbersSettings, make_numbers
from mcompose.modalities import MODALITIES

TINY = NumbersSettings(
    width=16,
    layers=2,
    pool=20,
    checked=10,
    base=FitSettings(20, 1e-2, 8),
    encoder={modality: FitSettings(1, 1e-3, 4) for modality in MODALITIES},
    projector=FitSettings(1, 1e-3, 4),
    full=FitSettings(1, 1e-3, 4),
    data=DataSettings(test_media=10, train_media=10, single=6, joint=8),
)


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Donors of four modalities that hardly learned anything: their answers are noise, and the same every time."""
    return make_numbers(tmp_path_factory.mktemp("lab") / "numbers", seed=0, settings=TINY, workers=0)


@pytest.fixture(scope="session")
def composed(family):
    """All four donors in one checkpoint."""
    from mcompose.pipeline.lab.run import compose

    return compose(family, "naivemc")
