"""From measured sources to committed objects and alert packets."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog

from actors.base import Actor
from actors.camera_reader import PixelStore
from actors.fan_out import Chronicle
from actors.stage_times import StageTimes
from backbone.l1 import Floats, Ids, L1Database, Stored, VisitDetectorResult, alert_keys
from payloads.alert_production import dia_objects, packets
from payloads.alert_production.associate import Association, associate
from payloads.alert_production.ephemerides import Night, OrbitCatalogue
from payloads.alert_production.forced import forced_sources
from schemas.clock import Clock, mjd_from_tai
from schemas.errors import BadData, PachonError
from schemas.events import AlertsReady, AssociationDue, Event, VisitAssigned
from schemas.image import DiaProducts
from schemas.instrument import Camera
from schemas.pointing import center_of
from schemas.tables import Table
from schemas.wcs import separation_arcsec

FIELD_RADIUS_DEG = 0.17
"""Of a cone about a CCD's centre that holds all of it: half its diagonal, and a little."""

PRELOAD_RADIUS_DEG = FIELD_RADIUS_DEG + 0.015
"""About where a CCD's centre should look: the pointing is good to 10 arcsec, and a WCS wrong by 40 is still mended."""

_NOT_MEASURED = {"diaObjectId", "ssObjectId", "timeProcessedMjdTai", "timeWithdrawnMjdTai"}
"""Columns of a stored `DiaSource` that say nothing of the pixels."""

PRELOAD_S = 20.0
"""Wall seconds: a visit is announced at least as long before its first exposure."""


class PacketArchive(Protocol):
    """Where alert packets lie: archive, outbox and source of replays in one."""

    def write(self, visit: int, detector: int, records: Sequence[bytes], ids: Ids, keys: Ids) -> str:
        """Write the packets of a visit-detector, in order, and return the file's name. Whole or not at all.

        `ids`, `keys`: of each its `diaSourceId`, and its `diaObjectId` or `ssObjectId`.
        """

    def read(self, path: str) -> list[bytes]:
        """The packets of a file, byte for byte, held to their hashes."""

    def read_unchecked(self, path: str) -> list[bytes]:
        """The packets of a file, which was read with a check before."""

    def hashes(self, path: str) -> dict[int, bytes]:
        """SHA-256 of each packet of a file, by `diaSourceId`."""


@dataclass(frozen=True, eq=False)
class _Field:
    """Where and when a visit-detector looked."""

    ra: float
    dec: float
    mjd: float


