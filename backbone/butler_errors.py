"""What the Data Butler raises, as Pachon's errors, by the cause beneath: the Butler wraps what it meets."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import BadData, PachonError, Transient

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
"""What a disk without room shows as, by what was being written."""
_PRIMARY_CODE = 0xFF
"""SQLite's extended result codes keep the primary one in their low byte."""


class NotKept(BadData):
    """Nothing is kept under that name."""


@contextmanager
def told_as_ours(what: str) -> Iterator[None]:
    """Raise BadData or Transient naming `what` for a fault of input, disk or database; let bugs through."""
    try:
        yield
    except PachonError as error:
        if what in str(error):
            raise
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:
        ours = _ours(what, error)
        if ours is None:
            raise
        raise ours from error


def _ours(what: str, error: Exception) -> PachonError | None:
    from lsst.daf.butler import ButlerUserError  # noqa: PLC0415 - who raises what comes here has imported it

    causes = list(_causes(error))
    for cause in causes:
        if (known := _known(what, cause)) is not None:
            return known
    if isinstance(error, ButlerUserError | ValueError | LookupError | OSError | RuntimeError):
        return BadData(f"{what}: {causes[-1]}")
    return None


def _known(what: str, cause: BaseException) -> PachonError | None:
    if isinstance(cause, PachonError):
        return type(cause)(f"{what}: {cause}")
    if isinstance(cause, FileNotFoundError):
        return BadData(f"{what}: its file is gone: {cause}")
    if isinstance(cause, OSError) and cause.errno is not None:
        return Transient(f"{what}: {'no room: ' if cause.errno in _DISK_FULL else ''}{cause}")
    if _sqlite_code(cause) in _FULL | _LOCKED:
        return Transient(f"{what}: the registry's database: {cause}")
    return None


def _sqlite_code(error: BaseException) -> int | None:
    return error.sqlite_errorcode & _PRIMARY_CODE if isinstance(error, sqlite3.OperationalError) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
