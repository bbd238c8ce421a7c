"""The journal as those look at it who only want to know: what is owed, what failed, what a visit went through."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backbone.journal import Connection, Entry
from backbone.l1_connection import connected
from schemas.clock import mjd_from_tai, tai_from_mjd
from schemas.errors import BadData
from schemas.events import Event, NoticeDue, read_event

_OPEN = (
    "SELECT a.grp FROM journal a WHERE a.kind = ANY('{NextVisit,ReadoutEnded}') AND NOT EXISTS (SELECT FROM journal b"
    " WHERE b.grp = a.grp AND b.kind = ANY('{VisitDone,VisitRefused}')) AND a.at >= $1"
    " GROUP BY a.grp ORDER BY min(a.seq)"
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
    """What became of a delivery. `state`: owed, done, given up, or refused.

    `failures`: when (TAI s) and why, oldest first.
    """

    event: Event
    pool: str
    state: str
    attempts: int
    failures: tuple[tuple[float, str], ...] = ()


async def _check(connection: Connection, where: str) -> None:
    await connection.execute("SET default_transaction_read_only = on")
    for table in ("journal", "delivery", "failed_attempt"):
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            raise BadData(f"the database at {where} holds no journal as this version keeps it: {table} is not there")


class JournalView:
    """Reads, and cannot write."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str) -> AsyncIterator["JournalView"]:
        """Connect. Raises as `connected`, BadData for a database that holds no journal, or an older one."""
        async with connected(dsn, _check, "the journal's database") as connection:
            yield cls(connection)

    async def counts(self, since: float = -math.inf) -> dict[str, int]:
        """How many facts of each kind were told since then (TAI s)."""
        query = "SELECT kind, count(*) AS n FROM journal WHERE at >= $1 GROUP BY kind"
        rows = await self._connection.fetch(query, since)
        return {row["kind"]: row["n"] for row in rows}

    async def open_groups(self, since: float = -math.inf) -> list[str]:
        """Visits announced or read out since then (TAI s) that have not ended, as they were first heard of."""
        return [row["grp"] for row in await self._connection.fetch(_OPEN, since)]

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

    async def entries(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Entry]:
        """Facts of these kinds (all if none is named), of one group if named, told since then (TAI s), oldest first."""
        rows = await self._connection.fetch(
            "SELECT at, kind, payload FROM journal WHERE (cardinality($1::text[]) = 0 OR kind = ANY($1))"
            " AND ($2::text IS NULL OR grp = $2) AND at >= $3 ORDER BY seq",
            kinds, group, since,
        )  # fmt: skip
        return [Entry(row["at"], read_event(row["kind"], row["payload"])) for row in rows]

    async def has(self, events: Sequence[str]) -> set[str]:
        """Which of these event ids were told."""
        rows = await self._connection.fetch("SELECT event_id FROM journal WHERE event_id = ANY($1)", events)
        return {row["event_id"] for row in rows}

    async def debts(self) -> list[Debt]:
        """By pool, the oldest first."""
        return [Debt(**row) for row in await self._connection.fetch(_DEBTS)]

    async def given_up(self, since: float = -math.inf) -> dict[str, int]:
        """How many deliveries of what was told since then (TAI s), refused ones among them, by pool."""
        rows = await self._connection.fetch(
            "SELECT pool, count(*) AS n FROM delivery JOIN journal USING (event_id)"
            " WHERE state = ANY('{given up,refused}') AND at >= $1 GROUP BY pool ORDER BY pool",
            since,
        )
        return {row["pool"]: row["n"] for row in rows}

    async def refused(self, pool: str, since: float = -math.inf) -> list[tuple[Event, str]]:
        """What a pool refused of what was told since then (TAI s), and why, oldest first."""
        rows = await self._connection.fetch(
            "SELECT kind, payload, error FROM delivery JOIN journal USING (event_id)"
            " WHERE state = 'refused' AND pool = $1 AND at >= $2 ORDER BY seq",
            pool, since,
        )  # fmt: skip
        return [(read_event(row["kind"], row["payload"]), row["error"]) for row in rows]

    async def owed_alerts(self) -> int:
        """Alerts committed that the broker has not answered for."""
        return int(await self._connection.fetchval(_OWED_ALERTS))

    async def owed_withdrawals(self) -> int:
        """Notices of withdrawals that the broker has not acknowledged."""
        if await self._connection.fetchval("SELECT to_regclass('withdrawal') IS NULL"):
            return 0
        return int(await self._connection.fetchval("SELECT count(*) FROM withdrawal WHERE told_at IS NULL"))

    async def notices(self, since: float) -> list[tuple[str, str]]:
        """Key and value of what brokers were to be told since then (TAI s), and of withdrawals that they were told."""
        due = [(e.at, (e.event.key, e.event.value)) for e in await self.entries("NoticeDue", since=since)
               if isinstance(e.event, NoticeDue)]  # fmt: skip
        if not await self._connection.fetchval("SELECT to_regclass('withdrawal') IS NULL"):
            rows = await self._connection.fetch(
                "SELECT noted_at, key, value FROM withdrawal WHERE told_at >= $1 ORDER BY noted_at, notice",
                mjd_from_tai(since),
            )
            due += [(tai_from_mjd(row["noted_at"]), (row["key"], row["value"])) for row in rows]
        return [notice for _, notice in sorted(due, key=lambda one: one[0])]

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
