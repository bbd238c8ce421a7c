"""`pachon replay-alerts`: sends alerts of a night's archive again, byte for byte as they were archived."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from rich.console import Console

from actors.alert_emitter import LATE
from backbone.alert_archive import AlertArchive, AlertFile
from backbone.alert_stream import Alert, AlertSink, AlertStream
from backbone.journal_view import JournalView
from backbone.l1 import Outbox
from backbone.l1_postgres import L1Postgres
from cluster.later import archive_of
from payloads.alert_production.alert_schema import frame, id_of
from payloads.alert_production.lite import lite
from schemas.clock import REAL_TIME
from schemas.errors import BadData, Transient
from schemas.events import AlertsReady
from schemas.identity import day_obs_of_visit

BATCH_BYTES = 32 * 2**20
"""Files are read and sent together up to this size: small ones would mostly wait for the broker's answer."""


@dataclass(frozen=True)
class Wanted:
    """A night, or a visit, or a detector of it; `withdrawn` alerts, too. Raises BadData for any other choice."""

    night: int | None = None
    visit: int | None = None
    detector: int | None = None
    withdrawn: bool = False

    def __post_init__(self) -> None:
        if (self.night is None) == (self.visit is None):
            raise BadData("give either --night or --visit")
        if self.detector is not None and self.visit is None:
            raise BadData("--detector goes with --visit")

    def __str__(self) -> str:
        """For messages."""
        detector = "" if self.detector is None else f" detector {self.detector}"
        return f"night {self.night}" if self.visit is None else f"visit {self.visit}{detector}"

    def holds(self, visit: int, detector: int) -> bool:
        """Whether a visit-detector is wanted."""
        if self.visit is None:
            return day_obs_of_visit(visit) == self.night
        return visit == self.visit and self.detector in {None, detector}

    def files(self, archive: AlertArchive) -> list[AlertFile]:
        """What the archive has of it, by visit and detector."""
        files = archive.files_of_night(self.night or 0) if self.visit is None else archive.files_of_visit(self.visit)
        return [file for file in files if self.holds(file.visit, file.detector)]


@dataclass(frozen=True)
class Chosen:
    """The files to send, in their order, and the DIASources whose alerts are to be left out.

    `late`: those of the files that were redone offline, as their alerts' headers say. `lite`: cut the alerts to lite
    ones.
    """

    paths: Sequence[str]
    withdrawn: frozenset[int] = frozenset()
    late: frozenset[str] = frozenset()
    lite: bool = False


@dataclass
class Tally:
    """What became of the alerts sent. `failures`: why not acknowledged -> how many; `unreadable`: of files.

    `too_large`: how many of the failures would come again.
    """

    files: int = 0
    alerts: int = 0
    withdrawn: int = 0
    acknowledged: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    too_large: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """How many of the failures may be none at the next try."""
        return self.failures.total() - self.too_large

    def check(self, broker: str) -> None:
        """Raises BadData or Transient, naming files and broker, unless everything was read and acknowledged.

        Transient if some of what is wrong may be right at the next try.
        """
        said = []
        if self.unreadable:
            said.append(f"{len(self.unreadable)} files could not be sent: {self.unreadable[0]}")
        if self.failures:
            ((why, _),) = self.failures.most_common(1)
            said.append(f"{self.failures.total()} of {self.alerts} alerts not acknowledged by {broker}: {why}")
        if said:
            raise (Transient if self.unanswered else BadData)("; ".join(said))


def run(output: Path, wanted: Wanted, kafka: str, topic: str, postgres: str) -> int:
    """Do it; the exit code. Raises PachonError for what is missing, corrupt or not acknowledged."""
    archive = archive_of(output)
    if wanted.withdrawn and not postgres:
        raise BadData("--withdrawn goes with --postgres: without the database nothing is known to be withdrawn")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    asyncio.run(_run(archive, wanted, kafka, topic, postgres, console))
    return 0


async def _run(archive: AlertArchive, wanted: Wanted, kafka: str, topic: str, postgres: str, console: Console) -> None:
    chosen = await _stored(archive, wanted, postgres, console) if postgres else _newest(archive, wanted, console)
    if not chosen.paths:
        raise BadData(f"{archive.folder}: there are no alerts of {wanted}")
    sink = await AlertStream.open(kafka, topic, REAL_TIME)
    tally = await replay(archive, chosen, sink, console)
    left_out = f", {tally.withdrawn} withdrawn ones left out" if tally.withdrawn else ""
    console.print(
        f"{tally.alerts} alerts of {tally.files} files sent to {topic} at {kafka}, {tally.acknowledged}"
        f" acknowledged{left_out}"
    )
    tally.check(kafka)


