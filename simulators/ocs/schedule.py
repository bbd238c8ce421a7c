"""What the night will observe: visits from a real night's log, from an opsim database, or planned here."""

import dataclasses
import datetime as dt
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from schemas.clock import day_obs_of, tai_from_mjd
from schemas.errors import BadData
from schemas.identity import exposure_id, image_name
from schemas.image import SCIENCE, Observation
from schemas.instrument import PHYSICAL_FILTERS
from simulators.ocs import site
from simulators.ocs.planner import pointings

SHUTTER_S, READOUT_S = 1.0, 2.0
"""How long the shutter takes to close and the camera to read out (LSE-29; lsstcam.lsst.io)."""

CADENCE_S, EXPOSURE_S, SNAPS, VISITS = 37.0, 30.0, 2, 6
"""Of the own plan: seconds between visits, open shutter (s) and snaps of a visit, number of visits."""

_BAND_FILTERS = {band: name for name, band in PHYSICAL_FILTERS.items()}
_SOURCES = {"LSSTCam": "MC", "LATISS": "AT"}

Row = TypeVar("Row")
Declination = Annotated[FiniteFloat, Field(ge=-90.0, le=90.0)]
Exposure = Annotated[FiniteFloat, Field(gt=0.0, le=3600.0)]
Snaps = Annotated[int, Field(ge=1, le=100)]


@dataclass(frozen=True)
class PlannedVisit:
    """A visit to come: its first shutter opening (TAI s), pointing and position angle (deg ICRS), exposures.

    `exposure_time` is one snap's, s. `seq_num` is the first snap's; the others follow it. `group` is unique. One of
    another `image_type` than science looks at no sky.
    """

    start_tai: FiniteFloat
    ra: FiniteFloat
    dec: Declination
    rotation: FiniteFloat
    physical_filter: str
    exposure_time: Annotated[FiniteFloat, Field(ge=0.0, le=3600.0)]
    n_snaps: Snaps
    survey: str
    seq_num: int
    group: str
    instrument: str
    image_type: str = SCIENCE

    @property
    def day_obs(self) -> int:
        """The night, YYYYMMDD."""
        return day_obs_of(self.start_tai)

    @property
    def snap_s(self) -> float:
        """Seconds from one snap's shutter opening to the next one's: integration, shutter, readout."""
        return self.exposure_time + SHUTTER_S + READOUT_S

    @property
    def duration(self) -> float:
        """Seconds from the first shutter opening to the end of the last readout."""
        return self.n_snaps * self.snap_s

    def observation(self, snap: int) -> Observation:
        """What the camera is told of a snap (from 0) as its shutter opens; the readout's end is foretold."""
        seq_num, started = self.seq_num + snap, self.start_tai + snap * self.snap_s
        return Observation(
            instrument=self.instrument,
            group=self.group,
            visit=exposure_id(self.day_obs, self.seq_num),
            exposure=exposure_id(self.day_obs, seq_num),
            snap=snap,
            n_snaps=self.n_snaps,
            image_name=image_name(self.day_obs, seq_num, _SOURCES.get(self.instrument, "MC")),
            physical_filter=self.physical_filter,
            band=PHYSICAL_FILTERS.get(self.physical_filter, self.physical_filter),
            ra=self.ra,
            dec=self.dec,
            rotation=self.rotation,
            exposure_time=self.exposure_time,
            started=started,
            readout_ended=started + self.snap_s,
            survey=self.survey,
            image_type=self.image_type,
        )


def load_schedule(
    source: str,
    *,
    n: int | None = None,
    cadence: float | None = None,
    n_snaps: int | None = None,
    seed: int = 0,
    instrument: str = "LSSTCam",
) -> list[PlannedVisit]:
    """The first `n` visits of `source`: `own`, a real night's .json, or an opsim .db (SQLite).

    `cadence` (s) replaces the schedule's own times; `n_snaps` splits each visit's open-shutter time anew. A
    visit that would start before the one before it is read out is put back, as is its sequence number. `seed`
    matters to `own` only. Raises BadData naming the file and what is wrong with it.
    """
    if min(n or 1, n_snaps or 1, cadence or 1.0) <= 0 or n == 0 or n_snaps == 0:
        raise BadData(f"visits ({n}), snaps ({n_snaps}) and cadence ({cadence} s) must be positive")
    if source == "own":
        snaps = n_snaps or SNAPS
        n_visits = VISITS if n is None else n
        every = cadence or CADENCE_S
        return plan_own(seed, n_visits, every, EXPOSURE_S / snaps, snaps, instrument=instrument)
    path = Path(source)
    readers = {".json": read_real_night, ".db": read_opsim}
    if path.suffix not in readers:
        raise BadData(f"schedule {source!r} is neither `own` nor a .json nor a .db file")
    visits = [dataclasses.replace(visit, instrument=instrument) for visit in readers[path.suffix](path)][:n]
    if n_snaps is not None:
        visits = [_with_snaps(visit, n_snaps) for visit in visits]
    return _in_sequence(visits, cadence)


