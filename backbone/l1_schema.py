"""The L1 database's tables in PostgreSQL: those of `apdb.yaml`, names and types as there, and Pachon's own.

Own are: a column `healpix` behind the official ones of three tables, for cones without an extension; the
table `visit_detector`, which is the record of what is stored and the outbox of alerts; `withdrawal`, the outbox of
what is told about withdrawn rows; and indexes. Sources are cut into months, so that what is read of a year does not
grow with the years, and old months can be taken away whole. Foreign keys are left out: Solar System tables are
loaded apart from the night's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from schemas.identity import dia_source_id, exposure_id
from schemas.tables import apdb_schema

_SQL_TYPES = {
    "long": "BIGINT", "int": "INTEGER", "short": "SMALLINT", "float": "REAL", "double": "DOUBLE PRECISION",
    "boolean": "BOOLEAN", "text": "TEXT", "timestamp": "TIMESTAMP (6) WITHOUT TIME ZONE",
}  # fmt: skip
_SIZED_SQL_TYPES = {"char": "CHAR", "string": "VARCHAR"}

PARTITIONED = {"DiaSource": "diaSourceId", "SSSource": "diaSourceId", "DiaForcedSource": "visit"}
"""By what a table is cut into months: ids and visits both grow with time, and are in the tables' keys."""

WITH_HEALPIX = ("DiaObject", "DiaObjectLast", "DiaSource")

LAYOUT_KEY, LAYOUT = "version:pachon", "2"
"""Of what is Pachon's own: 2 has months."""

VERSION_KEY = "version:schema"
"""Where `dax_apdb` keeps the schema's version, too."""

CURRENT_OBJECT = "dia_object_current"
"""The index that allows an object one valid version."""

WITHDRAWAL_DDL = """
CREATE TABLE IF NOT EXISTS withdrawal (
    notice TEXT PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, noted_at DOUBLE PRECISION NOT NULL,
    told_at DOUBLE PRECISION);
CREATE INDEX IF NOT EXISTS withdrawal_owed ON withdrawal (noted_at, notice) WHERE told_at IS NULL;
CREATE TABLE IF NOT EXISTS withdrawn_whole (
    visit BIGINT NOT NULL, detector SMALLINT NOT NULL, at DOUBLE PRECISION NOT NULL, PRIMARY KEY (visit, detector));
"""
"""What brokers are to be told of rows withdrawn and reinstated, and when (MJD TAI) it was noted and acknowledged.

And the visit-detectors that were withdrawn as a whole: of one without rows nothing else says so.
"""

PRECOVERY_DDL = """
CREATE TABLE IF NOT EXISTS precovery_blank (
    visit BIGINT NOT NULL, detector SMALLINT NOT NULL, dia_object BIGINT NOT NULL,
    PRIMARY KEY (visit, detector, dia_object));
"""
"""Where precovery found no usable pixels at a DIAObject's place: it does not look there again."""

OWN_DDL = f"""
ALTER TABLE "DiaObject" ADD COLUMN healpix BIGINT NOT NULL;
ALTER TABLE "DiaObjectLast" ADD COLUMN healpix BIGINT NOT NULL;
ALTER TABLE "DiaSource" ADD COLUMN healpix BIGINT NOT NULL;
ALTER TABLE "DiaObjectLast" SET (fillfactor = 60);
CREATE INDEX dia_object_current_healpix ON "DiaObject" (healpix) WHERE "validityEndMjdTai" IS NULL;
CREATE UNIQUE INDEX {CURRENT_OBJECT} ON "DiaObject" ("diaObjectId") WHERE "validityEndMjdTai" IS NULL;
CREATE INDEX dia_object_last_healpix ON "DiaObjectLast" (healpix);
CREATE INDEX dia_source_healpix ON "DiaSource" (healpix);
CREATE INDEX dia_source_history ON "DiaSource" ("diaObjectId", "midpointMjdTai");
CREATE INDEX dia_forced_source_history ON "DiaForcedSource" ("diaObjectId", "midpointMjdTai");
CREATE TABLE visit_detector (
    visit BIGINT NOT NULL, detector SMALLINT NOT NULL, grp TEXT NOT NULL, digest BYTEA NOT NULL,
    readout_ended DOUBLE PRECISION NOT NULL, committed_at DOUBLE PRECISION NOT NULL, alert_path TEXT NOT NULL,
    dia_sources INTEGER NOT NULL, new_dia_objects INTEGER NOT NULL, dia_forced_sources INTEGER NOT NULL,
    alert_ids BIGINT[] NOT NULL, alert_keys BIGINT[] NOT NULL, acknowledged_at DOUBLE PRECISION[] NOT NULL,
    owed INTEGER NOT NULL, failures JSONB NOT NULL DEFAULT '{{}}', PRIMARY KEY (visit, detector));
CREATE INDEX visit_detector_owed ON visit_detector (committed_at) WHERE owed > 0;
{WITHDRAWAL_DDL}{PRECOVERY_DDL}"""

