"""What the observatory said wrongly: refused, kept, listed, and sent again, with a real broker and registry."""

import asyncio
import contextlib
import io
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from fastavro import parse_schema, schemaless_writer
from typer.testing import CliRunner, Result

from actors.dead_letter_office import DeadLetterOffice
from backbone.dead_letters import RESUBMITTED, DeadLetterTopic
from backbone.journal import MemoryJournal
from backbone.registry_client import RegistryClient
from backbone.sal import SalReader
from backbone.schema_registry import SchemaRegistry
from cluster.bus import Bus, Route
from cluster.cli import app
from cluster.host import Host, Outcome
from cluster.night import feed
from cluster.services import EmbeddedKafka, free_port
from schemas.clock import ManualClock
from schemas.events import Event, InputRefused, NextVisit, NextVisitCanceled

NEXT_VISIT = "lsst.sal.ScriptQueue.logevent_nextVisit"
CANCELED = "lsst.sal.ScriptQueue.logevent_nextVisitCanceled"
DEADLINE_S = 30.0
VISIT: dict[str, Any] = {
    "groupId": "g", "coordinateSystem": 2, "position": [10.0, -20.0], "startTime": 1783290968.0, "rotationSystem": 2,
    "cameraAngle": 12.5, "filters": "r_57", "duration": 36.0, "nimages": 2, "instrument": "LSSTCam", "survey": "",
    "private_sndStamp": 1783290946.0,
}  # fmt: skip
TYPES = {str: "string", int: "long", float: "double", list: {"type": "array", "items": "double"}}
SCHEMA = {
    "type": "record",
    "name": "logevent_nextVisit",
    "fields": [{"name": name, "type": TYPES[type(value)]} for name, value in VISIT.items()],
}
SHORT = {"type": "record", "name": "canceled", "fields": [{"name": "groupId", "type": "string"}]}


def framed(schema: dict[str, Any], schema_id: int, **record: object) -> bytes:
    body = io.BytesIO()
    schemaless_writer(body, parse_schema(schema), record)
    return struct.pack(">bI", 0, schema_id) + body.getvalue()


class Office:
    """The one pool of these tests."""

    def __init__(self, kafka: str) -> None:
        self.host = Host(DeadLetterOffice(sink=DeadLetterTopic(kafka)), "dead_letter_office")

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:  # noqa: ARG002 - there is one
        return await self.host.handle(event)

    async def back(self, pool: str, lane: int) -> None:
        """It is."""

    async def replace(self, pool: str, lane: int) -> None:
        """Nothing to replace."""


