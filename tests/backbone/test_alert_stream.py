"""What happens to alerts when the broker does not do its part."""

import asyncio
import math
import time
from pathlib import Path

import numpy as np
import pytest

from backbone import alert_stream
from backbone.alert_stream import Alert, AlertStream
from cluster.services import EmbeddedKafka, free_port
from schemas.clock import ManualClock
from schemas.errors import Transient
from tests.backbone.consumers import messages_of
from tests.backbone.small_broker import small_broker

ALERTS = [Alert(b"7", bytes([i]) * 100, i) for i in range(20)]


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(alert_stream, "DELIVERY_S", 1.5)
    monkeypatch.setitem(alert_stream._SETTINGS, "delivery.timeout.ms", 1500)
    return 1.5


async def test_a_dead_broker_leaves_every_alert_failed_after_the_deadline(
    tmp_path: Path, short_deadline: float
) -> None:
    with EmbeddedKafka(tmp_path / "log") as kafka:
        stream = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(5.0))
        assert [d.acknowledged_at for d in await stream.send(ALERTS)] == [5.0] * 20
        assert kafka.process is not None
        kafka.process.kill()
    start = time.monotonic()
    deliveries = await stream.send(ALERTS)
    assert short_deadline <= time.monotonic() - start < short_deadline + alert_stream._GRACE_S + 0.5
    assert all(math.isnan(d.acknowledged_at) and d.error for d in deliveries)
    assert [d.dia_source_id for d in deliveries] == list(range(20))


async def test_a_call_ends_when_its_own_time_is_up() -> None:
    stream = AlertStream(f"127.0.0.1:{free_port()}", "alerts", ManualClock(5.0))
    start = time.monotonic()
    deliveries = await stream.send(ALERTS, 0.5)
    assert 0.5 <= time.monotonic() - start < 1.5
    assert {(math.isnan(d.acknowledged_at), d.error) for d in deliveries} == {(True, "no answer within the deadline")}


@pytest.mark.usefixtures("short_deadline")
async def test_when_the_broker_is_back_the_same_stream_goes_on(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedKafka(tmp_path / "log", port=port) as kafka:
        stream = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(5.0))
        await stream.send(ALERTS)
        assert kafka.process is not None
        kafka.process.kill()
    assert all(d.error for d in await stream.send(ALERTS))
    with EmbeddedKafka(tmp_path / "log", port=port) as kafka:
        await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(5.0))
        assert [d.error for d in await stream.send(ALERTS)] == [""] * 20
        assert kafka.process is not None
        kafka.process.kill()


async def test_an_alert_that_is_too_large_fails_alone(broker: str) -> None:
    stream = await AlertStream.open(broker, "alerts", ManualClock(5.0))
    huge = Alert(b"8", bytes(11_000_000), 99)
    deliveries = await stream.send([*ALERTS[:3], huge, *ALERTS[3:]])
    assert [d.dia_source_id for d in deliveries if d.error] == [99]
    assert "too large" in deliveries[3].error


async def test_opening_twice_is_no_error_and_makes_the_topic_once(broker: str) -> None:
    for _ in range(2):
        await AlertStream.open(broker, "opened-twice", ManualClock())


async def test_a_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_stream, "_CREATE_S", 1.0)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Transient, match=address):
        await AlertStream.open(address, "alerts", ManualClock())


@pytest.mark.parametrize("most", [40_000, 120_000])
async def test_what_a_broker_refuses_with_its_batch_goes_alone_and_only_the_large_one_fails(
    tmp_path: Path, most: int
) -> None:
    """A broker limits batches; to make smaller what would pass alone would spoil it."""
    rng = np.random.default_rng(1)
    alerts = [Alert(str(i % 3).encode(), rng.bytes(30_000), i) for i in range(20)]
    large = Alert(b"1", rng.bytes(130_000), 99)
    async with small_broker(tmp_path, most) as broker:
        stream = await AlertStream.open(broker.bootstrap, "alerts", ManualClock(5.0))
        deliveries = await stream.send([*alerts[:10], large, *alerts[10:]])
        assert [(d.dia_source_id, d.error) for d in deliveries if d.too_large] == [
            (99, "Broker: Message size too large")
        ]
        assert [d.acknowledged_at for d in deliveries if not d.too_large] == [5.0] * 20
        assert max(broker.refused) > most
        messages = await asyncio.to_thread(messages_of, broker.bootstrap, "alerts", 20)
    assert {message.value() for message in messages} == {alert.value for alert in alerts}


async def test_headers_travel_with_an_alert(broker: str) -> None:
    stream = await AlertStream.open(broker, "with-headers", ManualClock(5.0))
    told = Alert(b"7", b"packet", 1, headers=(("cutouts", "reduced to 51 px"),))
    await stream.send([told, ALERTS[0]])
    (message, plain) = await asyncio.to_thread(messages_of, broker, "with-headers", 2)
    assert message.headers() == [("cutouts", b"reduced to 51 px")]
    assert not plain.headers()


async def test_alerts_are_compressed(tmp_path: Path) -> None:
    async with small_broker(tmp_path, 5_000) as broker:
        stream = await AlertStream.open(broker.bootstrap, "alerts", ManualClock(5.0))
        (delivery,) = await stream.send([Alert(b"7", b"nothing new " * 10_000, 1)])
    assert (delivery.error, broker.refused) == ("", [])


@pytest.mark.usefixtures("short_deadline")
async def test_a_broker_that_came_back_empty_gets_all_at_the_second_attempt(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path / "log") as kafka:
        stream = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(5.0))
        assert not any(d.error for d in await stream.send(ALERTS))
        assert kafka.process is not None
        kafka.process.kill()
        kafka.start()
        alert_stream.create_topic(kafka.bootstrap, "alerts")
        await stream.send(ALERTS)  # maybe in vain, and then told, not raised
        assert not any(d.error for d in await stream.send(ALERTS))
        assert {m.value() for m in messages_of(kafka.bootstrap, "alerts", 20)} == {a.value for a in ALERTS}
