"""A night with real parts, as its driver plays it: the bus, and hosts on Ray. What it is played beside: `outside`."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from rich.console import Console

from access.report.collect import Collected, collect
from actors.fan_out import OPEN_S
from backbone.journal import Journal, PostgresJournal
from backbone.l1 import L1Database
from backbone.l1_postgres import L1Postgres
from backbone.registry_client import RegistryClient
from backbone.sal import SalReader
from cluster import prepare, ray_state
from cluster.batch.joining import joinable
from cluster.batch.prompt_first import PromptFirst
from cluster.fault_report import untrue, with_faults
from cluster.faults import injected
from cluster.heartbeat import Heartbeat
from cluster.inline import InlineHosts
from cluster.night import SplitHosts, Stage, end_night, feed, night_facts, staged, until_over
from cluster.options import NightOptions
from cluster.patient_journal import PATIENCE_S, PatientJournal
from cluster.pixels import MemoryPixels
from cluster.ray_hosts import NAMESPACE, RayHosts
from cluster.settings import Settings
from cluster.site import ServerSite
from cluster.stored_clock import DUSK_S, StoredClock
from schemas.clock import NightClock, day_obs_of
from schemas.errors import BadData, Transient
from schemas.events import AlertsReady, Event, NextVisit, NightBegan
from simulators.ocs.schedule import PlannedVisit
from simulators.ocs.timeline import ANNOUNCED_S

OBJECT_STORE_BYTES = 4 * 2**30
PRODUCTS_DEADLINE_S = 1800.0
_RAY_SYSTEM = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}  # fmt: skip


@contextmanager
def ray_cluster(options: NightOptions) -> Iterator[None]:
    """Ray on this machine, or the cluster at an address."""
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "error"}
    try:
        if options.ray_address:
            ray.init(address=options.ray_address, **common)
        else:
            ray.init(  # "local": one of its own, also where another cluster runs on this machine
                address="local", num_cpus=options.workers, object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False, _node_ip_address="127.0.0.2", _system_config=_RAY_SYSTEM, **common,
            )  # fmt: skip
    except Exception as error:  # Ray raises many kinds, plain ones among them
        where = options.ray_address or "this machine"
        raise Transient(f"Ray on {where} does not start: {(str(error) or repr(error)).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


async def make_products(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, there: RayHosts
) -> tuple[int, int]:
    """Make what the Butler lacks of a plan's earlier products, on all of Ray's cores; (made, wanted).

    What one visit-detector needs comes first; then the workers are given its raws to rehearse on. A night that has
    begun already has real ones waiting, and no time to rehearse.
    """
    lacking, wanted = await asyncio.to_thread(prepare.missing, settings, plan)
    there.build()
    rehearsed = prepare.rehearsed(plan, settings)
    simulate = ray.remote(prepare.rehearsal).options(num_cpus=0)
    raws = [] if settings.clock_file.exists() else [simulate.remote(options.seed, rehearsed, settings)]
    needed = set(prepare.wanted(rehearsed, settings.camera, settings.detectors[:1]))
    first, rest = [name for name in lacking if name in needed], [name for name in lacking if name not in needed]
    make = ray.remote(prepare.make_and_put)
    if first:
        await make.remote(first, options.seed, settings)
    parts = [rest[part :: options.workers] for part in range(options.workers)]
    jobs = [make.remote(part, options.seed, settings) for part in parts if part]
    for simulated in raws:
        there.rehearse_on(await simulated)
    await asyncio.wait_for(asyncio.gather(*jobs), PRODUCTS_DEADLINE_S)
    return len(lacking), wanted


def _begin(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings) -> NightClock:
    first = plan[0].start_tai - ANNOUNCED_S
    return StoredClock(settings.clock_file).begin(NightClock.starting(first, delay_s=DUSK_S, speed=options.speed))


@asynccontextmanager
async def live_stage(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, there: RayHosts, journal: PostgresJournal,
    console: Console,
) -> AsyncIterator[Stage]:  # fmt: skip
    """A running bus between the hosts on Ray and those in this process. The night's clock runs from here on."""
    pids = await there.ready()
    clock = _begin(options, plan, settings)
    here = await InlineHosts.build(ServerSite(settings, MemoryPixels(), journal), all_pools=False)
    hosts = SplitHosts(here, there)
    told = PatientJournal(journal)
    async with (
        asyncio.TaskGroup() as group,
        staged(settings, hosts, here.keeper, told, clock, [v.group for v in plan], console) as stage,
    ):
        stage.metrics.processes.pids.update({f"{pool}-{number}": pid for (pool, number), pid in pids.items()})
        first = PromptFirst(stage.bus)
        stage.bus.listen(first.hear)
        keeping = [group.create_task(there.keep_shelf()), group.create_task(first.keep())]
        if options.ray_address:
            keeping.append(group.create_task(ray_state.watch(settings.ray_file, options.workers)))
        with joinable(settings.join_file):
            yield stage
        for each in keeping:
            each.cancel()


