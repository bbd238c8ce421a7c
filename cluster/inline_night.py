"""A night in one process, without Ray or servers: for a debugger, for tests, and to hold the live night to.

The same bus, actors and topology; the journal and the L1 database are in memory, alerts are spooled to a file. The
clock jumps from one message of the observatory to the next, so no latency is kept.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from access.report.collect import Collected, collect
from actors.fan_out import Chronicle
from backbone.alert_spool import AlertSpool
from backbone.daq_client import Held
from backbone.dead_letters import DeadLetterFile
from backbone.journal import MemoryJournal
from backbone.l1 import L1Database
from backbone.l1_memory import L1Memory
from backbone.sal_events import event_of
from backbone.visit_stream import VisitSpool
from cluster import prepare
from cluster.inline import InlineHosts
from cluster.night import end_night, night_facts, settled, staged, told
from cluster.options import NightOptions
from cluster.pixels import MemoryPixels
from cluster.settings import Settings
from cluster.site import FolderSite
from schemas.clock import ManualClock
from schemas.errors import Transient
from schemas.events import NightBegan
from schemas.image import Observation, Raw
from simulators.camera.buffer import Catalogue
from simulators.camera.exposure import FocalPlane
from simulators.camera.truth import write_truth
from simulators.ocs.sal import stamped
from simulators.ocs.schedule import PlannedVisit
from simulators.ocs.timeline import ANNOUNCED_S, timeline
from simulators.sky.sky import Sky


class InlineDaq:
    """The camera without its network: pixels are made when they are read."""

    def __init__(self, plane: FocalPlane, detectors: Sequence[int], folder: Path, truth: Path) -> None:
        truth.mkdir(parents=True, exist_ok=True)
        self._plane, self._detectors, self._truth = plane, tuple(detectors), truth
        self._catalogue = Catalogue(folder, 0.0)

    def expose(self, observation: Observation) -> None:
        """Open the shutter."""
        self._catalogue.add(observation, self._detectors, observation.started)

    async def held(self) -> list[Held]:
        """What was exposed."""
        return [Held(entry.recipe.observation, entry.detectors) for entry in self._catalogue.entries(0.0)]

    async def read(self, observation: Observation, detector: int, deadline_s: float = math.inf) -> Raw:  # noqa: ARG002
        """A detector's raw: nobody else is at work meanwhile, so that no deadline passes."""
        recipe = self._catalogue.find(observation.exposure, detector).recipe
        charge = self._plane.charge(recipe, detector)
        write_truth(self._truth, recipe, self._plane.field(recipe, detector), charge)
        segments = self._plane.segments(recipe, detector, charge)
        return Raw.of(observation, detector, segments)


class InlineSite(FolderSite):
    """What actors are given in one process."""

    def __init__(self, settings: Settings, seed: int, journal: MemoryJournal, l1: L1Memory, clock: ManualClock) -> None:
        super().__init__(settings)
        self.clock = clock
        self.pixels = MemoryPixels()
        self.daq = InlineDaq(
            FocalPlane(seed, settings.instrument, Sky(seed)),
            settings.detectors,
            settings.output / "daq",
            settings.truth,
        )
        self._journal, self._l1 = journal, l1

    async def chronicle(self) -> Chronicle:
        """The journal."""
        return self._journal

    async def l1(self) -> L1Database:
        """The L1 database."""
        return self._l1

    async def alert_sink(self) -> AlertSpool:
        """The spool."""
        return AlertSpool(self.settings.output / "alerts.spool", self.clock)

    async def lite_sink(self) -> AlertSpool:
        """Another."""
        return AlertSpool(self.settings.output / "alerts-lite.spool", self.clock)

    async def notice_sink(self) -> VisitSpool:
        """Its companion."""
        return VisitSpool(self.settings.output / "visits.jsonl")

    async def dead_letter_sink(self) -> DeadLetterFile:
        """Another."""
        return DeadLetterFile(self.settings.output / "dead-letters.jsonl")


async def play_inline(
    options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console
) -> Collected:
    """Play a plan, one message after the other, and collect the report."""
    clock, journal, l1 = ManualClock(), MemoryJournal(), L1Memory()
    lacking, wanted = prepare.missing(settings, plan)
    made = prepare.make_and_put(lacking, options.seed, settings)
    console.print(f"{wanted} calibrations, templates and catalogues in the Butler, {made} of them made now")
    await l1.load_orbits(prepare.known_orbits(options.seed, plan))
    site = InlineSite(settings, options.seed, journal, l1, clock)
    hosts = await InlineHosts.build(site, all_pools=True)
    one_lane = settings.model_copy(update={"workers": 1})
    async with staged(one_lane, hosts, hosts.keeper, journal, clock, [visit.group for visit in plan], console) as stage:
        clock.set_to(plan[0].start_tai - ANNOUNCED_S)
        await stage.bus.publish([NightBegan(day_obs=plan[0].day_obs, at=clock.now())])
        for number, moment in enumerate(timeline(plan)):
            clock.set_to(moment.tai)
            if isinstance(moment.payload, Observation):
                site.daq.expose(moment.payload)
                continue
            assert isinstance(moment.payload, dict)  # only a disturbed observatory sends bytes
            message = stamped(moment.kind, moment.payload, sent=moment.tai, seq_num=number, origin=os.getpid())
            event = event_of(moment.kind, message)
            if event is not None:
                await stage.bus.publish([event])
                if not await settled(stage):
                    raise Transient(f"what follows from {moment.kind} is not finished: the log says what is owed")
                await told(stage)
        await end_night(stage, plan[0].day_obs, clock)
    facts = replace(night_facts(options, plan, settings), timed=False)
    return await collect(facts, journal, l1, clock)
