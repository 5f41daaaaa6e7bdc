"""Sources that the tests of this room share; nobody writes into their folders."""

import shutil
from pathlib import Path

import pytest
from tiny_sources import write_family


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def folder(sources: Path, tmp_path: Path) -> Path:
    """Two language models that a test may break."""
    for name in ("base", "expert"):
        shutil.copytree(sources / name, tmp_path / name)
    return tmp_path
