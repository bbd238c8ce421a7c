"""What a broker that lost its memory is told again: held to what it had been told, byte for byte."""

import asyncio
import base64
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import asyncpg
import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from rich.console import Console
from structlog.testing import capture_logs

from actors import alert_emitter
from actors.alert_emitter import AlertEmitter
from actors.herald import Herald
from actors.lite_emitter import LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import PARTITIONS, Alert, AlertStream
from backbone.dead_letters import DeadLetterTopic
from backbone.journal import PostgresJournal
from backbone.l1_postgres import L1Postgres
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import VisitStream
from cluster import refill as refill_of
from cluster.put_back import Acknowledged, Lost, SmallerSink, command, put_back
from cluster.refill import Refill
from cluster.services import EmbeddedKafka
from cluster.settings import Settings
from payloads.alert_production.alert_schema import alert_schema, frame
from schemas.clock import ManualClock, NightClock, mjd_from_tai
from schemas.events import AlertsReady, DetectorManifest, Event, InputRefused, NightBegan, NoticeDue, VisitDone
from tests.actors.fakes import FakeBroker
from tests.actors.packets_of import packets_of
from tests.backbone.l1_results import result

NIGHT, VISIT, N, BEGAN = 20260705, 2026070500001, 4, 1.7833e9
DEADLINE_S, READ_S, QUIET_S = 60.0, 20.0, 0.3
Told = list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]


class Place:
    """A night's folder and servers, and actors that tell the broker what they tell it in a night."""

    def __init__(self, settings: Settings, journal: PostgresJournal, l1: L1Postgres) -> None:
        self.settings, self.journal, self.l1 = settings, journal, l1
        self.clock = ManualClock(BEGAN + 60.0)
        self.archive = AlertArchive(settings.alerts, alert_schema())

    async def note(self, *facts: Event) -> None:
        await self.journal.append(facts, {}, self.clock.now())

    async def tell_notices(self, *facts: Event) -> None:
        herald = Herald(
            l1=self.l1, archive=self.archive, sink=VisitStream(self.settings.kafka, self.settings.visit_topic),
            chronicle=self.journal, clock=self.clock, signing_key=SigningKey.in_folder(self.settings.output),
            alert_topic=self.settings.alert_topic, live=(94,),
        )  # fmt: skip
        for fact in facts:
            for due in await herald.react(fact):
                await self.note(due)
                await self.note(*await herald.react(due))

    async def tell_alerts(self, detector: int, *, redone: int = 0, lite: bool = True) -> None:
        made = result(VISIT, detector, n=N)
        made.sources["timeWithdrawnMjdTai"] = np.nan
        path = self.archive.write(VISIT, detector, packets_of(made), made.alert_ids, made.alert_keys())
        ready = AlertsReady(
            group="g1", instrument="LSSTCam", visit=VISIT, detector=detector, readout_ended=1.0, dia_sources=N,
            new_dia_objects=N - 1, alerts=N, path=path, stages={}, redone=redone,
        )  # fmt: skip
        await self.l1.store(replace(made, group="g1", alert_path=path), [ready], self.clock.now())
        sinks = [await AlertStream.open(self.settings.kafka, t, self.clock) for t in self.topics[:2]]
        (sent,) = await AlertEmitter(l1=self.l1, archive=self.archive, sink=sinks[0]).react(ready)
        if lite:
            await LiteEmitter(l1=self.l1, archive=self.archive, sink=sinks[1]).react(sent)

    async def tell_withdrawn(self, name: str, noted: float, told: float | None) -> None:
        """As `pachon withdraw` notes it and, when it is acknowledged, tells it."""
        await self.l1._pool.execute(
            "INSERT INTO withdrawal (notice, key, value, noted_at, told_at) VALUES ($1, $2, $3, $4, $5)",
            name, "7", json.dumps({"kind": name}), mjd_from_tai(noted), told and mjd_from_tai(told),
        )  # fmt: skip
        if told is not None and told > BEGAN:
            key = SigningKey.in_folder(self.settings.output)
            sink = VisitStream(self.settings.kafka, self.settings.visit_topic)
            assert await sink.send([Notice.signed("7", json.dumps({"kind": name}), key)]) == [None]

    @property
    def topics(self) -> Sequence[str]:
        return self.settings.alert_topic, self.settings.lite_topic, self.settings.visit_topic


