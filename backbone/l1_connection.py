"""One connection to an L1 database, or to the journal in it, for what is done by day or only looks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from schemas.errors import BadData, Transient

DEADLINE_S = 60.0
"""For one statement, wall seconds."""


@asynccontextmanager
async def connected(
    dsn: str, check: Callable[[asyncpg.Connection, str], Awaitable[None]], what: str = "the L1 database"
) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that passed a `check`, which is told where it is; `what` names it in errors.

    Raises Transient if the server does not answer, then or later, BadData if it refuses what it is given.
    """
    where = dsn.rsplit("@", 1)[-1]
    try:
        connection = await asyncpg.connect(dsn, timeout=DEADLINE_S, command_timeout=DEADLINE_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Transient(f"{what} at {where} does not answer: {error!r}") from error
    try:
        await check(connection, where)
        yield connection
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise BadData(f"{what} at {where}: {error}") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Transient(f"{what} at {where}: {error or type(error).__name__}") from error
    finally:
        await asyncio.wait_for(connection.close(), DEADLINE_S)