_REPLACED_INDEXES = {"IDX_DiaSource_diaObjectId"}
"""Official indexes that one of ours, longer by the time, makes superfluous."""


@dataclass(frozen=True)
class Column:
    """A column: `datatype` as felis has it."""

    name: str
    datatype: str
    length: int | None = None
    nullable: bool = True

    @property
    def sql_type(self) -> str:
        """PostgreSQL's type; felis' `float` has 32 bits, where SQL's FLOAT has 64."""
        if self.datatype in _SIZED_SQL_TYPES:
            return f"{_SIZED_SQL_TYPES[self.datatype]}({self.length})"
        return _SQL_TYPES[self.datatype]


HEALPIX = Column("healpix", "long", nullable=False)


@cache
def columns_of(table: str) -> tuple[Column, ...]:
    """The official columns of a table, in order."""
    return tuple(
        Column(name, str(c["datatype"]), _length(c), bool(c.get("nullable", True)))
        for name, c in apdb_schema()[table].items()
    )


def ddl() -> str:
    """All statements that make an empty L1 database."""
    document = _document()
    tables = [_create_table(table) for table in document["tables"]]
    indexes = [index for table in document["tables"] for index in _create_indexes(table)]
    versions = {VERSION_KEY: document["version"], LAYOUT_KEY: LAYOUT}
    version = "\n".join(f"INSERT INTO metadata VALUES ('{k}', '{v}');" for k, v in versions.items())  # noqa: S608 - ours
    return "\n".join([*tables, *indexes, OWN_DDL, version])


def month_of(visit: int) -> int:
    """YYYYMM of a visit."""
    return visit // 10_000_000


def month_ddl(month: int) -> str:
    """The statements that make the partitions of a month, YYYYMM.

    Made apart and attached: that waits neither for readers, a dump for instance, nor they for it.
    """
    return "\n".join(
        f'CREATE TABLE "{table}_{month}" (LIKE "{table}" INCLUDING ALL);'
        f'ALTER TABLE "{table}" ATTACH PARTITION "{table}_{month}"'
        f" FOR VALUES FROM ({first_of(column, month)}) TO ({first_of(column, next_month(month))});"
        for table, column in PARTITIONED.items()
    )


def next_month(month: int) -> int:
    """YYYYMM of the month after."""
    year, number = divmod(month, 100)
    return (year + number // 12) * 100 + number % 12 + 1


def first_of(column: str, month: int, day: int = 1) -> int:
    """The least value that a column by which tables are cut can have from a day on."""
    visit = exposure_id(month * 100 + day, 0)
    return visit if column == "visit" else dia_source_id(visit, 0, 0)


def schema_version() -> str:
    """The version of `apdb.yaml`."""
    return str(_document()["version"])


@cache
def _document() -> dict[str, Any]:
    text = (resources.files("lsst.sdm.schemas") / "apdb.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return document


def _length(column: Mapping[str, object]) -> int | None:
    length = column.get("length")
    return int(str(length)) if length is not None else None


def _create_table(table: Mapping[str, Any]) -> str:
    lines = [_column_line(column, table["columns"]) for column in columns_of(table["name"])]
    if "primaryKey" in table:
        keys = table["primaryKey"]
        lines.append(f"PRIMARY KEY ({_names([keys] if isinstance(keys, str) else keys)})")
    lines += [
        f'CONSTRAINT "{constraint["name"]}" UNIQUE ({_names(constraint["columns"])})'
        for constraint in table.get("constraints", ())
        if constraint["@type"] == "Unique"
    ]
    cut = PARTITIONED.get(table["name"])
    by_month = f' PARTITION BY RANGE ("{cut}")' if cut else ""
    return f'CREATE TABLE "{table["name"]}" (\n  ' + ",\n  ".join(lines) + f"){by_month};"


def _column_line(column: Column, described: list[dict[str, object]]) -> str:
    default = next(c.get("value") for c in described if c["name"] == column.name)
    parts = [f'"{column.name}"', column.sql_type]
    parts += [f"DEFAULT {default}"] if default is not None else []
    parts += [] if column.nullable else ["NOT NULL"]
    return " ".join(parts)


def _create_indexes(table: Mapping[str, Any]) -> Iterator[str]:
    for index in table.get("indexes", ()):
        if index["name"] not in _REPLACED_INDEXES:
            yield f'CREATE INDEX "{index["name"]}" ON "{table["name"]}" ({_names(index["columns"])});'


def _names(references: list[str]) -> str:
    """`"a", "b"` of `#Table.a`, `#Table.b`."""
    return ", ".join(f'"{reference.rsplit(".", 1)[-1]}"' for reference in references)