@pytest.fixture
async def place(tmp_path: Path, dsn: str) -> AsyncIterator[Place]:
    with EmbeddedKafka(tmp_path / "kafka.log") as kafka:
        settings = Settings(output=tmp_path, kafka=kafka.bootstrap, postgres=dsn)
        settings.clock_file.write_text(json.dumps(asdict(NightClock(0.0, BEGAN))), "utf-8")
        connection = await asyncpg.connect(dsn)
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await connection.close()
        journal, l1 = await PostgresJournal.open(dsn), await L1Postgres.open(dsn)
        place = Place(settings, journal, l1)
        place.kafka = kafka  # type: ignore[attr-defined]
        yield place
        await l1.close()
        await journal.close()


def read(kafka: str, topic: str, partitions: int, count: int) -> Told:
    """The messages of a topic, `count` of them, and any that come soon after; of one with partitions sorted."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "reader", "log_level": 2})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
    found: list[Message] = []
    over = time.monotonic() + READ_S
    while len(found) < count and time.monotonic() < over:
        found += consumer.consume(count - len(found), 0.2)
    found += consumer.consume(1, QUIET_S)
    consumer.close()
    told = [(m.key(), m.value(), tuple(m.headers() or ())) for m in found]
    return told if partitions == 1 else sorted(told)


async def all_of(place: Place, *counts: int) -> list[Told]:
    """Of each topic."""
    topics = zip(place.topics, (PARTITIONS, PARTITIONS, 1), counts, strict=True)
    return [await asyncio.to_thread(read, place.settings.kafka, *each) for each in topics]


async def refilled(place: Place, stack: ExitStack) -> None:
    """Let the broker die, start it again, and put back what it held."""
    refill = Refill(place.settings, NIGHT, stack, Console(quiet=True))
    refill.topics.note()
    place.kafka.process.kill()  # type: ignore[attr-defined]
    place.kafka.start()  # type: ignore[attr-defined]
    refill.begin()
    over = time.monotonic() + DEADLINE_S
    while refill.due:
        assert time.monotonic() < over, (place.settings.output / "refill.log").read_text("utf-8")
        await refill.step()
        await asyncio.sleep(0.05)


async def test_a_broker_that_lost_all_has_notices_alerts_and_lite_alerts_again_word_for_word(place: Place) -> None:
    await place.journal.append([NoticeDue(notice="of/an/earlier/night", key="1", value="old")], {}, BEGAN - 86400.0)
    began = NightBegan(day_obs=NIGHT, at=BEGAN)
    await place.tell_notices(began)
    await place.tell_alerts(94)
    await place.tell_alerts(95, redone=1)
    place.clock.set_to(BEGAN + 100.0)
    await place.tell_withdrawn("withdrawn", BEGAN + 80.0, BEGAN + 81.0)
    await place.tell_withdrawn("still owed", BEGAN + 82.0, None)
    await place.tell_withdrawn("long ago", BEGAN - 9000.0, BEGAN - 8000.0)
    manifest = DetectorManifest(detector=94, raws=2, dia_sources=N, alerts_made=N)
    await place.tell_notices(VisitDone(group="g1", visit=VISIT, detectors=(manifest,)))
    before = await all_of(place, 2 * N, 2 * N, 3)
    assert [len(each) for each in before] == [2 * N, 2 * N, 3]
    with ExitStack() as stack:
        await refilled(place, stack)
    after = await all_of(place, 2 * N, 2 * N, 3)
    assert after == before
    assert sum(headers == (("late", b"offline"),) for _, _, headers in before[0]) == N


async def test_dead_letters_are_there_again_in_their_order(place: Place) -> None:
    sent = [refusal(number, number * b"x" or None) for number in range(3)]
    topic = DeadLetterTopic(place.settings.kafka)
    for one in sent:
        await place.note(one)
        await topic.keep(one)
    await place.note(refusal(7, 10_000_001 * b"x"))  # the broker never had it
    await place.journal.append([refusal(8, b"of an earlier night")], {}, BEGAN - 86400.0)
    before = await asyncio.to_thread(topic.read)
    with ExitStack() as stack:
        await refilled(place, stack)
    after = await asyncio.to_thread(topic.read)
    assert [replace(one, refused_ms=0) for one in after] == [replace(one, refused_ms=0) for one in before]
    assert [(one.offset, one.value, one.headers) for one in after] == [
        (number, number * b"x" or None, (("origin", b"ocs"),)) for number in range(3)
    ]


def refusal(offset: int, value: bytes | None) -> InputRefused:
    payload = None if value is None else base64.b64encode(value).decode()
    origin = base64.b64encode(b"ocs").decode()
    return InputRefused(topic="nextVisit", partition=0, offset=offset, reason="no Avro", payload=payload,
                        headers=(("origin", origin),), sent_ms=7)  # fmt: skip


async def test_a_file_that_cannot_be_read_holds_up_nothing_else_and_is_not_tried_for_ever(place: Place) -> None:
    await place.tell_notices(NightBegan(day_obs=NIGHT, at=BEGAN))
    await place.tell_alerts(94)
    await place.tell_alerts(95)
    before = await all_of(place, 2 * N, 2 * N, 1)
    (bad,) = (place.settings.alerts / str(NIGHT)).rglob("*_095_*.avro")
    bad.write_bytes(b"Obj")
    with ExitStack() as stack:
        await refilled(place, stack)
    whole, _, notices = await all_of(place, N, N, 1)
    assert (len(whole), notices) == (N, before[2])
    assert "95_" in (place.settings.output / "refill.log").read_text("utf-8")


async def test_what_is_acknowledged_is_not_sent_again(place: Place, tmp_path: Path) -> None:
    lost, file = Lost(settings=place.settings, day_obs=NIGHT), tmp_path / "known"
    await place.note(NoticeDue(notice="n", key="1", value="{}"))
    await place.tell_alerts(94)
    for _ in range(2):
        await put_back(lost, Acknowledged(file), Console(quiet=True))
    assert [len(told) for told in await all_of(place, 2 * N, 2 * N, 1)] == [2 * N, 2 * N, 1]
    with file.open("a", encoding="utf-8") as half:
        half.write("lsst-alerts-v11 20")
    Acknowledged(file).note("another")
    assert "another" in Acknowledged(file)


async def test_what_was_sent_with_smaller_cutouts_is_put_back_with_the_same_ones() -> None:
    made = result(VISIT, 94, n=N)
    packets = packets_of(made, side=102)
    alerts = [Alert(b"1", frame(packet), number) for number, packet in enumerate(packets)]
    first, again = FakeBroker(5.0, most=85_000), FakeBroker(5.0, most=85_000)
    _, _, smaller = await alert_emitter.send(first, alerts)
    assert smaller == len(alerts)
    answers = await SmallerSink(again).send(alerts)
    assert [answer.acknowledged_at for answer in answers] == [5.0] * len(alerts)
    assert again.taken == first.taken


class Program:
    """What is run in the place of `cluster.put_back`, and how often it was."""

    def __init__(self, text: str) -> None:
        self.text, self.runs = text, 0

    def __call__(self, lost: Path) -> list[str]:
        self.runs += 1
        return [sys.executable, "-c", self.text, str(lost)]


@pytest.fixture
def refill(tmp_path: Path) -> Iterator[Refill]:
    """Of a night that runs, with a broker that had no topics."""
    settings = Settings(output=tmp_path, postgres="postgresql://me:secret@h/x")
    settings.clock_file.touch()
    with ExitStack() as stack:
        yield Refill(settings, NIGHT, stack, Console(quiet=True))


async def test_a_broker_that_dies_again_ends_the_refill_of_its_last_life(
    refill: Refill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(refill_of, "command", Program("import time; time.sleep(600)"))
    refill.begin()
    await refill.step()
    assert (first := refill._telling) is not None
    (tmp_path / "refill.acknowledged").write_text("lsst-alerts-v11-visits\n", "utf-8")
    refill.begin()
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "refill.acknowledged").exists()
    assert refill.due


async def test_a_refill_that_fails_is_tried_again_more_and_more_seldom_and_then_given_up(
    refill: Refill, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program("import sys; sys.exit(75)")
    monkeypatch.setattr(refill_of, "command", program)
    monkeypatch.setattr(refill_of, "RETRY_S", 0.01)
    refill.begin()
    pauses, over = [], time.monotonic() + DEADLINE_S
    with capture_logs() as logs:
        while refill.due:
            assert time.monotonic() < over
            before = refill._tries
            await refill.step()
            if refill._tries > before:
                pauses.append(refill._not_before - time.monotonic())
            await asyncio.sleep(0.001)
    assert program.runs == refill_of.MAX_TRIES
    assert pauses[3] > 0.01 * 2**2
    assert [line["again"] for line in logs if line["event"] == "the broker is not as it was"] == [*[True] * 4, False]


def test_the_password_of_the_database_is_not_on_the_command_line(tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, postgres="postgresql://me:secret@h/x")
    (tmp_path / "refill.json").write_text(Lost(settings=settings, day_obs=NIGHT).model_dump_json(), "utf-8")
    assert "secret" not in " ".join(command(tmp_path / "refill.json"))
