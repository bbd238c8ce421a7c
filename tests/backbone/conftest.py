"""A PostgreSQL for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.backbone.servers import postgres


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("l1")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    with postgres(folder / "postgres") as dsn:
        yield dsn
