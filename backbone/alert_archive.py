"""The alert archive: one Avro object container file for each visit-detector; outbox and replay source, too.

The file's name ends in a hash of its alerts: the same alerts written again are the same file, others get
another name, and which of two is the stored one is said by the L1 database, which keeps the name. Reading
checks the hash. Beside it lies its index (`backbone.alert_index`), which is on the disk before the alerts have
their name; a file that has none is searched itself. No codec: writing is part of the 60 s.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backbone import alert_index
from backbone.alert_container import Container, blocks, long, schema_of
from backbone.alert_index import Ids, Rows
from schemas.errors import BadData, Transient
from schemas.identity import visit_detector_of

_HASH_BYTES = 8
_HEADER_BYTES = 2**20
"""More than any header has: the official schema is a tenth of that."""

_NAME = re.compile(r"(?P<visit>\d{13})_(?P<detector>\d{3})_[0-9a-f]{16}\.avro")


@dataclass(frozen=True, order=True)
class AlertFile:
    """A file of the archive. `path`: within the archive."""

    visit: int
    detector: int
    path: str


class AlertArchive:
    """Files of one Avro `schema` under a folder, `20260705/2026070500004/2026070500004_094_<hash>.avro`.

    Written before a visit had a folder of its own, they lie in that of the night.
    """

    def __init__(self, folder: Path, schema: Mapping[str, Any]) -> None:
        self.folder = folder
        self._container = Container(schema)

    def write(self, visit: int, detector: int, records: Iterable[bytes], ids: Ids, keys: Ids) -> str:
        """Keep alerts, schemaless Avro records; returns the file's name within the archive.

        `ids`, `keys`: int64 (n,), the `diaSourceId` of each and its `diaObjectId` or `ssObjectId`. When it
        returns, the file is on the disk, whole, and so is its index. Raises Transient, naming the file, if
        that fails, BadData if there are not as many ids and keys as records, or an id is of another
        visit-detector.
        """
        _check_ids(visit, detector, ids)
        folder = self.folder / str(visit // 100_000) / str(visit)
        partial = folder / f".{visit}_{detector:03d}.{os.getpid()}.partial"
        partial_index = partial.with_suffix(".partial-index")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            digest, rows = self._write_alerts(partial, records, ids, keys)
            path = folder / f"{visit}_{detector:03d}_{digest}.avro"
            _write_synced(partial_index, alert_index.encode(rows, digest))
            partial_index.replace(_index_of(path))
            partial.replace(path)
            for each in (folder, folder.parent, self.folder):  # another process may just have made them
                _sync_folder(each)
        except OSError as error:
            raise Transient(f"{partial}: the alerts cannot be written: {error.strerror}") from error
        finally:
            with suppress(OSError):  # what cannot be written may not be removed either: a disk gone read-only
                partial.unlink(missing_ok=True)
                partial_index.unlink(missing_ok=True)
        return str(path.relative_to(self.folder))

    def read(self, path: str) -> list[bytes]:
        """The alerts of a file, byte for byte as they were written, in their order.

        Raises BadData, naming the file, if it is absent, cut short, or not what was written.
        """
        where = self.folder / path
        return [record for _, record in _checked(_bytes_of(where), where)]

    def index(self, path: str) -> Rows:
        """Where the alerts of a file lie, in their order: `backbone.alert_index.ROW` (n,).

        Without an index file it comes of decoding all alerts. Raises BadData, naming the file that is corrupt.
        """
        where = self.folder / path
        try:
            data = _index_of(where).read_bytes()
        except FileNotFoundError:
            return _index_from(where)
        except OSError as error:
            raise Transient(f"{_index_of(where)}: the index cannot be read: {error.strerror}") from error
        return alert_index.decode(data, _hash_in(where), str(_index_of(where)))

    def get(self, dia_source_id: int, path: str | None = None) -> bytes:
        """The alert about a DIASource, from the file that the L1 database names, else from all that may hold it.

        Raises BadData if there is none, it is corrupt, or (without `path`) two files hold it with other bytes.
        """
        visit, detector = _maker_of(dia_source_id)
        files = [path] if path else [f.path for f in self.files_of_visit(visit) if f.detector == detector]
        held = {each: self._held(dia_source_id, each) for each in files}
        found = {each: alert for each, alert in held.items() if alert is not None}
        what = f"the alert about DIASource {dia_source_id} (visit {visit} detector {detector})"
        if not found:
            raise BadData(f"{self.folder / path if path else self.folder}: {what} is not there")
        if len(set(found.values())) > 1:
            raise BadData(f"{what} differs in {' and '.join(found)}: the L1 database names the one that counts")
        return next(iter(found.values()))

    def schema(self, path: str) -> dict[str, Any]:
        """The Avro schema that a file was written with. Raises BadData, naming the file, if it has none."""
        where = self.folder / path
        return schema_of(_bytes_of(where, _HEADER_BYTES), str(where))

    def nights(self) -> list[int]:
        """The `day_obs` of the nights in the archive, in their order."""
        return sorted(int(name) for name in _folders(self.folder))

    def files_of_night(self, day_obs: int) -> list[AlertFile]:
        """By visit, detector and name."""
        night = self.folder / str(day_obs)
        places = [night, *(night / name for name in _folders(night))]
        return sorted(file for place in places for file in self.files_in(place))

    def files_of_visit(self, visit: int) -> list[AlertFile]:
        """By detector and name."""
        night = self.folder / str(visit // 100_000)
        return sorted(f for place in (night, night / str(visit)) for f in self.files_in(place) if f.visit == visit)

    def files_in(self, folder: Path) -> Iterator[AlertFile]:
        """What lies right in a folder of the archive, in no order."""
        within = folder.relative_to(self.folder)
        for name in _names(folder):
            match = _NAME.fullmatch(name)
            if match is not None:
                yield AlertFile(int(match["visit"]), int(match["detector"]), f"{within}/{name}")

    def _write_alerts(self, partial: Path, records: Iterable[bytes], ids: Ids, keys: Ids) -> tuple[str, Rows]:
        """The Avro file; returns the hash of the alerts, and their index."""
        digest = _Digest()
        with partial.open("wb") as file:
            file.write(self._container.header)
            rows = alert_index.rows_of(ids, keys, self._written(file, records, digest))
            _sync(file)
        return digest.hex(), rows

    def _written(self, file: BinaryIO, records: Iterable[bytes], digest: "_Digest") -> Iterator[tuple[int, bytes]]:
        """Each record, and its offset, once it is written."""
        for record in records:
            before, behind = self._container.block(record)
            file.write(before)
            offset = file.tell()
            file.write(record)
            file.write(behind)
            digest.add(record)
            yield offset, record

    def _held(self, dia_source_id: int, path: str) -> bytes | None:
        """The alert about a DIASource in a file, if it is there."""
        rows = self.index(path)
        rows = rows[rows["diaSourceId"] == dia_source_id]
        if not len(rows):
            return None
        offset, length, crc32 = (int(rows[0][name]) for name in ("offset", "length", "crc32"))
        record = _bytes_of(self.folder / path, length, offset)
        if len(record) != length or zlib.crc32(record) != crc32:
            raise BadData(f"{self.folder / path}: the alert about DIASource {dia_source_id} is not what was written")
        return record


class _Digest:
    """A hash of alerts and of where each ends."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()  # three times as fast as BLAKE2 where the processor has it built in

    def add(self, record: bytes) -> None:
        self._hash.update(long(len(record)))
        self._hash.update(record)

    def hex(self) -> str:
        return self._hash.hexdigest()[: 2 * _HASH_BYTES]


