"""Alert packets: records of the newest schema of `lsst-alert-packet`, as schemaless Avro.

Which fields a record has, and which may be null, is read from the official schema; which value means null is
`schemas.tables`' convention. What is not known is null; nothing is made up. Tables are encoded whole
(`avro_rows`), a packet is its parts one behind another.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.avro_rows import Encoded, encode_rows, encoded_long
from payloads.alert_production.fits_stamp import stamp_bytes
from payloads.alert_production.score import MIN_RELIABILITY
from payloads.alert_production.table_checks import require_columns, require_positions
from schemas.errors import BadData
from schemas.image import MaskedImage, Observation, Stamp
from schemas.tables import Table

HISTORY_DAYS = 365.0
MAX_TRAIL_DEG_DAY = 10.0
_NULL, _GIVEN = encoded_long(0), encoded_long(1)
"""Of a union of null and something else: which it is."""
_END = encoded_long(0)
"""Of an array."""
_REFUSED_FLAGS = (
    "pixelFlags_edge", "pixelFlags_offimage", "pixelFlags_nodataCenter", "pixelFlags_saturatedCenter",
    "pixelFlags_crCenter",
)  # fmt: skip


def alertable(sources: Table, min_reliability: float = MIN_RELIABILITY) -> NDArray[np.bool_]:
    """Which `DiaSource` rows get an alert, (n,).

    Those of at least `min_reliability` (so none that was not scored), not at the edge, off the image,
    without data, saturated or a cosmic ray in the centre, and not trailed by more than 10 deg/day (Rubin's
    policy: such are satellites and debris).
    """
    require_columns(sources, ("reliability", "trailLength", "exposureTime", *_REFUSED_FLAGS), "the DiaSource table")
    clean = ~np.any([sources[flag] for flag in _REFUSED_FLAGS], axis=0)
    longest = MAX_TRAIL_DEG_DAY * 3600.0 / 86400.0 * sources["exposureTime"]
    result: NDArray[np.bool_] = (
        clean & (sources["reliability"] >= min_reliability) & ~(sources["trailLength"] > longest)
    )
    return result


def make_packets(
    sources: Table, stamps: Sequence[Stamp], *, objects: Table, history: Table, forced_history: Table,
    ss_sources: Table, orbits: Table, observation: Observation,
) -> list[bytes]:  # fmt: skip
    """One alert a DIASource, in order, as schemaless Avro.

    `sources`: `DiaSource` rows, associated; `stamps`: one each. `objects`: `DiaObject` rows, updated.
    `history`, `forced_history`: `DiaSource` and `DiaForcedSource` rows, of which each alert takes its
    object's of the 12 months up to its own time, itself not. `ss_sources`, `orbits`: `SSSource` and
    `mpc_orbits` rows for those that are Solar System objects. Rows of other objects may be among them.
    `observation_reason` is the observation's survey.

    Raises BadData naming the row: a source without its object or orbit, a value missing that may not be.
    """
    if len(stamps) != len(sources):
        raise BadData(f"there are {len(stamps)} stamps for {len(sources)} DIASources")
    require_positions(sources, "diaSourceId", "DiaSource")
    known = _Known.of(sources, objects, history, forced_history, ss_sources, orbits)
    own = encode_rows(sources, "diaSource")
    reason = _NULL if not observation.survey else _GIVEN + _text(observation.survey)
    return [
        b"".join(
            [
                encoded_long(source.dia_source), reason, _NULL, own.rows(k, k + 1), *known.told_of(source),
                *_cutouts(stamp, observation.rotation),
            ]
        )
        for k, (source, stamp) in enumerate(zip(_sources(sources), stamps, strict=True))
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Source:
    """What of a DIASource says where the rest of its packet is."""

    dia_source: int
    dia_object: int
    ss_object: int
    time: float

    def lacks(self, what: str) -> BadData:
        """The error of a source whose object is not given."""
        return BadData(f"DiaSource {self.dia_source} is of {what}, which is not among the rows given")


def _sources(table: Table) -> list[_Source]:
    names = "diaSourceId", "diaObjectId", "ssObjectId", "midpointMjdTai"
    return [_Source(*row) for row in zip(*(table[name].tolist() for name in names), strict=True)]


def _cutouts(stamp: Stamp, rotation: float) -> list[bytes | memoryview]:
    """In the schema's order: difference, science, template."""
    result: list[bytes | memoryview] = []
    planes: tuple[tuple[MaskedImage, NDArray[np.float32]], ...] = (
        (stamp.difference, stamp.psf_difference),
        (stamp.science, stamp.psf_science),
        (stamp.template, stamp.psf_template),
    )
    for pixels, psf in planes:
        file = stamp_bytes(pixels, stamp.wcs, psf, rotation)
        result += [_GIVEN, encoded_long(len(file)), file]
    return result


