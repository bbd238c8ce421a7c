"""Tables to and from PostgreSQL's binary COPY format, whole columns at a time.

The format is that of the PostgreSQL documentation, "COPY", section "Binary Format": a row is the number of
its fields, then for each field its length (-1: null) and its bytes, all big-endian. Here a row is a record of
fixed size, from which the bytes of nulls are left out: nothing is done row by row.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from backbone.l1_schema import Column
from schemas.errors import Broken
from schemas.tables import Table, null_integer

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_WIRE = {
    "long": ">i8", "int": ">i4", "short": ">i2", "float": ">f4", "double": ">f8", "boolean": "?",
    "timestamp": ">i8",
}  # fmt: skip
_POSTGRES_EPOCH = 946_684_800.0
"""2000-01-01 in seconds since 1970-01-01: where PostgreSQL's microseconds start."""


def encode(columns: Sequence[Column], values: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The bytes of a COPY ... FROM STDIN (FORMAT binary).

    `values`: by column, each (n,), nulls by our convention. Text must be ASCII. `timestamp` columns are
    seconds since 1970-01-01 in whatever scale the column is in.
    """
    rows = len(values[columns[0].name])
    wire = np.zeros(rows, _row_dtype(tuple(columns)))
    wire["fields"] = len(columns)
    lengths = np.empty((rows, len(columns)), np.int16)
    for number, column in enumerate(columns):
        lengths[:, number] = _put(wire, column, values[column.name])
    owner, place = _bytes_of_row(tuple(columns))
    kept = place < lengths[:, owner]
    return _HEADER + wire.view(np.uint8).reshape(kept.shape)[kept].tobytes() + _TRAILER


def _put(wire: NDArray[np.void], column: Column, values: NDArray[np.generic]) -> NDArray[np.int32]:
    """Write a column's values and lengths; returns the lengths, -1 for null."""
    place = wire.dtype[column.name]
    if place.kind == "S":
        wire[column.name] = values.astype(place)
        lengths = np.char.str_len(wire[column.name]).astype(np.int32)
        lengths[lengths == 0] = -1
    else:
        null = _is_null(column, values)
        wire[column.name] = _microseconds(values, null) if column.datatype == "timestamp" else values
        lengths = np.where(null, -1, place.itemsize).astype(np.int32)
    wire[_length_of(column)] = lengths
    return lengths


def _is_null(column: Column, values: NDArray[np.generic]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values.astype(np.float64)), dtype=np.bool_)
    if column.nullable and values.dtype.kind == "i":
        return np.asarray(values == null_integer(column.name), dtype=np.bool_)
    return np.zeros(len(values), dtype=np.bool_)


def _microseconds(values: NDArray[np.generic], null: NDArray[np.bool_]) -> NDArray[np.int64]:
    seconds = np.where(null, _POSTGRES_EPOCH, values.astype(np.float64))
    return np.rint((seconds - _POSTGRES_EPOCH) * 1e6).astype(np.int64)


def selection(columns: Sequence[Column], alias: str) -> str:
    """The select list whose rows `decode` reads: no nulls, so that each row has the same size."""
    return ", ".join(_selected(column, f'{alias}."{column.name}"') for column in columns)


def _selected(column: Column, name: str) -> str:
    kind = _wire_type(column)
    if column.datatype == "timestamp":
        return f"COALESCE(EXTRACT(EPOCH FROM {name})::FLOAT8, 'NaN')"
    if kind.startswith("S"):
        return f"RPAD(COALESCE({name}, ''), {kind[1:]})"
    if not column.nullable:
        return name
    return f"COALESCE({name}, '{'NaN' if 'f' in kind else null_integer(column.name)}')"


def decode(data: bytes, columns: Sequence[Column], dtype: np.dtype[np.void]) -> Table:
    """The rows (n,) of a COPY (SELECT `selection`) TO STDOUT (FORMAT binary)."""
    wire_dtype = _row_dtype(tuple(columns), read=True)
    body = len(data) - len(_HEADER) - len(_TRAILER)
    if body % wire_dtype.itemsize:
        raise Broken(f"{body} bytes of COPY are no whole number of rows: a text in the database is not ASCII")
    wire = np.frombuffer(data, wire_dtype, body // wire_dtype.itemsize, len(_HEADER))
    table = np.empty(len(wire), dtype)
    for column in columns:
        values = wire[column.name]
        table[column.name] = np.char.rstrip(values) if values.dtype.kind == "S" else values
    return table


@cache
def _bytes_of_row(columns: tuple[Column, ...]) -> tuple[NDArray[np.intp], NDArray[np.int16]]:
    """Of each byte of a row on the wire: the column whose value it is of, and which of the value's bytes it is.

    -2, less than any length, for those that are always there.
    """
    dtype = _row_dtype(columns)
    fields = dict(dtype.fields or {})
    owner, place = np.zeros(dtype.itemsize, np.intp), np.full(dtype.itemsize, -2, np.int16)
    for number, column in enumerate(columns):
        value, begin, *_ = fields[column.name]
        here = slice(begin, begin + value.itemsize)
        owner[here], place[here] = number, np.arange(value.itemsize)
    return owner, place


@cache
def _row_dtype(columns: tuple[Column, ...], *, read: bool = False) -> np.dtype[np.void]:
    """A row on the wire, nothing left out. Read timestamps are seconds."""
    fields = [("fields", ">i2")]
    for column in columns:
        seconds = read and column.datatype == "timestamp"
        fields += [(_length_of(column), ">i4"), (column.name, ">f8" if seconds else _wire_type(column))]
    return np.dtype(fields)


def _length_of(column: Column) -> str:
    return f"length of {column.name}"


def _wire_type(column: Column) -> str:
    """A text without a length takes the 64 characters that it has in `schemas.tables`."""
    return _WIRE.get(column.datatype) or f"S{column.length or 64}"
