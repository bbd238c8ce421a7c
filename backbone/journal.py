"""The journal: every fact once, in PostgreSQL, with what is still owed for it.

`journal` holds facts in the order in which they were told; `delivery` says which pool still has to react to which
fact; `input_position` says how far each input topic was read. A handler's results and the end of its delivery are
one transaction, so that a restart goes on where the journal stands.
"""

from collections.abc import Sequence

import asyncpg

from schemas.events import Event

DDL = """
CREATE TABLE IF NOT EXISTS journal (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text UNIQUE NOT NULL, kind text NOT NULL,
    grp text NOT NULL, at double precision NOT NULL, payload text NOT NULL);
CREATE INDEX IF NOT EXISTS journal_grp ON journal (grp);
CREATE TABLE IF NOT EXISTS delivery (
    event_id text NOT NULL REFERENCES journal (event_id), pool text NOT NULL, state text NOT NULL DEFAULT 'owed',
    attempts int NOT NULL DEFAULT 0, error text NOT NULL DEFAULT '', PRIMARY KEY (event_id, pool));
CREATE INDEX IF NOT EXISTS delivery_owed ON delivery (event_id) WHERE state = 'owed';
CREATE TABLE IF NOT EXISTS input_position (
    topic text NOT NULL, partition int NOT NULL, next_offset bigint NOT NULL, PRIMARY KEY (topic, partition));
"""


async def write_facts(connection: asyncpg.Connection, facts: Sequence[Event], at: float) -> None:
    """Add facts told at `at` (TAI s) within the caller's transaction; one already there stays as it was."""
    await connection.executemany(
        "INSERT INTO journal (event_id, kind, grp, at, payload) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (event_id) DO NOTHING",
        [(fact.event_id, fact.kind, fact.group, at, fact.model_dump_json()) for fact in facts],
    )
