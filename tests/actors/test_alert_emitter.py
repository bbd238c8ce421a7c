import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actors import alert_emitter
from actors.alert_emitter import ARCHIVED_AS, ATTEMPT_S, AlertEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_spool import AlertSpool, read_spool
from backbone.alert_stream import TWO_ROUNDS_S, Alert, AlertSink, Delivery
from backbone.l1 import VisitDetectorResult
from backbone.l1_memory import L1Memory
from payloads.alert_production.alert_schema import alert_schema, schema_id
from payloads.alert_production.lite import lite
from payloads.alert_production.smaller_cutouts import reduced
from schemas.clock import ManualClock
from schemas.errors import BadData, Broken, Transient
from schemas.events import AlertsReady, AlertsSent
from tests.actors.fakes import FakeBroker
from tests.actors.packets_of import packets_of
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


async def committed(folder: Path, n: int, side: int = 31) -> Place:
    whole = result(VISIT, 94, n=N)
    records = packets_of(whole, side=side)[:n]
    keys = whole.alert_keys()[:n]
    path = AlertArchive(folder, alert_schema()).write(VISIT, 94, records, whole.alert_ids[:n], keys)
    stored = VisitDetectorResult(
        "g1", VISIT, 94, READOUT_ENDED, whole.sources, whole.objects, whole.forced, whole.ss_sources, path,
        whole.alert_ids[:n], whole.read_starts,
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


async def test_a_packet_that_is_no_alert_of_the_schema_is_named_and_nothing_is_sent(place: Place) -> None:
    spoilt = [*place.records[:4], place.records[4][:-1], place.records[5]]
    archive = AlertArchive(place.folder, alert_schema())
    path = archive.write(VISIT, 94, spoilt, place.stored.alert_ids, place.stored.alert_keys())
    place.l1 = L1Memory()
    await place.l1.store(replace(place.stored, alert_path=path), [place.event], 1001.0)
    broker = FakeBroker(NOW)
    with pytest.raises(BadData, match=f"{path}: the alert about DIASource {place.ids[4]}: .* cutoutTemplate"):
        await place.emitter(broker).react(place.event)
    assert broker.calls == 0


async def test_a_crash_before_the_answers_are_noted_sends_all_again(place: Place) -> None:
    class Dead(L1Memory):
        async def mark_sent(self, *_: object) -> None:
            raise Transient("the database does not answer")

    emitter = place.emitter(FakeBroker(NOW))
    dead = Dead()
    await dead.store(place.stored, [place.event], 1001.0)
    emitter._l1 = dead
    with pytest.raises(Transient, match="database"):
        await emitter.react(place.event)
    again = FakeBroker(NOW)
    assert await place.emitter(again).react(place.event) == [SENT]
    assert len(again.taken) == N


# --- too large ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "told"), [(250_000, "reduced to 51 px"), (85_000, "reduced to 26 px"), (9_000, "left out")]
)
async def test_what_is_too_large_is_sent_with_smaller_cutouts_and_says_so(tmp_path: Path, most: int, told: str) -> None:
    place, broker = await committed(tmp_path, N, side=102), FakeBroker(NOW, most=most)
    assert await place.emitter(broker).react(place.event) == [SENT.model_copy(update={"reduced": N})]
    archived = [hashlib.sha256(record).hexdigest() for record in place.records]
    assert [alert.headers for alert in broker.taken] == [(("cutouts", told), (ARCHIVED_AS, sha)) for sha in archived]
    assert [alert.dia_source_id for alert in broker.taken] == place.ids
    assert all(len(alert.value) <= most for alert in broker.taken)
    for alert, record in zip(broker.taken, place.records, strict=True):
        assert lite(alert.value[5:]) == lite(record)
    assert await place.acknowledged() == [True] * N


