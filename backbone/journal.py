"""The journal: every fact once, in PostgreSQL, with what is still owed for it.

`journal` holds facts in the order in which they were told; `delivery` says which pool still has to react to which
fact; `failed_attempt` when it could not, and why; `input_position` says how far each input topic was read. A handler's
results and the end of its delivery are one transaction, so that a restart goes on where the journal stands.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg

from backbone.pg_tables import make_lacking
from schemas.errors import Broken, Transient
from schemas.events import Event, read_event

DDL = """
CREATE TABLE IF NOT EXISTS journal (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text UNIQUE NOT NULL, kind text NOT NULL,
    grp text NOT NULL, at double precision NOT NULL, payload text NOT NULL);
CREATE INDEX IF NOT EXISTS journal_grp ON journal (grp);
DROP INDEX IF EXISTS journal_kind;
CREATE INDEX IF NOT EXISTS journal_kind_at ON journal (kind, at);
CREATE INDEX IF NOT EXISTS journal_at ON journal USING brin (at) WITH (autosummarize = on);
CREATE TABLE IF NOT EXISTS delivery (
    event_id text NOT NULL REFERENCES journal (event_id), pool text NOT NULL, state text NOT NULL DEFAULT 'owed',
    attempts int NOT NULL DEFAULT 0, error text NOT NULL DEFAULT '', PRIMARY KEY (event_id, pool));
CREATE TABLE IF NOT EXISTS failed_attempt (
    event_id text NOT NULL, pool text NOT NULL, at double precision NOT NULL, error text NOT NULL);
CREATE INDEX IF NOT EXISTS failed_attempt_event ON failed_attempt (event_id);
CREATE INDEX IF NOT EXISTS delivery_owed ON delivery (event_id) WHERE state = 'owed';
CREATE INDEX IF NOT EXISTS delivery_refused ON delivery (event_id) WHERE state = 'refused';
CREATE TABLE IF NOT EXISTS input_position (
    topic text NOT NULL, partition int NOT NULL, next_offset bigint NOT NULL, PRIMARY KEY (topic, partition));