class Desk:
    """A running feed into a journal, and what to say to it."""

    def __init__(self, bus: Bus, journal: MemoryJournal, producer: AIOKafkaProducer, ids: Sequence[int]) -> None:
        self.bus, self.journal, self.producer, self.ids = bus, journal, producer, ids
        self.facts: list[Event] = []
        self._heard = asyncio.Queue[Event]()
        bus.listen(lambda event, _: self._heard.put_nowait(event))

    async def say(self, topic: str, value: bytes, **more: Any) -> None:
        await self.producer.send_and_wait(topic, value, partition=0, **more)

    async def announce(self, **changed: object) -> None:
        await self.say(NEXT_VISIT, framed(SCHEMA, self.ids[0], **(VISIT | changed)))

    async def told(self, count: int) -> list[Event]:
        """The first so many facts of the journal, all dead letters among them kept."""
        await self.journalled(count)
        await asyncio.wait_for(self.bus.idle(), DEADLINE_S)
        return self.facts

    async def journalled(self, count: int) -> list[Event]:
        """The first so many facts of the journal."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.facts) < count:
                self.facts.append(await self._heard.get())
        return self.facts


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[str]:
    """A broker whose topics are empty."""
    with EmbeddedKafka(tmp_path / "kafka.log") as server:
        yield server.bootstrap


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[str]:
    async with SchemaRegistry(tmp_path / "registry.json") as server:
        yield server.url


@asynccontextmanager
async def desk(kafka: str, url: str, letters_at: str = "") -> AsyncIterator[Desk]:
    journal, clock = MemoryJournal(), ManualClock(5.0)
    route = Route("dead_letter_office", 1, frozenset({"InputRefused"}), DEADLINE_S, patient=True)
    bus = Bus([route], Office(letters_at or kafka), journal, clock)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(RegistryClient(url))
        ids = [await client.register("a-value", SCHEMA), await client.register("b-value", SHORT)]
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=False))
        reader = await stack.enter_async_context(SalReader(kafka, client, await journal.positions()))
        jobs = [asyncio.create_task(bus.run()), asyncio.create_task(feed(reader, bus, journal, lambda: None))]
        yield Desk(bus, journal, producer, ids)
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)


async def ask(kafka: str, *arguments: object) -> Result:
    command = ["dead-letters", "--kafka", kafka, *(str(argument) for argument in arguments)]
    return await asyncio.to_thread(CliRunner(env={"COLUMNS": "220"}).invoke, app, command)


async def test_what_cannot_be_understood_is_kept_and_the_reading_goes_on(kafka: str, registry: str) -> None:
    assert "0 dead letters" in (await ask(kafka, "list")).stdout
    async with desk(kafka, registry) as heard:
        await heard.say(NEXT_VISIT, b"{no Avro}", key=b"k", headers=[("trace", b"\x01")])
        await heard.say(NEXT_VISIT, framed(SCHEMA, 4711, **VISIT))
        await heard.announce(instrument="HSC")
        await heard.announce(cameraAngle=float("nan"))
        await heard.announce(position=[10.0, -95.0])
        await heard.say(NEXT_VISIT, framed(SHORT, heard.ids[1], groupId="g"))
        await heard.announce()
        facts = await heard.told(7)
        assert await heard.journal.positions() == {(NEXT_VISIT, 0): 7}
    assert [type(fact) for fact in facts] == [InputRefused] * 6 + [NextVisit]
    listed = await ask(kafka, "list")
    assert listed.exit_code == 0
    assert "6 dead letters, 6 of them not resubmitted" in listed.stdout
    rows = [line for line in listed.stdout.splitlines() if NEXT_VISIT in line]
    whys = ["magic byte is 123", "HTTP 404", "instrument 'HSC'", "cameraAngle nan", "declination", "no field"]
    assert [why in row for why, row in zip(whys, rows, strict=True)] == [True] * 6
    assert all(f"{NEXT_VISIT} 0:{offset}" in row for offset, row in enumerate(rows))
    shown = await ask(kafka, "show", 0)
    assert all(part in shown.stdout for part in ("b'k'", "header trace", "7b 6e 6f 20 41 76 72 6f 7d", "{no Avro}"))
    shown = await ask(kafka, "show", 2, "--registry", registry)
    assert "instrument               'HSC'" in shown.stdout
    for command in (("show", 99), ("resubmit", 1, 99), ("resubmit",), ("resubmit", "--all", 1)):
        wrong = await ask(kafka, *command)
        assert wrong.exit_code == 2
        assert ("99; there are 0, 1, 2, 3, 4, 5" if 99 in command else "say which") in wrong.stderr


async def test_what_was_mended_is_sent_again_and_what_fails_again_is_told_apart(kafka: str, registry: str) -> None:
    async with desk(kafka, registry) as heard:
        missing = max(heard.ids) + 1
        await heard.say(CANCELED, framed(SHORT, missing, groupId="later"))
        await heard.say(CANCELED, b"rubbish")
        assert [type(fact) for fact in await heard.told(2)] == [InputRefused, InputRefused]
        async with RegistryClient(registry) as client:
            assert await client.register("c-value", SHORT | {"name": "canceled_too"}) == missing
        first, second = (letter.number for letter in DeadLetterTopic(kafka).read())
        again = await ask(kafka, "resubmit", first, second)
        assert (again.exit_code, again.stdout.strip()) == (0, "2 resubmitted, 0 not")
        facts = await heard.told(4)
        mended, refused = facts[2:]
        assert mended == NextVisitCanceled(group="later")
        assert isinstance(refused, InputRefused)
        assert [name for name, _ in refused.headers] == [RESUBMITTED]
    letters = DeadLetterTopic(kafka).read()
    assert [(letter.again_after, letter.resubmitted) for letter in letters] == [
        (None, True), (None, True), (second, False),
    ]  # fmt: skip
    assert f"again, after {second}" in (await ask(kafka, "list")).stdout


async def test_a_visit_announced_twice_is_told_once_and_not_changed_unseen(kafka: str, registry: str) -> None:
    async with desk(kafka, registry) as heard:
        await heard.announce()
        await heard.announce(private_sndStamp=1783290950.0)
        await heard.announce(position=[10.0, -21.0], filters="i_39")
        first, second = await heard.told(2)
    assert isinstance(first, NextVisit)
    assert (first.dec, first.filters) == (-20.0, "r_57")
    assert isinstance(second, InputRefused)
    assert second.reason == "NextVisit was told before with other dec, filters"
    (letter,) = DeadLetterTopic(kafka).read()
    assert letter.offset == 2


async def test_a_broker_that_takes_no_dead_letters_does_not_hold_up_the_reading(
    kafka: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.alert_stream._CREATE_S", 0.5)
    async with desk(kafka, registry, letters_at=f"127.0.0.1:{free_port()}") as heard:
        await heard.say(CANCELED, b"rubbish", key=b"k")
        await heard.announce()
        refused, announced = await heard.journalled(2)
        assert isinstance(announced, NextVisit)
        (owed,) = await heard.journal.owed()
        assert (owed.event, owed.pool) == (refused, "dead_letter_office")
        assert await heard.journal.positions() == {(CANCELED, 0): 1, (NEXT_VISIT, 0): 1}
