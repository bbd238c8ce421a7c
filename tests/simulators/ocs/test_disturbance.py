"""Each of the observatory's faults, on the plan of three visits."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest

from schemas.image import Observation
from simulators.faults import Observatory, Rush
from simulators.ocs.disturbance import disturbed, hurried, message_of, skew_of
from simulators.ocs.schedule import plan_own
from simulators.ocs.timeline import Moment, timeline

PLAN = plan_own(2, 3)
RIGHT = list(timeline(PLAN))
VISIT = PLAN[1]


def with_fault(what: str, **more: Any) -> list[Moment]:
    moments = list(disturbed(PLAN, (), [Observatory.model_validate({"what": what, "visit": 2, **more})]))
    assert [m.tai for m in moments] == sorted(m.tai for m in moments)
    return moments


def changed(what: str, **more: Any) -> tuple[list[Moment], list[Moment]]:
    """What is said less than it should be, and what more."""
    wrong = with_fault(what, **more)
    return [m for m in RIGHT if m not in wrong], [m for m in wrong if m not in RIGHT]


def names(moments: list[Moment]) -> Counter[str]:
    return Counter(message_of(m) for m in moments)


def test_without_faults_nothing_is_changed() -> None:
    assert list(disturbed(PLAN, (), [])) == RIGHT


@pytest.mark.parametrize(("message", "count"), [("nextVisit", 1), ("endReadout", 2)])
def test_a_late_message_is_the_same_message(message: str, count: int) -> None:
    less, more = changed("late", message=message, seconds=40.0)
    assert names(less) == names(more) == {message: count}
    assert [(m.tai + 40.0, m.payload) for m in less] == [(m.tai, m.payload) for m in more]


def test_what_comes_twice_comes_the_same_later() -> None:
    less, more = changed("twice", seconds=3.0)
    assert less == []
    assert len(more) == 11  # nextVisit, and five for each snap; the camera is not told twice
    assert "expose" not in names(more)


def test_reversed_messages_come_when_the_visit_is_over() -> None:
    less, more = changed("reversed")
    assert len(less) == len(more) == 11
    over = VISIT.start_tai + VISIT.duration
    assert min(m.tai for m in more) > over
    assert [message_of(m) for m in more][::10] == ["endOfImageTelemetry", "nextVisit"]
    assert [m.payload for m in reversed(more)] == [m.payload for m in less]


def test_malformed_messages_come_before_the_good_ones() -> None:
    less, more = changed("malformed")
    assert less == []
    assert names(more) == {"nextVisit": 4, "startIntegration": 8, "endReadout": 8}
    told = [m for m in with_fault("malformed") if message_of(m) == "nextVisit"]
    assert [m in RIGHT for m in told] == [True, False, False, False, False, True, True]
    garbage, unknown, short, nan = (m.payload for m in more[:4])
    assert isinstance(garbage, bytes)
    assert isinstance(unknown, bytes)
    assert isinstance(short, dict)
    assert isinstance(nan, dict)
    assert "groupId" not in short
    assert isinstance(nan["duration"], float)
    assert math.isnan(nan["duration"])


def test_a_stranger_is_announced_beside_the_visit() -> None:
    less, (other,) = changed("stranger")
    assert less == []
    assert isinstance(other.payload, dict)
    assert (other.payload["instrument"], other.payload["groupId"]) == ("ComCam", f"{VISIT.group}-other")


@pytest.mark.parametrize(
    ("what", "left_out"),
    [
        ("no_images", {"expose": 2, "startIntegration": 2, "startReadout": 2, "imageReadoutParameters": 2,
                       "endReadout": 2, "endOfImageTelemetry": 2}),
        ("no_next_visit", {"nextVisit": 1}),
        ("no_last_snap", {"expose": 1, "startIntegration": 1, "startReadout": 1, "imageReadoutParameters": 1,
                          "endReadout": 1, "endOfImageTelemetry": 1}),
    ],
)  # fmt: skip
def test_what_never_comes_is_left_out(what: str, left_out: dict[str, int]) -> None:
    less, more = changed(what)
    assert more == []
    assert names(less) == left_out


def test_the_snap_that_never_comes_is_the_last() -> None:
    less, _ = changed("no_last_snap")
    assert [m.payload.snap for m in less if isinstance(m.payload, Observation)] == [1]


@pytest.mark.parametrize(("what", "exposures"), [("before", 0), ("during", 1), ("after", 2)])
def test_a_visit_is_canceled_once_and_exposures_that_run_end(what: str, exposures: int) -> None:
    less, (said,) = changed(f"canceled_{what}")
    assert message_of(said) == "nextVisitCanceled"
    assert names(less)["expose"] == names(less)["endReadout"] == 2 - exposures
    since_first = said.tai - VISIT.start_tai
    assert {"before": since_first < 0.0, "during": 0.0 < since_first < 15.0, "after": since_first > 36.0}[what]


def test_a_clock_ahead_changes_what_is_said_and_not_when() -> None:
    fault = Observatory(what="skew", seconds=2.0)
    assert skew_of([fault]) == 2.0
    wrong = list(disturbed(PLAN, (), [fault]))
    assert [(m.tai, m.kind) for m in wrong] == [(m.tai, m.kind) for m in RIGHT]
    for right, skewed in zip(RIGHT, wrong, strict=True):
        if isinstance(right.payload, Observation):
            assert skewed == right
        elif message_of(right) == "endReadout":
            assert skewed.payload["timestampEndOfReadout"] == right.payload["timestampEndOfReadout"] + 2.0
            assert skewed.payload["imageName"] == right.payload["imageName"]


def test_visits_in_a_hurry_come_faster_and_never_before_the_last_is_read_out() -> None:
    fast = hurried(PLAN, [Rush(factor=3.0)])
    assert [v.group for v in fast] == [v.group for v in PLAN]
    assert fast[0].start_tai == PLAN[0].start_tai
    for before, after in itertools.pairwise(fast):
        assert after.start_tai - before.start_tai == pytest.approx(37.0 / 3.0)
        assert before.start_tai + before.duration <= after.start_tai + 1e-6
    assert hurried(PLAN, []) == PLAN
