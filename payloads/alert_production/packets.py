"""Alert packets: records of the newest schema of `lsst-alert-packet`, and their bytes on the wire.

Which fields a record has, and which may be null, is read from the official Avro schema; which value means
null is `schemas.tables`' convention. What is not known is null; nothing is made up.
"""

import io
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from math import inf, nextafter
from typing import Any, cast

import fastavro
import numpy as np
from lsst.alert.packet import get_latest_schema_version, get_path_to_latest_schema
from numpy.typing import NDArray

from payloads.alert_production.fits_stamp import stamp_bytes
from payloads.alert_production.score import MIN_RELIABILITY
from payloads.alert_production.table_checks import require_columns, require_positions
from schemas.errors import BadData
from schemas.image import Observation, Stamp
from schemas.tables import Table

Record = dict[str, Any]

HISTORY_DAYS = 365.0
MAX_TRAIL_DEG_DAY = 10.0
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


@cache
def alert_schema() -> Record:
    """The newest official schema, parsed by fastavro, all its records inside it."""
    return cast("Record", fastavro.schema.load_schema(get_path_to_latest_schema()))


@cache
def schema_id() -> int:
    """The id that the schema has in Rubin's registry: major * 100 + minor, 1101 for 11.1."""
    major, minor = get_latest_schema_version()
    return int(major) * 100 + int(minor)


def encode(record: Record) -> bytes:
    """An alert as schemaless Avro."""
    out = io.BytesIO()
    # fastavro takes the branch of a union as told, where else it would validate whole histories to choose one
    told = {name: (branch, record[name]) for name, branch in _branches().items() if record[name] is not None}
    fastavro.schemaless_writer(out, alert_schema(), {**record, **told})
    return out.getvalue()


def frame(payload: bytes) -> bytes:
    """What goes to Kafka: Confluent's header (magic 0, schema id, big-endian) and the Avro payload."""
    return struct.pack(">bI", 0, schema_id()) + payload


def make_packets(
    sources: Table, stamps: Sequence[Stamp], *, objects: Table, history: Table, forced_history: Table,
    ss_sources: Table, orbits: Table, observation: Observation,
) -> list[Record]:  # fmt: skip
    """One alert record a DIASource, in order.

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
    return [
        _packet(source, stamp, known, observation)
        for source, stamp in zip(records(sources, "diaSource"), stamps, strict=True)
    ]


def _packet(source: Record, stamp: Stamp, known: "_Known", observation: Observation) -> Record:
    rotation = observation.rotation
    return {
        "diaSourceId": source["diaSourceId"], "diaSource": source,
        "observation_reason": observation.survey or None, "target_name": None,
        **(known.body(source) if source["ssObjectId"] else known.object(source)),
        "cutoutDifference": stamp_bytes(stamp.difference, stamp.wcs, stamp.psf_difference, rotation),
        "cutoutScience": stamp_bytes(stamp.science, stamp.wcs, stamp.psf_science, rotation),
        "cutoutTemplate": stamp_bytes(stamp.template, stamp.wcs, stamp.psf_template, rotation),
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Known:
    """What the sources' objects are, as records, by id or designation."""

    objects: Mapping[int, Record]
    sources: "_History"
    forced: "_History"
    ss_sources: Mapping[int, Record]
    orbits: Mapping[str, Record]

    @classmethod
    def of(
        cls, sources: Table, objects: Table, history: Table, forced: Table, ss_sources: Table, orbits: Table
    ) -> "_Known":
        ids = np.unique(sources["diaObjectId"])
        moving = ss_sources[np.isin(ss_sources["diaSourceId"], sources["diaSourceId"])]
        return cls(
            _by(objects[np.isin(objects["diaObjectId"], ids)], "diaObject", "diaObjectId"),
            _History(history[np.isin(history["diaObjectId"], ids)], "diaSource"),
            _History(forced[np.isin(forced["diaObjectId"], ids)], "diaForcedSource"),
            _by(moving, "ssSource", "diaSourceId"),
            _by(orbits[np.isin(orbits["designation"], moving["designation"])], "mpc_orbits", "designation"),
        )

    def object(self, source: Record) -> Record:
        """The part of a packet that tells of a DIAObject."""
        number, time = source["diaObjectId"], source["midpointMjdTai"]
        return {
            "diaObject": _found(self.objects, number, source, "DiaObject"),
            "prvDiaSources": self.sources.between(number, time - HISTORY_DAYS, nextafter(time, -inf)),
            "prvDiaForcedSources": self.forced.between(number, time - HISTORY_DAYS, time),
            "ssSource": None, "mpc_orbits": None,
        }  # fmt: skip

    def body(self, source: Record) -> Record:
        """The part of a packet that tells of a Solar System object."""
        ss_source = _found(self.ss_sources, source["diaSourceId"], source, "SSSource")
        return {
            "diaObject": None, "prvDiaSources": None, "prvDiaForcedSources": None, "ssSource": ss_source,
            "mpc_orbits": _found(self.orbits, ss_source["designation"], source, "mpc_orbits"),
        }  # fmt: skip


