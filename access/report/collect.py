"""From the journal, the L1 database and the truth to a report."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from access.report.model import Balance, Latency, Report, VisitRow
from access.report.truth_check import Columns, Compared, compare, read_truth, summary
from backbone.journal import Entry, Journal
from backbone.l1 import L1Database
from schemas.clock import Clock
from schemas.events import (
    AlertsReady,
    AlertsSent,
    CaughtUp,
    DetectorFailed,
    DetectorReadOut,
    DiaSourcesReady,
    Event,
    InputRefused,
    LiteAlertsSent,
    NextVisit,
    NoticeFailed,
    OfflineDue,
    OfflineFailed,
    RawArchived,
    RawNotArchived,
    RawReady,
    ReadoutEnded,
    VisitAssigned,
    VisitDone,
    VisitRefused,
)
from schemas.tables import Table

PROMISE_S = 60.0

_COMMITTED = "alert_emitter"
"""A stage at which a detector that fails has its result; its alerts are still owed."""

Floats = NDArray[np.float64]
RawKey = tuple[int | None, int | None]
"""(exposure, detector)."""


@dataclass(frozen=True)
class NightFacts:
    """What the command knows of the night.

    `began`: TAI s; `planned`: the groups of its visits; `timed`: whether its clock ran with the wall's; `untrue`: the
    visit-detectors in whose pixels the camera put what the truth has not; `stopped`: whether somebody ended it early;
    `retold`: the truth of a visit's detector, as it is with the templates that the night had.
    """

    night: str
    began: float
    seed: int
    speed: float
    planned: Sequence[str]
    truth: Path
    timed: bool = True
    untrue: frozenset[tuple[int, int]] = frozenset()
    stopped: bool = False
    retold: Callable[[Columns, int], Columns] = lambda truth, _: truth


@dataclass(frozen=True, eq=False)
class Collected:
    """A report, the journal it was made of, and what its plots show.

    `latency_s`, `latency_visit`: of each alert, see `latency_of`. `compared`: visit-detectors against the truth.
    """

    report: Report
    journal: list[Entry]
    latency_s: Floats
    latency_visit: NDArray[np.int64]
    compared: list[Compared]


async def collect(night: NightFacts, journal: Journal, l1: L1Database, clock: Clock) -> Collected:
    """Read all of the night once, and count."""
    entries = await journal.entries(since=night.began)
    facts = [entry.event for entry in entries]
    answers = await l1.acknowledgements(sorted({f.visit for f in facts if isinstance(f, AlertsReady)}))
    seconds = _latencies(answers, clock) if night.timed else np.full(len(answers), np.nan)
    compared = await _compared(night, facts, l1, answers)
    stages = _stages(facts)
    differenced = max(1, sum(isinstance(f, DiaSourcesReady) for f in facts))
    report = Report(
        night=night.night, seed=night.seed, speed=night.speed, latency=latency_of(seconds),
        balance=_balance(night, facts, answers), truth=summary(compared), stages=stages,
        stages_per_detector={name: value / differenced for name, value in stages.items()},
        visits=_visits(night.planned, facts, answers, seconds),
        refused={f.group: f.reason for f in facts if isinstance(f, VisitRefused)},
        unheard=_unheard(night, facts),
        inputs_refused=dict(Counter(f"{f.topic}: {f.reason}" for f in facts if isinstance(f, InputRefused))),
        raws_missing=_missing(facts), catch_up_failed=_catch_up_failed(facts),
        notices_failed={f"{f.about} {f.group}".strip(): f.reason for f in facts if isinstance(f, NoticeFailed)},
        owed=await journal.debts(night.began),
    )  # fmt: skip
    return Collected(report, entries, seconds, answers["visit"].astype(np.int64), compared)


def _latencies(answers: Table, clock: Clock) -> Floats:
    """Wall seconds from readout to acknowledgement of each alert; infinite for what was not acknowledged."""
    night_s = answers["acknowledged_at"] - answers["readout_ended"]
    wall_s = np.array([clock.wall_seconds(float(value)) for value in night_s], dtype=np.float64)
    return np.where(np.isnan(night_s), np.inf, wall_s)


def latency_of(seconds: Floats) -> Latency:
    """The figures of a set of alerts: infinite for one never acknowledged, NaN for one of a night without a clock.

    Median, p98 and maximum are of the acknowledged; the others count against the share within 60 s.
    """
    known = seconds[np.isfinite(seconds)]
    timed = len(seconds) > 0 and not np.isnan(seconds).any()
    within = float(np.mean(seconds <= PROMISE_S)) if timed else None
    if not len(known):
        return Latency(alerts=len(seconds), median_s=None, p98_s=None, max_s=None, within_60s=within)
    return Latency(
        alerts=len(seconds), median_s=float(np.median(known)), p98_s=float(np.percentile(known, 98)),
        max_s=float(known.max()), within_60s=within,
    )  # fmt: skip


def _stages(facts: Sequence[Event]) -> dict[str, float]:
    """CPU seconds of the night, by stage, in the order in which they are first met."""
    total: dict[str, float] = defaultdict(float)
    for fact in facts:
        if isinstance(fact, DiaSourcesReady | AlertsReady):
            for name, seconds in fact.stages.items():
                total[name] += seconds
    return dict(total)


def _balance(night: NightFacts, facts: Sequence[Event], answers: Table) -> Balance:
    ready = [f for f in facts if isinstance(f, AlertsReady)]
    made = sum(f.alerts for f in ready)
    acknowledged = int(np.isfinite(answers["acknowledged_at"]).sum())
    unanswered = made - acknowledged
    redone = _redone(facts)
    lost = [f for f in facts if isinstance(f, DetectorFailed) and (f.group, f.detector) not in redone]
    failed = Counter(f"{f.stage}: {f.reason}" for f in lost)
    archived = [f for f in facts if isinstance(f, RawArchived)]
    settled = _ended_once(facts) and _kept_or_missed(facts) and not _still_to_redo(facts) and not _unheard(night, facts)
    whole, lite = [f for f in facts if isinstance(f, AlertsSent)], [f for f in facts if isinstance(f, LiteAlertsSent)]
    lite_sent, lite_failed = sum(f.sent for f in lite), sum((Counter(f.failed) for f in lite), Counter[str]())
    return Balance(
        visits=sum(isinstance(f, VisitDone) for f in facts), visits_planned=len(night.planned),
        raws_taken=len(_taken(facts) | _ended(facts)), raws=sum(isinstance(f, RawReady) for f in facts),
        raws_archived=len(archived), raws_caught_up=sum(f.caught_up for f in archived),
        raws_missing=len(_missing(facts)), dia_sources=sum(f.dia_sources for f in ready),
        dia_objects=sum(f.new_dia_objects for f in ready), alerts_made=made, alerts_sent=len(answers),
        alerts_acknowledged=acknowledged, alerts_reduced=sum(f.reduced for f in whole), lite_sent=lite_sent,
        lite_failed=dict(lite_failed), failed=dict(failed), redone=len(redone),
        lite_owed=sum(f.acknowledged for f in whole) - lite_sent - lite_failed.total(),
        reconciles=settled and unanswered == 0 and len(answers) == made,
    )  # fmt: skip


def _unheard(night: NightFacts, facts: Sequence[Event]) -> list[str]:
    """The groups of the visits that are lost: planned, and nothing was announced or said to be exposed of them."""
    heard = {f.group for f in facts if isinstance(f, NextVisit | ReadoutEnded)}
    return [] if night.stopped else sorted({*night.planned} - heard)


def _ended_once(facts: Sequence[Event]) -> bool:
    """Whether every assigned visit-detector has exactly one end: committed, or failed; or failed and then redone."""
    assigned = {(f.group, f.detector) for f in facts if isinstance(f, VisitAssigned)}
    ends = Counter((f.group, f.detector) for f in facts if isinstance(f, AlertsReady))
    ends.update((f.group, f.detector) for f in facts if isinstance(f, DetectorFailed) and f.stage != _COMMITTED)
    ends.subtract(_redone(facts))
    return all(ends[key] == 1 for key in assigned)


def _still_to_redo(facts: Sequence[Event]) -> set[tuple[str, int, int]]:
    """What was to be redone, and has no end."""
    due = {(f.group, f.detector, f.redone) for f in facts if isinstance(f, OfflineDue)}
    committed = {(f.group, f.detector) for f in facts if isinstance(f, AlertsReady)}
    failed = {(f.group, f.detector, f.redone) for f in facts if isinstance(f, OfflineFailed)}
    return {key for key in due - failed if key[:2] not in committed}


def _redone(facts: Sequence[Event]) -> set[tuple[str, int]]:
    """Visit-detectors that failed, and were redone offline."""
    return {(f.group, f.detector) for f in facts if isinstance(f, AlertsReady) and f.redone}


def _kept_or_missed(facts: Sequence[Event]) -> bool:
    """Whether every raw that was taken is either archived or named missing."""
    return _taken(facts) <= _ended(facts)


def _taken(facts: Sequence[Event]) -> set[RawKey]:
    """The raws that the observatory told of in time."""
    return {(f.observation.exposure, f.detector) for f in facts if isinstance(f, DetectorReadOut)}


def _ended(facts: Sequence[Event]) -> set[RawKey]:
    """The raws that are archived, or at least named: those caught up may have been told of by the camera alone."""
    return {(f.raw.exposure, f.raw.detector) for f in facts if isinstance(f, RawArchived | RawNotArchived)}


def _missing(facts: Sequence[Event]) -> dict[str, str]:
    """Raw -> why, of those that are not archived, also not by a later try."""
    archived = {f.raw for f in facts if isinstance(f, RawArchived)}
    return {str(f.raw): f.reason for f in facts if isinstance(f, RawNotArchived) and f.raw not in archived}


def _catch_up_failed(facts: Sequence[Event]) -> str:
    """Why nobody knows whether the camera holds more than was told; "" where its catalogue was seen last of all."""
    return next((f.reason for f in reversed(facts) if isinstance(f, CaughtUp)), "")


def _visits(planned: Sequence[str], facts: Sequence[Event], answers: Table, seconds: Floats) -> list[VisitRow]:
    by_group: dict[str, list[Event]] = defaultdict(list)
    for fact in facts:
        by_group[fact.group].append(fact)
    plans = [f for f in facts if isinstance(f, NextVisit)]
    numbers = {group: number for number, group in enumerate(planned, 1)}
    return [_visit_row(numbers.get(plan.group), plan, by_group[plan.group], answers, seconds) for plan in plans]


def _visit_row(
    number: int | None, plan: NextVisit, facts: Sequence[Event], answers: Table, seconds: Floats
) -> VisitRow:
    ready = [f for f in facts if isinstance(f, AlertsReady)]
    raws = {f.raw: f.observation.visit for f in facts if isinstance(f, RawReady | RawArchived)}
    visit = next(iter(raws.values()), None)
    own = answers["visit"] == visit
    return VisitRow(
        number=number, group=plan.group, visit=visit, filter=plan.filters, state=_state(facts),
        detectors=sum(isinstance(f, VisitAssigned) for f in facts),
        detectors_failed=_lost(facts), redone=len(_redone(facts)),
        raws=len(raws), dia_sources=sum(f.dia_sources for f in ready),
        alerts_made=sum(f.alerts for f in ready),
        alerts_acknowledged=int(np.isfinite(answers["acknowledged_at"][own]).sum()), latency=latency_of(seconds[own]),
    )  # fmt: skip


def _lost(facts: Sequence[Event]) -> dict[str, str]:
    """Detector -> why, of those of a visit that failed and were not redone."""
    redone = {detector for _, detector in _redone(facts)}
    failed = [f for f in facts if isinstance(f, DetectorFailed) and f.detector not in redone]
    why = {str(f.detector): f"{f.stage}: {f.reason}" for f in failed}
    for f in facts:
        if isinstance(f, OfflineFailed) and str(f.detector) in why:
            why[str(f.detector)] += f"; redone in vain, {f.stage}: {f.reason}"
    return why


def _state(facts: Sequence[Event]) -> str:
    kinds = {f.kind for f in facts}
    if {"VisitDone", "AlertsReady"} <= kinds:  # maybe canceled, and too late
        return "done"
    for kind, state in (("VisitRefused", "refused"), ("NextVisitCanceled", "canceled"), ("VisitDone", "done")):
        if kind in kinds:
            return state
    return "not finished"


async def _compared(night: NightFacts, facts: Sequence[Event], l1: L1Database, answers: Table) -> list[Compared]:
    """Each committed visit-detector against its truth, where there is one."""
    result = []
    for fact in facts:
        if not isinstance(fact, AlertsReady) or (fact.visit, fact.detector) in night.untrue:
            continue
        table = read_truth(night.truth, fact.visit, fact.detector)
        if table is not None:
            table = await asyncio.to_thread(night.retold, table, fact.visit)
            sources = await l1.sources_of(fact.visit, fact.detector)
            alerted = np.isin(sources["diaSourceId"], answers["diaSourceId"])
            result.append(compare(table, sources, alerted))
    return result
