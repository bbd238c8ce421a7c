"""The alert archive: one Avro object container file for each visit-detector; outbox and replay source, too.

Every alert is a block of its own, so that its exact bytes are read back without decoding. The file's name
ends in a hash of its alerts: the same alerts written again are the same file, others get another name, and
which of two is the stored one is said by the L1 database, which keeps the name. Reading checks the hash. The
layout is that of the Avro specification 1.11, "Object Container Files", without a codec: writing is part of
the 60 s.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from schemas.errors import BadData, Transient

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_HASH_BYTES = 8


class AlertArchive:
    """Files of records of one Avro `schema` under a folder, `20260705/2026070500004_094_<hash>.avro`."""

    def __init__(self, folder: Path, schema: Mapping[str, Any]) -> None:
        self._folder = folder
        self._header, self._sync = _header(schema)

    def write(self, visit: int, detector: int, records: Iterable[bytes]) -> str:
        """Keep alerts, schemaless Avro records; returns the file's name within the archive.

        When it returns, the file is on the disk, whole. Raises Transient, naming the file, if that fails.
        """
        folder = self._folder / str(visit // 100_000)
        partial = folder / f".{visit}_{detector:03d}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(self._header)
                digest = _write_blocks(file, records, self._sync)
                file.flush()
                os.fsync(file.fileno())
            path = folder / f"{visit}_{detector:03d}_{digest}.avro"
            partial.replace(path)
            _sync_folder(folder)
        except OSError as error:
            with suppress(OSError):  # what cannot be written may not be removed either: a disk gone read-only
                partial.unlink(missing_ok=True)
            raise Transient(f"{partial}: the alerts cannot be written: {error.strerror}") from error
        return str(path.relative_to(self._folder))

    def read(self, path: str) -> list[bytes]:
        """The alerts of a file, byte for byte as they were written, in their order.

        Raises BadData, naming the file, if it is absent, cut short, or not what was written.
        """
        where = self._folder / path
        try:
            data = where.read_bytes()
        except FileNotFoundError as error:
            raise BadData(f"{where}: there is no such alert file") from error
        except OSError as error:
            raise Transient(f"{where}: the alerts cannot be read: {error.strerror}") from error
        records, digest = [], _Digest()
        for record in _blocks(data, str(where)):
            records.append(record)
            digest.add(record)
        if digest.hex() != where.stem.rsplit("_", 1)[-1]:
            raise BadData(f"{where}: the alerts in it are not those that were written")
        return records


def _header(schema: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A container's header, and the marker that ends it and each block."""
    # fastavro leaves marks of its own ("__fastavro_parsed") in a schema that it has parsed.
    text = json.dumps({key: value for key, value in schema.items() if not key.startswith("__")}).encode()
    sync = hashlib.blake2b(text, digest_size=_SYNC_BYTES).digest()  # not random: equal alerts make equal files
    metadata = {b"avro.schema": text, b"avro.codec": b"null"}
    entries = b"".join(_bytes(key) + _bytes(value) for key, value in metadata.items())
    return _MAGIC + _long(len(metadata)) + entries + _long(0) + sync, sync


def _write_blocks(file: BinaryIO, records: Iterable[bytes], sync: bytes) -> str:
    """A block for each record; returns the hash of all."""
    digest = _Digest()
    for record in records:
        digest.add(record)
        file.write(_long(1) + _bytes(record) + sync)
    return digest.hex()


class _Digest:
    """A hash of alerts and of where each ends."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_HASH_BYTES)

    def add(self, record: bytes) -> None:
        self._hash.update(_long(len(record)))
        self._hash.update(record)

    def hex(self) -> str:
        return self._hash.hexdigest()


def _blocks(data: bytes, where: str) -> Iterator[bytes]:
    """The one record of each block. Raises BadData for anything but a whole container file."""
    stream = io.BytesIO(data)
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise BadData(f"{where}: this is no Avro container file")
    try:
        while (pairs := _read_long(stream)) != 0:
            for _ in range(2 * pairs):
                _read_exactly(stream, _read_long(stream))
        sync = _read_exactly(stream, _SYNC_BYTES)
        while stream.tell() < len(data):
            yield _read_block(stream, sync)
    except ValueError as error:
        raise BadData(f"{where}: corrupt before byte {stream.tell()} of {len(data)}: {error}") from error


def _read_block(stream: io.BytesIO, sync: bytes) -> bytes:
    if _read_long(stream) != 1:
        raise ValueError("a block has not one alert")
    record = _read_exactly(stream, _read_long(stream))
    if _read_exactly(stream, _SYNC_BYTES) != sync:
        raise ValueError("a block does not end in the sync marker")
    return record


def _bytes(value: bytes) -> bytes:
    return _long(len(value)) + value


def _long(value: int) -> bytes:
    """A non-negative long: zig-zag, seven bits a byte, the lowest first."""
    value, encoded = value << 1, bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


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


def _sync_folder(folder: Path) -> None:
    """Put the folder's entry for a new file on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
