"""Withdrawing, on a real PostgreSQL: rows, objects and what is owed to brokers change together, once, and back."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import asyncpg
import numpy as np
import pytest

from backbone import l1_schema, l1_withdrawals
from backbone.l1 import VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from backbone.l1_withdrawals import Change, Changed, Owed, Selection, change, connected, mark_told, owed
from payloads.alert_production import dia_objects
from payloads.alert_production.associate import associate
from payloads.alert_production.packets import HISTORY_DAYS
from schemas.clock import ManualClock, mjd_from_tai, tai_from_mjd
from schemas.errors import BadData, Broken, Transient
from schemas.tables import EPHEMERIS_DTYPE, Table, empty, nulls
from tests.backbone.l1_results import MJD, result

NIGHT, N, NEXT_MONTH = 2026070500001, 8, 100 * 100_000
LATER = mjd_from_tai(tai_from_mjd(MJD + 3.0))
ARCSEC = 1.0 / 3600.0


@dataclass
class Place:
    """A visit of two detectors in the database, each test's its own."""

    visit: int
    connection: asyncpg.Connection
    l1: L1Postgres

    def ids(self, detector: int) -> list[int]:
        return [int(number) for number in result(self.visit, detector, n=N).sources["diaSourceId"]]

    async def ask(self, asked: Change, mjd: float = LATER) -> Changed:
        return await change(self.connection, asked, ManualClock(tai_from_mjd(mjd)), dia_objects.remake)

    async def withdraw(self, *dia_sources: int, mjd: float = LATER) -> Changed:
        return await self.ask(Change(Selection(dia_sources), "r"), mjd)

    async def undo(self, *dia_sources: int, mjd: float) -> Changed:
        return await self.ask(Change(Selection(dia_sources), "no ghost", undo=True), mjd)

    async def withdrawn(self, detector: int) -> list[bool]:
        return [not np.isnan(t) for t in (await self.l1.sources_of(self.visit, detector))["timeWithdrawnMjdTai"]]

    async def forced(self, detector: int) -> list[float | None]:
        query = 'SELECT "timeWithdrawnMjdTai" FROM "DiaForcedSource" WHERE visit = $1 AND detector = $2'
        return [row[0] for row in await self.connection.fetch(query, self.visit, detector)]

    async def owed(self) -> list[Owed]:
        return [o for o in await owed(self.connection, 10_000) if json.loads(o.value)["visit"] == self.visit]

    async def valid(self, *ids: int) -> Table:
        return await self.l1.objects_of(np.array(ids))

    async def versions(self, number: int) -> list[tuple[float, float | None]]:
        query = 'SELECT "validityStartMjdTai", "validityEndMjdTai" FROM "DiaObject" WHERE "diaObjectId" = $1 ORDER BY 1'
        return [tuple(row) for row in await self.connection.fetch(query, number)]

    async def see_again(self, known: Sequence[int], visit: int, mjd: float) -> VisitDetectorResult:
        """The next visit, which sees these objects again."""
        made = standing(result(visit, 94, n=N, known=await self.valid(*known), mjd=mjd))
        history = await self.l1.history_of(np.array(known), mjd - HISTORY_DAYS)
        forced = np.concatenate([history[1], made.forced])
        n = len(known)
        made.objects[:n] = dia_objects.update(made.objects[:n], history[0], made.sources, forced, mjd + 0.001)
        return made


def standing(made: VisitDetectorResult) -> VisitDetectorResult:
    """Nothing of it is withdrawn, and its new objects are those of its sources."""
    made.sources["timeWithdrawnMjdTai"] = made.forced["timeWithdrawnMjdTai"] = np.nan
    fresh = np.isin(made.objects["diaObjectId"], made.sources["diaSourceId"])
    blank = empty("DiaObject", int(fresh.sum()))
    for name in ("diaObjectId", "ra", "dec"):
        blank[name] = made.objects[name][fresh]
    start = float(made.objects["validityStartMjdTai"][0])
    made.objects[fresh] = dia_objects.update(blank, made.sources[:0], made.sources, made.forced, start)
    return replace(made)


