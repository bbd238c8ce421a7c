"""Servers for the tests of a module."""

from collections.abc import Iterator

import pytest

from cluster.services import EmbeddedPostgres


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("l1")) as server:
        yield server.url
        assert server.process is not None
        server.process.kill()  # its data are not wanted again
