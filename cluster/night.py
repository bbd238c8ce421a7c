"""A night from dusk to dawn: starts what it needs, plays the schedule, shuts down in order, reports."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from rich.console import Console

from access.report.collect import NightFacts
from actors.visit_keeper import VisitKeeper
from backbone.journal import Journal, Position
from backbone.sal import SalReader
from cluster.bus import Bus, Hosts
from cluster.display import Board, Display
from cluster.host import Outcome
from cluster.inline import InlineHosts
from cluster.metrics import Metrics
from cluster.options import NightOptions
from cluster.settings import Settings
from cluster.topology import POOLS
from schemas.clock import Clock
from schemas.events import Event, NextVisit, NextVisitCanceled, NightEnded, VisitDone, VisitRefused
from simulators.ocs.schedule import PlannedVisit
from simulators.ocs.timeline import ANNOUNCED_S

DUSK_S = 5.0
"""Wall seconds from the start of the simulators to the first announcement."""
TICK_S = 0.5
DRAIN_DEADLINE_S = 130.0
"""How long what is under way may stay silent when the night ends: the longest deadline of a pool."""
QUIET_S = 5.0
"""After the OCS has ended, this long without a new fact means that nothing more comes."""


def night_facts(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings) -> NightFacts:
    """What the command knows of its night."""
    began = plan[0].start_tai - ANNOUNCED_S - options.speed * DUSK_S
    return NightFacts(str(plan[0].day_obs), began, options.seed, options.speed, len(plan), settings.truth)


class Progress:
    """Which visits have ended, and when anything was last heard."""

    def __init__(self, planned: Iterable[str]) -> None:
        self._planned = frozenset(planned)
        self.announced: dict[str, NextVisit] = {}
        self.ended: set[str] = set()
        self.last_heard = asyncio.get_running_loop().time()

    def hear(self, event: Event, _at: float) -> None:
        """Note a fact."""
        self.last_heard = asyncio.get_running_loop().time()
        if isinstance(event, NextVisit):
            self.announced[event.group] = event
        if isinstance(event, VisitDone | VisitRefused):
            self.ended.add(event.group)

    @property
    def complete(self) -> bool:
        """Whether every planned visit has ended."""
        return self._planned <= self.ended

    @property
    def done(self) -> int:
        """How many planned visits have ended."""
        return len(self._planned & self.ended)

    @property
    def open_visits(self) -> list[str]:
        """Announced and not ended."""
        return [group for group in self.announced if group not in self.ended]

    def quiet_for(self) -> float:
        """Wall seconds since the last fact."""
        return asyncio.get_running_loop().time() - self.last_heard


@dataclass(frozen=True)
class SplitHosts:
    """The hosts of a cluster: those that only keep order in this process, the others on Ray."""

    here: InlineHosts
    there: Hosts

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        """See `Hosts`."""
        return await (self.here if pool in self.here else self.there).call(pool, lane, event)

    async def replace(self, pool: str, lane: int) -> None:
        """See `Hosts`."""
        await (self.here if pool in self.here else self.there).replace(pool, lane)


@dataclass(frozen=True, eq=False)
class Stage:
    """What a night is played on: the bus and who listens to it."""

    bus: Bus
    progress: Progress
    display: Display
    metrics: Metrics
    keeper: VisitKeeper


@asynccontextmanager
async def staged(
    settings: Settings,
    hosts: Hosts,
    keeper: VisitKeeper,
    journal: Journal,
    clock: Clock,
    planned: Iterable[str],
    console: Console,
) -> AsyncIterator[Stage]:
    """A running bus with its listeners; stopped in order at the end. `planned`: the groups of the night's visits.

    Raises Broken if a host said so.
    """
    bus = Bus([pool.route(settings) for pool in POOLS.values()], hosts, journal, clock)
    progress, metrics = Progress(planned), Metrics(clock, bus.waiting)
    display = Display(Board(clock), bus.waiting, console)
    for listener in (progress.hear, metrics.hear, display.hear):
        bus.listen(listener)
    bus.watch(metrics.watch)
    for fact in await journal.facts("NextVisit", "VisitDone", "VisitRefused"):
        progress.hear(fact, 0.0)
    stage = Stage(bus, progress, display, metrics, keeper)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(bus.run()), group.create_task(_tick(stage))]
        with display:
            yield stage
        for job in running:
            job.cancel()


async def _tick(stage: Stage) -> None:
    """Twice a second: draw, and give up what is overdue."""
    while True:
        stage.display.refresh()
        overdue = stage.keeper.overdue()
        if overdue:
            await stage.bus.publish(overdue)
        await asyncio.sleep(TICK_S)


async def feed(reader: SalReader, bus: Bus) -> None:
    """Publish what the observatory says, each message with its position, for ever."""
    async for message in reader.messages():
        facts = [message.event] if message.event is not None else []
        await bus.publish(facts, Position(message.topic, message.partition, message.next_offset))


async def until_over(
    stage: Stage, observatory_runs: Callable[[], bool], stop: asyncio.Event, feeding: asyncio.Task[None]
) -> None:
    """Return when every visit has ended, or the OCS has and nothing more comes, or the night was stopped.

    Raises what ended the feed, if it ended.
    """
    while not stage.progress.complete and not stop.is_set():
        if feeding.done():
            await feeding
        ended = not observatory_runs() and stage.progress.quiet_for() > QUIET_S and not stage.progress.open_visits
        if ended:
            break
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TICK_S)


async def end_night(stage: Stage, day_obs: int, clock: Clock) -> None:
    """Wind down; if that leaves nothing undone, say that the night has ended."""
    if await wind_down(stage):
        await stage.bus.publish([NightEnded(day_obs=day_obs, visits=stage.progress.done, at=clock.now())])
        await settled(stage)


async def wind_down(stage: Stage) -> bool:
    """Cancel the visits that wait for pixels, finish what has them, archive what was read: whether all was done."""
    canceled = [NextVisitCanceled(group=group, reason="the night was stopped") for group in stage.progress.open_visits]
    if canceled:
        await stage.bus.publish(canceled)
    return await settled(stage)


async def settled(stage: Stage) -> bool:
    """Wait until nothing is owed, or nothing was heard for `DRAIN_DEADLINE_S`; whether nothing is owed."""
    drained = asyncio.ensure_future(stage.bus.drained())
    while not drained.done() and stage.progress.quiet_for() < DRAIN_DEADLINE_S:
        await asyncio.wait([drained], timeout=TICK_S)
    if drained.done():
        return True
    drained.cancel()
    owed = {pool: n for pool, n in stage.bus.waiting().items() if n}
    structlog.get_logger().error("not finished", owed=owed, quiet_s=DRAIN_DEADLINE_S)
    return False