@pytest.fixture
async def place(dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    visit = NIGHT + 10 * sorted(item.name for item in request.session.items).index(request.node.name)
    l1 = await L1Postgres.open(dsn)
    for detector in (90, 94):
        made = standing(result(visit, detector, n=N))
        await l1.store(made, [], 1.0)
    async with connected(dsn) as connection:
        yield Place(visit, connection, l1)
    await l1.close()


def same_but_for_the_time(first: Table, second: Table) -> None:
    for name in first.dtype.names or ():
        if name != "validityStartMjdTai":
            np.testing.assert_allclose(first[name], second[name], rtol=1e-6, err_msg=name)


async def test_some_sources_are_withdrawn_and_their_notices_owed(place: Place) -> None:
    chosen = place.ids(94)[:2]
    done = await place.ask(Change(Selection(tuple(chosen)), "a satellite"))
    assert done == Changed(dia_sources=2, dia_forced_sources=0, before=0, remade=0, ended=2)
    assert await place.withdrawn(94) == [True] * 2 + [False] * (N - 2)
    assert await place.l1.withdrawn(place.visit) == set(chosen)
    notices = await place.owed()
    assert [(o.notice, o.key) for o in notices] == [(f"withdrawn/{i}/{LATER}", str(place.visit)) for i in chosen]
    sources = {int(row["diaSourceId"]): row for row in await place.l1.sources_of(place.visit, 94)}
    assert [json.loads(o.value) for o in notices] == [
        {
            "kind": "withdrawn", "version": 1, "diaSourceId": number,
            "diaObjectId": int(sources[number]["diaObjectId"]), "ssObjectId": None, "visit": place.visit,
            "detector": 94, "reason": "a satellite", "timeWithdrawnMjdTai": LATER, "supersededBy": None,
        }
        for number in chosen
    ]  # fmt: skip
    assert all(time is None for time in await place.forced(94))


async def test_a_source_of_the_solar_system_is_told_with_its_body_and_touches_no_object(place: Place) -> None:
    assert await place.withdraw(place.ids(94)[-1]) == Changed(1, 0, 0, 0, 0)
    (notice,) = await place.owed()
    told = json.loads(notice.value)
    assert (told["diaObjectId"], told["ssObjectId"]) == (None, 77)


async def test_a_detector_goes_with_its_forced_photometry(place: Place) -> None:
    done = await place.ask(Change(Selection(visit=place.visit, detector=94), "a bad flat"))
    assert done == Changed(N, N - 1, 0, 0, N - 1)
    assert await place.withdrawn(94) == [True] * N
    assert await place.withdrawn(90) == [False] * N
    assert set(await place.forced(94)) == {LATER}
    assert set(await place.forced(90)) == {None}
    (forced,) = [json.loads(o.value) for o in await place.owed() if o.notice.startswith("forced")]
    assert (forced["kind"], forced["detector"], forced["diaForcedSources"]) == ("forced_withdrawn", 94, N - 1)


async def test_a_visit_goes_whole_and_comes_back_whole(place: Place) -> None:
    before = await place.valid(*place.ids(90), *place.ids(94))
    whole = Selection(visit=place.visit)
    assert await place.ask(Change(whole, "a dome light")) == Changed(2 * N, 2 * (N - 1), 0, 0, 2 * (N - 1))
    assert len(await place.owed()) == 2 * N + 2
    back = Change(whole, "none", undo=True)
    assert await place.ask(back, LATER + 0.1) == Changed(2 * N, 2 * (N - 1), 0, 2 * (N - 1), 0)
    assert await place.withdrawn(94) == await place.withdrawn(90) == [False] * N
    assert set(await place.forced(94)) == {None}
    same_but_for_the_time(await place.valid(*place.ids(90), *place.ids(94)), before)
    kinds = [json.loads(o.value)["kind"] for o in await place.owed()][2 * N + 2 :]
    assert kinds == ["forced_reinstated"] * 2 + ["reinstated"] * 2 * N
    assert await place.ask(back, LATER + 0.2) == Changed(0, 0, 2 * N, 0, 0)


async def test_what_is_withdrawn_already_stays_as_it_was(place: Place) -> None:
    first = Selection(tuple(place.ids(94)[:2]))
    await place.ask(Change(first, "a satellite"))
    before = await place.owed()
    assert await place.ask(Change(first, "another reason"), LATER + 1.0) == Changed(0, 0, 2, 0, 0)
    assert await place.owed() == before
    whole = Selection(visit=place.visit, detector=94)
    assert await place.ask(Change(whole, "all"), LATER + 1.0) == Changed(N - 2, N - 1, 2, 0, N - 3)


async def test_an_object_is_made_anew_of_what_stands(place: Place) -> None:
    ids = place.ids(94)[:2]
    again = await place.see_again(ids, place.visit + 1, MJD + 1.0)
    await place.l1.store(again, [], 2.0)
    assert (await place.valid(*ids))["nDiaSources"].tolist() == [2, 2]
    assert await place.withdraw(ids[0]) == Changed(1, 0, 0, 1, 0)
    (row,) = await place.valid(ids[0])
    sources, forced = await place.l1.history_of(np.array(ids[:1]), 0.0)
    assert sources["timeWithdrawnMjdTai"].tolist() == pytest.approx([LATER, np.nan], nan_ok=True)
    never = nulls(again.objects.dtype, 1)
    for name in ("diaObjectId", "ra", "dec"):
        never[name] = again.objects[name][:1]
    expected = dia_objects.update(never, sources[:0], sources[1:], forced, LATER)
    assert (row["nDiaSources"], row["firstDiaSourceMjdTai"], row["lastDiaSourceMjdTai"]) == (1, MJD + 1.0, MJD + 1.0)
    for name in ("ra", "dec", "r_psfFluxMean", "r_psfFluxNdata", "r_fpFluxMean", "validityStartMjdTai"):
        assert row[name] == pytest.approx(expected[name][0], nan_ok=True), name
    assert (await place.versions(ids[0]))[1:] == [(MJD + 1.001, LATER), (LATER, None)]
    (other,) = await place.valid(ids[1])
    assert other["nDiaSources"] == 2


async def test_forced_photometry_withdrawn_counts_no_more_in_objects_that_stay(place: Place) -> None:
    again = await place.see_again(place.ids(94)[:2], place.visit + 1, MJD + 1.0)
    await place.l1.store(again, [], 2.0)
    await place.ask(Change(Selection(visit=place.visit + 1), "a bad flat"))
    _, forced = await place.l1.history_of(np.array(place.ids(94)[:2]), 0.0)
    assert np.isnan(forced["timeWithdrawnMjdTai"]).tolist() == [True, False] * 2
    for row, first in zip(await place.valid(*place.ids(94)[:2]), forced[::2], strict=True):
        good = np.isfinite(first["psfFlux"]) and first["psfFluxErr"] > 0.0
        assert row["r_fpFluxMean"] == pytest.approx(first["psfFlux"] if good else np.nan, nan_ok=True)
        assert row["nDiaSources"] == 1


async def test_an_object_without_a_source_ends_and_the_next_visit_makes_a_new_one_there(place: Place) -> None:
    ghost = place.ids(94)[0]
    (seen,) = (await place.l1.sources_of(place.visit, 94))[:1]
    again = result(place.visit + 1, 94, n=2, mjd=LATER + 1.0).sources[:1]
    again["ra"], again["dec"], again["raErr"], again["decErr"] = seen["ra"], seen["dec"], 1e-5, 1e-5

    async def found() -> int:
        there = await place.l1.objects_in(float(seen["ra"]), float(seen["dec"]), ARCSEC)
        made = associate(again, there, np.zeros(0, EPHEMERIS_DTYPE))
        return int(made.sources["diaObjectId"][0])

    assert await found() == ghost
    await place.withdraw(ghost)
    assert await found() == again["diaSourceId"][0]
    assert len(await place.valid(ghost)) == 0
    assert await place.versions(ghost) == [(MJD + 0.001, LATER)]
    assert await place.undo(ghost, mjd=LATER + 0.1) == Changed(1, 0, 0, 1, 0)
    assert await found() == ghost
    assert await place.versions(ghost) == [(MJD + 0.001, LATER), (LATER + 0.1, None)]


async def test_what_is_reinstated_is_as_it_was_and_told_once(place: Place) -> None:
    ids = place.ids(94)[:3]
    await place.l1.store(await place.see_again(ids, place.visit + 1, MJD + 1.0), [], 2.0)
    before = await place.valid(*ids)
    await place.withdraw(*ids[:2])
    assert await place.undo(*ids, mjd=LATER + 0.1) == Changed(2, 0, 1, 2, 0)
    same_but_for_the_time(await place.valid(*ids), before)
    assert await place.undo(*ids, mjd=LATER + 0.2) == Changed(0, 0, 3, 0, 0)
    *_, last = await place.owed()
    assert json.loads(last.value) == {
        "kind": "reinstated", "version": 1, "diaSourceId": ids[1], "diaObjectId": ids[1], "ssObjectId": None,
        "visit": place.visit, "detector": 94, "reason": "no ghost", "timeReinstatedMjdTai": pytest.approx(LATER + 0.1),
    }  # fmt: skip
    await place.withdraw(ids[0], mjd=LATER + 0.3)
    kinds = [json.loads(o.value)["kind"] for o in await place.owed()]
    assert kinds == ["withdrawn"] * 2 + ["reinstated"] * 2 + ["withdrawn"]


async def test_what_is_older_than_association_looks_is_in_no_mean_after_a_withdrawal_either(place: Place) -> None:
    seen, later = place.ids(94)[:2], place.visit + 104 * NEXT_MONTH
    for number in range(2):
        again = await place.see_again(seen, later + number, MJD + 500.0 + number)
        await place.l1.store(again, [], 2.0)
    before = await place.valid(*seen)
    assert before["nDiaSources"].tolist() == [3, 3]
    whole = Selection(visit=later + 1)
    await place.ask(Change(whole, "a dome light"), LATER + 500.0)
    assert (await place.valid(*seen))["nDiaSources"].tolist() == [2, 2]
    await place.ask(Change(whole, "none", undo=True), LATER + 500.1)
    same_but_for_the_time(await place.valid(*seen), before)


async def test_what_supersedes_is_told_and_has_to_stand(place: Place) -> None:
    old, new, other, gone = place.ids(94)[:4]
    await place.withdraw(gone)

    async def superseded(by: int) -> Changed:
        return await place.ask(Change(Selection((old,)), "measured anew", superseded_by=by), LATER + 0.1)

    for wrong, why in ((5, "no DIASource 5 that could supersede"), (gone, f"DIASource {gone} is withdrawn itself")):
        with pytest.raises(BadData, match=why):
            await superseded(wrong)
    assert (await superseded(new)).dia_sources == 1
    assert json.loads((await place.owed())[-1].value)["supersededBy"] == new
    assert await superseded(new) == Changed(0, 0, 1, 0, 0)
    with pytest.raises(BadData, match=f"DIASource {old} is withdrawn already, superseded by {new}: --undo that first"):
        await superseded(other)
    with pytest.raises(BadData, match="superseded by none"):
        await place.ask(Change(Selection((gone,)), "r", superseded_by=new))


async def test_what_was_made_before_the_withdrawal_is_not_stored_after_it(place: Place) -> None:
    ghost, known = place.ids(94)[:2]
    await place.l1.store(await place.see_again([known], place.visit + 1, MJD + 1.0), [], 1.0)
    which = ((2, ghost, -0.1), (3, ghost, 0.1), (4, known, -0.1), (5, known, 0.1))
    stale = [(await place.see_again([of], place.visit + i, LATER + dt), of) for i, of, dt in which]
    await place.withdraw(ghost, known)
    for made, of in stale:
        with pytest.raises(Transient, match=f"DiaObject {of} is not as it was read"):
            await place.l1.store(made, [], 3.0)
    assert len(await place.valid(ghost)) == 0
    assert (await place.valid(known))["nDiaSources"] == [1]


async def test_only_the_month_of_a_visit_is_read(place: Place) -> None:
    for month in (1, 2):
        await place.l1.store(standing(result(place.visit + month * NEXT_MONTH, 94, n=N)), [], 1.0)
    asked: list[tuple[str, tuple[object, ...]]] = []
    with place.connection.query_logger(lambda query: asked.append((query.query, tuple(query.args)))):
        await place.ask(Change(Selection(visit=place.visit), "r"))
        await place.ask(Change(Selection(visit=place.visit, detector=94), "r", undo=True), LATER + 0.1)
    of_visit = [each for each in asked if each[0].startswith(("SELECT", "UPDATE")) and "Source" in each[0]]
    assert len(of_visit) == 6
    read = set()
    for query, arguments in of_visit:
        plan = await place.connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
        read |= set(re.findall(r'"Relation Name": "(Dia\w*Source_\w+)"', plan))
    assert read == {"DiaSource_202607", "DiaForcedSource_202607"}


async def test_what_was_told_is_owed_no_more(place: Place) -> None:
    await place.withdraw(*place.ids(94)[:3])
    first, *others = await place.owed()
    await mark_told(place.connection, [first.notice], LATER + 0.1)
    assert await place.owed() == others


@pytest.mark.parametrize("undo", [False, True])
async def test_one_that_is_not_there_leaves_all_as_they_were(place: Place, undo: bool) -> None:
    done = "reinstated" if undo else "withdrawn"
    with pytest.raises(BadData, match=f"no DIASource 5; nothing is {done}"):
        await place.ask(Change(Selection((*place.ids(94)[:2], 5)), "r", undo))
    assert await place.withdrawn(94) == [False] * N
    for absent, why in (
        (Selection(visit=NIGHT + NEXT_MONTH), f"no visit {NIGHT + NEXT_MONTH}; nothing is {done}"),
        (Selection(visit=place.visit, detector=3), f"no visit {place.visit} detector 3"),
        (Selection(visit=7), "7 is not the number of a visit"),
        (Selection(visit=place.visit, detector=300), "detector 300 .* is not in 0..255"),
    ):
        with pytest.raises(BadData, match=why):
            await place.ask(Change(absent, "r", undo))
    assert await place.owed() == []


async def test_a_clock_that_stands_before_the_last_change_is_refused(place: Place) -> None:
    with pytest.raises(BadData, match=r"the clock says MJD 60999\.00000, and DiaObject .* at 61000\.00100"):
        await place.withdraw(place.ids(94)[0], mjd=MJD - 1.0)
    assert await place.withdrawn(94) == [False] * N


async def test_rows_are_not_withdrawn_without_their_notices(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> Owed:
        raise RuntimeError("the process died here")

    monkeypatch.setattr(l1_withdrawals, "_of_source", crash)
    with pytest.raises(RuntimeError):
        await place.withdraw(*place.ids(94))
    assert await place.withdrawn(94) == [False] * N
    assert len(await place.valid(*place.ids(94))) == N - 1


async def test_numbers_that_no_database_can_hold_are_refused(dsn: str) -> None:
    with pytest.raises(BadData, match="int64"):
        async with connected(dsn) as connection:
            await change(connection, Change(Selection((2**70,)), "r"), ManualClock(), dia_objects.remake)


async def test_a_database_that_is_none_of_ours_is_named_and_left_as_it_is(dsn: str) -> None:
    strange = await new_database(dsn, "strange")
    connection = await asyncpg.connect(strange)
    for tables in ((), ("CREATE TABLE visit_detector (a int)", "CREATE TABLE metadata (b int)")):
        for table in tables:
            await connection.execute(table)
        with pytest.raises(BadData, match="strange is no L1 database; it is left as it is"):
            async with connected(strange):
                pass
        with pytest.raises(BadData, match="strange is no L1 database; it is left as it is"):
            await L1Postgres.open(strange, create=False)
        assert len(await connection.fetch("SELECT FROM pg_tables WHERE schemaname = 'public'")) == len(tables)
    await connection.close()
    with pytest.raises(Transient, match=r"127\.0\.0\.1:1/x does not answer"):
        async with connected("postgresql://pachon@127.0.0.1:1/x"):
            pass


@pytest.mark.parametrize("table", ["withdrawal", "withdrawn_whole"])
async def test_a_database_made_before_there_were_withdrawals_gets_their_tables_when_a_night_opens_it(
    dsn: str, table: str
) -> None:
    old = await new_database(dsn, f"{table}_old")
    await (await L1Postgres.open(old)).close()
    connection = await asyncpg.connect(old)
    await connection.execute(f"DROP TABLE {table}")
    with pytest.raises(BadData, match=r"old has no table of withdrawals.* makes the table when it opens the database"):
        async with connected(old):
            pass
    await (await L1Postgres.open(old)).close()
    async with connected(old) as opened:
        assert await owed(opened, 1) == []
    await connection.execute("UPDATE metadata SET value = '1' WHERE name = $1", l1_schema.LAYOUT_KEY)
    with pytest.raises(Broken, match="has layout 1, this is for 2"):
        async with connected(old):
            pass
    await connection.close()


async def new_database(dsn: str, name: str) -> str:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return dsn.replace("/postgres", f"/{name}")
