"""Rows and alerts as fastavro takes and gives them: what the column encoder is held to."""

import io
from datetime import UTC, datetime
from typing import Any

import fastavro
import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.alert_schema import Record, _find, alert_schema, fields_of
from payloads.alert_production.table_checks import require_columns
from schemas.errors import BadData
from schemas.tables import Table


def encoded_record(row: Record, record: str) -> bytes:
    """A record of the alert schema by fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _find(alert_schema(), f".{record}"), row)
    return out.getvalue()


def encoded_alert(alert: Record) -> bytes:
    """An alert by fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, alert_schema(), alert)
    return out.getvalue()


def decoded_alert(packet: bytes) -> Record:
    """An alert as fastavro reads it. All of the packet must be one."""
    stream = io.BytesIO(packet)
    alert = fastavro.schemaless_reader(stream, alert_schema(), None)
    assert stream.tell() == len(packet)
    return alert


def records(table: Table, record: str) -> list[Record]:
    """Rows of a table as dicts of a record of the schema (`diaSource`, `diaObject`, `ssSource`, ...).

    Raises BadData naming column and row for NaN where the schema allows no null, or the columns that are
    absent.
    """
    fields = {field.name: (field.kind, field.nullable) for field in fields_of(record)}
    require_columns(table, fields, f"the table for {record}")
    columns = [_column(table, name, kind, null) for name, (kind, null) in fields.items()]
    names = tuple(fields)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column(table: Table, name: str, kind: str, nullable: bool) -> list[Any]:
    """A column's values as Avro takes them."""
    values = table[name]
    missing = _missing(name, values)
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


NULL_BELOW_0 = {
    "trailAlgorithm", "diaDistanceRank", "orbit_type_int", "u_param", "nopp", "nobs_total", "nobs_total_sel",
}  # fmt: skip
"""Integers that may be null and are no ids."""


def _missing(name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value means null: NaN, 0 of an id, -1 of another integer, an empty text; never of a boolean."""
    result: NDArray[np.bool_] = np.zeros(len(values), dtype=np.bool_)
    if values.dtype.kind == "f":
        result = np.isnan(values)
    if values.dtype.kind in "iU":
        result = values == (-1 if name in NULL_BELOW_0 else values.dtype.type())
    return result


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
