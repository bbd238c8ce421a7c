"""`pachon precover`: which visit-detectors are looked at again, with a real database; and what is refused."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import asyncpg
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from backbone import l1_precovery
from backbone.butler import ButlerArchive
from backbone.l1_connection import connected
from backbone.l1_postgres import L1Postgres
from backbone.l1_precovery import NEW_OBJECT_DTYPE
from cluster.cli import app
from cluster.precover import MARGIN_PX, REACH_DEG, owed_for
from schemas.clock import NightClock, tai_from_mjd
from schemas.events import NextVisit
from schemas.instrument import camera
from schemas.pointing import center_of, nominal_wcs
from schemas.tables import Table
from schemas.wcs import separation_arcsec
from tests.backbone.l1_results import result

VISIT, MJD, DUSK = 2026070500001, 61226.1, 1.7833e9
RA, DEC, ROTATION = 150.0, 2.0, 30.0
DETECTORS = 94, 95
FORM = camera("LSSTCam")[94].format
AGES = {VISIT: 29.9, VISIT + 1: 1.0, VISIT + 2: 30.1}
"""How long before the objects were first seen each visit was read out, days."""


async def fill(dsn: str) -> None:
    l1 = await L1Postgres.open(dsn)
    for visit, age in AGES.items():
        for detector in DETECTORS:
            made = result(visit, detector, n=4, mjd=MJD - age)
            made.sources["timeWithdrawnMjdTai"] = made.forced["timeWithdrawnMjdTai"] = np.nan
            made = replace(made, readout_ended=tai_from_mjd(MJD - age))
            announced = NextVisit(
                group=made.group, instrument="LSSTCam", ra=RA, dec=DEC, rotation=ROTATION, filters="r_57",
                start_time=made.readout_ended - 36.0, duration=36.0, n_images=2,
            )  # fmt: skip
            await l1.store(made, [announced], 1.0)
    await l1.close()


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """To a database with three visits of two detectors, as if nothing had been looked at again."""
    own = await asyncpg.connect(dsn)
    if await own.fetchval("SELECT to_regclass('visit_detector')") is None:
        await fill(dsn)
    await own.close()
    async with connected(dsn, l1_precovery.ready) as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()


def objects_at(x: list[float], y: list[float], detector: int = 94) -> Table:
    """New objects at pixels of a detector, first seen at `MJD`."""
    objects = np.zeros(len(x), NEW_OBJECT_DTYPE)
    objects["diaObjectId"] = 1 + np.arange(len(x))
    objects["ra"], objects["dec"] = nominal_wcs(camera("LSSTCam")[detector], RA, DEC, ROTATION).pixel_to_sky(x, y)
    objects["first"] = MJD
    return objects


async def owed(connection: asyncpg.Connection, objects: Table) -> list[tuple[int, int, list[int]]]:
    found = await owed_for(connection, objects, 30.0)
    return [(each.visit.visit, each.detector, each.objects["diaObjectId"].tolist()) for each in found]


async def test_each_visit_of_the_days_before_that_covers_an_object_is_owed_by_detector(
    connection: asyncpg.Connection,
) -> None:
    """Two objects on one detector, one on no detector, one on the next."""
    middle, beyond = FORM.height / 2, FORM.width + 3 * MARGIN_PX
    objects = objects_at(
        [100.0, 200.0, -3 * MARGIN_PX, beyond, 4000.0], [middle, 300.0, middle, middle, -3 * MARGIN_PX]
    )
    assert await owed(connection, objects) == [
        (VISIT, 94, [1, 2]), (VISIT + 1, 94, [1, 2]), (VISIT, 95, [4]), (VISIT + 1, 95, [4])
    ]  # fmt: skip


async def test_a_place_that_the_pointing_may_have_missed_is_looked_at(connection: asyncpg.Connection) -> None:
    objects = objects_at([-MARGIN_PX / 2, -3 * MARGIN_PX], [FORM.height / 2] * 2)
    assert [each[2] for each in await owed(connection, objects)] == [[1], [1]]


async def test_an_object_seen_before_a_visit_is_not_owed_it(connection: asyncpg.Connection) -> None:
    objects = objects_at([100.0], [100.0])
    objects["first"] = MJD - 2.0
    assert [each[:2] for each in await owed(connection, objects)] == [(VISIT, 94), (VISIT + 2, 94)]


async def test_what_has_a_row_or_no_usable_pixels_is_owed_no_more(connection: asyncpg.Connection) -> None:
    known = await connection.fetchval('SELECT min("diaObjectId") FROM "DiaForcedSource" WHERE visit = $1', VISIT)
    objects = objects_at([100.0, 200.0, 300.0], [100.0] * 3)
    objects["diaObjectId"][0] = known
    await connection.execute("INSERT INTO precovery_blank VALUES ($1, 94, 2)", VISIT)
    assert await owed(connection, objects) == [(VISIT, 94, [3]), (VISIT + 1, 94, [known, 2, 3])]


async def test_a_withdrawn_visit_is_left_out(connection: asyncpg.Connection) -> None:
    for table in ("DiaSource", "DiaForcedSource"):
        await connection.execute(f'UPDATE "{table}" SET "timeWithdrawnMjdTai" = 1 WHERE visit = $1', VISIT)  # noqa: S608
    assert [each[:2] for each in await owed(connection, objects_at([100.0], [100.0]))] == [(VISIT + 1, 94)]


async def test_nothing_new_owes_nothing(connection: asyncpg.Connection) -> None:
    assert await owed(connection, objects_at([], [])) == []


def test_no_detector_reaches_farther_than_is_looked() -> None:
    for detector in camera("LSSTCam").detectors:
        wcs, form = nominal_wcs(detector, RA, DEC, ROTATION), detector.format
        x, y = np.array([-MARGIN_PX, form.width + MARGIN_PX]), np.array([-MARGIN_PX, form.height + MARGIN_PX])
        corners = wcs.pixel_to_sky(np.tile(x, 2), np.repeat(y, 2))
        assert separation_arcsec(*corners, RA, DEC).max() < REACH_DEG * 3600.0, detector.name
    assert center_of(camera("LSSTCam")[94], RA, DEC, ROTATION) == pytest.approx((RA, DEC), abs=1e-3)


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["precover", *map(str, arguments)])


def a_night(folder: Path) -> Path:
    (folder / "clock.json").write_text(json.dumps(asdict(NightClock.starting(DUSK))), "utf-8")
    ButlerArchive.create(folder / "butler")
    return folder


def test_what_is_no_night_is_refused_in_one_line(tmp_path: Path) -> None:
    assert f"{tmp_path} is not the folder of a night with a database" in ask("--output", tmp_path).stderr
    (tmp_path / "clock.json").write_text(json.dumps(asdict(NightClock.starting(DUSK))), "utf-8")
    assert f"there is no archive in {tmp_path / 'butler'}" in ask("--output", tmp_path).stderr
    assert f"{tmp_path} has no database of its own" in ask("--output", a_night(tmp_path)).stderr


def test_a_raw_that_is_not_archived_is_named_and_the_others_are_tried(
    open_folder: Path, dsn: str, connection: asyncpg.Connection
) -> None:
    """The archive is empty: every visit-detector is named on the screen, the first at the end."""
    del connection  # the database is filled
    done = ask("--output", a_night(open_folder), "--postgres", dsn, "--night", 20260705)
    assert done.exit_code == 2
    assert "DIAObjects new in 20260705; " in done.stdout
    assert done.stdout.count(": not done: raw/LSSTCam/") > 0


def test_a_night_in_which_nothing_was_new_has_nothing_to_do(open_folder: Path, dsn: str) -> None:
    done = ask("--output", a_night(open_folder), "--postgres", dsn, "--night", 20260801)
    assert done.exit_code == 0
    assert done.stdout == "0 DIAObjects new in 20260801; 0 visit-detectors to be looked at again\n"
