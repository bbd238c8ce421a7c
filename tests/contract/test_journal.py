"""What the bus relies on: the same for the journal in PostgreSQL and in memory."""

from collections.abc import AsyncIterator

import pytest

from backbone.journal import Delivery, Journal, MemoryJournal, Position, PostgresJournal, write_facts
from schemas.errors import Transient
from schemas.events import NextVisit, NextVisitCanceled, VisitRefused

PLAN = NextVisit(
    group="g1", instrument="LSSTCam", ra=1.0, dec=2.0, rotation=0.0, filters="r_57", start_time=10.0, duration=30.0,
    n_images=2,
)  # fmt: skip
CANCELED = NextVisitCanceled(group="g1")
OWED = {PLAN.event_id: ["fan_out", "other"]}


@pytest.fixture(params=["memory", "postgres"])
async def journal(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    opened = await PostgresJournal.open(dsn)
    async with opened._pool.acquire() as connection:
        await connection.execute("TRUNCATE journal, delivery, failed_attempt, input_position")
    yield opened
    await opened.close()


async def test_a_fact_is_told_once_and_owed_to_its_pools(journal: Journal) -> None:
    assert await journal.append([PLAN], OWED, 5.0) == [PLAN]
    assert await journal.append([PLAN], OWED, 6.0) == []
    assert await journal.owed() == [Delivery(PLAN, "fan_out"), Delivery(PLAN, "other")]
    (entry,) = await journal.entries()
    assert (entry.at, entry.event) == (5.0, PLAN)


async def test_what_followed_and_the_end_of_the_debt_are_one_step(journal: Journal) -> None:
    await journal.append([PLAN], {PLAN.event_id: ["fan_out"]}, 5.0)
    (delivery,) = await journal.owed()
    assert await journal.complete(delivery, [CANCELED], {CANCELED.event_id: ["keeper"]}, 6.0) == [CANCELED]
    assert await journal.owed() == [Delivery(CANCELED, "keeper")]


async def test_a_failed_attempt_is_counted_and_still_owed(journal: Journal) -> None:
    await journal.append([PLAN], {PLAN.event_id: ["fan_out"]}, 5.0)
    (delivery,) = await journal.owed()
    assert await journal.retry(delivery, "busy", 5.5) == Delivery(PLAN, "fan_out", 1)
    assert await journal.owed() == [Delivery(PLAN, "fan_out", 1)]


async def test_debts_are_counted_by_pool_of_what_was_told_since(journal: Journal) -> None:
    await journal.append([PLAN], OWED, 5.0)
    await journal.append([CANCELED], {CANCELED.event_id: ["other"]}, 7.0)
    assert await journal.debts() == {"fan_out": 1, "other": 2}
    assert await journal.debts(6.0) == {"other": 1}
    await journal.complete(Delivery(CANCELED, "other"), [], {}, 8.0)
    assert await journal.debts(6.0) == {}


async def test_a_delivery_given_up_is_owed_no_more(journal: Journal) -> None:
    await journal.append([PLAN], {PLAN.event_id: ["fan_out"]}, 5.0)
    (delivery,) = await journal.owed()
    refused = VisitRefused(group="g1", reason="no")
    assert await journal.give_up(delivery, "no", [refused], {}, 6.0) == [refused]
    assert await journal.owed() == []


async def test_what_a_pool_that_resumes_gave_up_is_owed_again_at_the_next_start(journal: Journal) -> None:
    await journal.append([PLAN], {PLAN.event_id: ["alert_emitter", "fan_out"]}, 5.0)
    for delivery in await journal.owed():
        await journal.retry(delivery, "died", 5.5)
        await journal.give_up(delivery, "died", [], {}, 6.0)
    assert await journal.owed() == []
    assert await journal.owed(["alert_emitter"]) == [Delivery(PLAN, "alert_emitter", 0)]


async def test_what_was_refused_is_owed_by_nobody_at_the_next_start(journal: Journal) -> None:
    await journal.append([PLAN], {PLAN.event_id: ["alert_emitter"]}, 5.0)
    (delivery,) = await journal.owed()
    await journal.give_up(delivery, "too large", [], {}, 6.0, refused=True)
    assert await journal.owed(["alert_emitter"]) == []


async def test_a_fact_is_found_by_its_id(journal: Journal) -> None:
    await journal.append([PLAN], {}, 5.0)
    assert await journal.told(PLAN.event_id) == PLAN
    assert await journal.told(CANCELED.event_id) is None


async def test_facts_are_found_by_kind_and_group_in_the_order_of_telling(journal: Journal) -> None:
    other = PLAN.model_copy(update={"group": "g2"})
    await journal.append([CANCELED, PLAN, other], {}, 5.0)
    assert await journal.facts() == [CANCELED, PLAN, other]
    assert await journal.facts("NextVisit") == [PLAN, other]
    assert await journal.facts("NextVisit", "NextVisitCanceled", group="g1") == [CANCELED, PLAN]


async def test_facts_and_entries_can_be_asked_for_since_a_time(journal: Journal) -> None:
    other = PLAN.model_copy(update={"group": "g2"})
    for at, fact in ((5.0, PLAN), (6.0, CANCELED), (7.0, other)):
        await journal.append([fact], {}, at)
    assert await journal.facts(since=6.0) == [CANCELED, other]
    assert await journal.facts("NextVisit", since=6.0) == [other]
    assert await journal.facts("NextVisit", group="g1", since=6.0) == []
    assert [(e.at, e.event) for e in await journal.entries(since=6.0)] == [(6.0, CANCELED), (7.0, other)]


async def test_a_position_moves_with_what_it_caused(journal: Journal) -> None:
    await journal.append([PLAN], {}, 5.0, Position("topic", 0, 7))
    await journal.append([], {}, 6.0, Position("topic", 0, 8))
    assert await journal.positions() == {("topic", 0): 8}


async def test_a_fact_committed_with_its_rows_still_gets_its_debts(dsn: str) -> None:
    journal = await PostgresJournal.open(dsn)
    async with journal._pool.acquire() as connection:
        await connection.execute("TRUNCATE journal, delivery")
        await write_facts(connection, [PLAN], 5.0)
    assert await journal.append([PLAN], OWED, 6.0) == [PLAN]
    assert len(await journal.owed()) == 2
    await journal.close()


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(Transient, match=r"127\.0\.0\.1:1/x") as caught:
        await PostgresJournal.open("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
