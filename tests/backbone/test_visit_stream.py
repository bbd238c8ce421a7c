"""Notices on a topic of a real broker, and in a file in its stead."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Message

from backbone import visit_stream
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink, VisitSpool, VisitStream, read_visit_spool
from cluster.services import EmbeddedKafka, free_port
from schemas.errors import BadData, Transient
from tests.backbone.consumers import messages_of
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.small_broker import small_broker


@dataclass
class Place:
    """A sink, and how to read what it took."""

    sink: NoticeSink
    read: Callable[[int], Sequence[Notice]]


@pytest.fixture(params=["broker", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        path = tmp_path / "visits.jsonl"
        return Place(VisitSpool(path), lambda _: read_visit_spool(path))
    bootstrap = request.getfixturevalue("broker")
    topic = request.node.name.replace("[", "-").replace("]", "")
    return Place(VisitStream(bootstrap, topic), lambda count: [*map(notice_of, messages_of(bootstrap, topic, count))])


def notice_of(message: Message) -> Notice:
    assert message.partition() == 0
    key, value, headers = message.key(), message.value(), dict(message.headers() or [])
    signature, key_id = headers["signature"], headers["key-id"]
    assert isinstance(key, bytes)
    assert isinstance(value, bytes)
    assert isinstance(signature, bytes)
    assert isinstance(key_id, bytes)
    return Notice(key, value, signature, key_id.decode())


def notices(folder: Path, count: int) -> list[Notice]:
    key = SigningKey.in_folder(folder)
    return [Notice.signed(str(2026070500001 + i % 3), f'{{"kind":"test","number":{i}}}', key) for i in range(count)]


async def test_every_notice_is_acknowledged_and_read_as_signed_in_the_order_sent(place: Place, tmp_path: Path) -> None:
    sent = notices(tmp_path, 40)
    assert await place.sink.send(sent[:1]) == [None]
    assert await place.sink.send(sent[1:]) == [None] * 39
    assert await asyncio.to_thread(place.read, 40) == sent


async def test_no_notices_are_sent_at_once(place: Place) -> None:
    assert await place.sink.send([]) == []


async def test_one_that_is_too_large_fails_alone(broker: str, tmp_path: Path) -> None:
    small = notices(tmp_path, 2)
    huge = Notice(b"1", bytes(11_000_000), b"", "")
    answers = await VisitStream(broker, "too-large").send([small[0], huge, small[1]])
    assert [type(answer) for answer in answers] == [type(None), BadData, type(None)]
    assert "too large" in str(answers[1])


async def test_one_that_only_the_broker_finds_too_large_is_refused_for_ever(tmp_path: Path) -> None:
    async with small_broker(tmp_path, most=2_000) as broker:
        stream, key = VisitStream(broker.bootstrap, "visits"), SigningKey.in_folder(tmp_path)
        (small,) = notices(tmp_path, 1)
        large = Notice.signed("1", "x" * 5_000, key)
        assert await stream.send([small]) == [None]
        (refused,) = await stream.send([large])
        assert isinstance(refused, BadData)
        assert "too large" in str(refused)
        assert await stream.send([small]) == [None]


async def test_a_broker_that_is_not_there_is_named_and_found_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.alert_stream._CREATE_S", 1.0)
    port = free_port()
    stream = VisitStream(f"127.0.0.1:{port}", "visits")
    with pytest.raises(Transient, match=f"127.0.0.1:{port}"):
        await stream.send(notices(tmp_path, 1))
    with EmbeddedKafka(tmp_path / "log", port=port):
        assert await stream.send(notices(tmp_path, 1)) == [None]


async def test_a_broker_that_dies_leaves_the_notice_unsent_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visit_stream, "DELIVERY_S", 1.5)
    with EmbeddedKafka(tmp_path / "log") as kafka:
        stream = VisitStream(kafka.bootstrap, "visits")
        assert await stream.send(notices(tmp_path, 1)) == [None]
    start = time.monotonic()
    (answer,) = await stream.send(notices(tmp_path, 1))
    assert isinstance(answer, Transient)
    assert time.monotonic() - start < 1.5 + visit_stream._GRACE_S + 0.5


async def test_a_line_that_a_crash_cut_short_is_cut_off(tmp_path: Path) -> None:
    path, sent = tmp_path / "visits.jsonl", notices(tmp_path, 3)
    await VisitSpool(path).send(sent[:2])
    with path.open("ab") as file:
        file.write(b'{"key": "2026')
    with pytest.raises(BadData, match=r"visits\.jsonl: line 3 is no notice"):
        read_visit_spool(path)
    await VisitSpool(path).send(sent[2:])
    assert read_visit_spool(path) == sent


async def test_a_full_disk_takes_all_or_nothing(tmp_path: Path) -> None:
    path, sent = tmp_path / "visits.jsonl", notices(tmp_path, 2)
    spool = VisitSpool(path)
    with files_of_at_most(300):
        answers = await spool.send(sent)
    assert all(isinstance(answer, Transient) for answer in answers)
    assert all("visits.jsonl cannot be written" in str(answer) for answer in answers)
    assert await spool.send(sent) == [None, None]
    assert read_visit_spool(path) == sent