def _with_snaps(visit: PlannedVisit, n_snaps: int) -> PlannedVisit:
    total = visit.exposure_time * visit.n_snaps
    return dataclasses.replace(visit, n_snaps=n_snaps, exposure_time=total / n_snaps)


def _in_sequence(visits: Sequence[PlannedVisit], cadence: float | None) -> list[PlannedVisit]:
    """The visits one after the other: none starts, or takes a number, before its predecessor is done."""
    settled: list[PlannedVisit] = []
    for number, visit in enumerate(visits):
        start, seq_num = visit.start_tai, visit.seq_num
        if cadence is not None:
            start = visits[0].start_tai + number * cadence
        if settled:
            last = settled[-1]
            _check_cadence(cadence, last)
            start = max(start, last.start_tai + last.duration)
            if day_obs_of(start) == last.day_obs:
                seq_num = max(seq_num, last.seq_num + last.n_snaps)
        settled.append(dataclasses.replace(visit, start_tai=start, seq_num=seq_num))
    return settled


def _check_cadence(cadence: float | None, visit: PlannedVisit) -> None:
    if cadence is not None and cadence < visit.duration:
        raise BadData(f"a cadence of {cadence} s is too short: a visit takes {visit.duration:g} s")


# --- files -----------------------------------------------------------------------------------------------


class _LoggedVisit(BaseModel):
    """A row of a real night's log, as the observatory's visit database exports it."""

    model_config = ConfigDict(strict=True)
    visit_id: int
    fieldRA: FiniteFloat  # noqa: N815 - the export's name
    fieldDec: Declination  # noqa: N815
    band: str
    rotSkyPos: FiniteFloat  # noqa: N815
    visitExposureTime: Exposure  # noqa: N815
    observationStartDatetime64: str  # noqa: N815


class _SimulatedVisit(BaseModel):
    """A row of opsim's `observations`. `observationStartMJD` is taken as TAI."""

    model_config = ConfigDict(strict=True)
    fieldRA: FiniteFloat  # noqa: N815
    fieldDec: Declination  # noqa: N815
    observationStartMJD: FiniteFloat  # noqa: N815
    visitExposureTime: Exposure  # noqa: N815
    numExposures: Snaps  # noqa: N815
    rotSkyPos: FiniteFloat  # noqa: N815
    band: str
    science_program: str = ""


def read_real_night(path: Path) -> list[PlannedVisit]:
    """Visits of a real night, one snap each, by start. Raises BadData naming file, row and column."""
    rows = _checked(list[_LoggedVisit], path, _read_bytes(path))
    visits = [
        PlannedVisit(
            start_tai=_tai_of(row.observationStartDatetime64, path),
            ra=row.fieldRA % 360.0,
            dec=row.fieldDec,
            rotation=row.rotSkyPos % 360.0,
            physical_filter=_BAND_FILTERS.get(row.band, row.band),
            exposure_time=row.visitExposureTime,
            n_snaps=1,
            survey="",
            seq_num=row.visit_id % 100_000,
            group=row.observationStartDatetime64,
            instrument="LSSTCam",
        )
        for row in rows
    ]
    return _by_start(visits, path)


def read_opsim(path: Path) -> list[PlannedVisit]:
    """Visits of an opsim database, by start. Raises BadData naming file, row and column."""
    visits = []
    for row in _checked(list[_SimulatedVisit], path, _read_observations(path)):
        start = tai_from_mjd(row.observationStartMJD)
        visits.append(
            PlannedVisit(
                start_tai=start,
                ra=row.fieldRA % 360.0,
                dec=row.fieldDec,
                rotation=row.rotSkyPos % 360.0,
                physical_filter=_BAND_FILTERS.get(row.band, row.band),
                exposure_time=row.visitExposureTime / row.numExposures,
                n_snaps=row.numExposures,
                survey=row.science_program,
                seq_num=1,
                group=group_name(start),
                instrument="LSSTCam",
            )
        )
    return _by_start(visits, path)