class Associator(Actor):
    """Owns a visit-detector from its measured sources to its committed rows and packets.

    What it will read is brought into the database's memory, and the night's orbits are predicted, as soon as the visit
    is known: beside what it is given to do, not before it. That is a courtesy; without it the same is read, later.
    """

    def __init__(
        self,
        *,
        camera: Camera,
        l1: L1Database,
        archive: PacketArchive,
        pixels: PixelStore,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._camera = camera
        self._l1 = l1
        self._archive = archive
        self._pixels = pixels
        self._chronicle = chronicle
        self._clock = clock
        self._log = structlog.get_logger().bind(pool="associator")
        self._night: Night | None = None
        self._making_night, self._preloading = asyncio.Lock(), asyncio.Lock()
        self._preloads: set[asyncio.Task[None]] = set()

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """Begin to preload; what is due meanwhile need not wait for it."""
        job = asyncio.create_task(self._preload(event))
        self._preloads.add(job)
        job.add_done_callback(self._preloads.discard)
        return []

    async def preloaded(self) -> None:
        """Wait for what was begun, which takes `PRELOAD_S` at the most and the night's orbits."""
        await asyncio.gather(*self._preloads)

    async def _preload(self, event: VisitAssigned) -> None:
        """One detector after another, on one connection; what fails or comes too late is told, and no more."""
        plan = event.visit_plan
        mjd = mjd_from_tai(plan.start_time)
        try:
            place = center_of(self._camera[event.detector], plan.ra, plan.dec, plan.rotation)
            await self._ephemerides(mjd)
            async with asyncio.timeout(PRELOAD_S), self._preloading:
                await self._l1.preload(*place, PRELOAD_RADIUS_DEG, mjd - packets.HISTORY_DAYS)
        except (PachonError, TimeoutError) as error:
            reason = str(error) or f"not done within {PRELOAD_S:.0f} s"
            self._log.warning("not preloaded", group=event.group, detector=event.detector, error=reason)

    async def on_association_due(self, event: AssociationDue) -> Sequence[Event]:
        """Associate, force photometry, make packets, write the file, commit; then say so."""
        if await self._l1.contains(event.visit, event.detector):
            return await self._stored_before(event)
        products = await self._pixels.get(event.sources.products)
        if not isinstance(products, DiaProducts):
            raise BadData(f"visit {event.visit} detector {event.detector}: its pixels are not in the pixel store")
        times = StageTimes()
        try:
            result, fact = await self._result(event, products, times)
            stored = await self._l1.store(result, [fact], self._clock.now())
        except BadData:
            # Of two at once the slower may have read what the quicker, or a neighbour, has changed since: that the same
            # was measured is what counts.
            if not await self._l1.contains(event.visit, event.detector):
                raise
            return await self._stored_before(event)
        await self._pixels.drop(event.sources.products)
        return [fact] if stored is Stored.ADDED else await self._said_before(event)

    async def _stored_before(self, event: AssociationDue) -> Sequence[Event]:
        """What was said then: the same comes again after a crash. Raises BadData if other sources came."""
        products = await self._pixels.get(event.sources.products)
        stored = await self._l1.sources_of(event.visit, event.detector)
        await self._pixels.drop(event.sources.products)
        if isinstance(products, DiaProducts):
            _check_same(event, products.sources, stored)
        return await self._said_before(event)

    async def _said_before(self, event: AssociationDue) -> Sequence[Event]:
        """The fact that was committed with the rows. Raises BadData if that was in another group."""
        told = await self._chronicle.facts("AlertsReady", group=event.group)
        said = [fact for fact in told if isinstance(fact, AlertsReady) and fact.detector == event.detector]
        if not said:
            raise BadData(f"visit {event.visit} detector {event.detector} is stored already, of another group")
        return said

    async def _result(
        self, event: AssociationDue, products: DiaProducts, times: StageTimes
    ) -> tuple[VisitDetectorResult, AlertsReady]:
        field = _field(products)
        _check_inside(event, products.sources, field)
        known = await self._l1.objects_in(field.ra, field.dec, FIELD_RADIUS_DEG)
        night = await self._ephemerides(field.mjd)
        with times("associate"):
            ephemerides = night.predict(field.ra, field.dec, FIELD_RADIUS_DEG, field.mjd)
            found = associate(products.sources, known, ephemerides)
        with times("forced_photometry"):
            live = known["lastDiaSourceMjdTai"] >= field.mjd - packets.HISTORY_DAYS
            seen = np.isin(known["diaObjectId"], found.updated_ids)  # also one that was last seen longer ago
            forced = self._forced(event, products, known[live | seen], found)
        return await self._packed(event, products, known, found, forced, night, times)

    async def _packed(
        self,
        event: AssociationDue,
        products: DiaProducts,
        known: Table,
        found: Association,
        forced: Table,
        night: Night,
        times: StageTimes,
    ) -> tuple[VisitDetectorResult, AlertsReady]:
        since = mjd_from_tai(event.sources.observation.midpoint) - packets.HISTORY_DAYS
        (history, forced_history), before = await asyncio.gather(
            self._l1.history_of(found.updated_ids, since), self._l1.objects_of(found.updated_ids)
        )
        with times("make_packets"):
            every_forced = np.concatenate([forced_history, forced])
            objects = np.concatenate([before, found.new_objects])
            starts = _starts_of(objects, known)
            # Some versions may have been made by a clock ahead of this one: the new ones begin after them all the same.
            now = max(mjd_from_tai(self._clock.now()), *np.nextafter(starts[np.isfinite(starts)], np.inf), 0.0)
            objects = dia_objects.update(objects, history, found.sources, every_forced, now)
            chosen = packets.alertable(found.sources)
            stamps = [stamp for stamp, sent in zip(products.stamps, chosen, strict=True) if sent]
            records = packets.make_packets(
                found.sources[chosen],
                stamps,
                objects=objects,
                history=history,
                forced_history=forced_history,
                ss_sources=found.ss_sources,
                orbits=night.orbits_of(found.ss_sources["ssObjectId"]),
                observation=event.sources.observation,
            )
        alert_ids, keys = found.sources["diaSourceId"][chosen], alert_keys(found.sources[chosen])
        # In a thread: other visit-detectors need not wait until this one's alerts are on the disk.
        path = await asyncio.to_thread(self._archive.write, event.visit, event.detector, records, alert_ids, keys)
        result = VisitDetectorResult(
            group=event.group,
            visit=event.visit,
            detector=event.detector,
            readout_ended=event.sources.observation.readout_ended,
            sources=found.sources,
            objects=objects,
            forced=forced,
            ss_sources=found.ss_sources,
            alert_path=path,
            alert_ids=alert_ids,
            read_starts=starts,
        )
        return result, _told(result, event, times)

    def _forced(self, event: AssociationDue, products: DiaProducts, known: Table, found: Association) -> Table:
        """`DiaForcedSource` rows of each `known` DIAObject and of the new ones, where there are usable pixels."""
        columns = ["diaObjectId", "ra", "dec"]
        places = np.concatenate([known[columns], found.new_objects[columns]])
        now = self._clock.now()
        return forced_sources(products, places, visit=event.visit, detector=event.detector, processed=now)

    async def _ephemerides(self, mjd: float) -> Night:
        """The night's prediction of the known orbits: made once, for some hours, by whoever first asks for it."""
        async with self._making_night:
            if self._night is None or not self._night.covers(mjd):
                self._night = await asyncio.to_thread(_night_of, await self._l1.orbits(), mjd)
            return self._night


def _night_of(orbits: Table, mjd: float) -> Night:
    return Night(OrbitCatalogue(orbits), mjd)


def _told(result: VisitDetectorResult, event: AssociationDue, times: StageTimes) -> AlertsReady:
    """The fact that is committed with a result."""
    return AlertsReady(
        group=result.group, instrument=event.sources.instrument, visit=result.visit, detector=result.detector,
        readout_ended=result.readout_ended, dia_sources=len(result.sources),
        new_dia_objects=int(np.isnan(result.read_starts).sum()), alerts=len(result.alert_ids), path=result.alert_path,
        stages=times.seconds, redone=event.redone,
    )  # fmt: skip


def _starts_of(objects: Table, known: Table) -> Floats:
    """When the version of each object began that was read before all else of it; NaN of new ones."""
    starts = np.full(len(objects), np.nan)
    _, row, place = np.intersect1d(objects["diaObjectId"], known["diaObjectId"], return_indices=True)
    starts[row] = known["validityStartMjdTai"][place]
    return starts


def _check_inside(event: AssociationDue, sources: Table, field: _Field) -> None:
    """Raises BadData, naming it, for a source that is not where its detector looked, or nowhere."""
    apart = separation_arcsec(sources["ra"], sources["dec"], field.ra, field.dec)
    astray = np.flatnonzero(~(apart <= FIELD_RADIUS_DEG * 3600.0))  # also NaN
    if len(astray):
        stray, away = sources[astray[0]], apart[astray[0]] / 3600.0
        where = f"is {away:.3f} deg from the detector's centre" if np.isfinite(away) else "is nowhere on the sky"
        raise BadData(
            f"visit {event.visit} detector {event.detector}: DiaSource {stray['diaSourceId']} at ra {stray['ra']}, "
            f"dec {stray['dec']} {where}; there are {len(astray)} such"
        )


def _check_same(event: AssociationDue, sources: Table, stored: Table) -> None:
    """Raises BadData, naming what differs, unless the sources were measured as those stored: to the last bit."""
    what = f"visit {event.visit} detector {event.detector} is stored already, with"
    if len(sources) != len(stored):
        raise BadData(f"{what} {len(stored)} DiaSources, not {len(sources)}")
    sources = sources[np.argsort(sources["diaSourceId"])]
    for name in (name for name in stored.dtype.names or () if name not in _NOT_MEASURED):
        nan = stored[name].dtype.kind == "f"
        if not np.array_equal(sources[name], stored[name], equal_nan=nan):
            raise BadData(f"{what} another {name} of its DiaSources")


def _field(products: DiaProducts) -> _Field:
    ny, nx = products.difference.pixels.shape
    ra, dec = products.difference.wcs.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2)
    return _Field(float(ra), float(dec), mjd_from_tai(products.difference.midpoint))
