"""Rows of the L1 database's tables in PostgreSQL, read and written on one connection, within its transaction."""

import datetime as dt
import io
from collections.abc import Sequence

import asyncpg
import numpy as np

from backbone import l1_schema, pg_copy
from backbone.l1 import Floats, healpix_of, ordered
from schemas.errors import Transient
from schemas.tables import Table, dtype_of

_MJD_0, _FIRST_DAY = dt.date(1858, 11, 17).toordinal(), dt.date(2010, 1, 1).toordinal()

_CLOSE = """
WITH new AS (SELECT * FROM unnest($1::bigint[], $2::float8[], $3::float8[]) AS n (id, start, read)),
same AS (
    DELETE FROM "DiaObject" o USING new
    WHERE o."diaObjectId" = id AND o."validityEndMjdTai" IS NULL AND o."validityStartMjdTai" = read AND read = start
    RETURNING id),
closed AS (
    UPDATE "DiaObject" o SET "validityEndMjdTai" = start FROM new
    WHERE o."diaObjectId" = id AND o."validityEndMjdTai" IS NULL AND o."validityStartMjdTai" = read AND read < start
    RETURNING id)
SELECT id FROM same UNION ALL SELECT id FROM closed
"""

_LATEST = """
o WHERE o."diaObjectId" = ANY ($1::bigint[]) AND o."validityStartMjdTai" =
    (SELECT max(v."validityStartMjdTai") FROM "DiaObject" v WHERE v."diaObjectId" = o."diaObjectId")
"""


async def read(connection: asyncpg.Connection, table: str, rest: str, *parameters: object) -> Table:
    """Rows of a table, named `o` in the `rest` of the statement."""
    columns, output = l1_schema.columns_of(table), io.BytesIO()
    query = f'SELECT {pg_copy.selection(columns, "o")} FROM "{table}" {rest}'  # noqa: S608 - apdb.yaml
    await connection.copy_from_query(query, *parameters, output=output, format="binary")
    return pg_copy.decode(output.getvalue(), columns, dtype_of(table))


def since(name: str, object_ids: list[int], mjd: float) -> tuple[str, list[int], float, int]:
    """What follows the name of a table of sources, for those of objects since an MJD (TAI), and its parameters."""
    column = l1_schema.PARTITIONED[name]
    rest = (
        'o WHERE o."diaObjectId" = ANY ($1::bigint[]) AND o."midpointMjdTai" >= $2::float8'
        f' AND o."{column}" >= $3::bigint'  # so that months before are not looked at
    )
    return rest, object_ids, mjd, first_since(column, mjd)


def first_since(column: str, mjd: float) -> int:
    """The least value of a column by which tables are cut that a source of that time (MJD TAI) or later can have.

    Two days earlier: a day of observing begins at noon of the day before.
    """
    first = dt.date.fromordinal(max(_MJD_0 + int(max(mjd, 0.0)) - 2, _FIRST_DAY))
    return l1_schema.first_of(column, first.year * 100 + first.month, first.day)


async def copy(connection: asyncpg.Connection, name: str, table: Table) -> None:
    """Add rows to a table."""
    if len(table) == 0:
        return
    columns = l1_schema.columns_of(name)
    values = {column.name: table[column.name] for column in columns}
    if name in l1_schema.WITH_HEALPIX:
        columns += (l1_schema.HEALPIX,)
        values["healpix"] = healpix_of(table)
    await connection.copy_to_table(
        name, columns=[c.name for c in columns], source=io.BytesIO(pg_copy.encode(columns, values)), format="binary"
    )


async def latest_versions(connection: asyncpg.Connection, object_ids: Sequence[int]) -> Table:
    """The last `DiaObject` row of each object, valid or ended, by id."""
    return ordered(await read(connection, "DiaObject", _LATEST, list(object_ids)), "diaObjectId")


async def put_versions(connection: asyncpg.Connection, objects: Table, read_starts: Floats, what: str) -> int:
    """Put new versions of objects there; those that they were made of end where they start. Returns how many did.

    `read_starts`: as of a `VisitDetectorResult`. Raises Transient, saying at `what`, if such a version is no longer
    valid: what was made meanwhile would be lost.
    """
    order = np.argsort(objects["diaObjectId"])  # one order for all: no two transactions wait crosswise
    objects, read_starts = objects[order], read_starts[order]
    ids = objects["diaObjectId"].tolist()
    closed = await connection.fetch(_CLOSE, ids, objects["validityStartMjdTai"].tolist(), read_starts.tolist())
    other = np.setdiff1d(objects["diaObjectId"][~np.isnan(read_starts)], [row["id"] for row in closed])
    if len(other):
        raise Transient(f"{what}: DiaObject {other[0]} is not as it was read: it was changed or has ended meanwhile")
    await copy(connection, "DiaObject", objects)
    await connection.execute(_REPLACE_LAST, ids)
    return len(closed)


async def end_versions(connection: asyncpg.Connection, object_ids: Sequence[int], mjd: float) -> list[int]:
    """End objects at an MJD (TAI): nothing is associated with them any more. Returns those that were valid."""
    rows = await connection.fetch(
        'UPDATE "DiaObject" SET "validityEndMjdTai" = $2'
        ' WHERE "diaObjectId" = ANY ($1::bigint[]) AND "validityEndMjdTai" IS NULL RETURNING "diaObjectId"',
        list(object_ids), mjd,
    )  # fmt: skip
    await connection.execute('DELETE FROM "DiaObjectLast" WHERE "diaObjectId" = ANY ($1::bigint[])', list(object_ids))
    return [row["diaObjectId"] for row in rows]


def _replace_last() -> str:
    """Bring `DiaObjectLast` up to the current versions of the objects $1."""
    names = [f'"{c.name}"' for c in l1_schema.columns_of("DiaObjectLast")] + ["healpix"]
    updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    columns = ", ".join(names)
    return (
        f'INSERT INTO "DiaObjectLast" ({columns}) SELECT {columns} FROM "DiaObject"'  # noqa: S608 - apdb.yaml
        ' WHERE "diaObjectId" = ANY ($1::bigint[]) AND "validityEndMjdTai" IS NULL'
        f' ON CONFLICT ("diaObjectId") DO UPDATE SET {updates}'
    )


_REPLACE_LAST = _replace_last()
