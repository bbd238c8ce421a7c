"""`pachon withdraw`: takes back DIASources and the alerts about them, and tells brokers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from rich.console import Console

from backbone import l1_withdrawals
from backbone.l1_withdrawals import Selection, Withdrawn
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink, VisitStream
from cluster.services import EmbeddedPostgres, served
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from schemas.clock import Clock, mjd_from_tai
from schemas.errors import BadData, Transient

AT_ONCE = 5000
"""Notices: a visit of the whole camera has some ten thousand DIASources."""


def run(output: Path, postgres: str, kafka: str, what: Selection, reason: str, console: Console) -> int:
    """Do it; the exit code. Raises PachonError for what cannot be withdrawn, or is and cannot be told yet."""
    _check(what, reason)
    settings = Settings(output=output.resolve(), kafka=kafka)
    if not settings.clock_file.exists():
        raise BadData(f"{output} is not the folder of a night with a database: there is no {settings.clock_file.name}")
    clock, key = StoredClock(settings.clock_file), SigningKey.in_folder(settings.output)
    with _database(settings, postgres) as dsn:
        asyncio.run(_withdraw(dsn, what, reason, clock, key, VisitStream(kafka, settings.visit_topic), console))
    return 0


def _check(what: Selection, reason: str) -> None:
    if bool(what.dia_sources) == (what.visit is not None):
        raise BadData("give either --dia-source or --visit: what is to be withdrawn")
    if what.detector is not None and what.visit is None:
        raise BadData("--detector is one of a --visit")
    if not reason.strip():
        raise BadData("--reason is empty: brokers are told it")


@contextmanager
def _database(settings: Settings, postgres: str) -> Iterator[str]:
    """The address given, else that of the night's embedded server, which is started if it does not run."""
    folder = settings.output / "postgres"
    running = postgres or served(folder)
    if running:
        yield running
    elif (folder / "pgdata").exists():
        with EmbeddedPostgres(folder) as server:
            yield server.url
    else:
        raise BadData(f"{settings.output} has no database of its own: say with --postgres where it is")


async def _withdraw(
    dsn: str, what: Selection, reason: str, clock: Clock, key: SigningKey, sink: NoticeSink, console: Console
) -> None:
    async with l1_withdrawals.connected(dsn) as connection:
        done = await l1_withdrawals.withdraw(connection, what, reason, mjd_from_tai(clock.now()))
        console.print(_said(what, done))
        told = await tell_owed(connection, clock, key, sink)
        console.print(f"{told} notices acknowledged by the broker, signed with key {key.key_id}")


def _said(what: Selection, done: Withdrawn) -> str:
    before = f"; {done.before} were already withdrawn" if done.before else ""
    return f"{what}: {done.dia_sources} DIASources, {done.dia_forced_sources} DIAForcedSources withdrawn{before}"


async def tell_owed(connection: asyncpg.Connection, clock: Clock, key: SigningKey, sink: NoticeSink) -> int:
    """Send what is owed of this withdrawal and of earlier ones; how many. Raises Transient if any stays owed."""
    told = 0
    while owed := await l1_withdrawals.owed(connection, AT_ONCE):
        errors = await sink.send([Notice.signed(o.key, o.value, key) for o in owed])
        names = [o.notice for o, error in zip(owed, errors, strict=True) if not error]
        await l1_withdrawals.mark_told(connection, names, mjd_from_tai(clock.now()))
        told += len(names)
        if len(names) < len(owed):
            first = next(error for error in errors if error)
            raise Transient(f"withdrawn, and {len(owed) - len(names)} notices are still owed, ask again: {first}")
    return told
