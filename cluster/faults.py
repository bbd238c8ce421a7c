"""A night's faults, in the process that holds the bus: those of processes are injected while it plays."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from actors.fan_out import OPEN_S
from backbone.journal import Journal
from cluster.fault_injection import Injector, Notes, Places
from cluster.night import Stage
from cluster.process_ids import ProcessIds
from cluster.ray_hosts import RayHosts
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from simulators.faults import read_planned
from simulators.ocs.schedule import PlannedVisit


@asynccontextmanager
async def injected(
    plan: Sequence[PlannedVisit], settings: Settings, there: RayHosts, stage: Stage, journal: Journal
) -> AsyncIterator[None]:
    """Inject what is to go wrong with processes while the context is open, going on where the last driver stood."""
    ids = ProcessIds(settings, there, stage.metrics.processes.pids)

    async def pid(process: str, detector: int | None) -> int:
        return await ids.of(process, stage.bus.lane_of(process, detector))

    places = Places(settings.alerts, settings.kafka, settings.alert_topic)
    notes, clock = Notes(settings.injected_file), StoredClock(settings.clock_file)
    injector = Injector(read_planned(settings.fault_file), plan, pid, places, notes, clock)
    stage.bus.listen(injector.hear)
    for fact in await journal.facts(*injector.awaits, since=plan[0].start_tai - OPEN_S):
        injector.hear(fact, 0.0)
    async with injector.running():
        yield
