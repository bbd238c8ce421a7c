"""Lite alerts: cut from the archive when their whole ones are acknowledged, tried a few times, counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actors.alert_emitter import ATTEMPT_S
from actors.lite_emitter import TRIES, LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import TWO_ROUNDS_S, Alert, AlertSink, Delivery
from backbone.l1 import VisitDetectorResult
from backbone.l1_memory import L1Memory
from payloads.alert_production.alert_schema import alert_schema, frame
from payloads.alert_production.lite import lite
from schemas.errors import BadData, Broken
from schemas.events import AlertsSent, LiteAlertsSent
from tests.actors.fakes import FakeBroker
from tests.actors.packets_of import packets_of
from tests.backbone.l1_results import result

VISIT, N, NOW = 2026070500001, 6, 1030.0
WHOLE = AlertsSent(
    group="g1", visit=VISIT, detector=94, made=N, sent=N, acknowledged=N, failed={}, readout_ended=1000.0,
    last_acknowledged=NOW,
)  # fmt: skip
SENT = LiteAlertsSent(group="g1", visit=VISIT, detector=94, sent=N, failed={})


@dataclass
class Place:
    """A committed visit-detector; `emitter` makes a new one, which remembers nothing."""

    archive: AlertArchive
    stored: VisitDetectorResult
    records: list[bytes]
    l1: L1Memory

    def emitter(self, sink: AlertSink) -> LiteEmitter:
        return LiteEmitter(l1=self.l1, archive=self.archive, sink=sink)

    @property
    def ids(self) -> list[int]:
        return [int(number) for number in self.stored.alert_ids]


async def committed(folder: Path, n: int) -> Place:
    archive, l1, whole = AlertArchive(folder, alert_schema()), L1Memory(), result(VISIT, 94, n=N)
    records, ids, keys = packets_of(whole)[:n], whole.alert_ids[:n], whole.alert_keys()[:n]
    stored = replace(whole, alert_path=archive.write(VISIT, 94, records, ids, keys), alert_ids=ids)
    await l1.store(stored, [], 1001.0)
    return Place(archive, stored, records, l1)


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return await committed(tmp_path, N)


async def test_every_lite_alert_goes_under_the_key_of_its_whole_one(place: Place) -> None:
    broker = FakeBroker(NOW)
    assert await place.emitter(broker).react(WHOLE) == [SENT]
    assert [alert.value for alert in broker.taken] == [frame(lite(record)) for record in place.records]
    assert [alert.dia_source_id for alert in broker.taken] == place.ids
    assert [int(alert.key) for alert in broker.taken] == place.stored.alert_keys().tolist()


async def test_those_that_fail_are_tried_again_and_then_counted_by_reason(place: Place) -> None:
    broker = FakeBroker(NOW, {place.ids[0], place.ids[2]})
    (told,) = await place.emitter(broker).react(WHOLE)
    assert told == SENT.model_copy(update={"sent": N - 2, "failed": {"Local: Message timed out": 2}})
    assert broker.calls == TRIES
    assert len(broker.taken) == N - 2


async def test_one_that_arrives_at_a_later_try_has_not_failed(place: Place) -> None:
    class Moody(FakeBroker):
        async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:
            self.refused = {place.ids[3]} if self.calls < TRIES - 1 else set()
            return await super().send(alerts, within_s)

    broker = Moody(NOW)
    assert await place.emitter(broker).react(WHOLE) == [SENT]
    assert sorted(alert.dia_source_id for alert in broker.taken) == sorted(place.ids)


async def test_all_tries_together_have_the_time_of_one_attempt(place: Place) -> None:
    given: list[float] = []

    class Patient(FakeBroker):
        async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:
            given.append(within_s)
            return await super().send(alerts, within_s)

    await place.emitter(Patient(NOW, set(place.ids))).react(WHOLE)
    assert ATTEMPT_S >= given[0] > given[1] > given[2] > ATTEMPT_S - 5.0


async def test_a_second_handling_sends_all_again_and_says_the_same(place: Place) -> None:
    for _ in range(2):
        broker = FakeBroker(NOW)
        assert await place.emitter(broker).react(WHOLE) == [SENT]
        assert len(broker.taken) == N


async def test_a_visit_detector_without_alerts_has_no_lite_ones(tmp_path: Path) -> None:
    place, broker = await committed(tmp_path, 0), FakeBroker(NOW)
    assert await place.emitter(broker).react(WHOLE) == [SENT.model_copy(update={"sent": 0})]
    assert broker.calls == 0


async def test_an_alert_file_that_is_gone_is_bad_data_and_named(place: Place) -> None:
    (place.archive.folder / place.stored.alert_path).unlink()
    with pytest.raises(BadData, match=place.stored.alert_path):
        await place.emitter(FakeBroker(NOW)).react(WHOLE)


async def test_alerts_said_to_be_sent_and_never_committed_break_an_invariant(place: Place) -> None:
    with pytest.raises(Broken, match=f"visit {VISIT} detector 93"):
        await place.emitter(FakeBroker(NOW)).react(WHOLE.model_copy(update={"detector": 93}))
