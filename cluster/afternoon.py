"""`pachon afternoon`: an afternoon's calibrations, as an observatory has them made.

The OCS tells of 25 exposures, the DAQ serves them, the night's own actors archive them; then the OCS commands the OCPS
to run the pipeline. To certify what came of it is left to whoever has looked at it.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lsst.daf.butler import Butler, ButlerUserError
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from backbone.butler import ButlerArchive
from backbone.journal import MemoryJournal
from backbone.l1 import L1Database
from backbone.l1_memory import L1Memory
from backbone.registry_client import RegistryClient
from backbone.sal import SalReader
from backbone.schema_registry import SchemaRegistry
from cluster.bus import Bus
from cluster.calibrate import PIPELINE, query
from cluster.catch_up import CatchUpTimes
from cluster.child_process import ChildProcess
from cluster.host import Host
from cluster.inline import InlineHosts
from cluster.night import feed
from cluster.options import NightOptions
from cluster.outside import Simulators, simulators
from cluster.pixels import MemoryPixels
from cluster.services import EmbeddedKafka, free_port
from cluster.settings import Settings
from cluster.site import ServerSite
from cluster.topology import POOLS
from schemas.clock import Clock, NightClock
from schemas.errors import BadData, Broken, Transient
from schemas.identity import DatasetId
from simulators.faults import dump
from simulators.ocs.afternoon import plan_afternoon
from simulators.ocs.schedule import PlannedVisit, dump_plan
from simulators.ocs.timeline import ANNOUNCED_S

DAY_POOLS = ("fan_out", "dead_letter_office", "camera_reader", "archiver", "catch_up")
"""Who is at work when no visit is to come."""

TICK_S, BEGIN_S, PATIENCE_S = 0.2, 3.0, 600.0
MADE_WITHIN_S = 3600.0


class AfternoonOptions(BaseModel):
    """The command's options; see `pachon afternoon --help`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    physical_filter: str
    day_obs: int
    standing: str
    seed: int = Field(ge=0)
    speed: float = Field(gt=0, le=1000)


class DaySite(ServerSite):
    """What actors are given by day: no database, since no visit is to be remembered; the archive has what is there."""

    def __init__(self, settings: Settings, clock: Clock, journal: MemoryJournal) -> None:
        super().__init__(settings, MemoryPixels(), journal)
        self.clock = clock

    async def l1(self) -> L1Database:
        """None of its own."""
        return L1Memory()


def run(settings: Settings, options: AfternoonOptions, console: Console) -> int:
    """Expose, archive, make; the exit code: 1 if raws or products are missing."""
    settings.camera.band_of(options.physical_filter)  # raises BadData for one that the camera lacks
    plan = plan_afternoon(options.physical_filter, options.day_obs, settings.instrument)
    archive = ButlerArchive.create(settings.butler)
    archive.register_camera(settings.camera)
    check_standing(settings, options.standing)
    day = settings.output / "afternoon"
    day.mkdir(exist_ok=True)
    with EmbeddedKafka(day / "kafka.log") as broker, ExitStack() as stack:
        told = settings.model_copy(update={"kafka": broker.bootstrap, "daq": f"grpc://127.0.0.1:{free_port()}"})
        return asyncio.run(_play(told, day, plan, options, stack, console))


def check_standing(settings: Settings, collections: str) -> None:
    """Raises BadData, naming the collections (a comma between them), if they lack the electronics of a detector."""
    with Butler.from_config(str(settings.butler)) as butler:
        for kind in ("crosstalk", "photon_transfer"):
            try:
                refs = butler.query_datasets(
                    kind, collections=collections.split(","), instrument=settings.instrument, explain=False, limit=None
                )
            except ButlerUserError as error:
                raise BadData(f"--standing {collections}: no {kind} in {settings.butler}: {error}") from error
            lacking = set(settings.detectors) - {int(ref.dataId["detector"]) for ref in refs}
            if lacking:
                raise BadData(f"--standing {collections}: no {kind} of detectors {sorted(lacking)}")


async def _play(
    settings: Settings, day: Path, plan: Sequence[PlannedVisit], options: AfternoonOptions, stack: ExitStack,
    console: Console,
) -> int:  # fmt: skip
    async with SchemaRegistry(day / "schemas.json") as registry:
        named = settings.model_copy(update={"registry": registry.url})
        clock = NightClock.starting(plan[0].start_tai - ANNOUNCED_S, delay_s=BEGIN_S, speed=options.speed)
        observatory = observatory_of(named.model_copy(update={"output": day}), plan, options.seed, stack, clock)
        lasts_s = clock.wall_seconds(plan[-1].start_tai - plan[0].start_tai)
        await archived(named, clock, lambda: observatory.ocs.returncode is not None, lasts_s + PATIENCE_S)
        missing = await asyncio.to_thread(lacking, named, plan)
        console.print(f"{len(plan)} exposures of {len(named.detectors)} detectors, {len(missing)} raws missing")
        for name in missing:
            console.print(f"missing: {name}")
        return await _made(named, day, options, stack, console) or int(bool(missing))


