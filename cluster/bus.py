"""The bus: journals each fact, hands it to the pools that owe it a reaction, journals the answer.

Every pool has lanes; each lane takes one delivery at a time, in the journal's order. Which lane gets which event
follows from its detector, so that what a worker loaded for a CCD is there when its pixels come.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from actors.camera_reader import raw_id
from backbone.journal import Delivery, Journal, Position
from cluster.host import Outcome
from cluster.logs import subject
from schemas.clock import Clock
from schemas.errors import Broken
from schemas.events import (
    AlertsSent,
    CatchUpDue,
    CaughtUp,
    DetectorFailed,
    DetectorReadOut,
    Event,
    InputRefused,
    LiteAlertsSent,
    NoticeFailed,
    OfflineFailed,
    RawArchived,
    RawNotArchived,
    RawReady,
    VisitRefused,
)

MAX_ATTEMPTS = 5
BACKOFF_S = 0.5
"""Wall seconds before the second attempt; doubles with each further one, `MAX_DOUBLINGS` times."""
MAX_DOUBLINGS = 4

Listener = Callable[[Event, float], None]
"""Called with each new fact and the time (TAI s) at which it was journalled."""


@dataclass(frozen=True)
class Route:
    """A pool as the bus sees it."""

    name: str
    lanes: int
    understands: frozenset[str]
    deadline_s: float
    patient: bool = False
    """Tries for as long as its hosts say Transient."""
    aside: bool = False
    """Nothing waits for what it does, not even the end of the night."""
    resumes: bool = False
    """What it gave up is owed again when the bus is started again; not what it refused as bad data."""
    yields_to: str = ""
    """A pool without whose work it begins nothing: it waits until that owes none."""
    max_bytes: float = math.inf
    """Of memory a host may have had; one that had more is replaced when it has answered."""


class Hosts(Protocol):
    """Where the pools' hosts are: in this process, or on Ray."""

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        """Have a host react. Raises ConnectionError if it died; it is being replaced."""

    async def replace(self, pool: str, lane: int) -> None:
        """Put a new host in a lane whose old one does not answer."""

    async def back(self, pool: str, lane: int) -> None:
        """Return when a host that died is there again, or after a while: its start is nobody's failed attempt."""


