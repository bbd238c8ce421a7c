"""Servers for the tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.services import EmbeddedPostgres


@pytest.fixture(scope="module")
def dsn(module_folder: Path) -> Iterator[str]:
    with EmbeddedPostgres(module_folder) as server:
        yield server.url
        assert server.process is not None
        server.process.kill()  # its data are not wanted again
