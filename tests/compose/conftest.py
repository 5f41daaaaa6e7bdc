"""Sources that the tests of this room share; nobody writes into their folders."""

from pathlib import Path

import pytest
from damc_sources import write_natives
from tiny_sources import write_family


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def natives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and ordinary donors; under ``base-too`` the same with the base's own language model."""
    folder = write_natives(tmp_path_factory.mktemp("natives"))
    write_natives(folder / "base-too", change=0.0)
    return folder
