"""Precovery's statements on a real PostgreSQL: what is new, who looked there, and rows behind those of the night."""

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import asyncpg
import numpy as np
import pytest

from backbone import l1_precovery
from backbone.l1 import Ids, VisitDetectorResult
from backbone.l1_connection import connected
from backbone.l1_postgres import L1Postgres
from backbone.l1_withdrawals import Change, Selection, change
from cluster.services import free_port
from payloads.alert_production import dia_objects
from schemas.clock import ManualClock, mjd_from_tai, tai_from_mjd
from schemas.errors import BadData, Transient
from schemas.events import NextVisit
from schemas.identity import dia_forced_source_id
from schemas.tables import Table, empty
from tests.backbone.l1_results import filled, result

DETECTOR, N = 94, 6
MJD, VISIT_DAYS = 61226.1, 0.001
"""When the visits of night 0 begin; from one to the next."""
_NIGHTS = itertools.count(2, 2)
"""Each test has one of its own, and the one before."""


def day(night: int) -> int:
    """YYYYMMDD."""
    return int((dt.date(2026, 7, 5) + dt.timedelta(days=night)).strftime("%Y%m%d"))


@dataclass
class Place:
    """A night of visits of one detector, in the database."""

    night: int
    connection: asyncpg.Connection
    l1: L1Postgres

    def visit(self, number: int) -> int:
        return day(self.night) * 100_000 + number

    def mjd(self, number: int) -> float:
        return MJD + self.night + number * VISIT_DAYS

    async def see(
        self, number: int, known: Table | None = None, *, told: bool = True, bare: bool = False
    ) -> VisitDetectorResult:
        """Store a visit whose sources are of the known objects and of new ones; what was read out in it."""
        made = result(self.visit(number), DETECTOR, n=N, known=known, mjd=self.mjd(number))
        for table in (made.sources, made.forced):
            table["timeWithdrawnMjdTai"] = np.nan
        made = replace(made, readout_ended=tai_from_mjd(self.mjd(number)))
        if bare:
            tables = {name: getattr(made, name)[:0] for name in ("sources", "objects", "forced", "ss_sources")}
            made = replace(made, **tables, alert_ids=made.alert_ids[:0], read_starts=made.read_starts[:0])
        announced = NextVisit(
            group=made.group, instrument="LSSTCam", ra=150.0, dec=2.0, rotation=30.0, filters="r_57",
            start_time=made.readout_ended - 36.0, duration=36.0, n_images=2,
        )  # fmt: skip
        await self.l1.store(made, [announced] if told else [], made.readout_ended)
        return made

    async def withdraw(self, made: VisitDetectorResult, *tables: str) -> None:
        for table in tables:
            query = f'UPDATE "{table}" SET "timeWithdrawnMjdTai" = 61300 WHERE visit = $1'  # noqa: S608 - a table's name
            await self.connection.execute(query, made.visit)

    async def new(self) -> list[int]:
        return [int(n) for n in (await l1_precovery.new_objects(self.connection, day(self.night)))["diaObjectId"]]

    async def store(self, made: VisitDetectorResult, rows: Table, blank: list[int] | None = None) -> int:
        ids = np.array(blank or [], np.int64)
        return await l1_precovery.store(self.connection, rows, ids, visit=made.visit, detector=DETECTOR)

    async def forced(self, number: int) -> list[int]:
        """Ids of all rows of a visit, in order."""
        query = 'SELECT "diaForcedSourceId" FROM "DiaForcedSource" WHERE visit = $1 ORDER BY 1'
        return [row[0] for row in await self.connection.fetch(query, self.visit(number))]


@pytest.fixture
async def place(dsn: str) -> AsyncIterator[Place]:
    l1 = await L1Postgres.open(dsn)
    async with connected(dsn, l1_precovery.ready) as connection:
        yield Place(next(_NIGHTS), connection, l1)
    await l1.close()


def rows_of(made: VisitDetectorResult, object_ids: list[int], mjd: float | None = None) -> Table:
    """Forced photometry of some objects in a visit, of a time that is told where it has no sources."""
    rows = filled("DiaForcedSource", len(object_ids), np.random.default_rng(object_ids), 0.0)
    rows["diaForcedSourceId"], rows["diaObjectId"], rows["timeWithdrawnMjdTai"] = 0, object_ids, np.nan
    rows["visit"], rows["detector"], rows["band"] = made.visit, DETECTOR, "r"
    rows["midpointMjdTai"] = made.sources["midpointMjdTai"][0] if mjd is None else mjd
    return rows


