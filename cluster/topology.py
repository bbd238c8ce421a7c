"""The topology: which pools of actors there are, how many, what each needs. One table, run inline and on Ray.

Here, and in `cluster.site`, is where the type checker proves that what is kept, simulated or connected fits the
ports that the actors declare.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors.alert_emitter import AlertEmitter
from actors.archiver import Archiver
from actors.associator import Associator
from actors.base import Actor
from actors.camera_reader import CameraReader
from actors.catch_up import CatchUp
from actors.ccd_worker import CcdWorker
from actors.dead_letter_office import DeadLetterOffice
from actors.fan_out import FanOut
from actors.herald import Herald
from actors.lite_emitter import LiteEmitter
from actors.offline import Offline
from actors.offline_planner import OfflinePlanner
from actors.sequencer import Sequencer
from actors.visit_keeper import VisitKeeper
from backbone.archived_raws import ArchivedRaws
from cluster.bus import Route
from cluster.settings import Settings
from cluster.site import Site


@dataclass(frozen=True)
class Pool:
    """Like actors sharing keys.

    `make` builds one from what the site offers. `own_process`: hosted by Ray, in a process each; the others only keep
    order and live beside the bus. `per_worker`: as many processes as the settings have workers, else one. `lanes`: how
    many deliveries a process takes at once (those that wait for others more than they work). `patient`: tries for as
    long as what it needs does not answer: a server or a disk that all visits need alike. `aside`: what it does holds up
    nothing else, not even the end of the night. `yields_to`: it begins nothing while that pool has work. `resumes`:
    it is asked again at the next start for what it gave up, but for bad data.
    """

    actor: type[Actor]
    make: Callable[[Site], Awaitable[Actor]]
    deadline_s: float
    own_process: bool = True
    per_worker: bool = False
    lanes: int = 1
    nice: int = 0
    patient: bool = False
    aside: bool = False
    resumes: bool = False
    yields_to: str = ""

    @property
    def name(self) -> str:
        """`ccd_worker` of `CcdWorker`: the module's name."""
        return self.actor.__module__.rsplit(".", 1)[-1]

    def processes(self, settings: Settings) -> int:
        """How many hosts."""
        return settings.workers if self.per_worker else 1

    def route(self, settings: Settings) -> Route:
        """The pool as the bus sees it."""
        lanes = self.processes(settings) * self.lanes
        return Route(
            self.name, lanes, self.actor.understands, self.deadline_s, self.patient, self.aside, self.resumes,
            self.yields_to, settings.max_host_gb * 2.0**30 if self.own_process else math.inf,
        )  # fmt: skip


async def _fan_out(site: Site) -> FanOut:
    return FanOut(camera=site.camera, live=site.settings.detectors, chronicle=await site.chronicle())


async def _sequencer(site: Site) -> Sequencer:
    return Sequencer(camera=site.camera, chronicle=await site.chronicle(), clock=site.clock)


async def _visit_keeper(site: Site) -> VisitKeeper:
    keeper = VisitKeeper(chronicle=await site.chronicle(), clock=site.clock)
    await keeper.take_up()
    return keeper


async def _camera_reader(site: Site) -> CameraReader:
    return CameraReader(daq=site.daq, pixels=site.pixels)


async def _ccd_worker(site: Site) -> CcdWorker:
    return CcdWorker(
        camera=site.camera, products=site.products, pixels=site.pixels, daq=site.daq, clock=site.clock,
        hand_over_after_s=site.settings.hand_over_after,
    )  # fmt: skip


async def _offline_planner(site: Site) -> OfflinePlanner:
    return OfflinePlanner(chronicle=await site.chronicle(), clock=site.clock)


async def _offline(site: Site) -> Offline:
    raws = ArchivedRaws(site.archive)
    return Offline(camera=site.camera, products=site.products, raws=raws, pixels=site.pixels, clock=site.clock)


async def _associator(site: Site) -> Associator:
    return Associator(
        camera=site.camera,
        l1=await site.l1(),
        archive=site.alert_archive,
        pixels=site.pixels,
        chronicle=await site.chronicle(),
        clock=site.clock,
    )


async def _alert_emitter(site: Site) -> AlertEmitter:
    return AlertEmitter(
        l1=await site.l1(),
        archive=site.alert_archive,
        sink=await site.alert_sink(),
    )


async def _lite_emitter(site: Site) -> LiteEmitter:
    return LiteEmitter(
        l1=await site.l1(),
        archive=site.alert_archive,
        sink=await site.lite_sink(),
    )


async def _herald(site: Site) -> Herald:
    return Herald(
        l1=await site.l1(),
        archive=site.alert_archive,
        sink=await site.notice_sink(),
        chronicle=await site.chronicle(),
        clock=site.clock,
        signing_key=site.signing_key,
        alert_topic=site.settings.alert_topic,
        live=site.settings.detectors,
    )


async def _archiver(site: Site) -> Archiver:
    return Archiver(archive=site.archive, l1=await site.l1(), pixels=site.pixels, daq=site.daq)


async def _catch_up(site: Site) -> CatchUp:
    return CatchUp(
        camera=site.camera,
        live=site.settings.detectors,
        daq=site.daq,
        archive=site.archive,
        chronicle=await site.chronicle(),
    )


async def _dead_letter_office(site: Site) -> DeadLetterOffice:
    return DeadLetterOffice(sink=await site.dead_letter_sink())


_TABLE = (
    #    actor            made by               deadline  where, how many, how stubborn
    Pool(FanOut,          _fan_out,             10.0,     own_process=False, patient=True),
    Pool(Sequencer,       _sequencer,           10.0,     own_process=False, patient=True),
    Pool(VisitKeeper,     _visit_keeper,        10.0,     own_process=False, patient=True),
    Pool(OfflinePlanner,  _offline_planner,     10.0,     own_process=False, patient=True),
    Pool(DeadLetterOffice, _dead_letter_office, 60.0,     own_process=False, patient=True, aside=True),
    Pool(CameraReader,    _camera_reader,       60.0,     lanes=8),
    Pool(CcdWorker,       _ccd_worker,          120.0,    per_worker=True),
    Pool(Associator,      _associator,          60.0,     lanes=4, patient=True),
    Pool(AlertEmitter,    _alert_emitter,       60.0,     lanes=4, patient=True, resumes=True),
    Pool(LiteEmitter,     _lite_emitter,        60.0,     nice=10, patient=True, aside=True),
    Pool(Herald,          _herald,              60.0,     nice=10, patient=True, aside=True),
    Pool(Archiver,        _archiver,            120.0,    nice=10),
    Pool(CatchUp,         _catch_up,            120.0,    nice=15),
    Pool(Offline,         _offline,             240.0,    nice=15, yields_to="ccd_worker"),
)  # fmt: skip

POOLS = {pool.name: pool for pool in _TABLE}
