"""What tests of several folders need."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from cluster.services import EmbeddedKafka, EmbeddedPostgres

ALONE = "pytest.mark.ray"
"""What marks a file in which a Ray is started: many at once would compete for two cores."""

ROOT = Path(__file__).parents[1]
NIGHTS = ROOT / "tests" / "night"

# `cluster` sets them for its workers. A process of pytest's that started with them would hold 5 GB at the end.
for _variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
    os.environ.pop(_variable, None)


class Scheduling(LoadFileScheduling):
    """File by file; one process has all nights with a Ray, one all else with a Ray, from the start."""

    def _split_scope(self, nodeid: str) -> str:
        file = ROOT / nodeid.partition("::")[0]
        if not alone(file):
            return str(file)
        return "nights" if NIGHTS in file.parents else "batch"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not alone(item.path))


@cache
def alone(file: Path) -> bool:
    return ALONE in file.read_text("utf-8")


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
