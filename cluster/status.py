"""`pachon status`: what runs, waits, is late, and failed, from the journal and the log of a night."""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backbone.journal import Entry
from backbone.journal_view import Debt, JournalView
from cluster import log_lines
from cluster.display import STATES, Board
from cluster.later import database_of, settings_of
from cluster.log_lines import Line
from cluster.ray_state import RayState, read_state
from cluster.services import served
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from cluster.told_tables import add, log_table, plain_table, say, seconds
from schemas.clock import TAI_MINUS_UTC
from schemas.events import Event, RawArchived, RawNotArchived, ReadoutEnded
from schemas.identity import DatasetId

_ERRORS = 8


@dataclass(frozen=True)
class OpenVisit:
    """A visit that has not ended. `detectors`: how many, by state; `since_readout`: of its last image, wall seconds."""

    group: str
    visit: int | None
    state: str
    since_readout: float | None
    detectors: dict[str, int]


@dataclass(frozen=True)
class Status:
    """How a night stands at a time (TAI s). `ages`: of the oldest delivery that a pool owes, seconds of the wall."""

    night: str
    database_runs: bool
    at: float
    visits: dict[str, int]
    open_visits: list[OpenVisit]
    debts: list[Debt]
    ages: dict[str, float]
    given_up: dict[str, int]
    owed: dict[str, int]
    alerts_refused: dict[str, str]
    inputs_refused: int
    raws_missing: list[str]
    errors: list[Line]
    ray: RayState | None


def run(output: Path, postgres: str, console: Console, *, as_json: bool, every_night: bool) -> int:
    """Tell it; 0. `every_night`: of all that the journal holds.

    Raises BadData for a folder of no night, Transient if its database does not answer.
    """
    settings = settings_of(output)
    runs = bool(postgres or served(settings.output / "postgres"))
    with database_of(settings, postgres) as dsn:
        status = asyncio.run(status_of(settings, dsn, runs=runs, every_night=every_night))
    if as_json:
        console.print(json.dumps(asdict(status)), markup=False, highlight=False, soft_wrap=True)
    else:
        show(status, console)
    return 0


async def status_of(settings: Settings, dsn: str, *, runs: bool, every_night: bool = False) -> Status:
    """Read it from the journal and the log. What is owed is of all nights in any case."""
    clock = StoredClock(settings.clock_file)
    since = -math.inf if every_night else clock.began
    async with JournalView.opened(dsn) as view:
        now, debts, counts = clock.now(), await view.debts(), await view.counts(since)
        groups = await view.open_groups(since)
        return Status(
            night=str(settings.output),
            database_runs=runs,
            at=now,
            visits=_visits(counts, len(groups)),
            open_visits=[_open(group, await view.entries(group=group), clock) for group in groups],
            debts=debts,
            ages={debt.pool: clock.wall_seconds(now - debt.since) for debt in debts},
            given_up=await view.given_up(since),
            owed=await _owed(view, debts),
            alerts_refused={place_of(event): why for event, why in await view.refused("alert_emitter", since)},
            inputs_refused=counts.get("InputRefused", 0),
            raws_missing=await _missing(view, since),
            errors=log_lines.last_wrong(settings.log, _ERRORS),
            ray=read_state(settings.ray_file),
        )


def _visits(counts: Mapping[str, int], still_open: int) -> dict[str, int]:
    kinds = {"announced": "NextVisit", "done": "VisitDone", "refused": "VisitRefused", "canceled": "NextVisitCanceled"}
    return {name: counts.get(kind, 0) for name, kind in kinds.items()} | {"open": still_open}


def _open(group: str, entries: list[Entry], clock: StoredClock) -> OpenVisit:
    board = Board(clock)
    for entry in entries:
        board.note(entry.event, entry.at)
    last = max((e.event for e in entries if isinstance(e.event, ReadoutEnded)), key=lambda e: e.exposure, default=None)
    since = clock.wall_seconds(clock.now() - last.readout_ended) if last else None
    count = board.count(group)
    return OpenVisit(
        group, last.exposure - last.snap if last else None, board.visits.get(group, "unknown"), since,
        {state: count[state] for state in STATES},
    )  # fmt: skip


async def _owed(view: JournalView, debts: list[Debt]) -> dict[str, int]:
    by_pool = {debt.pool: debt.owed for debt in debts}
    return {
        "alerts": await view.owed_alerts(),
        "raws not fetched": by_pool.get("camera_reader", 0),
        "archiver's": by_pool.get("archiver", 0),
        "notices": by_pool.get("herald", 0),
        "withdrawal notices": await view.owed_withdrawals(),
        "dead letters": by_pool.get("dead_letter_office", 0),
    }


def place_of(event: Event) -> str:
    """Of which visit-detector an event is, for messages."""
    return f"visit {getattr(event, 'visit', None)} detector {getattr(event, 'detector', None)}"


async def _missing(view: JournalView, since: float) -> list[str]:
    """Raws that could not be archived, and were not since."""
    told = [entry.event for entry in await view.entries("RawNotArchived", since=since)]
    ids = {_archived(event.raw): str(event.raw) for event in told if isinstance(event, RawNotArchived)}
    archived = await view.has(list(ids))
    return [raw for event_id, raw in ids.items() if event_id not in archived]


def _archived(raw: DatasetId) -> str:
    """The id of the fact that a raw is archived."""
    identity: dict[str, Any] = {"raw": raw}
    return RawArchived.model_construct(**identity).event_id


def show(status: Status, console: Console) -> None:
    """Tables for a person."""
    told = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.at - TAI_MINUS_UTC))
    runs = "its database runs" if status.database_runs else "its database does not run"
    say(console, f"{status.night}: {told} UTC of the night, {runs}")
    say(console, "visits: " + _counted(status.visits))
    if status.open_visits:
        console.print(_visit_table(status.open_visits))
    if status.debts:
        console.print(_debt_table(status))
    say(console, f"owed: {_counted(status.owed)}")
    say(console, f"given up: {_counted(status.given_up)}; inputs refused: {status.inputs_refused}")
    for place, why in status.alerts_refused.items():
        say(console, f"alerts not sent, nor tried again unless `pachon retry-alerts` says so: {place}: {why}")
    say(console, f"raws missing: {', '.join(status.raws_missing) or 'none'}")
    if status.ray is not None:
        say(console, f"Ray: {status.ray}")
    if status.errors:
        console.print(log_table("last warnings and errors", status.errors))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n) or "nothing"


def _visit_table(visits: list[OpenVisit]) -> Table:
    table = plain_table("open visits", "visit", "group", "state", "s since readout", "detectors")
    for visit in visits:
        add(table, visit.visit, visit.group, visit.state, seconds(visit.since_readout), _counted(visit.detectors))
    return table


def _debt_table(status: Status) -> Table:
    table = plain_table("deliveries owed", "pool", "owed", "oldest, s", "attempts", "last error")
    for debt in status.debts:
        add(table, debt.pool, debt.owed, seconds(status.ages[debt.pool]), debt.attempts, debt.error)
    return table
