"""The alert archive: one Avro object container file for each visit-detector; outbox and replay source, too.

The file's name ends in a hash of its alerts' hashes: the same alerts written again are the same file, others get
another name, and which of two is the stored one is said by the L1 database, which keeps the name. Reading
checks the hash. Beside it lies its index (`backbone.alert_index`); what it tells is read from the file itself where
it is lost or corrupt. No codec: writing is part of the 60 s.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbone import alert_index
from backbone.alert_container import Container, blocks, schema_of
from backbone.alert_index import Ids, Rows
from schemas.errors import BadData, Transient
from schemas.identity import day_obs_of_visit, visit_detector_of

_HASH_BYTES = 8
_PARTS_AT_ONCE = 1024
"""As many as Linux takes in one `writev`."""

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
    """Files of one Avro `schema` under a folder, `20260705/2026070500004/2026070500004_094_<hash>.avro`."""

    def __init__(self, folder: Path, schema: Mapping[str, Any]) -> None:
        self.folder = folder
        self._container = Container(schema)

    def write(self, visit: int, detector: int, records: Sequence[bytes], ids: Ids, keys: Ids) -> str:
        """Keep alerts, schemaless Avro records; returns the file's name within the archive.

        `ids`, `keys`: int64 (n,), the `diaSourceId` of each and its `diaObjectId` or `ssObjectId`. When it
        returns, the file is on the disk, whole. Raises Transient, naming the file, if that fails, BadData if there are
        not as many ids and keys as records, or an id is of another visit-detector.
        """
        _check(visit, detector, records, ids, keys)
        folder = self.folder / str(day_obs_of_visit(visit)) / str(visit)
        partial = folder / f".{visit}_{detector:03d}.{os.getpid()}.partial"
        partial_index = partial.with_suffix(".partial-index")
        hashes = [hashlib.sha256(record).digest() for record in records]
        path = folder / f"{visit}_{detector:03d}_{_digest(hashes)}.avro"
        try:
            self._make(folder)
            offsets = self._write_alerts(partial, records)
            rows = alert_index.rows_of(ids, keys, offsets, list(map(len, records)), hashes)
            partial_index.write_bytes(alert_index.encode(rows, _digest(hashes)))
            partial_index.replace(_index_of(path))
            partial.replace(path)
            _sync_folder(folder)
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
        alerts = self.read_unchecked(path)
        _check_hashes([hashlib.sha256(record).digest() for record in alerts], self.folder / path)
        return alerts

    def read_unchecked(self, path: str) -> list[bytes]:
        """The same in a quarter of the time, their hashes not looked at: for a file that was checked not long ago.

        Raises BadData, naming the file, if it is absent or its blocks are not whole.
        """
        where = self.folder / path
        return [record for _, record in blocks(_bytes_of(where), str(where))]

    def hashes(self, path: str) -> dict[int, bytes]:
        """SHA-256 of each alert of a file as it was written, by `diaSourceId`. Raises as `index` does."""
        rows = self.index(path)
        return dict(zip(rows["diaSourceId"].tolist(), map(bytes, rows["sha256"]), strict=True))

    def index(self, path: str) -> Rows:
        """Where the alerts of a file lie, in their order: `backbone.alert_index.ROW` (n,).

        Where there is no index, or a corrupt one, it comes of decoding all alerts. Raises BadData, naming the file, if
        that is corrupt, too.
        """
        where = self.folder / path
        try:
            return alert_index.decode(_index_of(where).read_bytes(), _hash_in(where), str(_index_of(where)))
        except (FileNotFoundError, BadData):
            return _index_from(where)
        except OSError as error:
            raise Transient(f"{_index_of(where)}: the index cannot be read: {error.strerror}") from error

    def get(self, dia_source_id: int, path: str | None = None) -> bytes:
        """The alert about a DIASource, from the file that the L1 database names, else from all that have it.

        Raises BadData if there is none, it is corrupt, or (without `path`) two files have it with other bytes.
        """
        found = self._copies(dia_source_id, [path] if path else self._files_about(dia_source_id))
        if len(set(found.values())) > 1:
            names = " and ".join(found)
            raise BadData(f"{_about(dia_source_id)} differs in {names}: the L1 database names the one that counts")
        return next(iter(found.values()))

    def holders(self, dia_source_id: int) -> list[str]:
        """The files that have the alert about a DIASource, that written last first. Raises BadData if there is none."""
        return self.newest_first(self._copies(dia_source_id, self._files_about(dia_source_id)))

    def _files_about(self, dia_source_id: int) -> list[str]:
        visit, detector = visit_detector_of(dia_source_id)
        return [file.path for file in self.files_of_visit(visit) if file.detector == detector]

    def _copies(self, dia_source_id: int, files: Sequence[str]) -> dict[str, bytes]:
        """The alert about a DIASource in each of some files that has it. Raises BadData if none has."""
        held = {file: self._held(dia_source_id, file) for file in files}
        found = {file: alert for file, alert in held.items() if alert is not None}
        if not found:
            where = self.folder / files[0] if len(files) == 1 else self.folder
            raise BadData(f"{where}: {_about(dia_source_id)} is not there")
        return found

    def newest_first(self, paths: Iterable[str]) -> list[str]:
        """Files, that written last first. Raises BadData, naming it, for one that is not there."""
        try:
            written = {path: (self.folder / path).stat().st_mtime_ns for path in paths}
        except OSError as error:
            raise BadData(f"{error.filename}: there is no such alert file") from error
        return sorted(written, key=lambda path: (-written[path], path))

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
        return sorted(file for name in _folders(night) for file in self.files_in(night / name))

    def files_of_visit(self, visit: int) -> list[AlertFile]:
        """By detector and name."""
        return sorted(self.files_in(self.folder / str(day_obs_of_visit(visit)) / str(visit)))

    def files_in(self, folder: Path) -> Iterator[AlertFile]:
        """What lies in a visit's folder, in no order."""
        within = folder.relative_to(self.folder)
        for name in _names(folder):
            match = _NAME.fullmatch(name)
            if match is not None:
                yield AlertFile(int(match["visit"]), int(match["detector"]), f"{within}/{name}")

    def _make(self, folder: Path) -> None:
        """A visit's folder, on the disk, too."""
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for each in (folder.parent, self.folder, self.folder.parent):
                _sync_folder(each)

    def _write_alerts(self, path: Path, records: Sequence[bytes]) -> list[int]:
        """The Avro file; returns where each record begins."""
        parts = [self._container.header]
        for record in records:
            before, behind = self._container.block(record)
            parts += [before, record, behind]
        ends = np.cumsum([len(part) for part in parts])
        with path.open("wb", buffering=0) as file:
            _write_all(file.fileno(), parts)
            os.fsync(file.fileno())
        places: list[int] = ends[1::3].tolist()  # of what stands before each record
        return places

    def _held(self, dia_source_id: int, path: str) -> bytes | None:
        """The alert about a DIASource in a file, if it is there."""
        rows = self.index(path)
        rows = rows[rows["diaSourceId"] == dia_source_id]
        if not len(rows):
            return None
        record = _bytes_of(self.folder / path, int(rows[0]["length"]), int(rows[0]["offset"]))
        if hashlib.sha256(record).digest() != bytes(rows[0]["sha256"]):
            raise BadData(f"{self.folder / path}: the alert about DIASource {dia_source_id} is not what was written")
        return record


