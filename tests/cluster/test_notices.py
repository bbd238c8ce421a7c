"""Notices from the bus to a stranger, with a real database and broker, whatever dies when."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Message
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from actors.herald import Herald
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import Alert, AlertStream
from backbone.journal import PostgresJournal
from backbone.l1_postgres import L1Postgres
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink, VisitStream
from cluster.bus import Bus
from cluster.host import Host, Outcome
from cluster.services import EmbeddedKafka, free_port
from cluster.settings import Settings
from cluster.topology import POOLS
from payloads.alert_production.alert_schema import alert_schema, frame
from schemas.clock import ManualClock
from schemas.events import DetectorManifest, Event, NightBegan, NightEnded, NoticeSent, VisitDone
from tests.backbone.consumers import messages_of
from tests.backbone.l1_results import result

VISIT, N, NOW = 2026070500001, 6, 1.7833e9
DETECTORS = (90, 94)
DEADLINE_S = 20.0


@pytest.fixture
async def journal(dsn: str) -> AsyncIterator[PostgresJournal]:
    journal = await PostgresJournal.open(dsn)
    yield journal
    await journal.close()


@pytest.fixture
async def l1(dsn: str) -> AsyncIterator[L1Postgres]:
    l1 = await L1Postgres.open(dsn)
    yield l1
    await l1.close()


class OneHost:
    """A herald's process. `dies`: how often it dies when it has done its work, before it says so."""

    def __init__(self, herald: Herald, dies: int = 0) -> None:
        self.host, self.dies = Host(herald, "herald"), dies

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:  # noqa: ARG002 - the port's
        outcome = await self.host.handle(event)
        if self.dies and event.kind == "NoticeDue":
            self.dies -= 1
            raise ConnectionError("the process is gone")
        return outcome

    async def back(self, pool: str, lane: int) -> None:
        """It is."""

    async def replace(self, pool: str, lane: int) -> None:
        """It is there."""


@asynccontextmanager
async def running(host: OneHost, journal: PostgresJournal) -> AsyncIterator[Bus]:
    bus = Bus([POOLS["herald"].route(Settings(output=Path()))], host, journal, ManualClock(NOW))
    job = asyncio.create_task(bus.run())
    yield bus
    job.cancel()
    await asyncio.wait([job])


def herald(folder: Path, sink: NoticeSink, l1: L1Postgres, journal: PostgresJournal) -> Herald:
    return Herald(
        l1=l1, archive=AlertArchive(folder, alert_schema()), sink=sink, chronicle=journal, clock=ManualClock(NOW),
        signing_key=SigningKey.in_folder(folder), alert_topic="alerts", live=DETECTORS,
    )  # fmt: skip


async def emit(folder: Path, l1: L1Postgres, stream: AlertStream, detector: int, lost: Sequence[int] = ()) -> None:
    """Commit and send alerts; the broker's answer about those that are `lost` never comes."""
    made, rng = result(VISIT, detector, n=N), np.random.default_rng(detector)
    packets = [rng.bytes(300 + i) for i in range(N)]
    path = AlertArchive(folder, alert_schema()).write(VISIT, detector, packets, made.alert_ids, made.alert_keys())
    await l1.store(replace(made, alert_path=path), [], NOW)
    alerts = [Alert(b"1", frame(p), int(i)) for p, i in zip(packets, made.alert_ids, strict=True)]
    times = np.array([d.acknowledged_at for d in await stream.send(alerts)])
    times[list(lost)] = np.nan
    await l1.mark_sent(VISIT, detector, times, {"timed out": len(lost)} if lost else {})


