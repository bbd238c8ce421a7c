"""Notices to the broker, over Kafka, or into a file in a run without one.

The topic has one partition: what is told first is read first.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from backbone.alert_stream import create_topic
from backbone.notices import Notice
from schemas.errors import BadData, Transient

DELIVERY_S = 20.0
"""Wall seconds after which a notice that the broker has not acknowledged counts as not sent."""

_GRACE_S = 2.0
"""Beyond that, for the client's own report of what timed out."""

_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
}  # fmt: skip
"""What a broker says of a message that it will not take the next time, either."""

Answer = Transient | BadData | None
"""About a notice. None: acknowledged; Transient: not, and may be yet; BadData: refused for its size or form."""


class NoticeSink(Protocol):
    """Where notices go."""

    async def send(self, notices: Sequence[Notice]) -> list[Answer]:
        """Send, and wait for the answer about each within a deadline."""


class VisitStream:
    """A topic of a Kafka broker, created with the first notice if there is none: the broker may be down until then."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: Producer | None = None
        self._created = False
        self._one_at_a_time = asyncio.Lock()

    async def send(self, notices: Sequence[Notice]) -> list[Answer]:
        """See `NoticeSink`. One told as not acknowledged may have arrived all the same: at least once.

        Raises Transient if the broker does not say that there is such a topic.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._send, notices)

    def _send(self, notices: Sequence[Notice]) -> list[Answer]:
        if not self._created:
            create_topic(self._bootstrap, self._topic, partitions=1)
            self._created = True
        producer = self._producer or self._new_producer()
        answers: list[Answer] = [Transient("no answer within the deadline")] * len(notices)
        for place, notice in enumerate(notices):
            answered = partial(_note, answers, place)
            try:
                producer.produce(self._topic, notice.value, notice.key, headers=notice.headers, on_delivery=answered)
            except BufferError as error:
                answers[place] = Transient(str(error))
            except KafkaException as error:
                answers[place] = _answer(error.args[0])
        with suppress(KafkaException):  # one that can send nothing any more: the answers, or their lack, say so
            producer.flush(DELIVERY_S + _GRACE_S)
        # A client that lost messages has lost its numbering of them, too: the next attempt has a new one.
        self._producer = None if any(answers) else producer
        return answers

    def _new_producer(self) -> Producer:
        return Producer({
            "bootstrap.servers": self._bootstrap, "acks": "all", "enable.idempotence": True,
            "message.max.bytes": 10_000_000, "delivery.timeout.ms": int(DELIVERY_S * 1000),
            "socket.keepalive.enable": True, "log_level": 2,  # what goes wrong is told by the answers
        })  # fmt: skip


def _note(answers: list[Answer], place: int, error: KafkaError | None, _message: Message) -> None:
    answers[place] = None if error is None else _answer(error)


def _answer(error: KafkaError) -> Answer:
    return BadData(error.str()) if error.code() in _REFUSED else Transient(error.str())


class VisitSpool:
    """A file in the broker's stead, a JSON object a line: `key`, `value` as text, `signature` in hex, `key_id`.

    What is on the disk counts as acknowledged. A line that a crash cut short is cut off when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._end = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, self._end)

    async def send(self, notices: Sequence[Notice]) -> list[Answer]:
        """See `NoticeSink`: all of them, or none."""
        answer = await asyncio.to_thread(self._append, b"".join(map(_line, notices)))
        return [answer] * len(notices)

    def _append(self, lines: bytes) -> Answer:
        try:
            with self._path.open("r+b") as file:
                file.seek(self._end)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, self._end)
            return Transient(f"{self._path} cannot be written: {error.strerror}")
        self._end += len(lines)
        return None


def _line(notice: Notice) -> bytes:
    fields = {
        "key": notice.key.decode(), "value": notice.value.decode(), "signature": notice.signature.hex(),
        "key_id": notice.key_id,
    }  # fmt: skip
    return json.dumps(fields).encode() + b"\n"


def read_visit_spool(path: Path) -> list[Notice]:
    """The notices of a spool, in order. Raises BadData, naming the file and line, for what is none."""
    notices = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            told = json.loads(line)
            signature = bytes.fromhex(told["signature"])
            notices.append(Notice(told["key"].encode(), told["value"].encode(), signature, told["key_id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadData(f"{path}: line {number} is no notice: {error}") from error
    return notices
