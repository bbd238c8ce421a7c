"""The official alert schema (`lsst-alert-packet`, its newest): its records, which columns they take, its id."""

import re
import struct
from functools import cache
from typing import Any, NamedTuple, cast

import fastavro
from lsst.alert.packet import get_latest_schema_version, get_path_to_latest_schema

from schemas.errors import BadData

Record = dict[str, Any]

_NAME = re.compile(r"lsst\.v(?P<major>\d+)_(?P<minor>\d+)\.alert")


class Field(NamedTuple):
    """A field of a record: `kind` is its Avro type, or its logical one; `nullable`: a union of null and that."""

    name: str
    kind: str
    nullable: bool


@cache
def alert_schema() -> Record:
    """The newest official schema, parsed by fastavro, all its records inside it."""
    return cast("Record", fastavro.schema.load_schema(get_path_to_latest_schema()))


@cache
def schema_id() -> int:
    """The id that the schema has in Rubin's registry: major * 100 + minor, 1101 for 11.1."""
    major, minor = get_latest_schema_version()
    return int(major) * 100 + int(minor)


def id_of(name: str) -> int:
    """The id of the schema whose top record has this full name, `lsst.v11_1.alert`. Raises BadData for another."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise BadData(f"{name!r} is not the name of an alert schema such as lsst.v11_1.alert")
    return int(match["major"]) * 100 + int(match["minor"])


def frame(payload: bytes, schema: int | None = None) -> bytes:
    """What goes to Kafka: Confluent's header (magic 0, schema id, big-endian) and the Avro payload.

    `schema`: the id of the schema that the payload is of, if it is not the newest.
    """
    return struct.pack(">bI", 0, schema_id() if schema is None else schema) + payload


@cache
def fields_of(record: str) -> tuple[Field, ...]:
    """The fields of a record of the schema (`diaSource`, `diaObject`, `ssSource`, ...). Raises BadData for no such."""
    found = _find(alert_schema(), f".{record}")
    if found is None:
        raise BadData(f"the alert schema has no record {record}")
    return tuple(_field(field) for field in found["fields"])


def _field(field: Record) -> Field:
    union = field["type"] if isinstance(field["type"], list) else [field["type"]]
    kind = next(branch for branch in union if branch != "null")
    return Field(field["name"], kind if isinstance(kind, str) else kind["logicalType"], "null" in union)


def _find(schema: object, suffix: str) -> Record | None:
    """The first definition in a schema of a record whose full name ends so."""
    if isinstance(schema, dict):
        if schema.get("type") == "record" and str(schema["name"]).endswith(suffix):
            return schema
        parts: list[object] = [schema.get("type"), schema.get("items"), *schema.get("fields", [])]
    else:
        parts = schema if isinstance(schema, list) else []
    return next((found for part in parts if (found := _find(part, suffix)) is not None), None)
