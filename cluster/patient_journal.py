"""A journal that is waited for: while its database does not answer, nothing is handed on, and nothing is lost."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from backbone.journal import Delivery, Entry, Journal, Owed, Position
from schemas.errors import Transient
from schemas.events import Event

PATIENCE_S = 1800.0
"""Wall seconds for which a database may be away."""

BACKOFF_S, MAX_BACKOFF_S = 0.5, 5.0

Answer = TypeVar("Answer")


class PatientJournal:
    """Asks a journal again while it raises Transient, up to `PATIENCE_S`.

    A write that was asked for twice may have been done the first time, unheard; all its facts then count as new and are
    handed on: who has had one already is asked again, and must answer the same.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def append(
        self, facts: Sequence[Event], owed: Owed, at: float, position: Position | None = None
    ) -> list[Event]:
        """See `Journal`."""
        return await self._written(lambda: self._journal.append(facts, owed, at, position), facts)

    async def complete(self, delivery: Delivery, facts: Sequence[Event], owed: Owed, at: float) -> list[Event]:
        """See `Journal`."""
        return await self._written(lambda: self._journal.complete(delivery, facts, owed, at), facts)

    async def give_up(
        self, delivery: Delivery, error: str, facts: Sequence[Event], owed: Owed, at: float, *, refused: bool = False
    ) -> list[Event]:
        """See `Journal`."""
        return await self._written(
            lambda: self._journal.give_up(delivery, error, facts, owed, at, refused=refused), facts
        )

    async def retry(self, delivery: Delivery, error: str, at: float) -> Delivery:
        """See `Journal`."""
        again, _ = await self._patiently(lambda: self._journal.retry(delivery, error, at))
        return again

    async def owed(self, resumed: Sequence[str] = ()) -> list[Delivery]:
        """See `Journal`."""
        return (await self._patiently(lambda: self._journal.owed(resumed)))[0]

    async def debts(self, since: float = -math.inf) -> dict[str, int]:
        """See `Journal`."""
        return (await self._patiently(lambda: self._journal.debts(since)))[0]

    async def told(self, event_id: str) -> Event | None:
        """See `Journal`."""
        return (await self._patiently(lambda: self._journal.told(event_id)))[0]

    async def facts(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Event]:
        """See `Journal`."""
        return (await self._patiently(lambda: self._journal.facts(*kinds, group=group, since=since)))[0]

    async def entries(self, since: float = -math.inf) -> list[Entry]:
        """See `Journal`."""
        return (await self._patiently(lambda: self._journal.entries(since)))[0]

    async def positions(self) -> dict[tuple[str, int], int]:
        """See `Journal`."""
        return (await self._patiently(self._journal.positions))[0]

    async def _written(self, write: Callable[[], Awaitable[list[Event]]], facts: Sequence[Event]) -> list[Event]:
        new, again = await self._patiently(write)
        return list(facts) if again else new

    async def _patiently(self, call: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer, and whether it was asked for more than once. Raises Transient after `PATIENCE_S`."""
        loop, wait_s = asyncio.get_running_loop(), BACKOFF_S
        give_up, log = loop.time() + PATIENCE_S, structlog.get_logger().bind(part="journal")
        while True:
            try:
                return await call(), wait_s > BACKOFF_S
            except Transient as error:
                if loop.time() >= give_up:
                    raise
                log.warning("the journal is waited for", error=str(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_BACKOFF_S)
