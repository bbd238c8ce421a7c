from collections.abc import Callable

import pytest

from actors.fan_out import FanOut
from backbone.journal import MemoryJournal
from schemas.events import DetectorReadOut, NextVisit, ReadoutEnded, VisitAssigned, VisitRefused
from schemas.instrument import camera

ENDED = ReadoutEnded(
    group="g1", instrument="LSSTCam", exposure=2026070500002, image_name="MC_O_20260705_000002", snap=1, n_snaps=2,
    exposure_time=15.0, started=118.0, readout_ended=136.0,
)  # fmt: skip


@pytest.fixture
def fan_out(journal: MemoryJournal) -> FanOut:
    return FanOut(camera=camera("LSSTCam"), live=(90, 94), chronicle=journal)


async def test_each_live_detector_is_assigned(fan_out: FanOut, plan: Callable[..., NextVisit]) -> None:
    events = await fan_out.on_next_visit(plan())
    assert [(type(e), getattr(e, "detector", None)) for e in events] == [(VisitAssigned, 90), (VisitAssigned, 94)]


@pytest.mark.parametrize(("change", "named"), [({"filters": "H_alpha"}, "H_alpha"), ({"instrument": "HSC"}, "HSC")])
async def test_an_unknown_filter_or_camera_is_refused_by_name(
    fan_out: FanOut, plan: Callable[..., NextVisit], change: dict[str, str], named: str
) -> None:
    (refused,) = await fan_out.on_next_visit(plan(**change))
    assert isinstance(refused, VisitRefused)
    assert named in refused.reason


async def test_a_readout_names_visit_snap_and_pointing(fan_out: FanOut, plan: Callable[..., NextVisit]) -> None:
    await fan_out.on_next_visit(plan())
    first, _ = await fan_out.on_readout_ended(ENDED)
    assert isinstance(first, DetectorReadOut)
    seen = first.observation
    assert (seen.visit, seen.exposure, seen.snap, seen.band, seen.ra) == (2026070500001, 2026070500002, 1, "r", 10.0)


async def test_a_new_fan_out_finds_the_plan_in_the_journal(
    journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([plan()], {}, 1.0)
    events = await FanOut(camera=camera("LSSTCam"), live=(94,), chronicle=journal).on_readout_ended(ENDED)
    assert [type(e) for e in events] == [DetectorReadOut]


async def test_pixels_of_a_refused_visit_are_still_read(fan_out: FanOut, plan: Callable[..., NextVisit]) -> None:
    await fan_out.on_next_visit(plan(filters="H_alpha"))
    first, _ = await fan_out.on_readout_ended(ENDED)
    assert isinstance(first, DetectorReadOut)
    assert first.observation.band == ""


async def test_pixels_without_a_next_visit_are_named(fan_out: FanOut) -> None:
    (refused,) = await fan_out.on_readout_ended(ENDED)
    assert isinstance(refused, VisitRefused)
    assert "MC_O_20260705_000002" in refused.reason