async def test_new_are_the_objects_first_seen_in_the_night_that_still_stand(place: Place) -> None:
    before = replace(place, night=place.night - 1)
    known = (await before.see(1)).objects[:2]
    first, second = await place.see(1, known), await place.see(2)
    expected = sorted(int(n) for made in (first, second) for n in made.sources["diaObjectId"] if n)
    expected = [n for n in expected if n not in known["diaObjectId"]]
    assert await place.new() == expected
    assert not set(await before.new()) & set(expected)
    found = await l1_precovery.new_objects(place.connection, day(place.night))
    assert found["first"].tolist() == [place.mjd(1 if n in first.sources["diaSourceId"] else 2) for n in expected]
    await place.withdraw(second, "DiaSource")
    assert await place.new() == [n for n in expected if n not in second.sources["diaSourceId"]]
    assert await l1_precovery.last_night(place.connection) >= day(place.night)


async def test_precovered_rows_are_numbered_behind_the_nights_and_behind_earlier_ones(place: Place) -> None:
    made, later = await place.see(1), await place.see(2)
    objects = sorted(int(n) for n in later.objects["diaObjectId"])
    assert await place.store(made, rows_of(made, objects[:2])) == 2
    assert await place.store(made, rows_of(made, objects[2:])) == len(objects) - 2
    total = len(made.forced) + len(objects)
    assert await place.forced(1) == [dia_forced_source_id(made.visit, DETECTOR, n) for n in range(total)]
    assert (await place.l1.counts())[made.visit, DETECTOR].dia_forced_sources == total


async def test_what_is_stored_is_not_stored_again_and_stays_as_it_is(place: Place) -> None:
    made, later = await place.see(1), await place.see(2)
    one, two = (int(n) for n in later.objects["diaObjectId"][:2])
    rows = rows_of(made, [one])
    assert await place.store(made, rows) == 1
    again = rows_of(made, [one, two])
    again["psfFlux"] += 1.0
    assert await place.store(made, again) == 1
    assert await place.store(made, again) == 0
    _, history = await place.l1.history_of(np.array([one]), 0.0)
    assert history["psfFlux"][history["visit"] == made.visit].tolist() == rows["psfFlux"].tolist()


async def test_two_at_once_do_not_give_a_number_or_an_object_twice(place: Place, dsn: str) -> None:
    made, later = await place.see(1), await place.see(2)
    objects = [int(n) for n in later.objects["diaObjectId"]]
    async with connected(dsn, l1_precovery.ready) as other:
        both = (place, objects[:3]), (replace(place, connection=other), objects[1:])
        added = await asyncio.gather(*(who.store(made, rows_of(made, ids)) for who, ids in both))
    assert sum(added) == len(objects)
    ids = await place.forced(1)
    assert len(set(ids)) == len(ids) == len(made.forced) + len(objects)


async def test_the_rows_are_in_the_history_that_later_alerts_are_made_of(place: Place) -> None:
    made, later = await place.see(1), await place.see(2)
    number = int(later.objects["diaObjectId"][0])
    await place.store(made, rows_of(made, [number]))
    _, history = await place.l1.history_of(np.array([number]), place.mjd(0))
    assert history["visit"].tolist() == [made.visit, later.visit]


async def test_an_object_without_usable_pixels_is_remembered_and_so_is_one_that_has_a_row(place: Place) -> None:
    made, later = await place.see(1), await place.see(2)
    one, two, three = (int(n) for n in later.objects["diaObjectId"][:3])
    await place.store(made, rows_of(made, [one]), blank=[two])
    await place.store(made, rows_of(made, []), blank=[two])
    known = await l1_precovery.measured(place.connection, made.visit, np.array([one, two, three]))
    assert known == {(DETECTOR, one), (DETECTOR, two)}


async def test_a_withdrawn_visit_is_said_to_be_and_gets_no_rows(place: Place) -> None:
    made, later = await place.see(1), await place.see(2)
    rows = rows_of(made, [int(later.objects["diaObjectId"][0])])
    assert not await l1_precovery.is_withdrawn(place.connection, made.visit, DETECTOR)
    await place.withdraw(made, "DiaSource")
    assert not await l1_precovery.is_withdrawn(place.connection, made.visit, DETECTOR)
    await place.withdraw(made, "DiaForcedSource")
    assert await l1_precovery.is_withdrawn(place.connection, made.visit, DETECTOR)
    assert await place.store(made, rows) == 0


