"""What the report says of a night in which things went wrong on purpose."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from access.report.collect import Collected
from access.report.model import FaultRow
from access.report.witnessed import SEEN_DTYPE, witnessed
from backbone.l1 import L1Database
from cluster import witness
from cluster.fault_injection import read
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from schemas.clock import NightClock
from schemas.events import AlertsReady
from schemas.tables import Table
from simulators.faults import Camera, Fault, Observatory, ProcessFault, read_planned


async def with_faults(night: Collected, settings: Settings, l1: L1Database) -> Collected:
    """The same with the faults, and with what the witness saw if there was one."""
    report = night.report.model_copy(update={"faults": _rows(settings)})
    if settings.witness_file.exists():
        clock = StoredClock(settings.clock_file)
        visits = sorted({e.event.visit for e in night.journal if isinstance(e.event, AlertsReady)})
        seen = _seen(settings.witness_file, clock.line)
        report = report.model_copy(update={"witnessed": witnessed(seen, await l1.acknowledgements(visits), clock)})
    return replace(night, report=report)


def _rows(settings: Settings) -> list[FaultRow]:
    """Of processes what was done, of simulators what they were told."""
    done = [
        FaultRow(name=each.name, what=each.what, state=each.state, at=each.at, reason=each.reason)
        for each in read(settings.injected_file)
    ]
    told = [
        FaultRow(name=each.name, what=_told(each.fault), state="told")
        for each in read_planned(settings.fault_file)
        if not isinstance(each.fault, ProcessFault)
    ]
    return [*told, *done]


def _told(fault: Fault) -> str:
    """What a simulator was told to play, in a few words."""
    if isinstance(fault, Observatory | Camera):
        return f"{fault.do} {fault.what}, visit {fault.visit}"
    return fault.do


def _seen(file: Path, line: NightClock) -> Table:
    """SEEN_DTYPE."""
    rows = [
        (-1 if each.dia_source_id is None else each.dia_source_id,
         line.night_start + line.speed * (each.at - line.wall_start), each.sha256.encode())
        for each in witness.read(file)
    ]  # fmt: skip
    return np.array(rows, SEEN_DTYPE)
