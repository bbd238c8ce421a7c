"""A night from dusk to dawn: starts what it needs, plays the schedule, shuts down in order, reports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from rich.console import Console

from access.report.collect import NightFacts
from actors.fan_out import OPEN_S
from actors.visit_keeper import VisitKeeper
from backbone.journal import Journal, Position
from backbone.sal import Received, SalReader
from cluster.bus import Bus, Hosts
from cluster.catch_up import CatchUpTimes
from cluster.display import Board, Display
from cluster.host import Outcome
from cluster.inline import InlineHosts
from cluster.metrics import Metrics
from cluster.options import NightOptions
from cluster.settings import Settings
from cluster.stored_clock import DUSK_S
from cluster.template_truth import TemplateTruth
from cluster.topology import POOLS
from schemas.clock import Clock
from schemas.events import Event, NextVisit, NextVisitCanceled, NightEnded, ReadoutEnded, VisitDone, VisitRefused
from simulators.ocs.schedule import PlannedVisit
from simulators.ocs.timeline import ANNOUNCED_S

TICK_S = 0.5
_HOW_SAID = {"announced", "reason"}
"""Of a fact: what may differ when it is told again."""
DRAIN_DEADLINE_S = 10.0 + max(pool.deadline_s for pool in POOLS.values())
"""How long what is under way may stay silent when the night ends: the longest deadline of a pool, and a little."""
PATIENT_S = 60.0
"""And how long notices and lite alerts: as long as a host that died may take to be there again. What is left of them is
owed to brokers until the night is started again."""
QUIET_S = 5.0
"""After the OCS has ended, this long without a new fact means that nothing more comes."""


def night_facts(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings) -> NightFacts:
    """What the command knows of its night."""
    began = plan[0].start_tai - ANNOUNCED_S - options.speed * DUSK_S
    groups = [visit.group for visit in plan]
    retold = TemplateTruth(settings, plan, options.seed)
    return NightFacts(str(plan[0].day_obs), began, options.seed, options.speed, groups, settings.truth, retold=retold)


class Progress:
    """Which visits have ended, and when anything was last heard."""

    def __init__(self, planned: Iterable[str]) -> None:
        self._planned = frozenset(planned)
        self.announced: dict[str, NextVisit] = {}
        self._read_out: dict[str, str] = {}
        self.ended: set[str] = set()
        self.last_heard = asyncio.get_running_loop().time()

    def heard(self) -> None:
        """That something was."""
        self.last_heard = asyncio.get_running_loop().time()

    def hear(self, event: Event, _at: float) -> None:
        """Note a fact."""
        self.heard()
        if isinstance(event, NextVisit):
            self.announced[event.group] = event
        if isinstance(event, ReadoutEnded):
            self._read_out[event.group] = event.image_name
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

    @property
    def unclaimed(self) -> dict[str, str]:
        """Group -> last image, of what was read out and never announced."""
        return {g: name for g, name in self._read_out.items() if g not in self.announced and g not in self.ended}

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

    async def back(self, pool: str, lane: int) -> None:
        """See `Hosts`."""
        await (self.here if pool in self.here else self.there).back(pool, lane)


@dataclass(frozen=True, eq=False)
class Stage:
    """What a night is played on: the bus and who listens to it."""

    bus: Bus
    progress: Progress
    display: Display
    metrics: Metrics
    keeper: VisitKeeper
    catch_up: CatchUpTimes


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
    catch_up = CatchUpTimes(clock)
    for listener in (progress.hear, metrics.hear, display.hear, catch_up.hear):
        bus.listen(listener)
    bus.watch(metrics.watch)
    kinds = ("NextVisit", "ReadoutEnded", "VisitDone", "VisitRefused")
    for fact in await journal.facts(*kinds, since=clock.now() - OPEN_S):
        progress.hear(fact, 0.0)
    stage = Stage(bus, progress, display, metrics, keeper, catch_up)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(bus.run()), group.create_task(_tick(stage))]
        with display:
            yield stage
        for job in running:
            job.cancel()


async def _tick(stage: Stage) -> None:
    """Twice a second: draw, give up what is overdue, and fetch what was missed."""
    while True:
        stage.display.refresh()
        due = [*stage.keeper.overdue(), *stage.catch_up.due()]
        if due:
            await stage.bus.publish(due)
        await asyncio.sleep(TICK_S)


async def feed(reader: SalReader, bus: Bus, journal: Journal, heard: Callable[[], None]) -> None:
    """Publish what the observatory says, each message with its position, for ever.

    `heard` is called for each, also for what was told before and is read again.
    """
    async for message in reader.messages():
        heard()
        facts = [await _unless_contradicted(message, message.event, journal)] if message.event is not None else []
        await bus.publish(facts, Position(message.topic, message.partition, message.next_offset))


async def _unless_contradicted(message: Received, event: Event, journal: Journal) -> Event:
    """The event; or the message as refused, if it says something else of what was told already: the first stands."""
    told = await journal.told(event.event_id)
    changed = [name for name, value in event if told and name not in _HOW_SAID and getattr(told, name) != value]
    return message.refused(f"{event.kind} was told before with other {', '.join(changed)}") if changed else event


async def until_over(
    stage: Stage, observatory_runs: Callable[[], bool], all_read: Callable[[], Awaitable[bool]], stop: asyncio.Event,
    feeding: asyncio.Task[None],
) -> None:  # fmt: skip
    """Return when the OCS has ended, and so has every visit, or nothing more comes; or when the night was stopped.

    `all_read`: whether all that the OCS said was heard; it may lie in a broker that is away, or still be said to one: a
    visit that was given up meanwhile is taken all the same. Raises what ended the feed, if it ended.
    """
    progress = stage.progress
    while not stop.is_set():
        if feeding.done():
            await feeding
        done = progress.complete or (progress.quiet_for() > QUIET_S and not progress.open_visits)
        if done and not observatory_runs() and await all_read():
            break
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TICK_S)


async def end_night(stage: Stage, day_obs: int, clock: Clock) -> None:
    """Wind down and fetch what was missed; if that leaves nothing undone, say that the night has ended.

    Whoever is patient has a little time.
    """
    done = await wind_down(stage)
    if await caught_up(stage) and done:
        await stage.bus.publish([NightEnded(day_obs=day_obs, visits=stage.progress.done, at=clock.now())])
    await told(stage)


async def wind_down(stage: Stage) -> bool:
    """Cancel the visits that wait for pixels, finish what has them, archive what was read: whether all was done."""
    canceled = [NextVisitCanceled(group=group, reason="the night was stopped") for group in stage.progress.open_visits]
    why = "was read out, and no nextVisit came: not processed"
    refused = [VisitRefused(group=group, reason=f"{image} {why}") for group, image in stage.progress.unclaimed.items()]
    await stage.bus.publish([*canceled, *refused])
    return await settled(stage)


async def caught_up(stage: Stage) -> bool:
    """Archive what the camera holds and the archive lacks; false if all is silent for `DRAIN_DEADLINE_S`."""
    stage.catch_up.end()
    return await _awaited(stage, stage.catch_up.over(), DRAIN_DEADLINE_S) and await settled(stage)


async def settled(stage: Stage) -> bool:
    """Wait until nothing is owed but by patient pools, or all is silent for `DRAIN_DEADLINE_S`; whether that is so."""
    return await _awaited(stage, stage.bus.drained(), DRAIN_DEADLINE_S)


async def told(stage: Stage) -> bool:
    """Wait until nothing at all is owed, or all is silent for `PATIENT_S`; whether that is so."""
    return await _awaited(stage, stage.bus.idle(), PATIENT_S)


async def _awaited(stage: Stage, end: Coroutine[Any, Any, None], quiet_s: float) -> bool:
    waiting = asyncio.create_task(end)
    await asyncio.wait([waiting], timeout=0.0)
    while not waiting.done() and stage.progress.quiet_for() < quiet_s:
        await asyncio.wait([waiting], timeout=TICK_S)
    if waiting.done():
        return True
    waiting.cancel()
    structlog.get_logger().error("not finished", owed=dict(stage.bus.owed()), quiet_s=quiet_s)
    return False