async def test_only_what_is_refused_is_made_smaller_and_a_resend_has_the_same_bytes(place: Place) -> None:
    sizes = [len(record) + 5 for record in place.records]
    most = sorted(sizes)[1]
    large = {number for number, size in zip(place.ids, sizes, strict=True) if size > most}
    assert 0 < len(large) < N
    first, again = FakeBroker(NOW, refused={place.ids[1]}, most=most), FakeBroker(NOW, most=most)
    with pytest.raises(Transient, match="1 of 6"):
        await place.emitter(first).react(place.event)
    assert {alert.dia_source_id for alert in first.taken if alert.headers} == large - {place.ids[1]}
    (sent,) = await place.emitter(again).react(place.event)
    assert sent == SENT.model_copy(update={"reduced": len(large)})
    place.l1 = L1Memory()
    await place.l1.store(place.stored, [place.event], 1001.0)
    anew = FakeBroker(NOW, most=most)
    await place.emitter(anew).react(place.event)
    bytes_of = {alert.dia_source_id: alert.value for alert in first.taken + again.taken}
    assert {alert.dia_source_id: alert.value for alert in anew.taken} == bytes_of


async def test_alerts_too_large_even_without_cutouts_are_owed_and_hold_nobody_up(place: Place) -> None:
    with pytest.raises(BadData, match=r"6 alerts are too large for the broker even without cutouts, .*DIASource \d+"):
        await place.emitter(FakeBroker(NOW, most=500)).react(place.event)
    assert await place.acknowledged() == [False] * N
    outbox = await place.l1.outbox(VISIT, 94)
    assert outbox is not None
    assert outbox.failures == {"Broker: Message size too large": N}


@dataclass
class SlowBroker(FakeBroker):
    """Takes `takes_s` of the clock for an answer. Keeps how long it was given."""

    clock: ManualClock = field(default_factory=ManualClock)
    takes_s: float = 0.0
    given: list[float] = field(default_factory=list)

    async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:
        self.given.append(within_s)
        if within_s < self.takes_s:
            self.clock.set_to(self.clock.now() + max(within_s, 0.0))
            return [Delivery(alert.dia_source_id, float("nan"), "no answer within the deadline") for alert in alerts]
        self.clock.set_to(self.clock.now() + self.takes_s)
        return await super().send(alerts, within_s)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The monotonic clock that the emitter sees."""
    clock = ManualClock(0.0)
    monkeypatch.setattr(alert_emitter, "time", SimpleNamespace(monotonic=clock.now))
    return clock


@pytest.mark.parametrize("takes_s", [0.0, 9.0, 14.0, 30.0, 99.0])
async def test_an_attempt_ends_in_its_time_however_many_rounds_it_needs(
    tmp_path: Path, wall: ManualClock, takes_s: float
) -> None:
    place = await committed(tmp_path, N, side=102)
    broker = SlowBroker(NOW, most=9_000, clock=wall, takes_s=takes_s)
    emitter = place.emitter(broker)
    if takes_s <= 9.0:
        assert await emitter.react(place.event) == [SENT.model_copy(update={"reduced": N})]
    else:
        with pytest.raises(Transient, match="6 of 6 alerts not acknowledged"):
            await emitter.react(place.event)
    assert wall.now() <= ATTEMPT_S
    assert broker.given[0] == ATTEMPT_S
    assert all(given == ATTEMPT_S - k * takes_s for k, given in enumerate(broker.given))


async def test_what_there_is_no_time_to_make_smaller_is_owed_and_the_rest_is_noted(
    tmp_path: Path, wall: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await committed(tmp_path, N, side=102)

    def taking_long(packet: bytes) -> object:
        wall.set_to(wall.now() + 15.0)
        return reduced(packet)

    monkeypatch.setattr(alert_emitter, "reduced", taking_long)
    with pytest.raises(Transient, match="3 of 6 alerts not acknowledged: Broker: Message size too large"):
        await place.emitter(FakeBroker(NOW, most=250_000)).react(place.event)
    assert sum(await place.acknowledged()) == 3
    assert wall.now() <= ATTEMPT_S
    (sent,) = await place.emitter(FakeBroker(NOW, most=250_000)).react(place.event)
    assert sent == SENT.model_copy(update={"reduced": N})
