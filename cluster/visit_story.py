"""`pachon visit`: the whole story of one visit, from the journal and the log of its night."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backbone.journal import Entry
from backbone.journal_view import DeliveryState, JournalView
from cluster import log_lines
from cluster.later import database_of, settings_of
from cluster.log_lines import Line
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from cluster.told_tables import add, log_table, plain_table, say, seconds, time_of_day
from schemas.clock import Clock
from schemas.events import (
    AlertsReady,
    AlertsSent,
    DetectorFailed,
    DiaSourcesReady,
    Event,
    NextVisit,
    RawArchived,
    RawReady,
    ReadoutEnded,
    VisitDone,
)

FEW = 4
"""Facts of a kind that are told each by itself; of more the first and the last time are told."""

_STAGES = {"RawReady": "raw", "DiaSourcesReady": "differenced", "AlertsReady": "committed", "AlertsSent": "sent"}


@dataclass(frozen=True)
class Story:
    """All that is known of a visit. `clock`: of its night."""

    group: str
    entries: list[Entry]
    deliveries: list[DeliveryState]
    log: list[Line]
    clock: Clock

    @property
    def readout(self) -> ReadoutEnded | None:
        """The last: the 60 s begin with it."""
        ended = [entry.event for entry in self.entries if isinstance(entry.event, ReadoutEnded)]
        return max(ended, key=lambda event: event.exposure, default=None)

    def since_readout(self, tai: float) -> float | None:
        """Seconds of the wall; negative for what came before."""
        return self.clock.wall_seconds(tai - self.readout.readout_ended) if self.readout else None


def run(output: Path, postgres: str, visit: str, console: Console) -> int:
    """Tell it; 0. Raises BadData for a visit that there is none of, Transient if the database does not answer."""
    settings = settings_of(output)
    with database_of(settings, postgres) as dsn:
        show(asyncio.run(story_of(settings, dsn, visit)), console)
    return 0


async def story_of(settings: Settings, dsn: str, visit: str) -> Story:
    """Read it; `visit`: its number, its group, or `last`."""
    async with JournalView.opened(dsn) as view:
        group = await view.group_of(visit)
        entries, deliveries = await view.entries(group=group), await view.deliveries(group)
    story = Story(group, entries, deliveries, [], StoredClock(settings.clock_file))
    number = story.readout.exposure - story.readout.snap if story.readout else None
    return Story(group, entries, deliveries, log_lines.about(settings.log, group, number), story.clock)


def show(story: Story, console: Console) -> None:
    """Tables for a person."""
    for line in _head(story):
        say(console, line)
    tables = [_events(story), _detectors(story), _deliveries(story), _failures(story)]
    for table in [*tables, log_table("log", story.log)]:
        if table.row_count:
            console.print()
            console.print(table)


def _head(story: Story) -> list[str]:
    plan = next((e.event for e in story.entries if isinstance(e.event, NextVisit)), None)
    ended, sent = story.readout, [e.event for e in story.entries if isinstance(e.event, AlertsSent)]
    lines = [f"visit {ended.exposure - ended.snap if ended else 'without an image'}, group {story.group}"]
    if plan:
        lines.append(
            f"{plan.instrument} {plan.filters}, ra {plan.ra:.4f} dec {plan.dec:+.4f} rotation {plan.rotation:.2f} deg, "
            f"{plan.n_images} images planned, start {time_of_day(plan.start_time)} TAI"
        )
    if sent:
        last = story.since_readout(max(event.last_acknowledged for event in sent))
        alerts = sum(event.acknowledged for event in sent)
        lines.append(f"{alerts} alerts acknowledged, the last one {seconds(last)} s after the last readout")
    smooth = sum(1 for one in story.deliveries if _is_smooth(one))
    return [*lines, f"{smooth} of {len(story.deliveries)} deliveries done at the first attempt"]


def _is_smooth(one: DeliveryState) -> bool:
    return (one.state, one.attempts) == ("done", 1)


def _events(story: Story) -> Table:
    table = plain_table("events", "TAI", "s after readout", "event", "detectors", "what")
    for run_of in _runs(story.entries):
        first, last = run_of[0], run_of[-1]
        when = [time_of_day(entry.at) for entry in (first, last)]
        since = [seconds(story.since_readout(entry.at)) for entry in (first, last)]
        detectors = [str(d) for e in run_of if (d := getattr(e.event, "detector", None)) is not None]
        if len(run_of) == 1:
            add(table, when[0], since[0], first.event.kind, ", ".join(detectors), _said(first.event))
        else:
            many = f"{len(run_of)} x"
            add(table, f"{when[0]} - {when[1]}", f"{since[0]} - {since[1]}", first.event.kind, many, "")
    return table


def _runs(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries in order, those of a kind that there are many of together, where the first of them stands."""
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        kinds[entry.event.kind].append(entry)
    many = {kind: found for kind, found in kinds.items() if len(found) > FEW}
    runs = [[entry] for entry in entries if entry.event.kind not in many]
    return sorted([*runs, *many.values()], key=lambda found: found[0].at)


