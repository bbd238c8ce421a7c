"""What any place that takes alerts promises: held by a broker's topic, and by a file in its stead."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer

from backbone.alert_spool import AlertSpool, read_spool
from backbone.alert_stream import Alert, AlertSink, AlertStream
from schemas.clock import ManualClock

READ_DEADLINE_S = 20.0
NOW = 1.9e9


def alerts(count: int, *, size: int = 1000, keys: int = 7) -> list[Alert]:
    rng = np.random.default_rng(count)
    return [Alert(str(10**17 + i % keys).encode(), b"\0" + rng.bytes(size), 1000 + i) for i in range(count)]


Message = tuple[bytes | None, bytes]


@dataclass
class Place:
    """A sink, and how to read what it took: (key, value) of each message; a file keeps no keys."""

    sink: AlertSink
    read: Callable[[int], Sequence[Message]]


@pytest.fixture(params=["broker", "file"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "file":
        path = tmp_path / "alerts.spool"
        yield Place(AlertSpool(path, ManualClock(NOW)), lambda count: [(None, v) for v in read_spool(path)][:count])
        return
    bootstrap = request.getfixturevalue("broker")
    topic = request.node.name.replace("[", "-").replace("]", "")
    stream = await AlertStream.open(bootstrap, topic, ManualClock(NOW))
    yield Place(stream, lambda count: consumed(bootstrap, topic, count))


def consumed(bootstrap: str, topic: str, count: int) -> list[Message]:
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": topic,
        "auto.offset.reset": "earliest",
        "session.timeout.ms": 2000,
    }
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    messages: list[Message] = []
    give_up = time.monotonic() + READ_DEADLINE_S
    while len(messages) < count and time.monotonic() < give_up:
        for message in consumer.consume(count, 0.2):
            value = message.value()
            assert message.error() is None
            assert value is not None
            messages.append((message.key(), value))
    consumer.close()
    return messages


class TestAlertSink:
    async def test_every_alert_is_acknowledged_by_name_and_time_in_the_order_given(self, place: Place) -> None:
        sent = alerts(50)
        deliveries = await place.sink.send(sent)
        assert [d.dia_source_id for d in deliveries] == [a.dia_source_id for a in sent]
        assert {(d.acknowledged_at, d.error) for d in deliveries} == {(NOW, "")}

    async def test_what_was_acknowledged_can_be_read_byte_for_byte(self, place: Place) -> None:
        first, second = alerts(30), alerts(20)
        await place.sink.send(first)
        await place.sink.send(second)
        messages = await asyncio.to_thread(place.read, 50)
        assert sorted(value for _, value in messages) == sorted(a.value for a in first + second)
        for key, value in messages:
            assert key is None or key == next(a.key for a in first + second if a.value == value)

    async def test_alerts_of_an_object_stay_in_order(self, place: Place) -> None:
        sent = alerts(200, size=50)
        await place.sink.send(sent)
        messages = await asyncio.to_thread(place.read, 200)
        got = {value: i for i, (_, value) in enumerate(messages)}
        for key in {a.key for a in sent}:
            places = [got[a.value] for a in sent if a.key == key]
            assert places == sorted(places)

    async def test_no_alerts_are_sent_at_once(self, place: Place) -> None:
        assert await place.sink.send([]) == []

    async def test_a_large_alert_goes_as_well(self, place: Place) -> None:
        sent = alerts(3, size=5_000_000)
        assert [d.error for d in await place.sink.send(sent)] == [""] * 3

    async def test_detectors_may_send_at_the_same_time(self, place: Place) -> None:
        batches = [alerts(n) for n in (3, 5, 7, 11)]
        answers = await asyncio.gather(*(place.sink.send(batch) for batch in batches))
        for batch, deliveries in zip(batches, answers, strict=True):
            assert [(d.dia_source_id, d.error) for d in deliveries] == [(a.dia_source_id, "") for a in batch]

    async def test_the_event_loop_is_free_meanwhile(self, place: Place) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        await place.sink.send(alerts(3000, size=20_000))
        ticking.cancel()
        assert ticks >= 5
