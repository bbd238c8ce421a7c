import itertools
from collections import Counter
from pathlib import Path

import pytest

from schemas.clock import midnight_of, noon_of
from schemas.image import Observation
from simulators.ocs.afternoon import plan_afternoon
from simulators.ocs.schedule import dump_plan, load_plan, plan_own
from simulators.ocs.timeline import EXPOSE, timeline

PLAN = plan_own(2, 3)


def _name(kind: str) -> str:
    return kind.rpartition("_")[2]


def test_a_night_is_told_in_order_of_time() -> None:
    moments = list(timeline(PLAN))
    assert all(before.tai <= after.tai for before, after in itertools.pairwise(moments))
    per_snap = (
        "expose",
        "startIntegration",
        "startReadout",
        "imageReadoutParameters",
        "endReadout",
        "endOfImageTelemetry",
    )
    assert Counter(_name(m.kind) for m in moments) == {"nextVisit": 3, **dict.fromkeys(per_snap, 6)}


def test_each_visit_is_announced_20_s_before_its_first_exposure() -> None:
    for visit in PLAN:
        (said,) = [m for m in timeline(PLAN) if _name(m.kind) == "nextVisit" and m.payload["groupId"] == visit.group]
        assert visit.start_tai - said.tai >= 20.0
        assert said.payload["startTime"] == visit.start_tai
        assert said.payload["position"] == [visit.ra, visit.dec]
        assert (said.payload["nimages"], said.payload["filters"]) == (2, visit.physical_filter)
        assert (said.payload["coordinateSystem"], said.payload["rotationSystem"]) == (2, 2)


def test_the_next_visit_is_announced_before_the_one_before_it_ends() -> None:
    announced = [m.tai for m in timeline(PLAN) if _name(m.kind) == "nextVisit"]
    assert announced[1] < PLAN[0].start_tai + PLAN[0].duration


def test_a_snap_is_opened_closed_and_read_in_its_time() -> None:
    visit = PLAN[0]
    moments = [m for m in timeline([visit]) if _name(m.kind) != "nextVisit"]
    offsets = [(_name(m.kind), m.tai - visit.start_tai) for m in moments]
    assert offsets == [
        ("expose", 0.0), ("startIntegration", 0.0), ("startReadout", 16.0), ("imageReadoutParameters", 16.0),
        ("endReadout", 18.0), ("expose", 18.0), ("startIntegration", 18.0),
        ("endOfImageTelemetry", pytest.approx(18.3)), ("startReadout", 34.0),
        ("imageReadoutParameters", 34.0), ("endReadout", 36.0), ("endOfImageTelemetry", pytest.approx(36.3)),
    ]  # fmt: skip
    ended = next(m for m in moments if _name(m.kind) == "endReadout")
    assert ended.payload["timestampEndOfReadout"] == ended.tai


def test_the_daq_hears_of_the_same_exposures_as_the_camera_tells() -> None:
    moments = list(timeline(PLAN))
    exposed = [m.payload for m in moments if m.kind == EXPOSE]
    told = [m.payload for m in moments if _name(m.kind) == "startIntegration"]
    assert all(isinstance(observation, Observation) for observation in exposed)
    assert [o.image_name for o in exposed] == [record["imageName"] for record in told]
    assert [o.snap + 1 for o in exposed] == [record["imageIndex"] for record in told]
    assert [o.started for o in exposed] == [record["timestampAcquisitionStart"] for record in told]
    assert {record["imagesInSequence"] for record in told} == {2}


def test_a_canceled_visit_is_called_off_and_never_exposed() -> None:
    group = PLAN[1].group
    moments = list(timeline(PLAN, [group]))
    of_group = [m for m in moments if not isinstance(m.payload, Observation) and m.payload.get("groupId") == group]
    assert [_name(m.kind) for m in of_group] == ["nextVisit", "nextVisitCanceled"]
    assert of_group[0].tai < of_group[1].tai < PLAN[1].start_tai
    assert group not in {m.payload.group for m in moments if m.kind == EXPOSE}


def test_the_readout_parameters_describe_all_ccds_and_leave_the_rest_empty() -> None:
    said = next(m.payload for m in timeline(PLAN) if _name(m.kind) == "imageReadoutParameters")
    assert said["ccdLocation"].count(":") == 188
    assert said["ccdLocation"].startswith("R01S00:")
    assert {len(said[name]) for name in ("ccdType", "readCols", "underCols")} == {201}
    assert (said["ccdType"][0], said["readCols"][0], said["preCols"][0]) == (1, 509, 3)
    assert said["readRows"][189:] == [0] * 12


def test_latiss_speaks_through_its_own_component() -> None:
    kinds = {m.kind for m in timeline(plan_own(2, 1, instrument="LATISS"))}
    assert "lsst.sal.ATCamera.logevent_endReadout" in kinds
    assert not any("MTCamera" in kind for kind in kinds)


def test_calibration_exposures_are_told_as_what_they_are_and_at_no_place_of_the_sky() -> None:
    plan = plan_afternoon("g_6", 20260705)
    said = list(timeline(plan))
    announced = [m.payload for m in said if _name(m.kind) == "nextVisit" and isinstance(m.payload, dict)]
    assert {(each["coordinateSystem"], each["rotationSystem"], each["filters"]) for each in announced} == {
        (1, 1, "g_6")
    }
    ended = [m.payload for m in said if _name(m.kind) == "endReadout" and isinstance(m.payload, dict)]
    types = Counter(str(each["additionalValues"]).split(":")[0] for each in ended)
    assert types == {"BIAS": 10, "DARK": 5, "FLAT": 10}
    taken = [m.payload for m in said if isinstance(m.payload, Observation)]
    assert Counter(each.image_type for each in taken) == {"bias": 10, "dark": 5, "flat": 10}


def test_an_afternoon_is_25_exposures_one_after_another_before_its_night(tmp_path: Path) -> None:
    plan = plan_afternoon("r_57", 20260705)
    seen = [visit.observation(0) for visit in plan]
    assert len({each.exposure for each in seen}) == len({visit.group for visit in plan}) == len(plan) == 25
    assert (seen[0].started, seen[0].exposure) == (noon_of(20260705), 2026070590001)
    assert all(after.started >= before.readout_ended for before, after in itertools.pairwise(seen))
    assert seen[-1].readout_ended < midnight_of(20260705)
    dump_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
