"""The L1 database as its users see it: sources, objects and the outbox of alerts.

Tables are structured arrays of `schemas.tables.dtype_of(...)`, nulls as described there. One visit-detector
is stored once, in one transaction; the alerts it owes the broker are part of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol

import hpgeom
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadData, Transient
from schemas.events import Event
from schemas.tables import Table, apdb_schema, dtype_of

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

HEALPIX_NSIDE = 16384
"""Nested; a pixel is 12.9 arcsec wide."""

ACKNOWLEDGEMENT_DTYPE = np.dtype(
    [
        ("visit", "i8"),
        ("detector", "i2"),
        ("diaSourceId", "i8"),
        ("readout_ended", "f8"),
        ("acknowledged_at", "f8"),
    ]
)
"""Times TAI s; `acknowledged_at` is NaN while the broker owes its answer."""

_MADE_ANEW = {"timeProcessedMjdTai", "validityStartMjdTai"}
"""Columns that say when a row was made: they differ when the same result is made twice."""


class Stored(Enum):
    """What `L1Database.store` found."""

    ADDED = "Added"
    EXISTS = "Exists"


@dataclass(frozen=True, eq=False)
class VisitDetectorResult:
    """What association makes of a visit-detector.

    `sources`, `objects`, `forced`, `ss_sources`: rows of `DiaSource`, `DiaObject` (new versions, whole rows),
    `DiaForcedSource`, `SSSource`. `alert_ids`: the `diaSourceId` of each alert in the file `alert_path`, in
    its order. `readout_ended`: TAI s. `read_starts`: float64 (n,), of each row of `objects` the
    `validityStartMjdTai` of the version that it was made of, NaN of a new object.
    """

    group: str
    visit: int
    detector: int
    readout_ended: float
    sources: Table
    objects: Table
    forced: Table
    ss_sources: Table
    alert_path: str
    alert_ids: Ids
    read_starts: Floats

    def __str__(self) -> str:
        """For messages."""
        return f"visit {self.visit} detector {self.detector}"

    def tables(self) -> dict[str, Table]:
        """By official name."""
        return {
            "DiaSource": self.sources, "DiaObject": self.objects,
            "DiaForcedSource": self.forced, "SSSource": self.ss_sources,
        }  # fmt: skip

    def alert_keys(self) -> Ids:
        """The key of each alert: its `diaObjectId`, or the `ssObjectId` of a Solar System object."""
        order = np.argsort(self.sources["diaSourceId"])
        rows = self.sources[order[np.searchsorted(self.sources["diaSourceId"], self.alert_ids, sorter=order)]]
        return alert_keys(rows)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes of what was found, whenever it was made: the same for a result made twice."""
        digest = hashlib.blake2b(f"{self.group}|{self.visit}|{self.detector}".encode(), digest_size=16)
        for table in self.tables().values():
            for name in table.dtype.names or ():
                if name not in _MADE_ANEW:
                    digest.update(table[name].tobytes())
        digest.update(self.alert_ids.tobytes())
        return digest.digest()


@dataclass(frozen=True, eq=False)
class Outbox:
    """The stored record of a visit-detector, and how far its alerts got.

    `alert_ids`, `alert_keys`: int64 (n,), in the order of the file `path`. `acknowledged_at`: TAI s (n,), NaN
    for what is still owed. `failures`: reason -> how many, of the last attempt; and how many were
    sent with smaller cutouts, of all attempts.
    """

    group: str
    visit: int
    detector: int
    readout_ended: float
    path: str
    dia_sources: int
    new_dia_objects: int
    dia_forced_sources: int
    alert_ids: Ids
    alert_keys: Ids
    acknowledged_at: Floats
    failures: Mapping[str, int]

    @property
    def n_alerts(self) -> int:
        """How many alerts the file holds."""
        return len(self.alert_ids)

    @property
    def owed(self) -> NDArray[np.bool_]:
        """Which alerts the broker has not acknowledged, (n,)."""
        result: NDArray[np.bool_] = np.isnan(self.acknowledged_at)
        return result


@dataclass(frozen=True)
class Counts:
    """How many of each a visit-detector has."""

    dia_sources: int
    new_dia_objects: int
    dia_forced_sources: int
    alerts: int
    acknowledged: int


