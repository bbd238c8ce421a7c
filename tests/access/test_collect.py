"""The balance, the latencies and the visits of a report."""

from collections.abc import Callable

import numpy as np
import pytest

from access.report.collect import latency_of
from schemas.events import (
    CaughtUp,
    Event,
    NextVisitCanceled,
    NoticeFailed,
    RawArchived,
    RawReady,
    VisitAssigned,
    VisitDone,
    VisitRefused,
)
from tests.access.small_night import (
    BEGAN,
    LATENCIES,
    VISIT,
    SmallNight,
    alerts_ready,
    archived,
    assigned,
    failed,
    good_visit,
    not_archived,
    not_lite,
    plan,
    raw_ready,
    refused_input,
    sent,
)

Facts = list[Event]


def without(facts: Facts, gone: Event) -> Facts:
    return [fact for fact in facts if fact != gone]


FIRST, SECOND = raw_ready(94, 0), raw_ready(94, 1)
WRONG: dict[str, Callable[[Facts], Facts]] = {
    "a detector never ended": lambda facts: [*facts, assigned(96)],
    "a detector ended twice": lambda facts: [*facts, failed(94)],
    "a raw is neither archived nor missing": lambda facts: without(facts, archived(FIRST)),
    "a raw is both, another neither": lambda facts: [*without(facts, archived(FIRST)), not_archived(SECOND)],
    "more alerts made than stored": lambda facts: [
        *without(facts, alerts_ready(95)), alerts_ready(95).model_copy(update={"alerts": 5}),
    ],
}  # fmt: skip
RIGHT: dict[str, Callable[[Facts], Facts]] = {
    "all went well": lambda facts: facts,
    "a detector failed, with a reason": lambda facts: [*facts, assigned(96), failed(96)],
    "a raw could not be read": lambda facts: [*without(without(facts, FIRST), archived(FIRST)), not_archived(FIRST)],
    "a raw is named missing": lambda facts: [*without(facts, archived(FIRST)), not_archived(FIRST)],
    "a raw was missed and caught up": lambda facts: [*facts, not_archived(FIRST)],
    "the camera alone told of a raw": lambda facts: [*facts, archived(raw_ready(96, 0))],
}


async def test_the_balance_counts_what_a_good_night_made(good: SmallNight) -> None:
    balance = (await good.collected()).report.balance
    assert balance.model_dump() == {
        "visits": 1, "visits_planned": 1, "raws_taken": 4, "raws": 4, "raws_archived": 4, "raws_caught_up": 0,
        "raws_missing": 0, "dia_sources": 12, "dia_objects": 10, "alerts_made": 8, "alerts_sent": 8,
        "alerts_acknowledged": 8, "alerts_reduced": 0, "lite_sent": 8, "lite_failed": {}, "lite_owed": 0, "failed": {},
        "redone": 0, "reconciles": True,
    }  # fmt: skip


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
async def test_a_night_reconciles_where_all_has_one_end(
    empty_night: SmallNight, change: Callable[[Facts], Facts]
) -> None:
    await empty_night.tell(change(good_visit()))
    await empty_night.store()
    assert (await empty_night.collected()).report.balance.reconciles


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
async def test_a_night_does_not_reconcile_where_something_has_none_or_two(
    empty_night: SmallNight, change: Callable[[Facts], Facts]
) -> None:
    await empty_night.tell(change(good_visit()))
    await empty_night.store()
    assert not (await empty_night.collected()).report.balance.reconciles


async def test_a_night_with_an_unanswered_alert_does_not_reconcile(empty_night: SmallNight) -> None:
    await empty_night.tell(good_visit())
    await empty_night.store(latencies=(*LATENCIES[:3], np.nan))
    balance = (await empty_night.collected()).report.balance
    assert (balance.alerts_made, balance.alerts_sent, balance.alerts_acknowledged) == (8, 8, 6)
    assert not balance.reconciles


async def test_failures_are_counted_by_stage_and_reason(good: SmallNight) -> None:
    await good.tell([assigned(d) for d in (96, 97, 98)])
    await good.tell([failed(96), failed(97), failed(98, reason="no WCS")])
    report = (await good.collected()).report
    assert report.balance.failed == {"ccd_worker: no stars": 2, "ccd_worker: no WCS": 1}
    assert report.visits[0].detectors_failed["98"] == "ccd_worker: no WCS"


