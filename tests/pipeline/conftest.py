"""Sources that the tests of this room share; nobody writes into their folders."""

from pathlib import Path

import pytest
from tiny_sources import write_family


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("sources"))
