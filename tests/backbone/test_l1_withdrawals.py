"""Withdrawing, on a real PostgreSQL: rows and what is owed to brokers change together, once."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import asyncpg
import numpy as np
import pytest

from backbone import l1_withdrawals
from backbone.l1_postgres import L1Postgres
from backbone.l1_withdrawals import Owed, Selection, Withdrawn, connected, mark_told, owed, withdraw
from schemas.errors import BadData, Transient
from tests.backbone.l1_results import MJD, result

NIGHT, N, LATER = 2026070500001, 8, MJD + 3.0


@dataclass
class Place:
    """A visit of two detectors in the database, each test's its own."""

    visit: int
    connection: asyncpg.Connection
    l1: L1Postgres

    def ids(self, detector: int) -> list[int]:
        return [int(number) for number in result(self.visit, detector, n=N).sources["diaSourceId"]]

    async def withdrawn(self, detector: int) -> list[bool]:
        return [not np.isnan(t) for t in (await self.l1.sources_of(self.visit, detector))["timeWithdrawnMjdTai"]]

    async def forced(self, detector: int) -> list[float | None]:
        query = 'SELECT "timeWithdrawnMjdTai" FROM "DiaForcedSource" WHERE visit = $1 AND detector = $2'
        return [row[0] for row in await self.connection.fetch(query, self.visit, detector)]

    async def owed(self) -> list[Owed]:
        return [o for o in await owed(self.connection, 10_000) if json.loads(o.value)["visit"] == self.visit]


@pytest.fixture
async def place(dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    visit = NIGHT + sorted(item.name for item in request.session.items).index(request.node.name)
    l1 = await L1Postgres.open(dsn)
    for detector in (90, 94):
        made = result(visit, detector, n=N)
        made.sources["timeWithdrawnMjdTai"] = made.forced["timeWithdrawnMjdTai"] = np.nan
        await l1.store(replace(made), [], 1.0)
    async with connected(dsn) as connection:
        yield Place(visit, connection, l1)
    await l1.close()


async def test_some_sources_are_withdrawn_and_their_notices_owed(place: Place) -> None:
    chosen = place.ids(94)[:2]
    done = await withdraw(place.connection, Selection(tuple(chosen)), "a satellite", LATER)
    assert done == Withdrawn(2, 0, 0)
    assert await place.withdrawn(94) == [True] * 2 + [False] * (N - 2)
    notices = await place.owed()
    assert [(o.notice, o.key) for o in notices] == [(f"withdrawn/{i}", str(place.visit)) for i in sorted(chosen)]
    sources = {int(row["diaSourceId"]): row for row in await place.l1.sources_of(place.visit, 94)}
    assert [json.loads(o.value) for o in notices] == [
        {
            "kind": "withdrawn", "version": 1, "diaSourceId": number,
            "diaObjectId": int(sources[number]["diaObjectId"]), "ssObjectId": None, "visit": place.visit,
            "detector": 94, "reason": "a satellite", "timeWithdrawnMjdTai": LATER,
        }
        for number in sorted(chosen)
    ]  # fmt: skip
    assert all(time is None for time in await place.forced(94))


async def test_a_source_of_the_solar_system_is_told_with_its_body(place: Place) -> None:
    await withdraw(place.connection, Selection((place.ids(94)[-1],)), "r", LATER)
    (notice,) = await place.owed()
    told = json.loads(notice.value)
    assert (told["diaObjectId"], told["ssObjectId"]) == (None, 77)


async def test_a_detector_goes_with_its_forced_photometry(place: Place) -> None:
    done = await withdraw(place.connection, Selection(visit=place.visit, detector=94), "a bad flat", LATER)
    assert done == Withdrawn(N, N - 1, 0)
    assert await place.withdrawn(94) == [True] * N
    assert await place.withdrawn(90) == [False] * N
    assert set(await place.forced(94)) == {LATER}
    assert set(await place.forced(90)) == {None}
    (forced,) = [json.loads(o.value) for o in await place.owed() if o.notice.startswith("forced")]
    assert (forced["kind"], forced["detector"], forced["diaForcedSources"]) == ("forced_withdrawn", 94, N - 1)


async def test_a_visit_goes_whole(place: Place) -> None:
    done = await withdraw(place.connection, Selection(visit=place.visit), "a dome light", LATER)
    assert done == Withdrawn(2 * N, 2 * (N - 1), 0)
    assert len(await place.owed()) == 2 * N + 2


async def test_what_is_withdrawn_already_stays_as_it_was(place: Place) -> None:
    first = Selection(tuple(place.ids(94)[:2]))
    await withdraw(place.connection, first, "a satellite", LATER)
    before = await place.owed()
    assert await withdraw(place.connection, first, "another reason", LATER + 1.0) == Withdrawn(0, 0, 2)
    assert await place.owed() == before
    whole = Selection(visit=place.visit, detector=94)
    assert await withdraw(place.connection, whole, "all", LATER + 1.0) == Withdrawn(N - 2, N - 1, 2)


async def test_what_was_told_is_owed_no_more(place: Place) -> None:
    await withdraw(place.connection, Selection(tuple(place.ids(94)[:3])), "r", LATER)
    first, *others = await place.owed()
    await mark_told(place.connection, [first.notice], LATER + 0.1)
    assert await place.owed() == others


async def test_one_that_is_not_there_leaves_all_as_they_were(place: Place) -> None:
    with pytest.raises(BadData, match="no DIASource 5; nothing is withdrawn"):
        await withdraw(place.connection, Selection((*place.ids(94)[:2], 5)), "r", LATER)
    assert await place.withdrawn(94) == [False] * N
    for absent in (Selection(visit=7), Selection(visit=place.visit, detector=3)):
        with pytest.raises(BadData, match=f"no visit {absent.visit}"):
            await withdraw(place.connection, absent, "r", LATER)
    assert await place.owed() == []


async def test_rows_are_not_withdrawn_without_their_notices(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> Owed:
        raise RuntimeError("the process died here")

    monkeypatch.setattr(l1_withdrawals, "_of_source", crash)
    with pytest.raises(RuntimeError):
        await withdraw(place.connection, Selection(tuple(place.ids(94))), "r", LATER)
    assert await place.withdrawn(94) == [False] * N


async def test_a_database_that_is_none_of_ours_or_not_there_is_named(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("DROP DATABASE IF EXISTS strange")
    await connection.execute("CREATE DATABASE strange")
    await connection.close()
    with pytest.raises(BadData, match="strange is no L1 database"):
        async with connected(dsn.replace("/postgres", "/strange")) as strange:
            await withdraw(strange, Selection((1,)), "r", LATER)
    with pytest.raises(Transient, match=r"127\.0\.0\.1:1/x does not answer"):
        async with connected("postgresql://pachon@127.0.0.1:1/x"):
            pass