"""

DEADLINE_S = 30.0
"""For connecting, and making the tables, wall seconds."""

STATEMENT_S = 8.0
"""For one statement, wall seconds: less than the pools that ask the journal have for their answer."""

_NO_ANSWER = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

Connection = Any
"""An asyncpg connection, which has no type information."""


@dataclass(frozen=True)
class Position:
    """How far an input topic was read."""

    topic: str
    partition: int
    next_offset: int


@dataclass(frozen=True)
class Delivery:
    """A fact that a pool still has to react to."""

    event: Event
    pool: str
    attempts: int = 0


@dataclass(frozen=True)
class Entry:
    """A fact and when it was told (TAI s)."""

    at: float
    event: Event


class Journal(Protocol):
    """What the bus writes before it does anything, and reads when it starts."""

    async def append(
        self, facts: Sequence[Event], owed: "Owed", at: float, position: Position | None = None
    ) -> list[Event]:
        """Add facts with the pools that owe them a reaction; returns those that were new."""

    async def complete(self, delivery: Delivery, facts: Sequence[Event], owed: "Owed", at: float) -> list[Event]:
        """End a delivery and add what followed, in one transaction; returns the facts that were new."""

    async def give_up(
        self, delivery: Delivery, error: str, facts: Sequence[Event], owed: "Owed", at: float, *, refused: bool = False
    ) -> list[Event]:
        """End a delivery that failed for good, with the facts that say so.

        `refused`: for what it is about, which will be no better at the next start.
        """

    async def retry(self, delivery: Delivery, error: str, at: float) -> Delivery:
        """Note a failed attempt; the delivery stays owed."""

    async def owed(self, resumed: Sequence[str] = ()) -> list[Delivery]:
        """All that is still owed, oldest first; what the pools `resumed` gave up and did not refuse is owed again."""

    async def debts(self, since: float = -math.inf) -> dict[str, int]:
        """Pool -> how much it still owes of what was told since then (TAI s)."""

    async def told(self, event_id: str) -> Event | None:
        """The fact of this id, None if it was not told yet."""

    async def facts(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Event]:
        """Facts of these kinds (all if none is named), of one group if named, told since then (TAI s), oldest first."""

    async def entries(self, since: float = -math.inf) -> list[Entry]:
        """All that was told since then (TAI s), oldest first."""

    async def positions(self) -> dict[tuple[str, int], int]:
        """(topic, partition) -> next offset to read."""


Owed = Mapping[str, Sequence[str]]
"""event_id -> pools."""


async def write_facts(connection: Connection, facts: Sequence[Event], at: float) -> list[Event]:
    """Add facts told at `at` (TAI s) within the caller's transaction; returns the new ones.

    One that is already there stays as it was.
    """
    new = []
    for fact in facts:
        row = await connection.fetchrow(
            "INSERT INTO journal (event_id, kind, grp, at, payload) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (event_id) DO NOTHING RETURNING seq",
            fact.event_id, fact.kind, fact.group, at, fact.model_dump_json(),
        )  # fmt: skip
        if row is not None:
            new.append(fact)
    return new


class PostgresJournal:
    """The journal in PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str) -> "PostgresJournal":
        """Connect, and create the tables if they are not there. Raises Transient if the server does not answer."""
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=4, command_timeout=STATEMENT_S, timeout=DEADLINE_S
            )
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(7_364_001)")  # one process makes the tables
                await make_lacking(connection, DDL, DEADLINE_S)
        except _NO_ANSWER as error:
            raise Transient(f"the journal's database at {_without_password(dsn)} does not answer: {error!r}") from error
        return cls(pool)

    async def close(self) -> None:
        """Give the connections back."""
        await asyncio.wait_for(self._pool.close(), DEADLINE_S)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        """Raises Transient if the database does not answer: then nobody knows whether it was done."""
        with _told():
            async with self._pool.acquire(timeout=STATEMENT_S) as connection, connection.transaction():
                yield connection

    async def _fetch(self, query: str, *parameters: object) -> list[Connection]:
        with _told():
            rows: list[Connection] = await self._pool.fetch(query, *parameters)
        return rows

    async def append(
        self, facts: Sequence[Event], owed: Owed, at: float, position: Position | None = None
    ) -> list[Event]:
        """See `Journal`."""
        async with self._transaction() as connection:
            if position is not None:
                await connection.execute(
                    "INSERT INTO input_position VALUES ($1, $2, $3)"
                    " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
                    position.topic, position.partition, position.next_offset,
                )  # fmt: skip
            return await _tell(connection, facts, owed, at)

    async def complete(self, delivery: Delivery, facts: Sequence[Event], owed: Owed, at: float) -> list[Event]:
        """See `Journal`."""
        async with self._transaction() as connection:
            await _attempted(connection, delivery, "done", "")
            return await _tell(connection, facts, owed, at)

    async def give_up(
        self, delivery: Delivery, error: str, facts: Sequence[Event], owed: Owed, at: float, *, refused: bool = False
    ) -> list[Event]:
        """See `Journal`."""
        async with self._transaction() as connection:
            await _failed(connection, delivery, "refused" if refused else "given up", error, at)
            return await _tell(connection, facts, owed, at)

    async def retry(self, delivery: Delivery, error: str, at: float) -> Delivery:
        """See `Journal`."""
        async with self._transaction() as connection:
            await _failed(connection, delivery, "owed", error, at)
        return Delivery(delivery.event, delivery.pool, delivery.attempts + 1)

    async def owed(self, resumed: Sequence[str] = ()) -> list[Delivery]:
        """See `Journal`."""
        async with self._transaction() as connection:
            query = "UPDATE delivery SET state = 'owed', attempts = 0 WHERE state = 'given up' AND pool = ANY($1)"
            await connection.execute(query, list(resumed))
        rows = await self._fetch(
            "SELECT kind, payload, pool, attempts FROM delivery JOIN journal USING (event_id)"
            " WHERE state = 'owed' ORDER BY seq, pool"
        )
        return [Delivery(read_event(r["kind"], r["payload"]), r["pool"], r["attempts"]) for r in rows]

    async def debts(self, since: float = -math.inf) -> dict[str, int]:
        """See `Journal`."""
        rows = await self._fetch(
            "SELECT pool, count(*) AS n FROM delivery JOIN journal USING (event_id)"
            " WHERE state = 'owed' AND at >= $1 GROUP BY pool ORDER BY pool",
            since,
        )
        return {row["pool"]: row["n"] for row in rows}

    async def owe_again(self, pool: str, since: float) -> int:
        """What a pool refused of what was told since then (TAI s) is owed again; how much that is."""
        async with self._transaction() as connection:
            rows = await connection.fetch(
                "UPDATE delivery SET state = 'owed', attempts = 0 FROM journal WHERE state = 'refused' AND pool = $1"
                " AND journal.event_id = delivery.event_id AND at >= $2 RETURNING 1",
                pool, since,
            )  # fmt: skip
            return len(rows)

    async def told(self, event_id: str) -> Event | None:
        """See `Journal`."""
        rows = await self._fetch("SELECT kind, payload FROM journal WHERE event_id = $1", event_id)
        return read_event(rows[0]["kind"], rows[0]["payload"]) if rows else None

    async def facts(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Event]:
        """See `Journal`."""
        asked: dict[str, object] = {"at >= $": since}
        asked |= {"kind = ANY($)": list(kinds)} if kinds else {}
        asked |= {"grp = $": group} if group is not None else {}
        where = " AND ".join(term.replace("$", f"${place}") for place, term in enumerate(asked, 1))
        query = f"SELECT kind, payload FROM journal WHERE {where} ORDER BY seq"  # noqa: S608 - of the terms above
        return [read_event(r["kind"], r["payload"]) for r in await self._fetch(query, *asked.values())]

    async def entries(self, since: float = -math.inf) -> list[Entry]:
        """See `Journal`."""
        rows = await self._fetch("SELECT at, kind, payload FROM journal WHERE at >= $1 ORDER BY seq", since)
        return [Entry(r["at"], read_event(r["kind"], r["payload"])) for r in rows]

    async def positions(self) -> dict[tuple[str, int], int]:
        """See `Journal`."""
        rows = await self._fetch("SELECT topic, partition, next_offset FROM input_position")
        return {(r["topic"], r["partition"]): r["next_offset"] for r in rows}