def _write_all(descriptor: int, parts: Sequence[bytes]) -> None:
    """One behind another, many in one call: three calls an alert take the kernel twice as long."""
    for first in range(0, len(parts), _PARTS_AT_ONCE):
        some = parts[first : first + _PARTS_AT_ONCE]
        written = os.writev(descriptor, some)
        if written < sum(map(len, some)):  # a disk that fills up, or a signal
            rest = memoryview(b"".join(some))[written:]
            while rest:
                rest = rest[os.write(descriptor, rest) :]


def _digest(hashes: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(hashes)).hexdigest()[: 2 * _HASH_BYTES]


def _check(visit: int, detector: int, records: Sequence[bytes], ids: Ids, keys: Ids) -> None:
    if not len(records) == len(ids) == len(keys):
        raise BadData(f"{len(records)} alerts, {len(ids)} ids and {len(keys)} keys came")
    for number in ids.tolist():
        if visit_detector_of(number) != (visit, detector):
            raise BadData(f"visit {visit} detector {detector}: DIASource {number} is not of it")


def _check_hashes(hashes: Sequence[bytes], where: Path) -> None:
    if _digest(hashes) != _hash_in(where):
        raise BadData(f"{where}: the alerts in it are not those that were written")


def _index_from(where: Path) -> Rows:
    """The index of a file that has none beside it."""
    data = _bytes_of(where)
    offsets, alerts = zip(*blocks(data, str(where)), strict=True) if data else ((), ())
    hashes = [hashlib.sha256(record).digest() for record in alerts]
    _check_hashes(hashes, where)
    ids, keys = alert_index.ids_and_keys(alerts, schema_of(data, str(where)), str(where))
    return alert_index.rows_of(ids, keys, offsets, list(map(len, alerts)), hashes)


def _about(dia_source_id: int) -> str:
    visit, detector = visit_detector_of(dia_source_id)
    return f"the alert about DIASource {dia_source_id} (visit {visit} detector {detector})"


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


def _sync_folder(folder: Path) -> None:
    """Put the folder's entry for a new file on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