def _said(event: Event) -> str:
    """What a fact says beside who and when."""
    said = str(getattr(event, "reason", getattr(event, "notice", "")))
    match event:
        case NextVisit():
            said = f"{event.filters}, ra {event.ra:.3f} dec {event.dec:+.3f}"
        case ReadoutEnded():
            said = f"{event.image_name}, snap {event.snap + 1} of {event.n_snaps}"
        case RawReady():
            said = f"snap {event.observation.snap + 1}"
        case RawArchived():
            said = event.uri.rsplit("/", 1)[-1]
        case DetectorFailed():
            said = f"{event.stage}: {event.reason}"
        case DiaSourcesReady():
            said = f"{event.count} DIASources"
        case AlertsReady():
            said = f"{event.alerts} alerts, {event.new_dia_objects} new DIAObjects"
        case AlertsSent():
            said = f"{event.acknowledged} of {event.made} acknowledged"
        case VisitDone():
            failed = sum(1 for manifest in event.detectors if manifest.gave_up)
            said = f"{len(event.detectors)} detectors, {failed} failed"
        case _:
            pass
    return said


def _detectors(story: Story) -> Table:
    """When each stage was reached, the last snap's raw standing for all."""
    table = plain_table(
        "detectors: seconds from the last readout to each stage", "detector", *_STAGES.values(), "alerts", "failed"
    )
    reached: dict[int, dict[str, Entry]] = defaultdict(dict)
    for entry in story.entries:
        if (detector := getattr(entry.event, "detector", None)) is not None:
            reached[detector][entry.event.kind] = entry
    for detector in sorted(reached):
        at = reached[detector]
        times = [seconds(story.since_readout(at[kind].at)) if kind in at else None for kind in _STAGES]
        ready, failed = (at[kind].event if kind in at else None for kind in ("AlertsReady", "DetectorFailed"))
        add(table, detector, *times, getattr(ready, "alerts", None), _said(failed) if failed else None)
    return table


def _deliveries(story: Story) -> Table:
    """Those that did not simply succeed."""
    table = plain_table("other deliveries", "pool", "event", "detector", "state", "attempts")
    for one in story.deliveries:
        if not _is_smooth(one):
            add(table, one.pool, one.event.kind, getattr(one.event, "detector", None), one.state, one.attempts)
    return table


def _failures(story: Story) -> Table:
    table = plain_table("failed attempts", "TAI", "s after readout", "pool", "event", "detector", "why")
    found = [(at, error, one) for one in story.deliveries for at, error in one.failures]
    for at, error, one in sorted(found, key=lambda row: row[0]):
        detector = getattr(one.event, "detector", None)
        since = seconds(story.since_readout(at))
        add(table, time_of_day(at), since, one.pool, one.event.kind, detector, error)
    return table
