"""What tests of several folders need."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.services import EmbeddedKafka, EmbeddedPostgres


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pachon-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass through, as a night's output folder usually is, not pytest's."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """One for the tests of a module."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """One for the whole run."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def cluster_folder() -> Iterator[Path]:
    """One for a database that tests start, stop and crash, but leave whole: to make one takes a while."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def dsn(module_folder: Path) -> Iterator[str]:
    """A database server for the tests of a module."""
    with EmbeddedPostgres(module_folder) as server:
        yield server.url
        assert server.process is not None
        server.process.kill()  # its data are not wanted again


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for the tests of a module."""
    with EmbeddedKafka(tmp_path_factory.mktemp("broker") / "broker.log") as kafka:
        yield kafka.bootstrap
        assert kafka.process is not None
        kafka.process.kill()  # at once, however many clients it has
