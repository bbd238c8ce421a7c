"""The journal as those look at it who only want to know: what is owed, what failed, what a visit went through."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from backbone.journal import DEADLINE_S, Connection, Entry
from schemas.errors import BadData, Transient
from schemas.events import Event, read_event

_OPEN = (
    "SELECT a.grp FROM journal a WHERE a.kind = ANY('{NextVisit,ReadoutEnded}') AND NOT EXISTS (SELECT FROM journal b"
    " WHERE b.grp = a.grp AND b.kind = ANY('{VisitDone,VisitRefused}')) GROUP BY a.grp ORDER BY min(a.seq)"
)
_VISIT = (
    "SELECT grp FROM journal WHERE kind = 'ReadoutEnded'"
    " AND (payload::jsonb ->> 'exposure')::bigint - (payload::jsonb ->> 'snap')::bigint = $1 LIMIT 1"
)
_DEBTS = (
    "SELECT pool, count(*) AS owed, min(at) AS since, max(attempts) AS attempts,"
    " (array_agg(error ORDER BY attempts DESC, seq))[1] AS error"
    " FROM delivery JOIN journal USING (event_id) WHERE state = 'owed' GROUP BY pool ORDER BY min(at)"
)
_OWED_ALERTS = (
    "SELECT coalesce(sum((payload::jsonb ->> 'alerts')::bigint), 0) FROM delivery JOIN journal USING (event_id)"
    " WHERE state = 'owed' AND pool = 'alert_emitter' AND kind = 'AlertsReady'"
)


@dataclass(frozen=True)
class Debt:
    """What a pool owes: how many deliveries, since when (TAI s), the most attempts at one, and how that failed."""

    pool: str
    owed: int
    since: float
    attempts: int
    error: str


@dataclass(frozen=True)
class DeliveryState:
    """What became of a delivery. `state`: owed, done, or given up; `failures`: when (TAI s) and why, oldest first."""

    event: Event
    pool: str
    state: str
    attempts: int
    failures: tuple[tuple[float, str], ...] = ()


class JournalView:
    """Reads, and cannot write."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str) -> AsyncIterator["JournalView"]:
        """Connect. Raises Transient if the server does not answer, BadData if it holds no journal, or an older one."""
        try:
            connection = await asyncpg.connect(
                dsn, timeout=DEADLINE_S, command_timeout=DEADLINE_S,
                server_settings={"default_transaction_read_only": "on"},
            )  # fmt: skip
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise Transient(f"the journal's database does not answer: {error}") from error
        try:
            yield cls(connection)
        except asyncpg.UndefinedTableError as error:
            raise BadData(f"this database holds no journal as this version keeps it: {error}") from error
        finally:
            await connection.close(timeout=DEADLINE_S)

    async def counts(self) -> dict[str, int]:
        """How many facts of each kind."""
        rows = await self._connection.fetch("SELECT kind, count(*) AS n FROM journal GROUP BY kind")
        return {row["kind"]: row["n"] for row in rows}

    async def open_groups(self) -> list[str]:
        """Visits announced or read out that have not ended, in the order in which they were first heard of."""
        return [row["grp"] for row in await self._connection.fetch(_OPEN)]

    async def group_of(self, name: str) -> str:
        """The group of a visit: given by itself, by the visit's number, or `last`. Raises BadData if there is none."""
        if name == "last":
            found = await self._connection.fetchval(
                "SELECT grp FROM journal WHERE kind = 'NextVisit' ORDER BY seq DESC LIMIT 1"
            )
        elif name.isdecimal() and len(name) <= 18:
            found = await self._connection.fetchval(_VISIT, int(name))
        else:
            found = await self._connection.fetchval(
                "SELECT grp FROM journal WHERE grp = $1 AND grp <> '' LIMIT 1", name
            )
        if found is None:
            raise BadData("the journal has no visit yet" if name == "last" else f"the journal has no visit {name!r}")
        return str(found)

    async def entries(self, *kinds: str, group: str | None = None) -> list[Entry]:
        """Facts of these kinds (all if none is named), of one group if named, oldest first."""
        rows = await self._connection.fetch(
            "SELECT at, kind, payload FROM journal WHERE (cardinality($1::text[]) = 0 OR kind = ANY($1))"
            " AND ($2::text IS NULL OR grp = $2) ORDER BY seq",
            kinds, group,
        )  # fmt: skip
        return [Entry(row["at"], read_event(row["kind"], row["payload"])) for row in rows]

    async def has(self, events: Sequence[str]) -> set[str]:
        """Which of these event ids were told."""
        rows = await self._connection.fetch("SELECT event_id FROM journal WHERE event_id = ANY($1)", events)
        return {row["event_id"] for row in rows}

    async def debts(self) -> list[Debt]:
        """By pool, the oldest first."""
        return [Debt(**row) for row in await self._connection.fetch(_DEBTS)]

    async def given_up(self) -> dict[str, int]:
        """How many deliveries, by pool."""
        rows = await self._connection.fetch(
            "SELECT pool, count(*) AS n FROM delivery WHERE state = 'given up' GROUP BY pool ORDER BY pool"
        )
        return {row["pool"]: row["n"] for row in rows}

    async def owed_alerts(self) -> int:
        """Alerts committed that the broker has not answered for."""
        return int(await self._connection.fetchval(_OWED_ALERTS))

    async def owed_withdrawals(self) -> int:
        """Notices of withdrawals that the broker has not acknowledged."""
        if await self._connection.fetchval("SELECT to_regclass('withdrawal') IS NULL"):
            return 0
        return int(await self._connection.fetchval("SELECT count(*) FROM withdrawal WHERE told_at IS NULL"))

    async def deliveries(self, group: str) -> list[DeliveryState]:
        """Of the facts of a group, in their order."""
        rows = await self._connection.fetch(
            "SELECT event_id, kind, payload, pool, state, attempts FROM delivery JOIN journal USING (event_id)"
            " WHERE grp = $1 ORDER BY seq, pool",
            group,
        )
        failed = await self._connection.fetch(
            "SELECT f.event_id, f.pool, f.at, f.error FROM failed_attempt f JOIN journal USING (event_id)"
            " WHERE grp = $1 ORDER BY f.at",
            group,
        )
        failures: dict[tuple[str, str], list[tuple[float, str]]] = {}
        for row in failed:
            failures.setdefault((row["event_id"], row["pool"]), []).append((row["at"], row["error"]))
        return [
            DeliveryState(
                read_event(row["kind"], row["payload"]), row["pool"], row["state"], row["attempts"],
                tuple(failures.get((row["event_id"], row["pool"]), ())),
            )
            for row in rows
        ]  # fmt: skip
