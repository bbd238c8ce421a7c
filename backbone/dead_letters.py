"""Dead letters: what came from outside and could not be used, on a topic of one partition, byte for byte.

Beside its own headers a letter has those of `_HEADERS`: where it came from, when, and why it was refused. Its number is
its offset. A letter sent again to where it came from carries `RESUBMITTED` there, the number it had; if it is refused
again, the new letter says so. That a letter was sent again is told by a mark on the same topic, which is no letter.
"""

import asyncio
import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from backbone.alert_stream import create_topic
from schemas.errors import BadData, Transient
from schemas.events import InputRefused

TOPIC = "pachon-dead-letters"
DELIVERY_S = 20.0
"""Wall seconds after which a message that the broker has not acknowledged counts as not sent."""

RESUBMITTED = "pachon.resubmitted"
_MARK = "pachon.marks-resubmitted"
_OURS = "pachon."
_HEADERS = ("topic", "partition", "offset", "sent-ms", "reason")
_GRACE_S, _METADATA_S, _POLL_S, _READ_S = 2.0, 15.0, 0.5, 20.0

Headers = tuple[tuple[str, bytes | None], ...]


class DeadLetterSink(Protocol):
    """Where dead letters go."""

    async def keep(self, refused: InputRefused) -> None:
        """Return when it is kept. Raises Transient if that is not sure, BadData if it never will be."""


@dataclass(frozen=True)
class DeadLetter:
    """A message as it came, and what is known of its refusal. `sent_ms`, `refused_ms`: POSIX ms.

    `again_after`: the number of the letter that this one is a resubmission of.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    sent_ms: int = 0
    number: int = -1
    refused_ms: int = 0
    again_after: int | None = None
    resubmitted: bool = False

    @property
    def source(self) -> tuple[str, int, int, int]:
        """Where and when it stood; the same for the same letter kept twice."""
        return self.topic, self.partition, self.offset, self.sent_ms


def send(bootstrap: str, topic: str, value: bytes | None, key: bytes | None, headers: Headers, partition: int) -> None:
    """Produce one message and wait for its acknowledgement. Raises Transient without one, BadData for one too large."""
    producer = Producer({
        "bootstrap.servers": bootstrap, "acks": "all", "message.max.bytes": 10_000_000,
        "delivery.timeout.ms": int(DELIVERY_S * 1000), "log_level": 2,
    })  # fmt: skip
    answers: list[KafkaError | None] = []

    def answered(error: KafkaError | None, _: Message) -> None:
        answers.append(error)

    try:
        producer.produce(topic, value, key, partition, headers=list(headers), on_delivery=answered)
    except KafkaException as error:
        answers.append(error.args[0])
    producer.flush(DELIVERY_S + _GRACE_S)
    if not answers:
        raise Transient(f"{topic}: the broker {bootstrap} did not answer within {DELIVERY_S:g} s")
    if (refusal := answers[0]) is not None:
        large = refusal.code() == KafkaError.MSG_SIZE_TOO_LARGE
        raise (BadData if large else Transient)(f"{topic}: the broker {bootstrap} did not take it: {refusal.str()}")


class DeadLetterTopic:
    """The topic, created with the first letter. A letter may be written twice, and is read once."""

    def __init__(self, bootstrap: str, topic: str = TOPIC) -> None:
        self._bootstrap, self._topic = bootstrap, topic
        self._created = False

    async def keep(self, refused: InputRefused) -> None:
        """See `DeadLetterSink`: kept when the broker says so, within the deadline."""
        await asyncio.to_thread(self._keep, refused)

    def _keep(self, refused: InputRefused) -> None:
        if not self._created:
            create_topic(self._bootstrap, self._topic, partitions=1)
            self._created = True
        headers = tuple((name, _bytes(value)) for name, value in refused.headers)
        told = (refused.topic, refused.partition, refused.offset, refused.sent_ms, refused.reason)
        ours = tuple((_header(name), str(value).encode()) for name, value in zip(_HEADERS, told, strict=True))
        send(self._bootstrap, self._topic, _bytes(refused.payload), _bytes(refused.key), headers + ours, 0)

    def read(self) -> list[DeadLetter]:
        """All letters, oldest first, each once. Raises Transient if the broker does not answer."""
        letters: dict[tuple[str, int, int, int], DeadLetter] = {}
        done: set[int] = set()
        for message in _messages(self._bootstrap, self._topic):
            if (marked := dict(_headers(message)).get(_MARK)) is not None:
                done.add(int(marked))
            else:
                letter = _letter(message)
                letters.setdefault(letter.source, letter)
        return [replace(letter, resubmitted=letter.number in done) for letter in letters.values()]

    def resubmit(self, letter: DeadLetter) -> None:
        """Send a letter to where it came from, and mark it. Raises Transient, BadData as `send` does.

        If only the mark fails, the letter stays as it was in the list, and may be sent once more.
        """
        number = str(letter.number).encode()
        headers = (*letter.headers, (RESUBMITTED, number))
        send(self._bootstrap, letter.topic, letter.value, letter.key, headers, letter.partition)
        send(self._bootstrap, self._topic, b"", None, ((_MARK, number),), 0)


class DeadLetterFile:
    """A file in the topic's stead, one JSON object a line, in a run without a broker."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def keep(self, refused: InputRefused) -> None:
        """See `DeadLetterSink`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(refused.model_dump_json() + "\n")


def _messages(bootstrap: str, topic: str) -> Iterator[Message]:
    """What a topic holds now; nothing if there is none."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "pachon-dead-letters", "enable.auto.commit": False,
        "enable.partition.eof": True, "log_level": 2,
    })  # fmt: skip
    try:
        if consumer.list_topics(topic, _METADATA_S).topics[topic].error is None:
            consumer.assign([TopicPartition(topic, 0, 0)])
            yield from _to_the_end(consumer, bootstrap)
    except KafkaException as error:
        raise Transient(f"the broker {bootstrap} does not answer: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _to_the_end(consumer: Consumer, bootstrap: str) -> Iterator[Message]:
    give_up = time.monotonic() + _READ_S
    while time.monotonic() < give_up:
        message = consumer.poll(_POLL_S)
        if message is None:
            continue
        error = message.error()
        if error is None:
            give_up = time.monotonic() + _READ_S
            yield message
        elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
            return
        elif not error.retriable():
            raise Transient(f"the broker {bootstrap} failed: {error.str()}")
    raise Transient(f"the broker {bootstrap} told nothing for {_READ_S:g} s")


def _letter(message: Message) -> DeadLetter:
    """Raises BadData for a message that nobody here wrote."""
    headers = _headers(message)
    said = {name: value.decode("utf-8", "replace") for name, value in headers if value is not None}
    try:
        topic, partition, offset, sent_ms, reason = (said[_header(name)] for name in _HEADERS)
        again = said.get(RESUBMITTED)
        return DeadLetter(
            topic=topic, partition=int(partition), offset=int(offset), reason=reason, value=message.value(),
            key=message.key(), headers=tuple((n, v) for n, v in headers if not n.startswith(_OURS)),
            sent_ms=int(sent_ms), number=message.offset() or 0, refused_ms=message.timestamp()[1],
            again_after=int(again) if again is not None else None,
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise BadData(f"{message.topic()} {message.offset()} is no dead letter of ours: {error!r}") from error


def _headers(message: Message) -> Headers:
    told = message.headers() or ()
    pairs = told.items() if isinstance(told, dict) else told
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in pairs)


def _header(name: str) -> str:
    return f"{_OURS}{name}"


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
