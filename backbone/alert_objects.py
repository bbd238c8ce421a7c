"""All alerts of an object, over the nights of the alert archive.

Beside the folder of each night lies `20260705.objects`, a SQLite file that says which alert of which file has
which key. It is made of the files' indices when it is first asked for, and topped up whenever a visit's folder
has changed since. It holds nothing that the archive has not: a lost one is made anew.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from backbone.alert_archive import AlertArchive, AlertFile
from schemas.errors import BadData, Transient

BUSY_S = 30.0
"""How long another process that tops up the same night is waited for, wall seconds."""

_AT_REST_NS = 2_000_000_000
"""A folder changed more recently may change again within the tick of the file system's clock."""

_FILES_AT_ONCE = 5000
_DDL = """
CREATE TABLE IF NOT EXISTS folder (name TEXT PRIMARY KEY, changed_ns INTEGER);
CREATE TABLE IF NOT EXISTS file (number INTEGER PRIMARY KEY, path TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS alert (key INTEGER, diaSourceId INTEGER, file INTEGER, PRIMARY KEY (key, diaSourceId, file))
    WITHOUT ROWID;
"""
_FIND = 'SELECT diaSourceId, path FROM alert JOIN file ON number = file WHERE "key" = ? ORDER BY diaSourceId, path'


@dataclass(frozen=True)
class KeptAlert:
    """An alert of the archive, for `AlertArchive.get(dia_source_id, path)`."""

    dia_source_id: int
    path: str


class AlertsOfObjects:
    """Finds alerts of an archive by their object."""

    def __init__(self, archive: AlertArchive) -> None:
        self._archive = archive

    def find(self, key: int) -> list[KeptAlert]:
        """The alerts of a `diaObjectId` or `ssObjectId`, in the order of time; a result made twice is there twice.

        Raises Transient if a night's index cannot be written or another process holds it for long, BadData,
        naming the file, if one is corrupt.
        """
        return [alert for day_obs in self._archive.nights() for alert in self._in_night(day_obs, key)]

    def _in_night(self, day_obs: int, key: int) -> list[KeptAlert]:
        with _opened(self._archive.folder / f"{day_obs}.objects") as (database, path):
            self._top_up(database, path, day_obs)
            found = [KeptAlert(*row) for row in database.execute(_FIND, (key,))]
        return [alert for alert in found if (self._archive.folder / alert.path).exists()]

    def _top_up(self, database: sqlite3.Connection, path: Path, day_obs: int) -> None:
        """Add what came since. A file with a name does not change any more, so only new ones are read."""
        night = self._archive.folder / str(day_obs)
        before = dict(database.execute("SELECT name, changed_ns FROM folder").fetchall())
        changed = {name: at for name, at in _folders_of(night).items() if before.get(name) != at}
        if not changed:
            return
        known = {name for (name,) in database.execute("SELECT path FROM file")}
        files = (file for name in changed for file in self._archive.files_in(night / name) if file.path not in known)
        while some := list(islice(files, _FILES_AT_ONCE)):
            self._add(database, some)
        os.utime(path)
        resting = path.stat().st_mtime_ns - _AT_REST_NS
        rows = [(name, at) for name, at in changed.items() if at < resting]
        with database:
            database.executemany("INSERT OR REPLACE INTO folder VALUES (?, ?)", rows)

    def _add(self, database: sqlite3.Connection, files: Sequence[AlertFile]) -> None:
        indices = [self._archive.index(file.path) for file in files]
        with database:
            database.executemany("INSERT OR IGNORE INTO file (path) VALUES (?)", [(file.path,) for file in files])
            numbers = dict(database.execute("SELECT path, number FROM file").fetchall())
            owners = np.repeat([numbers[file.path] for file in files], [len(index) for index in indices])
            rows = np.concatenate(indices)
            order = np.argsort(rows["key"], kind="stable")  # a tree grows best at its end
            columns = (rows["key"][order], rows["diaSourceId"][order], owners[order])
            database.executemany(
                "INSERT OR IGNORE INTO alert VALUES (?, ?, ?)", zip(*(c.tolist() for c in columns), strict=True)
            )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sqlite3.Connection, Path]]:
    """A night's index; what SQLite says becomes one of our errors."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S)) as database:
            database.executescript(f"PRAGMA cache_size = -65536; {_DDL}")
            yield database, path
    except sqlite3.OperationalError as error:
        raise Transient(f"{path}: the index of objects cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise BadData(f"{path}: the index of objects is corrupt ({error}); once removed, it is made anew") from error


def _folders_of(night: Path) -> dict[str, int]:
    """The folders of a night's visits, and when each was changed last, ns."""
    try:
        with os.scandir(night) as entries:
            return {e.name: e.stat().st_mtime_ns for e in entries if e.name.isdecimal()}
    except OSError as error:
        raise Transient(f"{night}: the alert files cannot be listed: {error.strerror}") from error
