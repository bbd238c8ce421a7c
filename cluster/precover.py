"""`pachon precover`: forced photometry of a night's new DIAObjects in the visits before they were first seen."""

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from actors.reduction import Reduction
from actors.stage_times import StageTimes
from backbone import l1_precovery
from backbone.archived_raws import ArchivedRaws
from backbone.butler import ButlerArchive
from backbone.l1_connection import connected
from backbone.l1_precovery import StoredVisit
from cluster.allocator import keep_freed_memory
from cluster.later import database_of, settings_of
from cluster.products import ButlerProducts
from cluster.stored_clock import StoredClock
from payloads.alert_production.forced import forced_sources
from schemas.clock import Clock, mjd_from_tai
from schemas.errors import BadData
from schemas.instrument import Detector, camera
from schemas.pointing import nominal_wcs
from schemas.tables import Table
from schemas.wcs import separation_arcsec

REACH_DEG = 2.2
"""From the boresight: no detector of LSSTCam lies farther out."""

MARGIN_PX = 200.0
"""What the pointing may be off: as much as the calibration finds (40 arcsec)."""


@dataclass(frozen=True, eq=False)
class Owed:
    """A visit-detector to be redone, and the new DIAObjects that it may have seen (`NEW_OBJECT_DTYPE`)."""

    visit: StoredVisit
    detector: int
    objects: Table

    def __str__(self) -> str:
        """For messages."""
        return f"visit {self.visit.visit} detector {self.detector}"


def run(output: Path, night: int | None, days: float, postgres: str, console: Console) -> int:
    """Do it; the exit code. Raises PachonError for what cannot be done; what was stored before that stays."""
    keep_freed_memory()
    settings = settings_of(output)
    archive = ButlerArchive.open(settings.butler)
    with database_of(settings, postgres) as dsn:
        asyncio.run(_run(dsn, night, days, Precovery(archive, StoredClock(settings.clock_file)), console))
    return 0


async def _run(dsn: str, night: int | None, days: float, precovery: "Precovery", console: Console) -> None:
    async with connected(dsn, l1_precovery.ready) as connection:
        night = await l1_precovery.last_night(connection) if night is None else night
        objects = await l1_precovery.new_objects(connection, night)
        owed = await owed_for(connection, objects, days)
        console.print(f"{len(objects)} DIAObjects new in {night}; {len(owed)} visit-detectors to be looked at again")
        refused = []
        for number, each in enumerate(owed, 1):
            try:
                said = await precovery.store(connection, each)
            except BadData as error:
                said = f"not done: {error}"
                refused.append(f"{each}: {error}")
            console.print(f"{number} of {len(owed)}: {each}: {said}")
    if refused:
        raise BadData(f"{len(refused)} of {len(owed)} visit-detectors were not done: {refused[0]}")


class Precovery:
    """Makes the rows: each visit-detector again, from its raws, once for all its objects."""

    def __init__(self, archive: ButlerArchive, clock: Clock) -> None:
        self._archive = archive
        self._clock = clock
        self._raws = ArchivedRaws(archive)
        self._reductions: dict[str, Reduction] = {}

    async def store(self, connection: asyncpg.Connection, owed: Owed) -> str:
        """Measure and store; what to say of it. Raises BadData naming a raw or product that is not there."""
        started = time.process_time()
        rows = await self.rows_of(owed)
        blank = np.setdiff1d(owed.objects["diaObjectId"], rows["diaObjectId"])
        where = {"visit": owed.visit.visit, "detector": owed.detector}
        added = await l1_precovery.store(connection, rows, blank, **where)
        spent = time.process_time() - started
        return f"{added} DIAForcedSources of {len(owed.objects)} DIAObjects, {spent:.1f} CPU s"

    async def rows_of(self, owed: Owed) -> Table:
        """`DiaForcedSource` rows of the objects that have usable pixels."""
        instrument, visit, detector = owed.visit.plan.instrument, owed.visit.visit, owed.detector
        last = self._raws.last_of(instrument, visit, detector)
        products = await self._reduction(instrument).products_of(last, detector, StageTimes())
        processed = self._clock.now()
        return forced_sources(products, owed.objects, visit=visit, detector=detector, processed=processed)

    def _reduction(self, instrument: str) -> Reduction:
        if instrument not in self._reductions:
            self._reductions[instrument] = Reduction(
                camera=camera(instrument),
                products=ButlerProducts(self._archive, instrument),
                raws=self._raws,
                clock=self._clock,
            )
        return self._reductions[instrument]


async def owed_for(connection: asyncpg.Connection, objects: Table, days: float) -> list[Owed]:
    """The visit-detectors of the days before each object was first seen that covered it and have no row of it.

    Those withdrawn are left out. By detector, filter and visit, so that a calibration is read once.
    """
    if not len(objects):
        return []
    first = objects["first"]
    owed: list[Owed] = []
    for visit in await l1_precovery.visits_between(connection, first.min() - days, first.max()):
        mjd = mjd_from_tai(visit.readout_ended)
        owed += await _owed_of(connection, visit, objects[(first - days <= mjd) & (mjd < first)])
    return sorted(owed, key=lambda each: (each.detector, each.visit.plan.filters, each.visit.visit))


async def _owed_of(connection: asyncpg.Connection, visit: StoredVisit, objects: Table) -> list[Owed]:
    near = separation_arcsec(objects["ra"], objects["dec"], visit.plan.ra, visit.plan.dec) < REACH_DEG * 3600.0
    objects = objects[near]
    if not len(objects):
        return []
    done: dict[int, list[int]] = defaultdict(list)
    for detector, known in await l1_precovery.measured(connection, visit.visit, objects["diaObjectId"]):
        done[detector].append(known)
    owed, there = [], camera(visit.plan.instrument)
    for detector in visit.detectors:
        inside = objects[_covered(there[detector], visit, objects)]
        left = inside[~np.isin(inside["diaObjectId"], done[detector])]
        if len(left) and not await l1_precovery.is_withdrawn(connection, visit.visit, detector):
            owed.append(Owed(visit, detector, left))
    return owed


def _covered(detector: Detector, visit: StoredVisit, objects: Table) -> NDArray[np.bool_]:
    """Which objects a detector may have seen, (n,)."""
    plan, form = visit.plan, detector.format
    x, y = nominal_wcs(detector, plan.ra, plan.dec, plan.rotation).sky_to_pixel(objects["ra"], objects["dec"])
    across = (x > -MARGIN_PX) & (x < form.width + MARGIN_PX)
    result: NDArray[np.bool_] = across & (y > -MARGIN_PX) & (y < form.height + MARGIN_PX)
    return result
