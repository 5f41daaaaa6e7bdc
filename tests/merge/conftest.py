"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(params=["F32", "BF16", "F16"])
def dtype(request) -> str:
    return request.param
