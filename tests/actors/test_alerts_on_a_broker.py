"""From the archive over a real broker to a reader who has nothing but Kafka and the official schema."""

import asyncio
import io
import struct
from pathlib import Path

from astropy.io import fits
from confluent_kafka import Message
from lsst.alert.packet import Schema

from actors.alert_emitter import AlertEmitter
from actors.lite_emitter import LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import AlertStream
from backbone.l1 import VisitDetectorResult
from backbone.l1_memory import L1Memory
from payloads.alert_production.alert_schema import Record, alert_schema
from payloads.alert_production.lite import CUTOUTS, LEFT_OUT
from schemas.clock import ManualClock
from schemas.events import AlertsReady, AlertsSent, LiteAlertsSent
from tests.actors.packets_of import packets_of
from tests.backbone.consumers import messages_of
from tests.backbone.l1_results import result
from tests.backbone.small_broker import small_broker

VISIT, N, NOW = 2026070500001, 12, 5.0
SCHEMA = Schema.from_uri()


async def emitted(bootstrap: str, folder: Path, *, side: int = 31) -> tuple[VisitDetectorResult, AlertsSent]:
    """The alerts of a visit-detector on the topics `alerts` and `alerts-lite`."""
    found, clock, archive, l1 = (
        result(VISIT, 94, n=N),
        ManualClock(NOW),
        AlertArchive(folder, alert_schema()),
        L1Memory(),
    )
    path = archive.write(VISIT, 94, packets_of(found, side=side), found.alert_ids, found.alert_keys())
    stored = VisitDetectorResult(
        "g1", VISIT, 94, 1.0, found.sources, found.objects, found.forced, found.ss_sources, path, found.alert_ids,
        found.read_starts,
    )  # fmt: skip
    ready = AlertsReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=94, readout_ended=1.0, dia_sources=N,
        new_dia_objects=N - 1, alerts=N, path=path, stages={},
    )  # fmt: skip
    await l1.store(stored, [ready], 2.0)
    sinks = [await AlertStream.open(bootstrap, topic, clock) for topic in ("alerts", "alerts-lite")]
    (sent,) = await AlertEmitter(l1=l1, archive=archive, sink=sinks[0]).react(ready)
    assert isinstance(sent, AlertsSent)
    (short,) = await LiteEmitter(l1=l1, archive=archive, sink=sinks[1]).react(sent)
    assert short == LiteAlertsSent(group="g1", visit=VISIT, detector=94, sent=N, failed={})
    return found, sent


async def read(bootstrap: str, topic: str) -> dict[int, tuple[Message, Record]]:
    """By `diaSourceId`, each message with its alert, as the official schema has it."""
    alerts = {}
    for message in await asyncio.to_thread(messages_of, bootstrap, topic, N):
        value = message.value()
        assert value is not None
        assert struct.unpack(">bI", value[:5]) == (0, SCHEMA.get_schema_id())
        alert = SCHEMA.deserialize(value[5:])
        assert SCHEMA.validate(alert)
        alerts[alert["diaSourceId"]] = message, alert
    return alerts


async def test_both_topics_tell_of_the_same_sources_under_the_same_keys(tmp_path: Path) -> None:
    async with small_broker(tmp_path, most=2**30) as broker:
        found, sent = await emitted(broker.bootstrap, tmp_path)
        whole, short = [await read(broker.bootstrap, topic) for topic in ("alerts", "alerts-lite")]
    assert (sent.acknowledged, sent.reduced) == (N, 0)
    assert set(whole) == set(short) == set(found.alert_ids.tolist())
    moving = set()
    for number, (message, alert) in whole.items():
        body = alert["ssSource"] is not None
        key = alert["ssSource"]["ssObjectId"] if body else alert["diaObject"]["diaObjectId"]
        moving |= {key} if body else set()
        assert message.key() == short[number][0].key() == str(key).encode()
        assert message.partition() == short[number][0].partition()
        assert not message.headers()
        assert body or len(alert["prvDiaSources"]) == len(alert["prvDiaForcedSources"]) == 3
        assert short[number][1].keys() == alert.keys()
        assert {name for name, value in short[number][1].items() if value is None} >= LEFT_OUT
        assert SCHEMA.serialize(short[number][1]) == SCHEMA.serialize(alert | dict.fromkeys(LEFT_OUT))
    assert moving == {77}


async def test_a_broker_that_takes_no_large_message_gets_every_alert_with_smaller_cutouts(tmp_path: Path) -> None:
    async with small_broker(tmp_path, most=200_000) as broker:
        found, sent = await emitted(broker.bootstrap, tmp_path, side=102)
        whole, short = [await read(broker.bootstrap, topic) for topic in ("alerts", "alerts-lite")]
    assert (sent.made, sent.acknowledged, sent.reduced) == (N, N, N)
    assert set(whole) == set(short) == set(found.alert_ids.tolist())
    for message, alert in whole.values():
        assert (message.headers() or [])[0] == ("cutouts", b"reduced to 51 px")
        for name in CUTOUTS:
            assert fits.getdata(io.BytesIO(alert[name])).shape == (51, 51)
    assert max(broker.refused) > 200_000