class _History:
    """Records of a table by object, in order of time; withdrawn rows left out."""

    def __init__(self, table: Table, record: str) -> None:
        table = table[np.isnan(table["timeWithdrawnMjdTai"])]
        table = table[np.lexsort((table["midpointMjdTai"], table["diaObjectId"]))]
        ids, starts, counts = np.unique(table["diaObjectId"], return_index=True, return_counts=True)
        spans = zip(starts.tolist(), (starts + counts).tolist(), strict=True)
        self._spans = dict(zip(ids.tolist(), spans, strict=True))
        self._times = table["midpointMjdTai"].tolist()
        self._records = records(table, record)

    def between(self, object_id: int, first: float, last: float) -> list[Record]:
        """Those of an object with first <= midpoint <= last (MJD TAI)."""
        start, end = self._spans.get(object_id, (0, 0))
        low = bisect_left(self._times, first, start, end)
        return self._records[low : bisect_right(self._times, last, low, end)]


def _by(table: Table, record: str, key: str) -> dict[Any, Record]:
    return {row[key]: row for row in records(table, record)}


def _found(rows: Mapping[Any, Record], key: int | str | None, source: Record, table: str) -> Record:
    if key not in rows:
        raise BadData(f"DiaSource {source['diaSourceId']} is of {table} {key}, which is not among the rows given")
    return rows[key]


def records(table: Table, record: str) -> list[Record]:
    """Rows of a table as dicts of a record of the schema (`diaSource`, `diaObject`, `ssSource`, ...).

    Raises BadData naming column and row for NaN where the schema allows no null, or the columns that are
    absent.
    """
    fields = _fields(record)
    require_columns(table, fields, f"the table for {record}")
    columns = [_column(table, name, kind, null) for name, (kind, null) in fields.items()]
    names = tuple(fields)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@cache
def _fields(record: str) -> dict[str, tuple[str, bool]]:
    """Name -> (Avro type, may be null) of a record of the schema."""
    found = _find(alert_schema(), f".{record}")
    if found is None:
        raise BadData(f"the alert schema has no record {record}")
    result = {}
    for field in found["fields"]:
        union = field["type"] if isinstance(field["type"], list) else [field["type"]]
        kind = next(branch for branch in union if branch != "null")
        result[field["name"]] = (kind if isinstance(kind, str) else kind["logicalType"], "null" in union)
    return result


@cache
def _branches() -> dict[str, str]:
    """Name -> the branch beside null, of the alert's fields that hold arrays and records or null."""
    result = {}
    for field in alert_schema()["fields"]:
        branch = field["type"][-1] if isinstance(field["type"], list) else None
        if isinstance(branch, dict):
            result[field["name"]] = str(branch["name"] if branch["type"] == "record" else branch["type"])
    return result


def _find(schema: object, suffix: str) -> Record | None:
    """The first definition in a schema of a record whose full name ends so."""
    if isinstance(schema, dict):
        if schema.get("type") == "record" and str(schema["name"]).endswith(suffix):
            return schema
        parts: list[object] = [schema.get("type"), schema.get("items"), *schema.get("fields", [])]
    else:
        parts = schema if isinstance(schema, list) else []
    return next((found for part in parts if (found := _find(part, suffix)) is not None), None)


def _column(table: Table, name: str, kind: str, nullable: bool) -> list[Any]:
    """A column's values as Avro takes them."""
    values = table[name]
    missing = _missing(values)
    if not nullable:
        if values.dtype.kind == "f" and np.any(missing):
            key = (table.dtype.names or ("",))[0]
            raise BadData(f"{name} of {key} {table[key][missing][0]} is NaN, where the schema allows no null")
        missing[:] = False
    if kind == "timestamp-micros":
        return [None if null else _utc(value) for value, null in zip(values.tolist(), missing.tolist(), strict=True)]
    if not np.any(missing):
        plain: list[Any] = values.tolist()
        return plain
    boxed = values.astype(object)
    boxed[missing] = None
    result: list[Any] = boxed.tolist()
    return result


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value means null: NaN, 0 of an integer, an empty text; never of a boolean."""
    result: NDArray[np.bool_] = np.zeros(len(values), dtype=np.bool_)
    if values.dtype.kind == "f":
        result = np.isnan(values)
    if values.dtype.kind in "iU":
        result = values == values.dtype.type()
    return result


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