def told(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The notices, each checked with the key that the first one brings."""
    notices = [json.loads(message.value() or b"") for message in messages]
    public = load_pem_public_key(notices[0]["publicKey"].encode())
    assert isinstance(public, Ed25519PublicKey)
    for message in messages:
        signature, value = dict(message.headers() or [])["signature"], message.value()
        assert isinstance(signature, bytes)
        assert isinstance(value, bytes)
        public.verify(signature, value)
    return notices


def finished(*detectors: int) -> VisitDone:
    manifests = [DetectorManifest(detector=d, raws=2, dia_sources=N, alerts_made=N) for d in detectors]
    return VisitDone(group="g1", visit=VISIT, detectors=tuple(manifests))


async def test_a_stranger_reconciles_what_it_received_with_the_manifest(
    tmp_path: Path, journal: PostgresJournal, l1: L1Postgres
) -> None:
    with EmbeddedKafka(tmp_path / "log") as kafka:
        stream = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(NOW))
        await emit(tmp_path, l1, stream, 90)
        await emit(tmp_path, l1, stream, 94, lost=(1, 4))
        host = OneHost(herald(tmp_path, VisitStream(kafka.bootstrap, "alerts-visits"), l1, journal), dies=2)
        async with running(host, journal) as bus:
            await bus.publish([NightBegan(day_obs=20260705, at=NOW), finished(*DETECTORS)])
            await asyncio.wait_for(bus.idle(), DEADLINE_S)
        assert await journal.owed() == []
        assert len(await journal.facts("NoticeSent")) == 2
        alerts = await asyncio.to_thread(messages_of, kafka.bootstrap, "alerts", 2 * N)
        messages = await asyncio.to_thread(messages_of, kafka.bootstrap, "alerts-visits", 4)
    assert [m.value() for m in messages[:3]] == [messages[0].value()] * 3  # its process died twice
    begins, *_, ends = told(messages)
    assert (begins["kind"], ends["kind"], ends["made"], ends["acknowledged"]) == (
        "night_begins", "visit_ends", 2 * N, 2 * N - 2,
    )  # fmt: skip
    received = by_detector(alerts, {90: ids_of(90), 94: ids_of(94)})
    for one in ends["detectors"]:
        counted = {i: p for i, p in received[one["detector"]].items() if i not in one["unacknowledged"]}
        assert len(counted) == one["acknowledged"]
        rows = [i.to_bytes(8, "big") + hashlib.sha256(p).digest() for i, p in sorted(counted.items())]
        assert hashlib.sha256(b"".join(rows)).hexdigest() == one["digest"]


def ids_of(detector: int) -> dict[bytes, int]:
    """By packet, since these are no real ones to decode."""
    rng, ids = np.random.default_rng(detector), result(VISIT, detector, n=N).alert_ids
    return {rng.bytes(300 + i): int(number) for i, number in enumerate(ids)}


def by_detector(alerts: Sequence[Message], known: dict[int, dict[bytes, int]]) -> dict[int, dict[int, bytes]]:
    """By detector and diaSourceId the packets, without their Confluent headers."""
    found: dict[int, dict[int, bytes]] = defaultdict(dict)
    for message in alerts:
        packet = (message.value() or b"")[5:]
        (detector,) = [d for d, packets in known.items() if packet in packets]
        found[detector][known[detector][packet]] = packet
    return found


async def test_what_a_dead_broker_could_not_be_told_is_told_by_the_next_driver(
    tmp_path: Path, journal: PostgresJournal, l1: L1Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.alert_stream._CREATE_S", 0.5)
    monkeypatch.setattr("cluster.bus.BACKOFF_S", 0.0)
    dead = VisitStream(f"127.0.0.1:{free_port()}", "alerts-visits")
    began = NightBegan(day_obs=20260706, at=NOW + 86400.0)
    async with running(OneHost(herald(tmp_path, dead, l1, journal)), journal) as bus:
        await bus.publish([began, NightEnded(day_obs=20260706, visits=0, at=NOW + 90000.0)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bus.idle(), 2.0)
    assert {delivery.event.kind for delivery in await journal.owed()} >= {"NoticeDue"}
    with EmbeddedKafka(tmp_path / "log") as kafka:
        stream = VisitStream(kafka.bootstrap, "alerts-visits")
        all_sent, last = asyncio.Event(), NoticeSent(notice="night_ends/20260706/0", at=NOW)
        async with running(OneHost(herald(tmp_path, stream, l1, journal)), journal) as bus:
            bus.listen(lambda fact, _: all_sent.set() if fact == last else None)
            await asyncio.wait_for(all_sent.wait(), DEADLINE_S)
        messages = await asyncio.to_thread(messages_of, kafka.bootstrap, "alerts-visits", 2)
    assert [notice["kind"] for notice in told(messages)] == ["night_begins", "night_ends"]
    assert await journal.facts("NoticeFailed", "VisitRefused") == []
