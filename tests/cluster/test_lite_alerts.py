"""Lite alerts are a courtesy: a topic that never answers for them holds up no whole alert, and no end of a night."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from actors.alert_emitter import ATTEMPT_S, AlertEmitter
from actors.lite_emitter import LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import AlertSink, AlertStream
from backbone.journal import MemoryJournal
from backbone.l1_memory import L1Memory
from cluster.bus import Bus
from cluster.host import Host
from cluster.inline import InlineHosts
from cluster.metrics import Metrics
from cluster.settings import Settings
from cluster.topology import POOLS
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock
from schemas.events import AlertsReady, LiteAlertsSent
from tests.actors.packets_of import packets_of
from tests.backbone.consumers import messages_of
from tests.backbone.l1_results import result

VISIT, N, NOW, DETECTORS = 2026070500001, 6, 5.0, (90, 91, 92, 93, 94)
SOON_S = 10.0
FATES = ("acknowledged", "failed")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def archive(tmp_path: Path) -> AlertArchive:
    return AlertArchive(tmp_path / "alerts", alert_schema())


async def commit(l1: L1Memory, archive: AlertArchive, detector: int) -> AlertsReady:
    made = result(VISIT, detector, n=N)
    path = archive.write(VISIT, detector, packets_of(made), made.alert_ids, made.alert_keys())
    ready = AlertsReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=detector, readout_ended=1.0, dia_sources=N,
        new_dia_objects=N - 1, alerts=N, path=path, stages={},
    )  # fmt: skip
    await l1.store(replace(made, alert_path=path), [ready], 2.0)
    return ready


@asynccontextmanager
async def emitting(archive: AlertArchive, whole: AlertSink, short: AlertSink) -> AsyncIterator[tuple[Bus, L1Memory]]:
    l1 = L1Memory()
    actors = {
        "alert_emitter": AlertEmitter(l1=l1, archive=archive, sink=whole),
        "lite_emitter": LiteEmitter(l1=l1, archive=archive, sink=short),
    }
    hosts = InlineHosts({name: Host(actor, name) for name, actor in actors.items()})
    routes = [POOLS[name].route(Settings(output=Path())) for name in actors]
    bus = Bus(routes, hosts, MemoryJournal(), ManualClock(NOW))
    job = asyncio.create_task(bus.run())
    yield bus, l1
    job.cancel()
    await asyncio.wait([job])


async def test_a_lite_topic_that_never_answers_delays_no_whole_alert(
    archive: AlertArchive, broker: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.lite_emitter.ATTEMPT_S", SOON_S / 3)
    whole = await AlertStream.open(broker, "delayed-by-nothing", ManualClock(NOW))
    short = AlertStream(silent, "never-answers", ManualClock(NOW))
    async with emitting(archive, whole, short) as (bus, l1):
        await bus.publish([await commit(l1, archive, detector) for detector in DETECTORS])
        await asyncio.wait_for(bus.drained(), SOON_S)
        assert await l1.unsent() == []
        assert set(bus.owed()) == {"lite_emitter"}
    assert len(await asyncio.to_thread(messages_of, broker, "delayed-by-nothing", N * len(DETECTORS))) == 30


async def test_lite_alerts_follow_their_whole_ones_on_a_topic_of_their_own(archive: AlertArchive, broker: str) -> None:
    sinks = [await AlertStream.open(broker, topic, ManualClock(NOW)) for topic in ("whole", "lite")]
    async with emitting(archive, *sinks) as (bus, l1):
        await bus.publish([await commit(l1, archive, detector) for detector in DETECTORS])
        await asyncio.wait_for(bus.idle(), 2 * SOON_S)
    keys = [[str(m.key()) for m in await asyncio.to_thread(messages_of, broker, t, 30)] for t in ("whole", "lite")]
    assert sorted(keys[0]) == sorted(keys[1])


def test_metrics_count_lite_alerts_apart_from_whole_ones() -> None:
    metrics = Metrics(ManualClock(NOW), Counter)
    for detector, failed in ((90, {}), (94, {"timed out": 2, "too large": 1})):
        sent = LiteAlertsSent(group="g1", visit=VISIT, detector=detector, sent=N, failed=failed)
        metrics.hear(sent, NOW)
    fates = [metrics.registry.get_sample_value("pachon_lite_alerts_total", {"fate": f}) for f in FATES]
    assert fates == [2 * N, 3]
    assert metrics.registry.get_sample_value("pachon_alerts_total", {"fate": "failed"}) is None


@pytest.mark.parametrize("pool", ["alert_emitter", "lite_emitter"])
def test_an_attempt_to_send_leaves_time_to_note_the_answers(pool: str) -> None:
    assert POOLS[pool].deadline_s >= ATTEMPT_S + 10.0
