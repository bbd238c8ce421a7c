from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from actors.fan_out import FanOut
from backbone.journal import MemoryJournal
from schemas.events import (
    DetectorReadOut,
    Event,
    NextVisit,
    NextVisitCanceled,
    ReadoutEnded,
    VisitAssigned,
    VisitDone,
    VisitRefused,
)
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


async def test_a_readout_names_visit_snap_and_pointing(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([plan()], {}, 1.0)
    first, _ = await fan_out.on_readout_ended(ENDED)
    assert isinstance(first, DetectorReadOut)
    seen = first.observation
    assert (seen.visit, seen.exposure, seen.snap, seen.band, seen.ra) == (2026070500001, 2026070500002, 1, "r", 10.0)


async def test_pixels_of_a_refused_visit_are_still_read(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([plan(filters="H_alpha")], {}, 1.0)
    first, _ = await fan_out.on_readout_ended(ENDED)
    assert isinstance(first, DetectorReadOut)
    assert first.observation.band == ""


@pytest.mark.parametrize("end", [NextVisitCanceled(group="g1"), VisitDone(group="g1", visit=1, detectors=())])
async def test_pixels_of_a_visit_that_is_over_are_archived_and_not_processed(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit], end: Event
) -> None:
    await journal.append([plan(), end], {}, 1.0)
    first, _ = await fan_out.on_readout_ended(ENDED)
    assert isinstance(first, DetectorReadOut)
    assert first.observation.band == ""


async def test_pixels_read_out_before_their_next_visit_wait_for_it(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([ENDED], {}, 1.0)
    with capture_logs() as logs:
        assert await fan_out.on_readout_ended(ENDED) == []
    assert [(line["log_level"], line["image"]) for line in logs] == [("warning", ENDED.image_name)]
    await journal.append([plan()], {}, 2.0)
    *assigned, first, second = await fan_out.on_next_visit(plan())
    assert [type(event) for event in assigned] == [VisitAssigned, VisitAssigned]
    assert isinstance(first, DetectorReadOut)
    assert isinstance(second, DetectorReadOut)
    assert (first.detector, second.detector, first.observation.band) == (90, 94, "r")
    assert await fan_out.on_readout_ended(ENDED) == [first, second]  # told again, they are the same facts


async def test_a_visit_canceled_before_it_was_announced_is_refused_and_its_pixels_archived(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([NextVisitCanceled(group="g1"), ENDED], {}, 1.0)
    refused, *readouts = await fan_out.on_next_visit(plan())
    assert isinstance(refused, VisitRefused)
    assert "canceled before" in refused.reason
    assert [readout.observation.band for readout in readouts if isinstance(readout, DetectorReadOut)] == ["", ""]


async def test_pixels_of_another_camera_are_refused(fan_out: FanOut) -> None:
    (refused,) = await fan_out.on_readout_ended(ENDED.model_copy(update={"instrument": "LATISS"}))
    assert isinstance(refused, VisitRefused)
    assert "pixels of LATISS" in refused.reason


@pytest.mark.parametrize(("image_type", "band"), [("flat", "r"), ("science", "")])
async def test_what_looks_at_no_sky_makes_no_visit_and_is_read_as_what_it_is(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit], image_type: str, band: str
) -> None:
    announced = plan(on_sky=False)
    (refused,) = await fan_out.on_next_visit(announced)
    assert isinstance(refused, VisitRefused)
    assert "no sky" in refused.reason
    await journal.append([announced], {}, 1.0)
    first, _ = await fan_out.on_readout_ended(ENDED.model_copy(update={"image_type": image_type}))
    assert isinstance(first, DetectorReadOut)
    assert (first.observation.image_type, first.observation.band) == (image_type, band)


async def test_a_flat_keeps_its_band_also_when_its_group_is_over(
    fan_out: FanOut, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([plan(on_sky=False), NextVisitCanceled(group="g1")], {}, 1.0)
    first, _ = await fan_out.on_readout_ended(ENDED.model_copy(update={"image_type": "flat"}))
    assert isinstance(first, DetectorReadOut)
    assert first.observation.band == "r"
