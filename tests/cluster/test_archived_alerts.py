"""Alerts of the archive, where some were made twice."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from backbone.alert_archive import AlertArchive
from backbone.l1 import VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from cluster.cli import app
from cluster.services import EmbeddedPostgres
from payloads.alert_production.alert_schema import alert_schema
from tests.actors.packets_of import packets_of
from tests.backbone.l1_results import result

VISIT, LATER, DETECTOR, N = 2026070500001, 2026070500003, 94, 3
STORED, AGAIN = 1000.0, 2000.0
"""Fluxes by which the copies of an alert can be told apart, nJy."""


def made(visit: int, flux: float) -> VisitDetectorResult:
    found = result(visit, DETECTOR, n=N)
    found.sources["psfFlux"] = flux
    return found


def write(archive: AlertArchive, found: VisitDetectorResult, written: float) -> str:
    path = archive.write(found.visit, DETECTOR, packets_of(found), found.alert_ids, found.alert_keys())
    os.utime(archive.folder / path, (written, written))
    return path


@pytest.fixture(scope="module")
def paths(module_folder: Path) -> dict[float, str]:
    """A night whose first visit was made twice, the stored one first, and whose second was never stored."""
    archive = AlertArchive(module_folder / "alerts", alert_schema())
    stored = made(VISIT, STORED)
    paths = {STORED: write(archive, stored, 1e9), AGAIN: write(archive, made(VISIT, AGAIN), 1e9 + 60.0)}
    unstored = made(LATER, AGAIN)
    unstored.sources["diaObjectId"] = stored.sources["diaObjectId"]  # seen again
    archive.write(LATER, DETECTOR, packets_of(replace(unstored, objects=stored.objects)), unstored.alert_ids,
                  unstored.alert_keys())  # fmt: skip

    async def store(dsn: str) -> None:
        l1 = await L1Postgres.open(dsn)
        await l1.store(replace(stored, alert_path=paths[STORED]), [], 1.0)
        await l1.close()

    with EmbeddedPostgres(module_folder / "postgres") as server:
        asyncio.run(store(server.url))
    return paths


@pytest.fixture(scope="module")
def database(module_folder: Path, paths: dict[float, str]) -> Iterator[str]:  # noqa: ARG001 - made by then
    """The night's own, running."""
    with EmbeddedPostgres(module_folder / "postgres") as server:
        yield server.url


@pytest.fixture
def copied(module_folder: Path, paths: dict[float, str], tmp_path: Path) -> Path:  # noqa: ARG001 - made by then
    """The archive in a folder without a database."""
    (tmp_path / "alerts").symlink_to(module_folder / "alerts")
    return tmp_path


def ask(output: Path, *wanted: object) -> Result:
    return CliRunner().invoke(app, ["archived-alerts", "--output", str(output), *map(str, wanted)])


def shown(answer: Result) -> list[tuple[int, float]]:
    """`diaSourceId` and flux of each line."""
    assert answer.exit_code == 0, answer.output
    words = [line.split() for line in answer.stdout.splitlines()]
    return [(int(line[0]), float(line[line.index("flux") + 1])) for line in words]


def first() -> int:
    return int(made(VISIT, STORED).alert_ids[-1])


def owner() -> int:
    return int(made(VISIT, STORED).sources["diaObjectId"][0])


@pytest.mark.usefixtures("paths")
def test_of_an_alert_made_twice_the_one_that_the_night_s_database_names_is_shown(module_folder: Path) -> None:
    answer = ask(module_folder, "--dia-source", first())  # the database is started for it
    assert shown(answer) == [(first(), STORED)]
    assert answer.stderr == ""


def test_of_an_object_s_alerts_only_those_that_the_database_names_are_shown(module_folder: Path, database: str) -> None:
    assert shown(ask(module_folder, "--object", owner())) == [(first(), STORED)]
    assert shown(ask(module_folder, "--object", owner(), "--postgres", database)) == [(first(), STORED)]


def test_what_only_the_archive_has_is_refused_by_name(module_folder: Path, database: str) -> None:
    lost = made(LATER, AGAIN)
    answer = ask(module_folder, "--dia-source", lost.alert_ids[0], "--postgres", database)
    assert answer.exit_code == 2
    assert f"DIASource {lost.alert_ids[0]}: the L1 database has no visit {LATER} detector 94" in answer.stderr


def test_a_database_elsewhere_says_it_for_a_copied_archive(copied: Path, database: str) -> None:
    assert shown(ask(copied, "--dia-source", first(), "--postgres", database)) == [(first(), STORED)]


def test_without_a_database_the_newest_is_shown_and_that_is_said(copied: Path, paths: dict[float, str]) -> None:
    answer = ask(copied, "--dia-source", first())
    assert shown(answer) == [(first(), AGAIN)]
    none, taken = answer.stderr.splitlines()
    assert none.startswith("no L1 database says which files count: ")
    assert taken.endswith(f"the newest is taken: {paths[AGAIN]}, not {paths[STORED]}")
    every = shown(ask(copied, "--object", owner()))
    assert every == [(first(), AGAIN), (int(np.min(made(LATER, AGAIN).alert_ids)), AGAIN)]


def test_a_database_that_is_given_must_be_one(copied: Path, database: str) -> None:
    answer = ask(copied, "--dia-source", first(), "--postgres", database.replace("/postgres", "/template1"))
    assert answer.exit_code == 2
    assert "template1 is no L1 database" in answer.stderr