def _maker_of(dia_source_id: int) -> tuple[int, int]:
    """The visit and detector of an id. Raises BadData for a number that is none."""
    try:
        return visit_detector_of(dia_source_id)
    except (ValueError, OverflowError) as error:
        raise BadData(f"{dia_source_id} is not the id of a DIASource: {error}") from error


def _check_ids(visit: int, detector: int, ids: Ids) -> None:
    for number in ids.tolist():
        if _maker_of(number) != (visit, detector):
            raise BadData(f"visit {visit} detector {detector}: DIASource {number} is not of it")


def _checked(data: bytes, where: Path) -> list[tuple[int, bytes]]:
    """The alerts of a file, with their offsets. Raises BadData if they are not those that its name says."""
    alerts, digest = list(blocks(data, str(where))), _Digest()
    for _, record in alerts:
        digest.add(record)
    if digest.hex() != _hash_in(where):
        raise BadData(f"{where}: the alerts in it are not those that were written")
    return alerts


def _index_from(where: Path) -> Rows:
    """The index of a file that has none beside it."""
    data = _bytes_of(where)
    alerts = _checked(data, where)
    ids, keys = alert_index.ids_and_keys((record for _, record in alerts), schema_of(data, str(where)), str(where))
    return alert_index.rows_of(ids, keys, alerts)


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _hash_in(path: Path) -> str:
    return path.stem.rsplit("_", 1)[-1]


def _bytes_of(path: Path, size: int = -1, offset: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError as error:
        raise BadData(f"{path}: there is no such alert file") from error
    except OSError as error:
        raise Transient(f"{path}: the alerts cannot be read: {error.strerror}") from error


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing lies in one that is not there."""
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Transient(f"{folder}: the alert files cannot be listed: {error.strerror}") from error


def _folders(folder: Path) -> list[str]:
    """The nights or visits in a folder: numbers, all of them."""
    return sorted(name for name in _names(folder) if name.isdecimal())


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync_folder(folder: Path) -> None:
    """Put the folder's entry for a new file on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
