"""`pachon retry-alerts`: owes again the alerts that the emitter refused to send, once what was wrong is mended."""

import asyncio
from pathlib import Path

from rich.console import Console

from backbone.journal import PostgresJournal
from backbone.journal_view import JournalView
from cluster.later import database_of, settings_of
from cluster.status import place_of
from cluster.stored_clock import StoredClock

POOL = "alert_emitter"


def run(output: Path, postgres: str, console: Console) -> int:
    """Do it; 0. Raises BadData for a folder of no night, Transient if its database does not answer."""
    settings = settings_of(output)
    with database_of(settings, postgres) as dsn:
        asyncio.run(_run(dsn, StoredClock(settings.clock_file).began, console))
    return 0


async def _run(dsn: str, since: float, console: Console) -> None:
    async with JournalView.opened(dsn) as view:  # that it is a journal is seen here, before anything is written
        refused = await view.refused(POOL, since)
    for event, why in refused:
        console.print(f"{place_of(event)}: {why}")
    journal = await PostgresJournal.open(dsn)
    try:
        again = await journal.owe_again(POOL, since)
    finally:
        await journal.close()
    console.print(f"alerts of {again} visit-detectors are owed again, and sent when the night is next started")