async def test_a_visit_withdrawn_while_rows_are_added_to_it_has_none_that_stands(
    place: Place, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, later = await place.see(1), await place.see(2)
    rows = rows_of(made, [int(later.objects["diaObjectId"][0])])
    clock, measured = ManualClock(tai_from_mjd(place.mjd(100))), l1_precovery.measured
    async with connected(dsn, l1_precovery.ready) as other, asyncio.TaskGroup() as started:

        async def overtaken(connection: asyncpg.Connection, visit: int, ids: Ids) -> set[tuple[int, int]]:
            """It was not withdrawn a moment ago."""
            asked = Change(Selection(visit=visit, detector=DETECTOR), "a bad flat")
            job = started.create_task(change(other, asked, clock, dia_objects.remake))
            async with asyncio.timeout(10):
                while not (job.done() or await waits(connection)):
                    pass
            return await measured(connection, visit, ids)

        monkeypatch.setattr(l1_precovery, "measured", overtaken)
        assert await place.store(made, rows) == 1
    query = 'SELECT "timeWithdrawnMjdTai" FROM "DiaForcedSource" WHERE visit = $1'
    assert {row[0] for row in await place.connection.fetch(query, made.visit)} == {place.mjd(100)}
    assert await l1_precovery.is_withdrawn(place.connection, made.visit, DETECTOR)


async def waits(connection: asyncpg.Connection) -> bool:
    """Whether someone waits for what this connection holds."""
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
    return bool(await connection.fetchval(query))


async def test_a_visit_without_any_row_is_not_withdrawn(place: Place) -> None:
    assert not await l1_precovery.is_withdrawn(place.connection, place.visit(9), DETECTOR)


async def test_a_visit_without_any_row_is_withdrawn_when_it_was_and_reinstated_when_it_was(place: Place) -> None:
    bare, later = await place.see(1, bare=True), await place.see(2)
    rows = rows_of(bare, [int(later.objects["diaObjectId"][0])], place.mjd(1))
    clock, what = ManualClock(tai_from_mjd(place.mjd(100))), Selection(visit=bare.visit)
    for undo in (False, True):
        await change(place.connection, Change(what, "a bad flat", undo=undo), clock, dia_objects.remake)
        assert await l1_precovery.is_withdrawn(place.connection, bare.visit, DETECTOR) is not undo
        assert await place.store(bare, rows) == (1 if undo else 0)
    assert not await l1_precovery.is_withdrawn(place.connection, bare.visit, DETECTOR)


async def test_visits_of_a_time_are_told_with_where_they_looked(place: Place) -> None:
    made = [await place.see(number) for number in (1, 2, 3)]
    half = VISIT_DAYS / 2
    found = await l1_precovery.visits_between(place.connection, place.mjd(1) - half, place.mjd(3) - half)
    assert [visit.visit for visit in found] == [one.visit for one in made[:2]]
    assert found[0].detectors == (DETECTOR,)
    assert (found[0].plan.ra, found[0].plan.group) == (150.0, made[0].group)
    assert mjd_from_tai(found[0].readout_ended) == pytest.approx(place.mjd(1), abs=1e-9)


async def test_a_visit_that_the_journal_knows_nothing_of_is_named(place: Place) -> None:
    made = await place.see(1, told=False)
    with pytest.raises(BadData, match=f"visit {made.visit} is stored, and the journal has no NextVisit"):
        await l1_precovery.visits_between(place.connection, place.mjd(0), place.mjd(2))


async def test_a_visit_detector_that_is_not_stored_gets_no_rows(place: Place) -> None:
    made = await place.see(1)
    with pytest.raises(BadData, match=f"visit {made.visit + 1} detector 94 is not stored"):
        await place.store(replace(made, visit=made.visit + 1), empty("DiaForcedSource", 0))


@pytest.mark.parametrize("night", [20261345, 2026705, 0])
async def test_a_night_that_is_no_date_is_refused(place: Place, night: int) -> None:
    with pytest.raises(BadData, match=f"{night} is not a night"):
        await l1_precovery.new_objects(place.connection, night)


async def test_a_database_that_is_none_of_ours_is_left_as_it_is(dsn: str) -> None:
    own = await asyncpg.connect(dsn)
    await own.execute("CREATE DATABASE stranger TEMPLATE template0")
    await own.close()
    stranger = dsn.rsplit("/", 1)[0] + "/stranger"
    with pytest.raises(BadData, match="is no L1 database"):
        async with connected(stranger, l1_precovery.ready):
            pass
    there = await asyncpg.connect(stranger)
    assert await there.fetchval("SELECT to_regclass('precovery_blank')") is None
    await there.close()


async def test_a_server_that_does_not_answer_is_transient_and_named() -> None:
    port = free_port()
    with pytest.raises(Transient, match=f"127.0.0.1:{port}/postgres does not answer"):
        async with connected(f"postgresql://pachon@127.0.0.1:{port}/postgres", l1_precovery.ready):
            pass