class L1Database(Protocol):
    """What is asked of the L1 database while it works. All raise Transient if it does not answer."""

    async def objects_in(self, ra: float, dec: float, radius_deg: float) -> Table:
        """`DiaObjectLast` rows, which tell of the valid version of each object, within a cone (deg, ICRS), by id."""

    async def objects_of(self, object_ids: Ids) -> Table:
        """The valid `DiaObject` rows of those objects that there are, by id."""

    async def history_of(self, object_ids: Ids, since_mjd: float) -> tuple[Table, Table]:
        """`DiaSource` and `DiaForcedSource` rows of objects since an MJD (TAI), by object and time."""

    async def preload(self, ra: float, dec: float, radius_deg: float, since_mjd: float) -> int:
        """Bring into the server's memory what the three above will read of a cone (deg, ICRS) since an MJD (TAI).

        Nothing is kept on this side, so that nothing can grow stale: the rows are only counted. How many there are,
        those of a narrow rim about the cone included.
        """

    async def sources_of(self, visit: int, detector: int) -> Table:
        """All `DiaSource` rows of a visit-detector, by id."""

    async def contains(self, visit: int, detector: int) -> bool:
        """Whether a visit-detector is stored."""

    async def store(self, result: VisitDetectorResult, facts: Sequence[Event], at: float) -> Stored:
        """Store a result and the facts that follow from it, all or nothing, at a time (TAI s).

        Current versions of its objects end where the new ones start. What is stored stays as it is. Raises
        BadData if the tables break the schema or the visit-detector is stored with another content, Transient if
        an object is no longer as it was read, for another changed or ended it meanwhile: then it is to be made anew.
        """

    async def outbox(self, visit: int, detector: int) -> Outbox | None:
        """The record of a visit-detector, or None if it is not stored."""

    async def unsent(self) -> list[Outbox]:
        """Visit-detectors with alerts that the broker has not acknowledged, in the order of their storing."""

    async def mark_sent(self, visit: int, detector: int, acknowledged_at: Floats, failures: Mapping[str, int]) -> None:
        """Note when each alert (n,) was acknowledged (TAI s, NaN: not). An earlier acknowledgement stays.

        Raises BadData for a visit-detector that is not stored, or another number of alerts.
        """

    async def acknowledgements(self, visits: Sequence[int]) -> Table:
        """Every alert of some visits, `ACKNOWLEDGEMENT_DTYPE`, by visit, detector and place in the file."""

    async def load_orbits(self, table: Table) -> None:
        """Replace the catalogue of orbits (`mpc_orbits` rows)."""

    async def orbits(self) -> Table:
        """The catalogue of orbits, by id."""

    async def counts(self) -> dict[tuple[int, int], Counts]:
        """By visit and detector."""


def alert_keys(sources: Table) -> Ids:
    """The key of an alert about each `DiaSource` row: its `diaObjectId`, or the `ssObjectId` if it has none."""
    return np.where(sources["diaObjectId"] != 0, sources["diaObjectId"], sources["ssObjectId"])


def ordered(table: Table, *names: str) -> Table:
    """The rows by the values of columns, the first name first (np.sort by `order` compares whole records)."""
    result: Table = table[np.lexsort([table[name] for name in reversed(names)])]
    return result


def healpix_of(table: Table) -> Ids:
    """The HEALPix pixel of each row's `ra`, `dec`."""
    pixels: Ids = hpgeom.angle_to_pixel(HEALPIX_NSIDE, table["ra"], table["dec"])
    return pixels


def merged_acknowledgements(earlier: Sequence[float] | None, later: Floats, what: str) -> Floats:
    """Per alert the first acknowledgement. Raises BadData if they are not of the same alerts."""
    if earlier is None:
        raise BadData(f"{what} is not stored: none of its alerts can be acknowledged")
    if len(earlier) != len(later):
        raise BadData(f"{what} has {len(earlier)} alerts, {len(later)} acknowledgements came")
    times = np.asarray(earlier, dtype=np.float64)
    return np.where(np.isnan(times), later, times)


def check_result(result: VisitDetectorResult) -> None:
    """Raises BadData, naming the row, if a table breaks the schema or the alerts are not of the sources.

    And as `_check_versions`.
    """
    for name, table in result.tables().items():
        check_table(name, table, str(result))
        for column, value in (("visit", result.visit), ("detector", result.detector)):
            if column in (table.dtype.names or ()) and np.any(table[column] != value):
                raise BadData(f"{result}: {name} has rows of another {column}")
    _check_unique(result.sources["diaSourceId"], f"{result}: diaSourceId")
    _check_unique(result.objects["diaObjectId"], f"{result}: diaObjectId of DiaObject")
    _check_unique(result.forced["diaObjectId"], f"{result}: diaObjectId of DiaForcedSource")
    _check_unique(result.alert_ids, f"{result}: diaSourceId of an alert")
    strays = np.setdiff1d(result.alert_ids, result.sources["diaSourceId"])
    if len(strays):
        raise BadData(f"{result}: the alert about {strays[0]} has no DiaSource")
    _check_versions(result)


def _check_versions(result: VisitDetectorResult) -> None:
    """Raises BadData if it does not say of which version each object was made.

    Transient if one would end before it began, for a clock is behind the one that made it, or if the object of a
    source has no row: it had ended when its row was asked for.
    """
    if len(result.read_starts) != len(result.objects):
        raise BadData(f"{result}: {len(result.objects)} objects, made of {len(result.read_starts)} versions")
    early = result.objects["diaObjectId"][result.read_starts > result.objects["validityStartMjdTai"]]
    if len(early):
        raise Transient(f"{result}: the version of DiaObject {early[0]} that was read starts after the new one")
    owners = result.sources["diaObjectId"]
    ended = np.setdiff1d(owners[owners != 0], result.objects["diaObjectId"])
    if len(ended):
        raise Transient(f"{result}: DiaObject {ended[0]} has ended meanwhile")


def check_table(name: str, table: Table, what: str) -> None:
    """Raises BadData, naming row and column, if a table is not as `apdb.yaml` says."""
    if table.dtype != dtype_of(name):
        raise BadData(f"{what}: the {name} table has other columns than apdb.yaml")
    for column, description in apdb_schema()[name].items():
        values = table[column]
        if values.dtype.kind == "U" and not all(map(str.isascii, values.tolist())):
            raise BadData(f"{what}: {column} of {name} has a text that is not ASCII")
        if description.get("nullable", True):
            continue
        null = np.isnan(values) if values.dtype.kind == "f" else values == "" if values.dtype.kind == "U" else None
        if null is not None and np.any(null):
            raise BadData(f"{what}: {column} of {name} is null in row {int(np.argmax(null))}")


def _check_unique(ids: Ids, what: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        raise BadData(f"{what} {values[np.argmax(counts)]} is there twice")
