"""Dead letters on a real broker: kept whole, read once, sent again."""

import base64
import time

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from backbone.alert_stream import create_topic
from backbone.dead_letters import RESUBMITTED, DeadLetterTopic
from cluster.services import free_port
from schemas.errors import BadData, Transient
from schemas.events import InputRefused

TOPIC, READ_S = "lsst.sal.MTCamera.logevent_endReadout", 20.0


def refused(offset: int, value: bytes | None = b"\x00\xffno Avro", **more: object) -> InputRefused:
    payload = None if value is None else base64.b64encode(value).decode()
    told: dict[str, object] = {
        "key": "aw==",
        "headers": (("trace", "AAE="), ("none", None)),
        "sent_ms": 1_783_290_968_000,
    }
    return InputRefused(
        topic=TOPIC, partition=0, offset=offset, reason="9 bytes are not Avro", payload=payload, **(told | more)
    )  # type: ignore[arg-type] - the fields of a test


def messages(bootstrap: str, topic: str, count: int) -> list[Message]:
    """As a stranger reads them."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "stranger"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Message] = []
    give_up = time.monotonic() + READ_S
    while len(found) < count and time.monotonic() < give_up:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(message)
    consumer.close()
    return found


async def test_a_letter_is_kept_byte_for_byte_with_its_key_its_headers_and_why(broker: str) -> None:
    topic = DeadLetterTopic(broker, "whole")
    await topic.keep(refused(17))
    await topic.keep(refused(18, None, key=None, headers=()))
    first, second = messages(broker, "whole", 2)
    assert (first.key(), first.value()) == (b"k", b"\x00\xffno Avro")
    assert first.headers() == [
        ("trace", b"\x00\x01"), ("none", None), ("pachon.topic", TOPIC.encode()), ("pachon.partition", b"0"),
        ("pachon.offset", b"17"), ("pachon.sent-ms", b"1783290968000"), ("pachon.reason", b"9 bytes are not Avro"),
    ]  # fmt: skip
    assert (second.key(), second.value()) == (None, None)
    letter, empty = topic.read()
    assert (letter.key, letter.value, letter.headers) == (
        b"k",
        b"\x00\xffno Avro",
        (("trace", b"\0\1"), ("none", None)),
    )
    assert (letter.number, letter.reason) == (0, "9 bytes are not Avro")
    assert letter.source == (TOPIC, 0, 17, 1_783_290_968_000)
    assert letter.refused_ms > 1_700_000_000_000
    assert (empty.key, empty.value, empty.number) == (None, None, 1)


async def test_a_letter_kept_twice_is_read_once(broker: str) -> None:
    topic = DeadLetterTopic(broker, "twice")
    for offset in (3, 3, 4):
        await topic.keep(refused(offset))
    assert [(letter.number, letter.offset) for letter in topic.read()] == [(0, 3), (2, 4)]


async def test_a_letter_sent_again_is_marked_there_and_here_and_known_when_it_comes_back(broker: str) -> None:
    create_topic(broker, TOPIC, partitions=1)
    topic = DeadLetterTopic(broker, "again")
    await topic.keep(refused(1))
    await topic.keep(refused(2))
    topic.resubmit(topic.read()[1])
    (back,) = messages(broker, TOPIC, 1)
    assert (back.key(), back.value()) == (b"k", b"\x00\xffno Avro")
    assert back.headers() == [("trace", b"\x00\x01"), ("none", None), (RESUBMITTED, b"1")]
    assert [letter.resubmitted for letter in topic.read()] == [False, True]
    mark = base64.b64encode(b"1").decode()
    await topic.keep(refused(3, headers=(("trace", "AAE="), (RESUBMITTED, mark))))
    third = topic.read()[2]
    assert (third.again_after, third.resubmitted, third.headers) == (1, False, (("trace", b"\0\1"),))


def test_a_broker_without_the_topic_has_no_letters(broker: str) -> None:
    assert DeadLetterTopic(broker, "nowhere").read() == []


def test_what_nobody_here_wrote_is_named(broker: str) -> None:
    create_topic(broker, "foreign", partitions=1)
    producer = Producer({"bootstrap.servers": broker})
    producer.produce("foreign", b"hello", partition=0)
    producer.flush(READ_S)
    with pytest.raises(BadData, match="foreign 0 is no dead letter"):
        DeadLetterTopic(broker, "foreign").read()


async def test_a_letter_that_no_broker_takes_for_its_size_is_not_tried_for_ever(broker: str) -> None:
    with pytest.raises(BadData, match="too large"):
        await DeadLetterTopic(broker, "large").keep(refused(1, bytes(11_000_000)))


async def test_a_dead_broker_is_told_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbone.alert_stream._CREATE_S", 1.0)
    with pytest.raises(Transient, match=r"127\.0\.0\.1"):
        await DeadLetterTopic(f"127.0.0.1:{free_port()}").keep(refused(1))
