"""`pachon withdraw`, with a real database and broker: told once it is so, and told again until it was heard."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from confluent_kafka import Consumer, Message
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from typer.testing import CliRunner, Result

from backbone import l1_withdrawals
from backbone.l1_postgres import L1Postgres
from backbone.l1_withdrawals import Change, Selection
from backbone.notices import Notice
from backbone.signing_key import PUBLIC_FILE, SigningKey
from backbone.visit_stream import Answer
from cluster.cli import app
from cluster.services import EmbeddedPostgres, free_port, served
from cluster.withdraw import tell_owed
from payloads.alert_production import dia_objects
from schemas.clock import ManualClock, NightClock, mjd_from_tai
from schemas.errors import Transient
from tests.backbone.l1_results import result

TOPIC, NIGHT, N, DUSK = "lsst-alerts-v11-visits", 2026070500001, 5, 1.7833e9
READ_DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Iterator[Path]:
    """Of a night whose database runs, with visits of one detector in it."""
    (module_folder / "clock.json").write_text(json.dumps(asdict(NightClock.starting(DUSK))), "utf-8")
    with EmbeddedPostgres(module_folder / "postgres") as server:
        asyncio.run(fill(server.url))
        yield module_folder


async def fill(dsn: str) -> None:
    l1 = await L1Postgres.open(dsn)
    for visit in range(NIGHT, NIGHT + 6):
        made = result(visit, 94, n=N)
        made.sources["timeWithdrawnMjdTai"] = made.forced["timeWithdrawnMjdTai"] = np.nan
        made.objects["nDiaSources"] = 1
        await l1.store(made, [], 1.0)
    await l1.close()


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["withdraw", *(str(argument) for argument in arguments)])


def ids(visit: int) -> list[int]:
    return [int(number) for number in result(visit, 94, n=N).sources["diaSourceId"]]


def heard(bootstrap: str, visit: int, count: int, public: Path) -> list[dict[str, Any]]:
    """A stranger with the public key: what was said of a visit, each notice checked."""
    settings = {"bootstrap.servers": bootstrap, "group.id": f"stranger-{visit}", "auto.offset.reset": "earliest",
                "session.timeout.ms": 6000}  # fmt: skip
    consumer = Consumer(settings)
    consumer.subscribe([TOPIC])
    notices: list[dict[str, Any]] = []
    give_up = time.monotonic() + READ_DEADLINE_S
    while len(notices) < count and time.monotonic() < give_up:
        notices += [checked(message, public) for message in consumer.consume(100, 0.2) if of(message, visit)]
    consumer.close()
    return notices


def of(message: Message, visit: int) -> bool:
    return message.key() == str(visit).encode()


def checked(message: Message, public: Path) -> dict[str, Any]:
    key = load_pem_public_key(public.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    signature, value = dict(message.headers() or [])["signature"], message.value()
    assert isinstance(signature, bytes)
    assert isinstance(value, bytes)
    key.verify(signature, value)
    notice: dict[str, Any] = json.loads(value)
    return notice


def test_what_is_withdrawn_is_heard_signed_and_asked_again_is_withdrawn_already(folder: Path, broker: str) -> None:
    chosen = ids(NIGHT)[:2]
    sources = [word for number in chosen for word in ("--dia-source", number)]
    asked = ("--output", folder, "--kafka", broker, "--reason", "a satellite", *sources)
    first = ask(*asked)
    assert first.exit_code == 0, first.output
    said = "2 DIASources: 2 DIASources, 0 DIAForcedSources withdrawn; 0 DIAObjects made anew, 2 ended\n"
    assert said in first.stdout
    assert "2 notices acknowledged by the broker, signed with key" in first.stdout
    notices = heard(broker, NIGHT, 2, folder / PUBLIC_FILE)
    assert sorted(n["diaSourceId"] for n in notices) == sorted(chosen)
    assert {(n["kind"], n["reason"]) for n in notices} == {("withdrawn", "a satellite")}
    assert all(0.0 <= n["timeWithdrawnMjdTai"] - mjd_from_tai(DUSK) < 1.0 for n in notices)
    second = ask(*asked)
    assert second.exit_code == 0
    assert (
        "0 DIASources, 0 DIAForcedSources withdrawn; 2 were so already; 0 DIAObjects made anew, 0 ended"
        in second.stdout
    )
    assert "0 notices acknowledged" in second.stdout


def test_what_is_undone_is_heard_as_reinstated_once(folder: Path, broker: str) -> None:
    visit = NIGHT + 4
    asked = ("--output", folder, "--kafka", broker, "--visit", visit, "--reason", "no ghost")
    assert ask(*asked).exit_code == 0
    first, second = ask(*asked, "--undo"), ask(*asked, "--undo")
    assert f"visit {visit}: {N} DIASources, {N - 1} DIAForcedSources reinstated; {N - 1} DIAObjects" in first.stdout
    assert f"{N + 1} notices acknowledged" in first.stdout
    assert f"0 DIASources, 0 DIAForcedSources reinstated; {N} were so already" in second.stdout
    assert "0 notices acknowledged" in second.stdout
    notices = heard(broker, visit, 2 * (N + 1), folder / PUBLIC_FILE)
    kinds = ["forced_withdrawn"] + ["withdrawn"] * N + ["forced_reinstated"] + ["reinstated"] * N
    assert [n["kind"] for n in notices] == kinds
    assert {n.get("supersededBy") for n in notices} == {None}


def test_what_supersedes_is_heard(folder: Path, broker: str) -> None:
    old, new = ids(NIGHT + 5)[:2]
    asked = ("--output", folder, "--kafka", broker, "--dia-source", old, "--reason", "measured anew")
    assert ask(*asked, "--superseded-by", new).exit_code == 0
    (notice,) = heard(broker, NIGHT + 5, 1, folder / PUBLIC_FILE)
    assert (notice["diaSourceId"], notice["supersededBy"]) == (old, new)


def test_a_database_that_is_none_of_ours_is_refused_and_left_as_it_is(folder: Path) -> None:
    dsn = served(folder / "postgres")
    assert dsn is not None
    strange = dsn.replace("/postgres", "/strange")
    asyncio.run(run(dsn, "CREATE DATABASE strange"))
    asked = ("--output", folder, "--kafka", "127.0.0.1:1", "--visit", NIGHT, "--reason", "r", "--postgres", strange)
    done = ask(*asked)
    assert done.exit_code == 2
    assert done.stderr.endswith("strange is no L1 database; it is left as it is\n")
    assert asyncio.run(run(strange, "SELECT FROM pg_tables WHERE schemaname = 'public'")) == []


async def run(dsn: str, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(statement)
    await connection.close()
    return list(rows)


def test_what_no_broker_heard_stays_owed_and_is_told_when_one_comes(
    folder: Path, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.alert_stream._CREATE_S", 1.0)
    visit, nobody = NIGHT + 1, f"127.0.0.1:{free_port()}"
    asked = ("--output", folder, "--reason", "a bad flat", "--visit", visit, "--detector", 94)
    first = ask(*asked, "--kafka", nobody)
    assert first.exit_code == 2
    assert f"{N} DIASources, {N - 1} DIAForcedSources withdrawn" in first.stdout
    assert nobody in first.stderr
    second = ask(*asked, "--kafka", broker)
    assert f"0 DIAForcedSources withdrawn; {N} were so already" in second.stdout
    assert f"{N + 1} notices acknowledged" in second.stdout
    kinds = [n["kind"] for n in heard(broker, visit, N + 1, folder / PUBLIC_FILE)]
    assert sorted(kinds) == ["forced_withdrawn"] + ["withdrawn"] * N


class Forgetful:
    """Takes what it is sent, and dies before it says so; then it takes all but the last."""

    def __init__(self) -> None:
        self.taken: list[Notice] = []

    async def send(self, notices: Sequence[Notice]) -> list[Answer]:
        died = not self.taken
        self.taken += notices
        if died:
            raise ConnectionError("the process died here")
        return [*[None] * (len(notices) - 1), Transient("timed out")]


async def test_a_crash_after_the_sending_sends_the_same_bytes_again(folder: Path, tmp_path: Path) -> None:
    visit, clock, sink = NIGHT + 2, ManualClock(DUSK), Forgetful()
    dsn = served(folder / "postgres")
    assert dsn is not None
    async with l1_withdrawals.connected(dsn) as connection:
        await l1_withdrawals.change(connection, Change(Selection(tuple(ids(visit))), "r"), clock, dia_objects.remake)
        with pytest.raises(ConnectionError, match="the process died here"):
            await tell_owed(connection, clock, SigningKey.in_folder(tmp_path), sink)
    async with l1_withdrawals.connected(dsn) as connection:
        with pytest.raises(Transient, match="1 notices are still owed, ask again: timed out"):
            await tell_owed(connection, clock, SigningKey.in_folder(tmp_path), sink)
        (left,) = await l1_withdrawals.owed(connection, 100)
        await l1_withdrawals.mark_told(connection, [left.notice], 61000.1)
    assert sink.taken[:N] == sink.taken[N:]
    assert left.value.encode() == sink.taken[-1].value


def test_a_database_that_does_not_run_is_started_and_stopped_again(open_folder: Path, broker: str) -> None:
    (open_folder / "clock.json").write_text(json.dumps(asdict(NightClock.starting(DUSK))), "utf-8")
    with EmbeddedPostgres(open_folder / "postgres") as server:
        asyncio.run(fill(server.url))
        assert served(open_folder / "postgres") == server.url
    assert served(open_folder / "postgres") is None
    asked = ("--output", open_folder, "--kafka", broker, "--visit", NIGHT + 3, "--reason", "a dome light")
    done = ask(*asked)
    assert done.exit_code == 0, done.output
    assert f"{N + 1} notices acknowledged" in done.stdout
    assert served(open_folder / "postgres") is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give either --dia-source or --visit"),
        (("--visit", 5, "--dia-source", 6), "give either --dia-source or --visit"),
        (("--dia-source", 6, "--detector", 94), "--detector is one of a --visit"),
        (("--visit", 5, "--reason", " "), "--reason is empty"),
        (("--visit", 5), "5 is not the number of a visit, YYYYMMDDNNNNN"),
        (("--visit", NIGHT + 9), f"the L1 database has no visit {NIGHT + 9}; nothing is withdrawn"),
        (("--dia-source", 6), "the L1 database has no DIASource 6; nothing is withdrawn"),
        (("--dia-source", 6, "--undo"), "the L1 database has no DIASource 6; nothing is reinstated"),
        (("--dia-source", 2**70), "value out of int64 range"),
        (("--dia-source", 6, "--undo", "--superseded-by", 7), "--superseded-by does not go with --undo"),
        (("--dia-source", 6, "--dia-source", 8, "--superseded-by", 7), "--superseded-by goes with one --dia-source"),
        (("--visit", NIGHT, "--superseded-by", 7), "--superseded-by goes with one --dia-source"),
        (("--dia-source", 6, "--superseded-by", 6), "no DIASource supersedes itself"),
    ],
)
def test_what_cannot_be_withdrawn_is_refused_in_one_line(folder: Path, arguments: tuple[object, ...], why: str) -> None:
    done = ask("--output", folder, "--kafka", "127.0.0.1:1", "--reason", "r", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert why in done.stderr


def test_a_folder_without_a_night_or_a_database_is_refused_by_name(tmp_path: Path) -> None:
    asked = ("--output", tmp_path, "--kafka", "127.0.0.1:1", "--visit", 5, "--reason", "r")
    assert f"{tmp_path} is not the folder of a night with a database" in ask(*asked).stderr
    (tmp_path / "clock.json").write_text(json.dumps(asdict(NightClock.starting(DUSK))), "utf-8")
    assert f"{tmp_path} has no database of its own" in ask(*asked).stderr
