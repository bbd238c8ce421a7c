"""Avro object container files of alerts, without a codec, each alert a block of its own.

So the exact bytes of an alert lie in the file in one piece and are read back without decoding. The layout is
that of the Avro specification 1.11, "Object Container Files".
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import BadData

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_SCHEMA = b"avro.schema"


class Container:
    """What is the same in all files of one Avro `schema`: the header, and the marker that ends it and each block."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        # fastavro leaves marks of its own ("__fastavro_parsed") in a schema that it has parsed.
        text = json.dumps({key: value for key, value in schema.items() if not key.startswith("__")}).encode()
        self._sync = hashlib.blake2b(text, digest_size=_SYNC_BYTES).digest()  # not random: equal alerts, equal files
        metadata = {_SCHEMA: text, b"avro.codec": b"null"}
        entries = b"".join(_bytes(key) + _bytes(value) for key, value in metadata.items())
        self.header = _MAGIC + long(len(metadata)) + entries + long(0) + self._sync

    def block(self, record: bytes) -> tuple[bytes, bytes]:
        """What stands before an alert, and behind it."""
        return long(1) + long(len(record)), self._sync


def schema_of(data: bytes, where: str) -> dict[str, Any]:
    """The schema that a file (or as much of it as holds the header) was written with. Raises BadData."""
    stream = io.BytesIO(data)
    try:
        schema: dict[str, Any] = json.loads(_header(stream)[_SCHEMA])
    except (ValueError, KeyError) as error:
        raise BadData(f"{where}: this is no Avro container file: {error}") from error
    return schema


def blocks(data: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    """Each alert of a file, and at which byte it lies. Raises BadData for anything but a whole container file."""
    stream = io.BytesIO(data)
    if not data.startswith(_MAGIC):
        raise BadData(f"{where}: this is no Avro container file")
    try:
        _header(stream)
        sync = _read_exactly(stream, _SYNC_BYTES)
        while stream.tell() < len(data):
            yield _read_block(stream, sync)
    except ValueError as error:
        raise BadData(f"{where}: corrupt before byte {stream.tell()} of {len(data)}: {error}") from error


def long(value: int) -> bytes:
    """A non-negative Avro long: zig-zag, seven bits a byte, the lowest first."""
    value, encoded = value << 1, bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _header(stream: io.BytesIO) -> dict[bytes, bytes]:
    """The metadata, by name; the sync marker is next. Raises ValueError."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it begins otherwise")
    metadata = {}
    while (pairs := _read_long(stream)) != 0:
        for _ in range(pairs):
            key = _read_exactly(stream, _read_long(stream))
            metadata[key] = _read_exactly(stream, _read_long(stream))
    return metadata


def _read_block(stream: io.BytesIO, sync: bytes) -> tuple[int, bytes]:
    if _read_long(stream) != 1:
        raise ValueError("a block has not one alert")
    length = _read_long(stream)
    place = stream.tell()
    record = _read_exactly(stream, length)
    if _read_exactly(stream, _SYNC_BYTES) != sync:
        raise ValueError("a block does not end in the sync marker")
    return place, record


def _bytes(value: bytes) -> bytes:
    return long(len(value)) + value


def _read_long(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = _read_exactly(stream, 1)[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
        if shift > 63:
            raise ValueError("a length of more than 64 bits")


def _read_exactly(stream: io.BytesIO, size: int) -> bytes:
    data = stream.read(size) if size >= 0 else b""
    if len(data) != size:
        raise ValueError(f"{size} bytes are wanted, {len(data)} are left")
    return data