class Bus:
    """One per system."""

    def __init__(self, routes: Sequence[Route], hosts: Hosts, journal: Journal, clock: Clock) -> None:
        self._routes = {route.name: route for route in routes}
        self._hosts = hosts
        self._journal = journal
        self._clock = clock
        self._log = structlog.get_logger().bind(part="bus")
        self._lanes = {(r.name, lane): asyncio.Queue[Delivery]() for r in routes for lane in range(r.lanes)}
        self._lane_of: dict[tuple[str, int], int] = {}
        self._open = {route.name: _Open() for route in routes}
        self._listeners: list[Listener] = []
        self._outcomes: list[Callable[[str, int, Event, Outcome], None]] = []
        self.stopped_by: Broken | None = None

    def listen(self, listener: Listener) -> None:
        """Tell a function of each new fact."""
        self._listeners.append(listener)

    def watch(self, watcher: Callable[[str, int, Event, Outcome], None]) -> None:
        """Tell a function of each outcome: pool, lane, event, outcome."""
        self._outcomes.append(watcher)

    async def publish(self, facts: Sequence[Event], position: Position | None = None) -> None:
        """Journal facts from outside, with the position reached in their topic, and hand them on."""
        self._hand_out(await self._journal.append(facts, self._owed(facts), self._clock.now(), position))

    async def run(self) -> None:
        """Take up what the journal says is owed, then serve until canceled. Raises Broken if a host said so."""
        resumed = [route.name for route in self._routes.values() if route.resumes]
        for delivery in await self._journal.owed(resumed):
            self._enqueue(delivery)
        async with asyncio.TaskGroup() as group:
            for key, queue in self._lanes.items():
                group.create_task(self._serve(*key, queue))

    async def drained(self) -> None:
        """Return when nothing is owed, but by pools aside."""
        await self.none_of([pool for pool, route in self._routes.items() if not route.aside])

    async def idle(self) -> None:
        """Return when nothing at all is owed."""
        await self.none_of(list(self._routes))

    def owed(self) -> Counter[str]:
        """Deliveries that have not ended, by pool: those queued and those in a host's hands."""
        return Counter({pool: len(each.keys) for pool, each in self._open.items() if each.keys})

    async def none_of(self, pools: Sequence[str]) -> None:
        """Return when some pools owe nothing."""
        while owing := [self._open[pool] for pool in pools if self._open[pool].keys]:
            await owing[0].none.wait()

    def waiting(self) -> Counter[str]:
        """Deliveries queued, by pool."""
        queued: Counter[str] = Counter(dict.fromkeys(self._routes, 0))
        for (pool, _), queue in self._lanes.items():
            queued[pool] += queue.qsize()
        return queued

    def _owed(self, facts: Sequence[Event]) -> dict[str, list[str]]:
        return {f.event_id: [r.name for r in self._routes.values() if f.kind in r.understands] for f in facts}

    def _hand_out(self, facts: Sequence[Event]) -> None:
        now = self._clock.now()
        for fact in facts:
            for listener in self._listeners:
                listener(fact, now)
            for pool in self._owed([fact])[fact.event_id]:
                self._enqueue(Delivery(fact, pool))

    def _enqueue(self, delivery: Delivery) -> None:
        if self._open[delivery.pool].add(delivery):
            self._lanes[delivery.pool, self._lane(delivery)].put_nowait(delivery)

    def lane_of(self, pool: str, detector: int | None) -> int:
        """Which lane of a pool a detector has, 0 if it has none yet."""
        return self._lane_of.get((pool, detector or 0), 0)

    def _lane(self, delivery: Delivery) -> int:
        """Detectors take lanes in turn as they are first seen: as even as can be, and always the same one."""
        pool, detector = delivery.pool, getattr(delivery.event, "detector", 0)
        taken = sum(1 for name, _ in self._lane_of if name == pool)
        return self._lane_of.setdefault((pool, detector), taken % self._routes[pool].lanes)

    async def _serve(self, pool: str, lane: int, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            if before := self._routes[pool].yields_to:
                await self.none_of([before])
            await self._deliver(pool, lane, delivery)
            self._open[pool].end(delivery)

    async def _deliver(self, pool: str, lane: int, delivery: Delivery) -> None:
        """Call the host until there is an answer that ends the delivery: done, or given up with a fact that says so.

        A patient pool gives up what its hosts leave without an answer `MAX_ATTEMPTS` times, in this process.
        """
        silent = 0
        while True:
            outcome, error = await self._attempt(pool, lane, delivery.event)
            if outcome is not None and outcome.verdict == "done":
                facts = outcome.events
                new = await self._journal.complete(delivery, facts, self._owed(facts), self._clock.now())
                return self._hand_out(new)
            if outcome is not None and outcome.verdict == "broken":
                raise Broken(f"{pool}: {error}")
            refused = outcome is not None and outcome.verdict == "bad data"
            final = refused or (outcome is not None and outcome.verdict == "bug")
            silent += outcome is None
            counted = silent if self._routes[pool].patient else delivery.attempts + 1
            if final or counted >= MAX_ATTEMPTS:
                return await self._give_up(delivery, error, refused=refused)
            delivery = await self._journal.retry(delivery, error, self._clock.now())
            if outcome is not None:
                self._log.warning("tried again", error=error, attempts=delivery.attempts, **_about(delivery))
            await asyncio.sleep(BACKOFF_S * 2 ** min(delivery.attempts - 1, MAX_DOUBLINGS))

    async def _attempt(self, pool: str, lane: int, event: Event) -> tuple[Outcome | None, str]:
        """One call within the pool's deadline: an outcome, or None and why there is none."""
        deadline = self._routes[pool].deadline_s
        try:
            outcome = await asyncio.wait_for(self._hosts.call(pool, lane, event), deadline)
        except TimeoutError:
            error = f"{pool} {lane} did not answer {event.kind} within {deadline:.0f} s"
            self._log.warning("hung", lane=lane, **_about(Delivery(event, pool)))
            await self._hosts.replace(pool, lane)
            return None, error
        except ConnectionError as gone:
            self._log.warning("host died", lane=lane, error=str(gone), **_about(Delivery(event, pool)))
            await self._hosts.back(pool, lane)
            return None, f"{pool} {lane} died while it handled {event.kind}"
        for watcher in self._outcomes:
            watcher(pool, lane, event, outcome)
        if outcome.max_rss_bytes > self._routes[pool].max_bytes:
            had = {"lane": lane, "max_rss_bytes": outcome.max_rss_bytes}
            self._log.warning("too large, replaced", **had, **_about(Delivery(event, pool)))
            await self._hosts.replace(pool, lane)
        return outcome, outcome.error

    async def _give_up(self, delivery: Delivery, error: str, *, refused: bool) -> None:
        facts = _obituary(delivery, error)
        self._log.error("given up", error=error, attempts=delivery.attempts + 1, **_about(delivery))
        owed, now = self._owed(facts), self._clock.now()
        new = await self._journal.give_up(delivery, error, facts, owed, now, refused=refused)
        self._hand_out(new)


class _Open:
    """The events of which a pool's delivery has not ended. `none` is set while there are none."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.none = asyncio.Event()
        self.none.set()

    def add(self, delivery: Delivery) -> bool:
        """Whether it is a new one."""
        new = delivery.event.event_id not in self.keys
        self.keys.add(delivery.event.event_id)
        self.none.clear()
        return new

    def end(self, delivery: Delivery) -> None:
        self.keys.discard(delivery.event.event_id)
        if not self.keys:
            self.none.set()


def _about(delivery: Delivery) -> dict[str, object]:
    return {"pool": delivery.pool, "event_kind": delivery.event.kind, **subject(delivery.event)}


def _notice(event: Event) -> str:
    if isinstance(event, InputRefused):
        return f"{event.topic} {event.partition}:{event.offset}"
    return str(getattr(event, "notice", event.kind))


def _obituary(delivery: Delivery, error: str) -> list[Event]:
    """The facts that say that a delivery was given up. What only archives or tells does not fail a detector."""
    return _of_archive_or_notice(delivery, error) or _of_offline(delivery, error) or _of_visit(delivery, error)


def _of_archive_or_notice(delivery: Delivery, error: str) -> list[Event]:
    event = delivery.event
    if delivery.pool == "archiver" and isinstance(event, RawReady):
        return [RawNotArchived(group=event.group, raw=event.raw, reason=error)]
    if delivery.pool == "archiver":  # of a catalogue or a summary, which the database has
        about = f"archive {event.kind} of detector {getattr(event, 'detector', None)}"
        return [NoticeFailed(group=event.group, about=about, reason=error)]
    if isinstance(event, CatchUpDue):
        return [CaughtUp(at=event.at, number=event.number, left=0, failed=0, reason=error)]
    if delivery.pool == "lite_emitter" and isinstance(event, AlertsSent):
        lost = {error: event.acknowledged}
        return [LiteAlertsSent(group=event.group, visit=event.visit, detector=event.detector, sent=0, failed=lost)]
    if delivery.pool in {"herald", "dead_letter_office"}:
        return [NoticeFailed(group=event.group, about=_notice(event), reason=error)]
    return []


def _of_offline(delivery: Delivery, error: str) -> list[Event]:
    """Of what was redone, or should have been: that it had failed is known already."""
    event = delivery.event
    redone = getattr(event, "redone", 0)
    if not (delivery.pool.startswith("offline") or redone):
        return []
    visit, detector = getattr(event, "visit", None), getattr(event, "detector", None)
    if isinstance(event, RawArchived):
        visit, detector = event.observation.visit, event.raw.detector
    assert detector is not None
    failed = OfflineFailed(
        group=event.group, visit=visit, detector=detector, stage=delivery.pool, reason=error, redone=redone
    )
    return [failed]


def _of_visit(delivery: Delivery, error: str) -> list[Event]:
    event, detector = delivery.event, getattr(delivery.event, "detector", None)
    if detector is None:
        return [VisitRefused(group=event.group, reason=f"{delivery.pool}: {error}")]
    failed = DetectorFailed(
        group=event.group, visit=getattr(event, "visit", None), detector=detector, stage=delivery.pool, reason=error
    )
    if isinstance(event, DetectorReadOut):
        raw = raw_id(event.observation, event.detector)
        return [failed, RawNotArchived(group=event.group, raw=raw, reason=error)]
    return [failed]
