"""Where each alert of a file of the alert archive lies: the little file beside it, `..._<hash>.index`.

Eight bytes of magic, a row of `ROW` for each alert in the order of the Avro file, all little-endian, and 16
bytes of BLAKE2b of the rows, keyed with the hash in the file's name: an index beside a wrong file is refused.
An Avro file has all that its index says: what an index that is lost or corrupt told is read from there.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadData

_MAGIC = b"PachonI2"
_DIGEST_BYTES = 16

ROW = np.dtype([("diaSourceId", "<i8"), ("key", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("sha256", "V32")])
"""`key`: the alert's `diaObjectId`, or the `ssObjectId` of a Solar System object; `offset`: of its first byte;
`sha256`: of its bytes."""

Rows = NDArray[np.void]
Ids = NDArray[np.int64]


def rows_of(ids: Ids, keys: Ids, offsets: Sequence[int], lengths: Sequence[int], hashes: Sequence[bytes]) -> Rows:
    """An index of alerts: of each its id, its key, where it begins, how long it is and its SHA-256."""
    rows = np.zeros(len(offsets), ROW)
    rows["diaSourceId"], rows["key"], rows["offset"], rows["length"] = ids, keys, offsets, lengths
    rows["sha256"] = np.frombuffer(b"".join(hashes), "V32")
    return rows


def encode(rows: Rows, file_hash: str) -> bytes:
    """The content of the index of the Avro file whose name ends in a hash."""
    data = rows.tobytes()
    return _MAGIC + data + _digest(data, file_hash)


def decode(data: bytes, file_hash: str, where: str) -> Rows:
    """The rows of an index. Raises BadData, naming it, if they are not those that were written."""
    rows, digest = data[len(_MAGIC) : -_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not data.startswith(_MAGIC) or len(rows) % ROW.itemsize or digest != _digest(rows, file_hash):
        raise BadData(f"{where}: the index is corrupt")
    return np.frombuffer(rows, ROW)


def ids_and_keys(records: Iterable[bytes], schema: Mapping[str, Any], where: str) -> tuple[Ids, Ids]:
    """What an index would say of alerts, by decoding them. Raises BadData, naming the file, if one cannot be."""
    parsed: Any = fastavro.parse_schema(dict(schema))
    found = np.array([_id_and_key(record, parsed, where) for record in records], np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _id_and_key(record: bytes, schema: dict[str, Any], where: str) -> tuple[int, int]:
    try:
        alert: Any = fastavro.schemaless_reader(io.BytesIO(record), schema, None)
        source = alert["diaSource"]
        return alert["diaSourceId"], source["diaObjectId"] or source["ssObjectId"]
    except (EOFError, ValueError, LookupError, TypeError) as error:
        raise BadData(f"{where}: it has no index, and an alert in it cannot be decoded: {error!r}") from error


def _digest(rows: bytes, file_hash: str) -> bytes:
    return hashlib.blake2b(rows, digest_size=_DIGEST_BYTES, key=file_hash.encode()).digest()