def _text(text: str) -> bytes:
    data = text.encode()
    return encoded_long(len(data)) + data


@dataclass(frozen=True, eq=False)
class _Known:
    """What the sources' objects are, encoded, by id or designation."""

    objects: "_Rows"
    sources: "_History"
    forced: "_History"
    ss_sources: "_Rows"
    designations: Mapping[int, str]
    orbits: "_Rows"

    @classmethod
    def of(
        cls, sources: Table, objects: Table, history: Table, forced: Table, ss_sources: Table, orbits: Table
    ) -> "_Known":
        ids = np.unique(sources["diaObjectId"])
        moving = ss_sources[np.isin(ss_sources["diaSourceId"], sources["diaSourceId"])]
        return cls(
            _Rows(objects[np.isin(objects["diaObjectId"], ids)], "diaObject", "diaObjectId"),
            _History(history, ids, "diaSource"),
            _History(forced, ids, "diaForcedSource"),
            _Rows(moving, "ssSource", "diaSourceId"),
            dict(zip(moving["diaSourceId"].tolist(), moving["designation"].tolist(), strict=True)),
            _Rows(orbits[np.isin(orbits["designation"], moving["designation"])], "mpc_orbits", "designation"),
        )

    def told_of(self, source: _Source) -> list[bytes | memoryview]:
        """From the previous sources to the orbit: what a packet tells of an object, or of a Solar System object."""
        if source.ss_object:
            return [_NULL, _NULL, _NULL, *self._body(source)]
        since = source.time - HISTORY_DAYS
        row = self.objects.row(source.dia_object)
        if row is None:
            raise source.lacks(f"DiaObject {source.dia_object}")
        return [
            *self.sources.between(source.dia_object, since, nextafter(source.time, -inf)),
            *self.forced.between(source.dia_object, since, source.time),
            _GIVEN, row, _NULL, _NULL,
        ]  # fmt: skip

    def _body(self, source: _Source) -> list[bytes | memoryview]:
        ss_source = self.ss_sources.row(source.dia_source)
        if ss_source is None:
            raise source.lacks(f"SSSource {source.dia_source}")
        designation = self.designations[source.dia_source]
        orbit = self.orbits.row(designation)
        if orbit is None:
            raise source.lacks(f"mpc_orbits {designation}")
        return [_GIVEN, ss_source, _GIVEN, orbit]


class _Rows:
    """Encoded rows of a table by a key."""

    def __init__(self, table: Table, record: str, key: str) -> None:
        self._encoded = encode_rows(table, record)
        self._places: dict[Any, int] = {value: k for k, value in enumerate(table[key].tolist())}

    def row(self, key: int | str) -> memoryview | None:
        """The bytes of the row with that key, if there is one."""
        place = self._places.get(key)
        return None if place is None else self._encoded.rows(place, place + 1)


class _History:
    """Encoded rows of a table, those of some objects, by object, in order of time; withdrawn rows left out."""

    def __init__(self, table: Table, ids: NDArray[np.int64], record: str) -> None:
        owner, time = table["diaObjectId"], table["midpointMjdTai"]
        order = np.lexsort((time, owner))
        order = order[(np.isin(owner, ids) & np.isnan(table["timeWithdrawnMjdTai"]))[order]]
        owners, starts, counts = np.unique(owner[order], return_index=True, return_counts=True)
        spans = zip(starts.tolist(), (starts + counts).tolist(), strict=True)
        self._spans = dict(zip(owners.tolist(), spans, strict=True))
        self._times = time[order].tolist()
        self._encoded: Encoded = encode_rows(table, record, order)

    def between(self, object_id: int, first: float, last: float) -> list[bytes | memoryview]:
        """An array (not null) of those of an object with first <= midpoint <= last (MJD TAI), in one block."""
        start, end = self._spans.get(object_id, (0, 0))
        low = bisect_left(self._times, first, start, end)
        high = bisect_right(self._times, last, low, end)
        if low == high:
            return [_GIVEN, _END]
        return [_GIVEN, encoded_long(high - low), self._encoded.rows(low, high), _END]