async def test_the_alerts_of_a_visit_that_was_caught_up_and_redone_are_its_own(empty_night: SmallNight) -> None:
    await empty_night.tell([fact for fact in good_visit() if not isinstance(fact, RawReady)])
    await empty_night.store()
    (row,) = (await empty_night.collected()).report.visits
    assert (row.visit, row.raws, row.alerts_acknowledged) == (VISIT, 4, 8)
    assert row.latency.max_s == pytest.approx(100.0, abs=1e-5)


async def test_a_night_that_lost_a_planned_visit_does_not_reconcile_unless_it_was_stopped(good: SmallNight) -> None:
    good.planned.append("g2")
    report = (await good.collected()).report
    assert report.unheard == ["g2"]
    assert not report.reconciles
    stopped = (await good.collected(stopped=True)).report
    assert (stopped.unheard, stopped.reconciles) == ([], True)


async def test_a_visit_has_its_number_in_the_plan_and_counts_what_was_redone(empty_night: SmallNight) -> None:
    redone = alerts_ready(94).model_copy(update={"redone": 1})
    await empty_night.tell([redone, failed(94), *good_visit(), plan("g0")])  # a fact told already stays as it was
    rows = (await empty_night.collected()).report.visits
    assert [(row.group, row.number, row.redone) for row in rows] == [("g1", 1, 1), ("g0", None, 0)]


async def test_latency_is_counted_in_seconds_of_the_wall(good: SmallNight) -> None:
    collected = await good.collected()
    latency = collected.report.latency
    assert latency.alerts == 8
    assert latency.median_s == pytest.approx(35.0, abs=1e-5)
    assert latency.p98_s == pytest.approx(100.0, abs=1e-5)
    assert latency.max_s == pytest.approx(100.0, abs=1e-5)
    assert latency.within_60s == 0.75
    assert collected.latency_visit.tolist() == [VISIT] * 8


async def test_an_alert_never_acknowledged_counts_against_the_minute(empty_night: SmallNight) -> None:
    await empty_night.tell(good_visit())
    await empty_night.store(latencies=(20.0, 40.0, np.nan, np.nan))
    report = (await empty_night.collected()).report
    assert report.latency.within_60s == report.visits[0].latency.within_60s == 0.5
    assert report.latency.max_s == pytest.approx(20.0, abs=1e-5)


async def test_a_night_whose_alerts_were_all_unanswered_kept_none_within_the_minute(empty_night: SmallNight) -> None:
    await empty_night.tell(good_visit())
    await empty_night.store(latencies=(np.nan,) * 4)
    latency = (await empty_night.collected()).report.latency
    assert (latency.alerts, latency.within_60s) == (8, 0.0)
    assert (latency.median_s, latency.p98_s, latency.max_s) == (None, None, None)


async def test_a_night_as_fast_as_it_goes_has_no_latencies(good: SmallNight) -> None:
    report = (await good.collected(timed=False)).report
    assert report.latency.alerts == report.balance.alerts_acknowledged == 8
    assert {report.latency.median_s, report.latency.max_s, report.latency.within_60s} == {None}


def test_the_98th_percentile_lies_between_the_two_slowest_of_a_few() -> None:
    latency = latency_of(np.array([100.0, 10.0, 50.0, 20.0]))
    assert latency.p98_s == pytest.approx(50.0 + 0.94 * 50.0)
    assert latency_of(np.array([60.0])).within_60s == 1.0
    assert latency_of(np.zeros(0)).within_60s is None


async def test_what_was_told_before_the_night_began_is_left_out(empty_night: SmallNight) -> None:
    await empty_night.tell([*good_visit("before", VISIT + 10), refused_input(1)], at=BEGAN - 0.001)
    await empty_night.store(VISIT + 10)
    await empty_night.tell(good_visit(), at=BEGAN)
    await empty_night.store()
    collected = await empty_night.collected()
    assert [visit.group for visit in collected.report.visits] == ["g1"]
    assert (collected.report.balance.raws, collected.report.balance.alerts_sent) == (4, 8)
    assert collected.report.balance.reconciles
    assert collected.report.inputs_refused == {}
    assert {entry.event.group for entry in collected.journal} == {"g1"}