def observatory_of(
    settings: Settings, plan: Sequence[PlannedVisit], seed: int, stack: ExitStack, clock: NightClock
) -> Simulators:
    """The OCS and the DAQ, which begin to play a plan."""
    dump_plan(plan, settings.plan_file)
    dump(settings.fault_file, ())
    return simulators(stack, NightOptions(seed=seed, output=settings.output), settings, clock)


async def archived(settings: Settings, clock: Clock, over: Callable[[], bool], within_s: float) -> None:
    """Archive what the observatory tells of until it is `over`, and then what was missed.

    Raises Transient if that takes longer than `within_s` (wall seconds), or a peer is away for too long.
    """
    journal, catch_up = MemoryJournal(), CatchUpTimes(clock)
    site = DaySite(settings, clock, journal)
    hosts = InlineHosts({name: Host(await POOLS[name].make(site), name) for name in DAY_POOLS})
    bus = Bus([POOLS[name].route(settings) for name in DAY_POOLS], hosts, journal, clock)
    bus.listen(catch_up.hear)
    async with (
        RegistryClient(settings.registry) as client,
        SalReader(settings.kafka, client, {}, deadline_s=PATIENCE_S) as reader,
        asyncio.TaskGroup() as group,
    ):
        working = [
            group.create_task(bus.run()),
            group.create_task(feed(reader, bus, journal, lambda: None)),
            group.create_task(_fetch(bus, catch_up)),
        ]
        try:
            async with asyncio.timeout(within_s):
                while not (over() and await reader.at_end()):  # noqa: ASYNC110 - of other processes
                    await asyncio.sleep(TICK_S)
                await bus.drained()
                catch_up.end()
                await catch_up.over()
                await bus.drained()
        except TimeoutError as error:
            raise Transient(f"exposures were not archived within {within_s:.0f} s") from error
        for each in working:
            each.cancel()


async def _fetch(bus: Bus, catch_up: CatchUpTimes) -> None:
    """Fetch what was missed, when there is time for it; for ever."""
    while True:
        if due := catch_up.due():
            await bus.publish(due)
        await asyncio.sleep(TICK_S)


def lacking(settings: Settings, plan: Sequence[PlannedVisit]) -> list[DatasetId]:
    """The raws of a plan that the archive has not."""
    archive = ButlerArchive.open(settings.butler)
    exposures = [visit.observation(snap).exposure for visit in plan for snap in range(visit.n_snaps)]
    names = [DatasetId.of_raw(settings.instrument, each, d) for each in exposures for d in settings.detectors]
    return [name for name in names if not archive.exists(name)]


async def _made(settings: Settings, day: Path, options: AfternoonOptions, stack: ExitStack, console: Console) -> int:
    """Have the OCPS commanded as a script does; the script's exit code."""
    peers = ["--kafka", settings.kafka, "--registry", settings.registry]
    inputs = f"{settings.instrument}/raw/all,{options.standing}"
    command = [sys.executable, "-m", "cluster.cli", "ocps", *peers, "--butler", str(settings.butler)]
    service = ChildProcess("ocps", [*command, "--runs", str(day / "ocps"), "--input", inputs], day / "ocps.log")
    stack.enter_context(service)
    script = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators.ocs.ocps", *peers, "--within", str(MADE_WITHIN_S),
        "execute", "--pipeline", f"{PIPELINE.stem}#afternoon", "--data-query", query(settings, options.day_obs),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told = await _told(script, service)
    for line in told:
        console.print(line)
    assert script.returncode is not None
    if script.returncode == 0:
        _, _, result = told[-1].partition(" ")
        console.print(
            f"verified: pachon batch certify {json.loads(result)['collection']} --butler {settings.butler} "
            f"--from {options.day_obs}"
        )
    return script.returncode


async def _told(script: asyncio.subprocess.Process, service: ChildProcess) -> list[str]:
    """What the script has said when it ends. Raises Broken if the service, which it waits for, ended before."""
    telling = asyncio.create_task(script.communicate())
    while not telling.done() and service.returncode is None:
        await asyncio.wait({telling}, timeout=TICK_S)
    if not telling.done():
        script.kill()
        await telling
        raise Broken(f"the OCPS ended with {service.returncode}: {service.log_tail()}")
    return telling.result()[0].decode().splitlines()
