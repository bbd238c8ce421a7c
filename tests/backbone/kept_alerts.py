"""Small alerts, for tests of the alert archive."""

import io
from typing import Any

import fastavro
import numpy as np
from numpy.typing import NDArray

from schemas.identity import dia_source_id

VISIT, DETECTOR = 2026070500004, 94

_SOURCE = {
    "type": "record", "name": "diaSource",
    "fields": [{"name": "diaObjectId", "type": ["null", "long"]}, {"name": "ssObjectId", "type": ["null", "long"]}],
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "record", "name": "lsst.v11_0.alert",
    "fields": [
        {"name": "diaSourceId", "type": "long"},
        {"name": "diaSource", "type": _SOURCE},
        {"name": "cutout", "type": "bytes"},
    ],
}  # fmt: skip
"""What the archive reads of the official schema, named as an earlier version of it."""


def ids_of(n: int, visit: int = VISIT, detector: int = DETECTOR) -> NDArray[np.int64]:
    return np.array([dia_source_id(visit, detector, i) for i in range(n)], np.int64)


def keys_of(n: int) -> NDArray[np.int64]:
    """Of objects 1000, 1001, ...; the last of a Solar System object."""
    return np.append(np.arange(1000, 1000 + n - 1), 77)[:n]


def records(n: int, visit: int = VISIT, detector: int = DETECTOR, *, cutout: bytes = b"") -> list[bytes]:
    made = []
    for number, key in zip(ids_of(n, visit, detector).tolist(), keys_of(n).tolist(), strict=True):
        source = {"diaObjectId": None if key == 77 else key, "ssObjectId": key if key == 77 else None}
        stream = io.BytesIO()
        alert = {"diaSourceId": number, "diaSource": source, "cutout": cutout + bytes([number % 251]) * 300}
        fastavro.schemaless_writer(stream, SCHEMA, alert)
        made.append(stream.getvalue())
    return made