async def test_what_was_refused_or_is_missing_is_listed_with_its_reason(good: SmallNight) -> None:
    await good.tell([VisitRefused(group="g2", reason="no template"), not_archived(raw_ready(96, 0))])
    await good.tell([refused_input(7), refused_input(8), refused_input(9, "no group")])
    report = (await good.collected()).report
    assert report.refused == {"g2": "no template"}
    assert report.inputs_refused == {"nextVisit: no JSON": 2, "nextVisit: no group": 1}
    assert report.raws_missing == {f"raw/LSSTCam/{VISIT}/96": "the disk is full"}


async def test_a_raw_that_was_caught_up_is_missing_no_more(good: SmallNight) -> None:
    late, lost = raw_ready(96, 0), raw_ready(96, 1)
    await good.tell([not_archived(late), not_archived(lost), archived(late).model_copy(update={"caught_up": True})])
    report = (await good.collected()).report
    assert list(report.raws_missing) == [str(lost.raw)]
    balance = report.balance
    assert (balance.raws_taken, balance.raws_archived, balance.raws_caught_up, balance.raws_missing) == (6, 5, 1, 1)


async def test_a_catch_up_that_did_not_end_says_why_until_one_does(good: SmallNight) -> None:
    silent = CaughtUp(at=1.0, number=0, left=0, failed=0, reason="the DAQ does not answer")
    await good.tell([silent])
    assert (await good.collected()).report.catch_up_failed == silent.reason
    await good.tell([silent.model_copy(update={"number": 1, "reason": ""})])
    assert (await good.collected()).report.catch_up_failed == ""


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ([], "not finished"),
        ([VisitDone(group="g", visit=None, detectors=())], "done"),
        ([VisitRefused(group="g", reason="no template")], "refused"),
        ([NextVisitCanceled(group="g"), VisitDone(group="g", visit=None, detectors=())], "canceled"),
    ],
)
async def test_a_visit_says_how_it_ended(empty_night: SmallNight, facts: Facts, state: str) -> None:
    await empty_night.tell([plan("g"), *facts])
    (visit,) = (await empty_night.collected()).report.visits
    assert (visit.group, visit.visit, visit.state) == ("g", None, state)


async def test_alerts_sent_smaller_or_not_lite_are_counted_and_no_trouble_of_the_balance(good: SmallNight) -> None:
    await good.tell([sent(96, reduced=3), not_lite(96, "timed out"), sent(97, reduced=1), not_lite(97, "timed out")])
    await good.tell([sent(98)])
    balance = (await good.collected()).report.balance
    assert (balance.alerts_reduced, balance.lite_sent, balance.lite_failed) == (4, 10, {"timed out": 6})
    assert balance.lite_owed == 4
    assert balance.reconciles


async def test_a_notice_that_failed_is_named_with_the_reason(good: SmallNight) -> None:
    await good.tell([NoticeFailed(group="g1", about="VisitDone", reason="a bug")])
    assert (await good.collected()).report.notices_failed == {"VisitDone g1": "a bug"}


async def test_each_visit_has_its_own_row(good: SmallNight) -> None:
    await good.tell(good_visit("g2", VISIT + 2))
    await good.store(VISIT + 2, latencies=(np.nan, 200.0, 200.0, 200.0))
    first, second = (await good.collected()).report.visits
    assert (first.visit, second.visit) == (VISIT, VISIT + 2)
    assert (first.detectors, first.raws, first.dia_sources, first.alerts_made) == (2, 4, 12, 8)
    assert (first.alerts_acknowledged, second.alerts_acknowledged) == (8, 6)
    assert first.latency.within_60s == 0.75
    assert second.latency.within_60s == 0.0


async def test_seconds_of_a_stage_are_summed_and_divided_by_the_detectors_differenced(good: SmallNight) -> None:
    report = (await good.collected()).report
    assert report.stages == {"isr": 2.0, "subtract": 4.0, "associate": 1.0}
    assert report.stages_per_detector == {"isr": 1.0, "subtract": 2.0, "associate": 0.5}


async def test_a_night_of_which_nothing_was_told_is_reported(empty_night: SmallNight) -> None:
    empty_night.planned.clear()
    report = (await empty_night.collected()).report
    assert (report.visits, report.stages, report.latency.alerts) == ([], {}, 0)
    assert report.balance.reconciles


def test_the_good_visit_is_what_these_tests_take_it_for() -> None:
    kinds = [type(fact) for fact in good_visit()]
    assert (kinds.count(RawReady), kinds.count(RawArchived), kinds.count(VisitAssigned)) == (4, 4, 2)
