import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from actors.alert_emitter import AlertEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_spool import AlertSpool, read_spool
from backbone.alert_stream import AlertSink
from backbone.l1 import VisitDetectorResult
from backbone.l1_memory import L1Memory
from payloads.alert_production.alert_schema import alert_schema, schema_id
from schemas.clock import ManualClock
from schemas.errors import BadData, Broken, Transient
from schemas.events import AlertsReady, AlertsSent
from tests.actors.fakes import FakeBroker
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.l1_results import result

VISIT, N = 2026070500001, 6
READOUT_ENDED, NOW = 1000.0, 1030.0
SENT = AlertsSent(
    group="g1", visit=VISIT, detector=94, made=N, sent=N, acknowledged=N, failed={}, readout_ended=READOUT_ENDED,
    last_acknowledged=NOW,
)  # fmt: skip


@dataclass
class Place:
    """A committed visit-detector; `emitter` makes a new one, which remembers nothing."""

    folder: Path
    stored: VisitDetectorResult
    records: list[bytes]
    event: AlertsReady
    l1: L1Memory = field(default_factory=L1Memory)

    def emitter(self, sink: AlertSink) -> AlertEmitter:
        return AlertEmitter(l1=self.l1, archive=AlertArchive(self.folder, alert_schema()), sink=sink)

    @property
    def ids(self) -> list[int]:
        return [int(number) for number in self.stored.alert_ids]

    async def acknowledged(self) -> list[bool]:
        outbox = await self.l1.outbox(VISIT, 94)
        assert outbox is not None
        return [not owed for owed in outbox.owed]


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return await committed(tmp_path, N)


async def committed(folder: Path, n: int) -> Place:
    whole = result(VISIT, 94, n=N)
    records = [bytes([i]) * (50 + i) for i in range(n)]
    path = AlertArchive(folder, alert_schema()).write(VISIT, 94, records)
    stored = VisitDetectorResult(
        "g1", VISIT, 94, READOUT_ENDED, whole.sources, whole.objects, whole.forced, whole.ss_sources, path,
        whole.alert_ids[:n],
    )  # fmt: skip
    event = AlertsReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=94, readout_ended=READOUT_ENDED, dia_sources=N,
        new_dia_objects=N - 1, alerts=n, path=path, stages={},
    )  # fmt: skip
    place = Place(folder, stored, records, event)
    await place.l1.store(stored, [event], 1001.0)
    return place


async def test_every_alert_is_sent_framed_as_archived_under_the_key_of_its_object(place: Place) -> None:
    broker = FakeBroker(NOW)
    assert await place.emitter(broker).react(place.event) == [SENT]
    header = struct.pack(">bI", 0, schema_id())
    assert [alert.value for alert in broker.taken] == [header + record for record in place.records]
    assert [alert.dia_source_id for alert in broker.taken] == place.ids
    rows = {int(row["diaSourceId"]): row for row in place.stored.sources}
    expected = [rows[n]["diaObjectId"] or rows[n]["ssObjectId"] for n in place.ids]
    assert [int(alert.key) for alert in broker.taken] == expected
    assert 77 in expected  # the one of the Solar System


async def test_what_the_broker_acknowledged_is_noted_alert_by_alert(place: Place) -> None:
    broker = FakeBroker(NOW, refused={place.ids[1], place.ids[4]})
    with pytest.raises(Transient, match="2 of 6 alerts not acknowledged: Local: Message timed out"):
        await place.emitter(broker).react(place.event)
    assert await place.acknowledged() == [True, False, True, True, False, True]
    outbox = await place.l1.outbox(VISIT, 94)
    assert outbox is not None
    assert outbox.failures == {"Local: Message timed out": 2}


async def test_a_new_emitter_sends_what_was_not_acknowledged_and_nothing_else(place: Place) -> None:
    refused = {place.ids[1], place.ids[4]}
    with pytest.raises(Transient):
        await place.emitter(FakeBroker(NOW, refused)).react(place.event)
    later = FakeBroker(NOW + 5.0)
    (sent,) = await place.emitter(later).react(place.event)
    assert {alert.dia_source_id for alert in later.taken} == refused
    assert sent == SENT.model_copy(update={"last_acknowledged": NOW + 5.0})
    times = (await place.l1.acknowledgements([VISIT]))["acknowledged_at"]
    assert sorted(times) == [NOW] * 4 + [NOW + 5.0] * 2


async def test_a_second_handling_sends_nothing_twice_and_says_the_same(place: Place) -> None:
    first = await place.emitter(FakeBroker(NOW)).react(place.event)
    later = FakeBroker(NOW + 99.0)
    assert await place.emitter(later).react(place.event) == first
    assert later.calls == 0


async def test_a_broker_that_takes_nothing_is_owed_everything(place: Place) -> None:
    with pytest.raises(Transient, match="6 of 6"):
        await place.emitter(FakeBroker(NOW, refused=set(place.ids))).react(place.event)
    assert await place.acknowledged() == [False] * N


async def test_a_visit_detector_without_alerts_has_ended_at_once(tmp_path: Path) -> None:
    place, broker = await committed(tmp_path, 0), FakeBroker(NOW)
    none = {"made": 0, "sent": 0, "acknowledged": 0, "last_acknowledged": READOUT_ENDED}
    assert await place.emitter(broker).react(place.event) == [SENT.model_copy(update=none)]
    assert broker.calls == 0


async def test_a_spool_on_a_full_disk_is_transient_and_then_takes_all_once(place: Place, tmp_path: Path) -> None:
    spool = tmp_path / "night.spool"
    emitter = place.emitter(AlertSpool(spool, ManualClock(NOW)))
    with files_of_at_most(100), pytest.raises(Transient, match=r"6 of 6 .*night.spool cannot be written"):
        await emitter.react(place.event)
    assert await emitter.react(place.event) == [SENT]
    assert [value[5:] for value in read_spool(spool)] == place.records


async def test_an_alert_file_that_is_gone_is_bad_data_and_named(place: Place) -> None:
    (place.folder / place.event.path).unlink()
    with pytest.raises(BadData, match=place.event.path):
        await place.emitter(FakeBroker(NOW)).react(place.event)
    assert not np.any(await place.acknowledged())


async def test_alerts_said_to_be_ready_and_never_committed_break_an_invariant(place: Place) -> None:
    stranger = place.event.model_copy(update={"detector": 93})
    with pytest.raises(Broken, match=f"visit {VISIT} detector 93"):
        await place.emitter(FakeBroker(NOW)).react(stranger)
