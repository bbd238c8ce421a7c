"""`pachon archived-alerts`: alerts of the archive, from the files that the L1 database names."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from access.archived import Named, show
from backbone.l1_postgres import L1Postgres
from cluster.later import archive_of, database_of
from cluster.settings import Settings
from schemas.errors import PachonError


def run(output: Path, dia_sources: Sequence[int], key: int | None, stamps: Path | None, postgres: str) -> int:
    """Do it; the exit code. `postgres`: else the folder's own; without any, the newest files count, and that is said.

    Raises PachonError for what is not there, or is corrupt, or does not answer.
    """
    archive = archive_of(output)
    with asyncio.Runner() as loop, ExitStack() as stack:
        return show(archive, dia_sources, key, stamps, _named(loop, stack, output, postgres))


def _named(loop: asyncio.Runner, stack: ExitStack, output: Path, postgres: str) -> Named | None:
    """What the database says, as long as the stack is open; None if the folder has none that can be started."""
    try:
        dsn = stack.enter_context(database_of(Settings(output=output.resolve()), postgres))
        l1 = loop.run(L1Postgres.open(dsn, create=False))
    except (PachonError, OSError) as error:
        if postgres:
            raise
        sys.stderr.write(f"no L1 database says which files count: {error}\n")
        return None
    stack.callback(lambda: loop.run(l1.close()))

    def named(visit: int, detector: int) -> str | None:
        outbox = loop.run(l1.outbox(visit, detector))
        return None if outbox is None else outbox.path

    return named