@contextmanager
def _told() -> Iterator[None]:
    """What the server says, or that it says nothing, as one of our errors."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise Broken(f"the journal: {error}") from error
    except _NO_ANSWER as error:
        raise Transient(f"the journal's database does not answer: {error!r}") from error


async def _attempted(connection: Connection, delivery: Delivery, state: str, error: str) -> None:
    await connection.execute(
        "UPDATE delivery SET state = $3, error = $4, attempts = attempts + 1 WHERE event_id = $1 AND pool = $2",
        delivery.event.event_id, delivery.pool, state, error,
    )  # fmt: skip


async def _failed(connection: Connection, delivery: Delivery, state: str, error: str, at: float) -> None:
    await _attempted(connection, delivery, state, error)
    await connection.execute(
        "INSERT INTO failed_attempt VALUES ($1, $2, $3, $4)", delivery.event.event_id, delivery.pool, at, error
    )


async def _tell(connection: Connection, facts: Sequence[Event], owed: Owed, at: float) -> list[Event]:
    """Write facts and their debts; a fact that came in another transaction (with its rows) still gets its debts."""
    written = await write_facts(connection, facts, at)
    new = []
    for fact in facts:
        rows = await connection.fetch(
            "INSERT INTO delivery (event_id, pool) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING RETURNING pool",
            fact.event_id, list(owed.get(fact.event_id, ())),
        )  # fmt: skip
        if rows or fact in written:
            new.append(fact)
    return new


@dataclass
class MemoryJournal:
    """The journal of an inline run: as long as the process lives."""

    _entries: dict[str, Entry] = field(default_factory=dict)
    _owed: dict[tuple[str, str], Delivery] = field(default_factory=dict)
    _given_up: dict[tuple[str, str], Delivery] = field(default_factory=dict)
    _debts: set[tuple[str, str]] = field(default_factory=set)
    _positions: dict[tuple[str, int], int] = field(default_factory=dict)

    async def append(
        self, facts: Sequence[Event], owed: Owed, at: float, position: Position | None = None
    ) -> list[Event]:
        """See `Journal`."""
        if position is not None:
            self._positions[position.topic, position.partition] = position.next_offset
        new = []
        for fact in facts:
            told = fact.event_id in self._entries
            self._entries.setdefault(fact.event_id, Entry(at, fact))
            debts = [key for pool in owed.get(fact.event_id, ()) if (key := (fact.event_id, pool)) not in self._debts]
            self._debts.update(debts)
            self._owed.update({key: Delivery(fact, key[1]) for key in debts})
            if debts or not told:
                new.append(fact)
        return new

    async def complete(self, delivery: Delivery, facts: Sequence[Event], owed: Owed, at: float) -> list[Event]:
        """See `Journal`."""
        self._owed.pop((delivery.event.event_id, delivery.pool), None)
        return await self.append(facts, owed, at)

    async def give_up(
        self,
        delivery: Delivery,
        error: str,  # noqa: ARG002 - the database keeps it
        facts: Sequence[Event],
        owed: Owed,
        at: float,
        *,
        refused: bool = False,
    ) -> list[Event]:
        """See `Journal`."""
        if not refused:
            self._given_up[delivery.event.event_id, delivery.pool] = Delivery(delivery.event, delivery.pool)
        return await self.complete(delivery, facts, owed, at)

    async def retry(self, delivery: Delivery, error: str, at: float) -> Delivery:  # noqa: ARG002 - the database keeps both
        """See `Journal`."""
        again = Delivery(delivery.event, delivery.pool, delivery.attempts + 1)
        self._owed[delivery.event.event_id, delivery.pool] = again
        return again

    async def owed(self, resumed: Sequence[str] = ()) -> list[Delivery]:
        """See `Journal`."""
        for key in [key for key in self._given_up if key[1] in resumed]:
            self._owed[key] = self._given_up.pop(key)
        return list(self._owed.values())

    async def debts(self, since: float = -math.inf) -> dict[str, int]:
        """See `Journal`."""
        return dict(Counter(pool for event_id, pool in self._owed if self._entries[event_id].at >= since))

    async def told(self, event_id: str) -> Event | None:
        """See `Journal`."""
        entry = self._entries.get(event_id)
        return entry.event if entry else None

    async def facts(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Event]:
        """See `Journal`."""
        told = [entry.event for entry in await self.entries(since)]
        return [e for e in told if (not kinds or e.kind in kinds) and (group is None or e.group == group)]

    async def entries(self, since: float = -math.inf) -> list[Entry]:
        """See `Journal`."""
        return [entry for entry in self._entries.values() if entry.at >= since]

    async def positions(self) -> dict[tuple[str, int], int]:
        """See `Journal`."""
        return dict(self._positions)


def _without_password(dsn: str) -> str:
    """The address of a DSN, for a message."""
    return dsn.rsplit("@", 1)[-1]
