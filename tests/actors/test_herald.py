"""What brokers are told of a night, a visit and its detectors, and that they are told it whatever dies when."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from actors.alert_emitter import REDUCED
from actors.herald import Herald
from backbone.alert_archive import AlertArchive
from backbone.journal import MemoryJournal
from backbone.l1 import VisitDetectorResult
from backbone.l1_memory import L1Memory
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import Answer, NoticeSink
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock
from schemas.errors import BadData, Transient
from schemas.events import (
    DetectorManifest,
    Event,
    NextVisit,
    NightBegan,
    NightEnded,
    NoticeDue,
    NoticeSent,
    VisitAssigned,
    VisitDone,
)
from tests.backbone.l1_results import result

VISIT, N, NOW = 2026070500001, 6, 1.7833e9
NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass
class FakeNotices:
    """Takes notices, unless it answers something else."""

    answer: Answer = None
    taken: list[Notice] = field(default_factory=list)

    async def send(self, notices: Sequence[Notice]) -> list[Answer]:
        if self.answer is None:
            self.taken += notices
        return [self.answer] * len(notices)


@dataclass
class Place:
    """A folder of a night; `herald` makes a new one, which remembers nothing."""

    folder: Path
    journal: MemoryJournal
    l1: L1Memory = field(default_factory=L1Memory)

    @property
    def archive(self) -> AlertArchive:
        return AlertArchive(self.folder / "alerts", alert_schema())

    def herald(self, sink: NoticeSink | None = None) -> Herald:
        return Herald(
            l1=self.l1, archive=self.archive, sink=sink or FakeNotices(), chronicle=self.journal,
            clock=ManualClock(NOW), signing_key=SigningKey.in_folder(self.folder), alert_topic="alerts",
            live=(90, 94),
        )  # fmt: skip

    async def commit(self, detector: int, acknowledged: Iterable[int] = range(N), **failures: int) -> list[bytes]:
        """Store six alerts, of which the broker acknowledged some."""
        packets = [bytes([detector, i]) * (20 + i) for i in range(N)]
        made = result(VISIT, detector, n=N)
        path = self.archive.write(VISIT, detector, packets, made.alert_ids, made.alert_keys())
        await self.l1.store(replace(made, alert_path=path), [], NOW)
        times = np.full(N, np.nan)
        times[list(acknowledged)] = NOW
        await self.l1.mark_sent(VISIT, detector, times, failures)
        return packets


@pytest.fixture
def place(tmp_path: Path, journal: MemoryJournal) -> Place:
    return Place(tmp_path, journal)


def ids(detector: int) -> list[int]:
    made: VisitDetectorResult = result(VISIT, detector, n=N)
    return [int(number) for number in made.alert_ids]


def by_hand(packets: dict[int, bytes]) -> str:
    """The digest as a broker computes it, from the words of the document."""
    rows = [number.to_bytes(8, "big") + hashlib.sha256(packet).digest() for number, packet in sorted(packets.items())]
    return hashlib.sha256(b"".join(rows)).hexdigest()


def told(events: Sequence[Event]) -> dict[str, Any]:
    """The one notice that is due, as read by whoever gets it."""
    (due,) = events
    assert isinstance(due, NoticeDue)
    fields: dict[str, Any] = json.loads(due.value)
    return fields | {"key": due.key, "notice": due.notice, "group": due.group}


def done(*manifests: DetectorManifest, visit: int | None = VISIT) -> VisitDone:
    return VisitDone(group="g1", visit=visit, detectors=manifests)


def manifest(detector: int, **changes: Any) -> DetectorManifest:
    return DetectorManifest(detector=detector, raws=2, dia_sources=N, alerts_made=N, **changes)


async def test_a_night_begins_with_the_key_that_checks_the_rest(place: Place) -> None:
    notice = told(await place.herald().react(NightBegan(day_obs=20260705, at=NOW)))
    assert (notice["kind"], notice["key"], notice["dayObs"]) == ("night_begins", "20260705", 20260705)
    assert (notice["alertTopic"], notice["detectors"]) == ("alerts", [90, 94])
    public = load_pem_public_key(notice["publicKey"].encode())
    assert isinstance(public, Ed25519PublicKey)
    assert notice["keyId"] == hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


async def test_a_night_that_goes_on_ends_again(place: Place) -> None:
    first, second = [told(await place.herald().react(NightEnded(day_obs=20260705, visits=n, at=NOW))) for n in (3, 5)]
    assert (first["kind"], first["visits"], second["visits"]) == ("night_ends", 3, 5)
    assert first["notice"] != second["notice"]


async def test_a_visit_begins_once_with_its_plan(place: Place, assigned: Callable[..., VisitAssigned]) -> None:
    herald = place.herald()
    notice = told(await herald.react(assigned(90, start=NOW)))
    assert (notice["kind"], notice["group"], notice["filter"], notice["band"]) == ("visit_begins", "g1", "r_57", "r")
    assert (notice["ra"], notice["dec"], notice["nImages"], notice["detectors"]) == (10.0, -30.0, 2, [90, 94])
    assert notice["startMjdTai"] == pytest.approx(40587.0 + NOW / 86400.0)
    assert await herald.react(assigned(94, start=NOW)) == []


async def test_a_new_herald_says_of_a_visit_that_began_the_same_fact(
    place: Place, assigned: Callable[..., VisitAssigned]
) -> None:
    first, second = [(await place.herald().react(assigned(d, start=NOW)))[0] for d in (90, 94)]
    assert first == second


async def test_a_visit_ends_with_what_the_broker_can_compute_itself(place: Place) -> None:
    packets = {d: dict(zip(ids(d), await place.commit(d), strict=True)) for d in (90, 94)}
    sent = {"alerts_sent": N, "alerts_acknowledged": N}
    notice = told(await place.herald().react(done(manifest(90, **sent), manifest(94, **sent))))
    assert (notice["kind"], notice["key"], notice["visit"]) == ("visit_ends", str(VISIT), VISIT)
    assert (notice["diaSources"], notice["made"], notice["sent"], notice["acknowledged"]) == (12, 12, 12, 12)
    assert {one["detector"]: one["digest"] for one in notice["detectors"]} == {d: by_hand(packets[d]) for d in packets}
    assert all(one["failed"] == {} and one["unacknowledged"] == [] for one in notice["detectors"])


async def test_what_was_not_acknowledged_is_named_and_left_out_of_the_digest(place: Place) -> None:
    packets = await place.commit(94, range(4), timeout=2)
    gave_up = manifest(94, gave_up="alert_emitter: 2 of 6 alerts not acknowledged")
    (one,) = told(await place.herald().react(done(gave_up)))["detectors"]
    assert (one["made"], one["sent"], one["acknowledged"], one["failed"]) == (6, 6, 4, {"timeout": 2})
    assert one["unacknowledged"] == sorted(ids(94)[4:])
    assert one["digest"] == by_hand(dict(zip(ids(94)[:4], packets[:4], strict=True)))
    assert one["gaveUp"].startswith("alert_emitter")


async def test_alerts_that_were_never_sent_are_made_and_no_more(place: Place) -> None:
    await place.commit(94, [])
    (one,) = told(await place.herald().react(done(manifest(94, gave_up="alert_emitter: no such file"))))["detectors"]
    assert (one["made"], one["sent"], one["acknowledged"], one["digest"]) == (6, 0, 0, NOTHING)


async def test_alerts_sent_with_smaller_cutouts_have_not_failed(place: Place) -> None:
    packets = await place.commit(94, range(N), **{REDUCED: 1})
    (one,) = told(await place.herald().react(done(manifest(94))))["detectors"]
    assert (one["sent"], one["acknowledged"], one["reduced"]) == (N, N, 1)
    assert one["failed"] == {}
    assert one["digest"] == by_hand(dict(zip(ids(94), packets, strict=True)))  # of the packets as archived


async def test_a_detector_that_was_given_up_says_why_and_has_no_alerts(place: Place) -> None:
    failed = DetectorManifest(detector=94, raws=1, gave_up="camera_reader: 8 of 16 amplifiers came")
    (one,) = told(await place.herald().react(done(failed)))["detectors"]
    assert (one["raws"], one["made"], one["digest"]) == (1, 0, NOTHING)
    assert one["gaveUp"] == "camera_reader: 8 of 16 amplifiers came"


async def test_a_visit_without_a_number_ends_under_its_night(
    place: Place, journal: MemoryJournal, plan: Callable[..., NextVisit]
) -> None:
    await journal.append([plan(start=NOW)], {}, NOW)
    notice = told(await place.herald().react(done(manifest(94), visit=None)))
    assert (notice["key"], notice["visit"], notice["dayObs"]) == ("20260705", None, 20260705)


async def test_the_digest_comes_of_the_index_and_needs_no_packet(place: Place) -> None:
    packets = await place.commit(94, range(4))
    for path in (place.folder / "alerts").rglob("*.avro"):
        path.unlink()
    (one,) = told(await place.herald().react(done(manifest(94))))["detectors"]
    assert one["digest"] == by_hand(dict(zip(ids(94)[:4], packets[:4], strict=True)))


async def test_an_alert_file_that_is_gone_leaves_no_digest_and_says_so(place: Place) -> None:
    await place.commit(94)
    for path in (place.folder / "alerts").rglob("*_094_*"):
        path.unlink()
    (one,) = told(await place.herald().react(done(manifest(94))))["detectors"]
    assert (one["made"], one["acknowledged"], one["digest"]) == (6, 6, None)
    assert "there is no such alert file" in one["digestLacks"]


async def test_a_visit_that_nobody_announced_is_bad_data(place: Place) -> None:
    with pytest.raises(BadData, match="g1 ended and was never announced"):
        await place.herald().react(done(manifest(94), visit=None))


async def test_a_notice_is_signed_over_its_very_bytes(place: Place) -> None:
    sink, (due,) = FakeNotices(), await place.herald().react(NightBegan(day_obs=20260705, at=NOW))
    assert isinstance(due, NoticeDue)
    assert await place.herald(sink).react(due) == [NoticeSent(notice=due.notice, at=NOW)]
    (notice,) = sink.taken
    public = load_pem_public_key((place.folder / "notices.pub.pem").read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    public.verify(notice.signature, notice.value)
    assert (notice.value, notice.key) == (due.value.encode(), b"20260705")


async def test_a_broker_that_does_not_answer_is_transient_and_gets_the_same_bytes_later(place: Place) -> None:
    await place.commit(94)
    (due,) = await place.herald().react(done(manifest(94)))
    with pytest.raises(Transient, match=r"visit_ends/g1 is not acknowledged: Local: Message timed out"):
        await place.herald(FakeNotices(Transient("Local: Message timed out"))).react(due)
    await place.l1.mark_sent(VISIT, 94, np.full(N, NOW + 9.0), {"what came later": 1})
    first, second = FakeNotices(), FakeNotices()
    for sink in (first, second):
        await place.herald(sink).react(due)
    assert first.taken == second.taken
    assert isinstance(due, NoticeDue)
    assert first.taken[0].value == due.value.encode()


async def test_a_notice_that_the_broker_refuses_for_what_it_is_is_bad_data(place: Place) -> None:
    (due,) = await place.herald().react(NightBegan(day_obs=20260705, at=NOW))
    refused = FakeNotices(BadData("Broker: Message size too large"))
    with pytest.raises(BadData, match=r"night_begins/20260705 is not acknowledged: Broker: Message size too large"):
        await place.herald(refused).react(due)
