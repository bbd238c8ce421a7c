"""`pachon withdraw`: takes back DIASources and the alerts about them, or undoes that, and tells brokers."""

import asyncio
from pathlib import Path

import asyncpg
from rich.console import Console

from backbone import l1_withdrawals
from backbone.l1_withdrawals import Change, Changed
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink, VisitStream
from cluster.later import database_of, settings_of
from cluster.stored_clock import StoredClock
from payloads.alert_production import dia_objects
from schemas.clock import Clock, mjd_from_tai
from schemas.errors import BadData, Transient

AT_ONCE = 5000
"""Notices: a visit of the whole camera has some ten thousand DIASources."""


def run(output: Path, postgres: str, kafka: str, asked: Change, console: Console) -> int:
    """Do it; the exit code. Raises PachonError for what cannot be done, or is done and cannot be told yet."""
    _check(asked)
    settings = settings_of(output, kafka)
    clock, key = StoredClock(settings.clock_file), SigningKey.in_folder(settings.output)
    with database_of(settings, postgres) as dsn:
        asyncio.run(_change(dsn, asked, clock, key, VisitStream(kafka, settings.visit_topic), console))
    return 0


def _check(asked: Change) -> None:
    what = asked.what
    if bool(what.dia_sources) == (what.visit is not None):
        raise BadData("give either --dia-source or --visit: what it is about")
    if what.detector is not None and what.visit is None:
        raise BadData("--detector is one of a --visit")
    if not asked.reason.strip():
        raise BadData("--reason is empty: brokers are told it")
    if asked.superseded_by is not None:
        _check_superseded(asked)


def _check_superseded(asked: Change) -> None:
    if asked.undo:
        raise BadData("--superseded-by does not go with --undo: what is reinstated is superseded by none")
    if len(asked.what.dia_sources) != 1:
        raise BadData("--superseded-by goes with one --dia-source: the one that it takes the place of")
    if asked.superseded_by in asked.what.dia_sources:
        raise BadData(f"--superseded-by {asked.superseded_by}: no DIASource supersedes itself")


async def _change(dsn: str, asked: Change, clock: Clock, key: SigningKey, sink: NoticeSink, console: Console) -> None:
    async with l1_withdrawals.connected(dsn) as connection:
        done = await l1_withdrawals.change(connection, asked, clock, dia_objects.remake)
        console.print(_said(asked, done))
        told = await tell_owed(connection, clock, key, sink)
        console.print(f"{told} notices acknowledged by the broker, signed with key {key.key_id}")


def _said(asked: Change, done: Changed) -> str:
    before = f"; {done.before} were so already" if done.before else ""
    return (
        f"{asked.what}: {done.dia_sources} DIASources, {done.dia_forced_sources} DIAForcedSources {asked.done}{before};"
        f" {done.remade} DIAObjects made anew, {done.ended} ended"
    )


async def tell_owed(connection: asyncpg.Connection, clock: Clock, key: SigningKey, sink: NoticeSink) -> int:
    """Send what is owed of this change and of earlier ones; how many. Raises Transient if any stays owed."""
    told = 0
    while owed := await l1_withdrawals.owed(connection, AT_ONCE):
        errors = await sink.send([Notice.signed(o.key, o.value, key) for o in owed])
        names = [o.notice for o, error in zip(owed, errors, strict=True) if not error]
        await l1_withdrawals.mark_told(connection, names, mjd_from_tai(clock.now()))
        told += len(names)
        if len(names) < len(owed):
            first = next(error for error in errors if error)
            raise Transient(f"done, and {len(owed) - len(names)} notices are still owed, ask again: {first}")
    return told