async def play(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console,
    observatory_runs: Callable[[], bool], heartbeat: Heartbeat,
) -> Collected:  # fmt: skip
    """Play a plan from its first event to its last alert, and collect the report. Servers and Ray run already."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console.print(f"Kafka {settings.kafka}, schema registry {settings.registry}, alerts on {settings.alert_topic}")
    async with opened(settings) as (journal, l1):
        async with heartbeat.kept():
            await _play(options, plan, settings, console, observatory_runs, stop, journal, l1)
        known = night_facts(options, plan, settings)
        facts = replace(known, untrue=untrue(plan, settings), stopped=stop.is_set())
        collected = await collect(facts, journal, l1, StoredClock(settings.clock_file))
        async with heartbeat.kept():
            await _linger(options, stop, console)
        return await with_faults(collected, settings, l1)


async def _play(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console,
    observatory_runs: Callable[[], bool], stop: asyncio.Event, journal: PostgresJournal, l1: L1Postgres,
) -> None:  # fmt: skip
    """All of it but the report."""
    await refuse_played(journal, plan, settings)
    if options.ray_address:
        await ray_state.await_cpus(options.workers)
    there = RayHosts(settings)  # their processes start, and rehearse, while the products are made
    made, wanted = await make_products(options, plan, settings, there)
    console.print(f"{wanted} calibrations, templates and catalogues in the Butler, {made} of them made now")
    await l1.load_orbits(await asyncio.to_thread(prepare.known_orbits, options.seed, plan))
    async with live_stage(options, plan, settings, there, journal, console) as stage:
        await stage.bus.publish(await _unsent(journal, l1))
        port = stage.metrics.serve(options.metrics_port)
        console.print(f"metrics at http://127.0.0.1:{port}/metrics, log in {settings.log}")
        async with injected(plan, settings, there, stage, journal):
            await _observe(options, plan, settings, stage, journal, observatory_runs, stop)


async def refuse_played(journal: Journal, plan: Sequence[PlannedVisit], settings: Settings) -> None:
    """A database holds a night once. Raises BadData if it holds this one, and was not played into this folder."""
    day_obs = plan[0].day_obs
    since = plan[0].start_tai - OPEN_S
    told = [fact for fact in await journal.facts("NextVisit", since=since) if isinstance(fact, NextVisit)]
    if not settings.clock_file.exists() and day_obs in {day_obs_of(fact.start_time) for fact in told}:
        where = f"the database {settings.postgres} holds a night {day_obs} already"
        raise BadData(f"{where}: give the folder it was played into, to go on with it, or another database")


async def _unsent(journal: Journal, l1: L1Database) -> list[Event]:
    """The facts of what is committed and not sent. Who is to send it is known already, but for what a crash cut off."""
    owed = {(outbox.group, outbox.detector) for outbox in await l1.unsent()}
    facts = [fact for group in sorted({g for g, _ in owed}) for fact in await journal.facts("AlertsReady", group=group)]
    return [fact for fact in facts if isinstance(fact, AlertsReady) and (fact.group, fact.detector) in owed]


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[PostgresJournal, L1Postgres]]:
    """The journal and the L1 database."""
    journal = await PostgresJournal.open(settings.postgres)
    try:
        l1 = await L1Postgres.open(settings.postgres)
        try:
            yield journal, l1
        finally:
            await l1.close()
    finally:
        await journal.close()


async def _observe(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, stage: Stage, journal: PostgresJournal,
    observatory_runs: Callable[[], bool], stop: asyncio.Event,
) -> None:  # fmt: skip
    """From the first announcement until nothing is owed any more."""
    # An embedded broker starts empty: positions in an earlier one's topics mean nothing there.
    positions = await journal.positions() if options.kafka else {}
    clock, day_obs = StoredClock(settings.clock_file), plan[0].day_obs
    since = clock.wall_start - DUSK_S
    await stage.bus.publish([NightBegan(day_obs=day_obs, at=clock.now())])
    async with (
        RegistryClient(settings.registry) as client,
        SalReader(settings.kafka, client, positions, since=since, deadline_s=PATIENCE_S) as reader,
    ):
        feeding = asyncio.create_task(feed(reader, stage.bus, PatientJournal(journal), stage.progress.heard))
        await until_over(stage, observatory_runs, reader.at_end, stop, feeding)
        feeding.cancel()
        await asyncio.wait([feeding])
        await end_night(stage, day_obs, clock)


async def _linger(options: NightOptions, stop: asyncio.Event, console: Console) -> None:
    """Leave the embedded broker up for a while, so that consumers can read to the end."""
    if options.linger and not options.kafka and not stop.is_set():
        console.print(f"the broker stays up for {options.linger:g} s, for consumers to read to the end")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), options.linger)