async def replay(
    archive: AlertArchive, chosen: Chosen, sink: AlertSink, console: Console, done: Callable[[str], None] | None = None
) -> Tally:
    """Send the alerts of files in their order, each with the key that it had, and count what is acknowledged.

    A file that cannot be read is told and passed over; where nothing of a batch is acknowledged it ends, unless all of
    it was too large. `done` is told each file of which all is acknowledged.
    """
    tally = Tally()
    for batch in _batches(archive, chosen, tally, console):
        deliveries = iter(await sink.send([alert for _, alerts in batch for alert in alerts]))
        before, unanswered = tally.acknowledged, tally.unanswered
        for path, alerts in batch:
            answers = [next(deliveries) for _ in alerts]
            failed = [answer for answer in answers if math.isnan(answer.acknowledged_at)]
            tally.files += 1
            tally.alerts += len(alerts)
            tally.acknowledged += len(alerts) - len(failed)
            tally.failures.update(answer.error for answer in failed)
            tally.too_large += sum(answer.too_large for answer in failed)
            console.print(f"{path}: {len(alerts) - len(failed)} of {len(alerts)} acknowledged")
            if done and not failed:
                done(path)
        if tally.unanswered > unanswered and tally.acknowledged == before:
            break
    return tally


def _batches(
    archive: AlertArchive, chosen: Chosen, tally: Tally, console: Console
) -> Iterator[list[tuple[str, list[Alert]]]]:
    """The alerts of the files that can be read, some files at a time, without those withdrawn."""
    batch, size = [], 0
    for path in chosen.paths:
        try:
            every = _alerts_of(archive, path, chosen)
        except BadData as error:
            console.print(f"{path}: not sent: {error}")
            tally.unreadable.append(str(error))
            continue
        alerts = [alert for alert in every if alert.dia_source_id not in chosen.withdrawn]
        tally.withdrawn += len(every) - len(alerts)
        batch.append((path, alerts))
        size += sum(len(alert.value) for alert in alerts)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _alerts_of(archive: AlertArchive, path: str, chosen: Chosen) -> list[Alert]:
    """The messages that a file of the archive went out as. Raises BadData, naming the file, if it is corrupt."""
    records, rows = archive.read(path), archive.index(path)
    schema = id_of(str(archive.schema(path)["name"]))
    headers = LATE if path in chosen.late else ()
    named = zip(records, rows["diaSourceId"].tolist(), rows["key"].tolist(), strict=True)
    return [
        Alert(str(key).encode(), frame(lite(record) if chosen.lite else record, schema), number, headers)
        for record, number, key in named
    ]


def _newest(archive: AlertArchive, wanted: Wanted, console: Console) -> Chosen:
    """A file for each visit-detector; of several, the one written last."""
    paths = []
    for (visit, detector), files in groupby(wanted.files(archive), lambda file: (file.visit, file.detector)):
        newest, *others = archive.newest_first(file.path for file in files)
        paths.append(newest)
        if others:
            console.print(
                f"visit {visit} detector {detector} has {1 + len(others)} files; without --postgres, which says the"
                f" stored one, the newest is taken: {newest}, not {', '.join(others)}"
            )
    return Chosen(paths)


async def _stored(archive: AlertArchive, wanted: Wanted, postgres: str, console: Console) -> Chosen:
    """The files that the L1 database names, and what it says is withdrawn."""
    l1 = await L1Postgres.open(postgres, create=False)
    try:
        async with JournalView.opened(postgres) as journal:
            chosen = await chosen_of(l1, journal, wanted, await outboxes_of(l1, wanted))
    finally:
        await l1.close()
    stored = set(chosen.paths)
    for file in wanted.files(archive):
        if file.path not in stored:
            console.print(f"{file.path}: not sent: the L1 database does not name it")
    return chosen


async def outboxes_of(l1: L1Postgres, wanted: Wanted) -> list[Outbox]:
    """What the database has of it, by visit and detector."""
    places = [place for place in sorted(await l1.counts()) if wanted.holds(*place)]
    outboxes = [await l1.outbox(visit, detector) for visit, detector in places]
    return [outbox for outbox in outboxes if outbox is not None]


async def chosen_of(l1: L1Postgres, journal: JournalView, wanted: Wanted, outboxes: Sequence[Outbox]) -> Chosen:
    """The files of these, without what is withdrawn."""
    visits = set() if wanted.withdrawn else {outbox.visit for outbox in outboxes}
    withdrawn = [await l1.withdrawn(visit) for visit in sorted(visits)]
    entries = [e for g in sorted({o.group for o in outboxes}) for e in await journal.entries("AlertsReady", group=g)]
    late = {e.event.path for e in entries if isinstance(e.event, AlertsReady) and e.event.redone}
    return Chosen([outbox.path for outbox in outboxes], frozenset().union(*withdrawn), frozenset(late))
