"""What the associator has done as soon as a visit is known, and what it may not hold up."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from actors.associator import FIELD_RADIUS_DEG
from payloads.alert_production.packets import HISTORY_DAYS
from schemas.clock import mjd_from_tai
from schemas.errors import Transient
from schemas.events import AlertsReady, AssociationDue, VisitAssigned
from schemas.tables import Table, empty
from schemas.wcs import separation_arcsec
from tests.actors.association_place import (
    STARTED,
    WCS,
    Place,
    ready,
)


@pytest.fixture
def announced(assigned: Callable[..., VisitAssigned]) -> VisitAssigned:
    """A visit whose detector will look where the sources are."""
    return assigned(start=STARTED, ra=150.0, dec=2.2)


@pytest.fixture
def told() -> Iterator[list[EventDict]]:
    """What is logged."""
    with capture_logs() as entries:
        yield entries


async def test_more_than_the_field_and_all_the_history_is_preloaded_when_a_visit_is_assigned(
    place: Place, announced: VisitAssigned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, ...]] = []

    async def preload(*cone: float) -> int:
        asked.append(cone)
        return 0

    monkeypatch.setattr(place.kept.l1, "preload", preload)
    associator = place.associator()
    assert await associator.react(announced) == []
    await associator.preloaded()
    ((ra, dec, radius, since),) = asked
    assert separation_arcsec(ra, dec, *WCS.crval) < 1.0
    assert radius > FIELD_RADIUS_DEG + 40.0 / 3600.0
    assert since == mjd_from_tai(STARTED) - HISTORY_DAYS


async def test_the_nights_orbits_are_read_once_and_before_the_visit(
    place: Place, due: Callable[..., AssociationDue], announced: VisitAssigned, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    async def orbits() -> Table:
        reads.append(1)
        return empty("mpc_orbits", 0)

    monkeypatch.setattr(place.kept.l1, "orbits", orbits)
    associator = place.associator()
    await associator.react(announced)
    await associator.react(announced.model_copy(update={"detector": 93}))
    await associator.preloaded()
    assert len(reads) == 1
    await associator.react(await ready(place, due()))
    assert len(reads) == 1


async def test_a_preload_that_fails_is_told_and_fails_nothing(
    place: Place, due: Callable[..., AssociationDue], announced: VisitAssigned, told: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async def preload(*_: float) -> int:
        raise Transient("the L1 database does not answer")

    monkeypatch.setattr(place.kept.l1, "preload", preload)
    associator = place.associator()
    assert await associator.react(announced) == []
    await associator.preloaded()
    (entry,) = told
    assert (entry["event"], entry["group"], entry["detector"]) == ("not preloaded", "g1", 94)
    assert entry["error"] == "the L1 database does not answer"
    (fact,) = await associator.react(await ready(place, due()))
    assert isinstance(fact, AlertsReady)


async def test_a_preload_that_hangs_holds_up_nothing_and_is_given_up(
    place: Place, due: Callable[..., AssociationDue], announced: VisitAssigned, told: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async def preload(*_: float) -> int:
        return await asyncio.Future()

    monkeypatch.setattr(place.kept.l1, "preload", preload)
    monkeypatch.setattr("actors.associator.PRELOAD_S", 0.5)
    associator = place.associator()
    assert await associator.react(announced) == []
    (fact,) = await associator.react(await ready(place, due()))
    assert isinstance(fact, AlertsReady)
    await asyncio.wait_for(associator.preloaded(), 10.0)
    assert [entry["event"] for entry in told] == ["not preloaded"]
    assert "not done within" in told[0]["error"]