def dump_plan(plan: Iterable[PlannedVisit], path: Path) -> None:
    """Write a plan as a JSON list."""
    path.write_bytes(TypeAdapter(list[PlannedVisit]).dump_json(list(plan), indent=1))


def load_plan(path: Path) -> list[PlannedVisit]:
    """Read a plan written by `dump_plan`. Raises BadData naming the file, the visit and the field."""
    return _by_start(_checked(list[PlannedVisit], path, _read_bytes(path)), path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"schedule {path}: {error.strerror}") from error


def _read_observations(path: Path) -> list[dict[str, object]]:
    """Rows of `observations`; a missing column is found by the check of the rows."""
    if not path.is_file():
        raise BadData(f"schedule {path}: No such file")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute("SELECT * FROM observations")]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise BadData(f"schedule {path}: not an opsim database: {error}") from error


def _checked(kind: type[Row], path: Path, content: bytes | list[dict[str, object]]) -> Row:
    adapter: TypeAdapter[Row] = TypeAdapter(kind)
    try:
        if isinstance(content, bytes):
            return adapter.validate_json(content, strict=True)
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ", ".join(str(part) for part in first["loc"])
        raise BadData(f"schedule {path}: visit {where}: {first['msg']}") from error


def _by_start(visits: list[PlannedVisit], path: Path) -> list[PlannedVisit]:
    """In order of start, numbered so that no two overlap; there must be some, of different groups."""
    if not visits:
        raise BadData(f"schedule {path}: no visits")
    group, times = Counter(visit.group for visit in visits).most_common(1)[0]
    if times > 1:
        raise BadData(f"schedule {path}: {times} visits of the group {group}")
    return _in_sequence(sorted(visits, key=lambda visit: visit.start_tai), None)


def _tai_of(stamp: str, path: Path) -> float:
    """TAI seconds of an ISO 8601 stamp in TAI."""
    try:
        return dt.datetime.fromisoformat(stamp).replace(tzinfo=dt.UTC).timestamp()
    except ValueError as error:
        raise BadData(f"schedule {path}: observationStartDatetime64 {stamp!r} is no ISO 8601 time") from error


def group_name(tai: float) -> str:
    """A group's name as the observatory makes it: the time in TAI, ISO 8601, to the millisecond."""
    stamp = dt.datetime.fromtimestamp(round(tai * 1000) / 1000.0, dt.UTC)
    return stamp.replace(tzinfo=None).isoformat(timespec="milliseconds")


# --- the own plan -------------------------------------------------------------------------------------------


def plan_own(
    seed: int,
    n: int = VISITS,
    cadence: float = CADENCE_S,
    exposure_time: float = EXPOSURE_S / SNAPS,
    n_snaps: int = SNAPS,
    *,
    day_obs: int = 20260705,
    instrument: str = "LSSTCam",
) -> list[PlannedVisit]:
    """`n` visits every `cadence` s in the dark hours of a night, the same for the same arguments.

    Where they point: see `planner.pointings`. Raises BadData if they do not fit the night.
    """
    rng = np.random.default_rng(seed)
    first, last = site.dark_hours(day_obs)
    spare = last - first - n * cadence
    if n < 1 or spare < 0.0:
        raise BadData(f"{n} visits every {cadence:g} s do not fit {(last - first) / 3600.0:.1f} dark hours")
    start = float(np.floor(first + rng.uniform(0.0, spare)))
    visits = [
        PlannedVisit(
            start_tai=start + number * cadence,
            ra=pointing.ra,
            dec=pointing.dec,
            rotation=pointing.rotation,
            physical_filter=pointing.physical_filter,
            exposure_time=exposure_time,
            n_snaps=n_snaps,
            survey="wide",
            seq_num=1 + number * n_snaps,
            group=group_name(start + number * cadence),
            instrument=instrument,
        )
        for number, pointing in enumerate(pointings(rng, n, start, cadence))
    ]
    return _in_sequence(visits, cadence)
