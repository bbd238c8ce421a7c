"""What the report says of a night in which things went wrong on purpose."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from access.report.collect import Collected
from access.report.model import FaultRow
from access.report.witnessed import SEEN_DTYPE, witnessed
from backbone.l1 import L1Database
from cluster import witness
from cluster.fault_injection import Injected, read
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from schemas.clock import NightClock
from schemas.events import AlertsReady
from schemas.tables import Table
from simulators.camera.faults import SWARMS, Fault, of_night
from simulators.faults import Camera, Observatory, Planned, ProcessFault, load, read_planned
from simulators.ocs.schedule import PlannedVisit


async def with_faults(night: Collected, settings: Settings, l1: L1Database) -> Collected:
    """The same with the faults, and with what the witness saw if there was one."""
    report = night.report.model_copy(update={"faults": fault_rows(settings)})
    if settings.witness_file.exists():
        clock = StoredClock(settings.clock_file)
        visits = sorted({e.event.visit for e in night.journal if isinstance(e.event, AlertsReady)})
        seen = _seen(settings.witness_file, clock.line)
        report = report.model_copy(update={"witnessed": witnessed(seen, await l1.acknowledgements(visits), clock)})
    return replace(night, report=report)


def untrue(plan: Sequence[PlannedVisit], settings: Settings) -> frozenset[tuple[int, int]]:
    """The visit-detectors in which the camera was to make sources appear that the truth has not."""
    played = of_night(load(settings.fault_file), plan, settings.detectors)
    return frozenset((f.exposure or 0, f.detector) for f in played if isinstance(f, Fault) and f.fault in SWARMS)


def fault_rows(settings: Settings) -> list[FaultRow]:
    """A row a fault, in the order of their visits: of processes what was done, of simulators what they were told."""
    injected = read(settings.injected_file)
    faults = enumerate(read_planned(settings.fault_file))
    rows = [_row(each, [one for one in injected if one.number == number]) for number, each in faults]
    return sorted(rows, key=lambda row: row.visit or 0)


def _row(planned: Planned, injected: Sequence[Injected]) -> FaultRow:
    fault = planned.fault
    if not isinstance(fault, ProcessFault):
        told = f"{fault.do} {fault.what}" if isinstance(fault, Observatory | Camera) else fault.do
        return FaultRow(name=planned.name, what=told, state="told", visit=getattr(fault, "visit", None))
    what = f"{fault.do} {fault.process}"
    if not injected:
        return FaultRow(name=planned.name, what=what, state="missed", visit=fault.at.visit, reason="nobody tried")
    first, last = injected[0], injected[-1]
    return FaultRow(
        name=planned.name, what=what, state=last.state, visit=fault.at.visit, at=first.at,
        until=last.at if last.state == "ended" else None, reason=last.reason,
    )  # fmt: skip


def _seen(file: Path, line: NightClock) -> Table:
    """SEEN_DTYPE."""
    rows = [
        (-1 if each.dia_source_id is None else each.dia_source_id,
         line.night_start + line.speed * (each.at - line.wall_start), each.sha256.encode())
        for each in witness.read(file)
    ]  # fmt: skip
    return np.array(rows, SEEN_DTYPE)
