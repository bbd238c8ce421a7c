"""The bus: journals each fact, hands it to the pools that owe it a reaction, journals the answer.

Every pool has lanes; each lane takes one delivery at a time, in the journal's order. Which lane gets which event
follows from its detector, so that what a worker loaded for a CCD is there when its pixels come.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from actors.camera_reader import raw_id
from backbone.journal import Delivery, Journal, Position
from cluster.host import Outcome
from schemas.clock import Clock
from schemas.errors import Broken
from schemas.events import DetectorFailed, DetectorReadOut, Event, NoticeFailed, RawNotArchived, RawReady, VisitRefused

MAX_ATTEMPTS = 5
BACKOFF_S = 0.5
"""Wall seconds before the second attempt; doubles with each further one, `MAX_DOUBLINGS` times."""
MAX_DOUBLINGS = 6

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
    """Never gives up what may yet succeed."""


class Hosts(Protocol):
    """Where the pools' hosts are: in this process, or on Ray."""

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        """Have a host react. Raises ConnectionError if it died; it is being replaced."""

    async def replace(self, pool: str, lane: int) -> None:
        """Put a new host in a lane whose old one does not answer."""


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
        self._open: set[tuple[str, str]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
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
        for delivery in await self._journal.owed():
            self._enqueue(delivery)
        async with asyncio.TaskGroup() as group:
            for key, queue in self._lanes.items():
                group.create_task(self._serve(*key, queue))

    async def drained(self) -> None:
        """Return when nothing is owed."""
        await self._idle.wait()

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
        key = (delivery.event.event_id, delivery.pool)
        if key in self._open:
            return
        self._open.add(key)
        self._idle.clear()
        self._lanes[delivery.pool, self._lane(delivery)].put_nowait(delivery)

    def _lane(self, delivery: Delivery) -> int:
        """Detectors take lanes in turn as they are first seen: as even as can be, and always the same one."""
        pool, detector = delivery.pool, getattr(delivery.event, "detector", 0)
        taken = sum(1 for name, _ in self._lane_of if name == pool)
        return self._lane_of.setdefault((pool, detector), taken % self._routes[pool].lanes)

    async def _serve(self, pool: str, lane: int, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            await self._deliver(pool, lane, delivery)
            self._open.discard((delivery.event.event_id, delivery.pool))
            if not self._open:
                self._idle.set()

    async def _deliver(self, pool: str, lane: int, delivery: Delivery) -> None:
        """Call the host until there is an answer that ends the delivery: done, or given up with a fact that says so."""
        while True:
            outcome, error = await self._attempt(pool, lane, delivery.event)
            if outcome is not None and outcome.verdict == "done":
                facts = outcome.events
                new = await self._journal.complete(delivery, facts, self._owed(facts), self._clock.now())
                return self._hand_out(new)
            if outcome is not None and outcome.verdict == "broken":
                raise Broken(f"{pool}: {error}")
            final = outcome is not None and outcome.verdict in {"bad data", "bug"}
            tired = delivery.attempts + 1 >= MAX_ATTEMPTS and not self._routes[pool].patient
            if final or tired:
                return await self._give_up(delivery, error)
            delivery = await self._journal.retry(delivery, error)
            await asyncio.sleep(BACKOFF_S * 2 ** min(delivery.attempts - 1, MAX_DOUBLINGS))

    async def _attempt(self, pool: str, lane: int, event: Event) -> tuple[Outcome | None, str]:
        """One call within the pool's deadline: an outcome, or None and why there is none."""
        deadline = self._routes[pool].deadline_s
        try:
            outcome = await asyncio.wait_for(self._hosts.call(pool, lane, event), deadline)
        except TimeoutError:
            error = f"{pool} {lane} did not answer {event.kind} within {deadline:.0f} s"
            self._log.warning("hung", pool=pool, lane=lane, event_kind=event.kind, group=event.group)
            await self._hosts.replace(pool, lane)
            return None, error
        except ConnectionError as gone:
            self._log.warning(
                "host died", pool=pool, lane=lane, event_kind=event.kind, group=event.group, error=str(gone)
            )
            return None, f"{pool} {lane} died while it handled {event.kind}"
        for watcher in self._outcomes:
            watcher(pool, lane, event, outcome)
        return outcome, outcome.error

    async def _give_up(self, delivery: Delivery, error: str) -> None:
        facts = _obituary(delivery, error)
        self._log.error(
            "given up", pool=delivery.pool, event_kind=delivery.event.kind, group=delivery.event.group,
            detector=getattr(delivery.event, "detector", None), error=error,
        )  # fmt: skip
        new = await self._journal.give_up(delivery, error, facts, self._owed(facts), self._clock.now())
        self._hand_out(new)


def _obituary(delivery: Delivery, error: str) -> list[Event]:
    """The facts that say that a delivery was given up. What only archives or tells does not fail a detector."""
    event, detector = delivery.event, getattr(delivery.event, "detector", None)
    if delivery.pool == "archiver" and isinstance(event, RawReady):
        return [RawNotArchived(group=event.group, raw=event.raw, reason=error)]
    if delivery.pool == "herald":
        return [NoticeFailed(group=event.group, about=getattr(event, "notice", event.kind), reason=error)]
    if detector is None:
        return [VisitRefused(group=event.group, reason=f"{delivery.pool}: {error}")]
    failed = DetectorFailed(
        group=event.group, visit=getattr(event, "visit", None), detector=detector, stage=delivery.pool, reason=error
    )
    if isinstance(event, DetectorReadOut):
        raw = raw_id(event.observation, event.detector)
        return [failed, RawNotArchived(group=event.group, raw=raw, reason=error)]
    return [failed]
