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
from schemas.errors import BadData

DELIVERY_S = 20.0
"""Wall seconds after which a notice that the broker has not acknowledged counts as not sent."""

_GRACE_S = 2.0
"""Beyond that, for the client's own report of what timed out."""

_NO_ANSWER = "no answer within the deadline"


class NoticeSink(Protocol):
    """Where notices go."""

    async def send(self, notices: Sequence[Notice]) -> list[str]:
        """Send, and wait for the answer about each within a deadline: "", or why it was not acknowledged."""


class VisitStream:
    """A topic of a Kafka broker, created with the first notice if there is none: the broker may be down until then."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: Producer | None = None
        self._created = False
        self._one_at_a_time = asyncio.Lock()

    async def send(self, notices: Sequence[Notice]) -> list[str]:
        """See `NoticeSink`. One told as not acknowledged may have arrived all the same: at least once.

        Raises Transient if the broker does not say that there is such a topic.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._send, notices)

    def _send(self, notices: Sequence[Notice]) -> list[str]:
        if not self._created:
            create_topic(self._bootstrap, self._topic, partitions=1)
            self._created = True
        producer, answers = self._producer or self._new_producer(), [_NO_ANSWER] * len(notices)
        for place, notice in enumerate(notices):
            answered = partial(_note, answers, place)
            try:
                producer.produce(self._topic, notice.value, notice.key, headers=notice.headers, on_delivery=answered)
            except (BufferError, KafkaException) as error:
                answers[place] = str(error)
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


def _note(answers: list[str], place: int, error: KafkaError | None, _message: Message) -> None:
    answers[place] = "" if error is None else error.str()


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

    async def send(self, notices: Sequence[Notice]) -> list[str]:
        """See `NoticeSink`: all of them, or none."""
        error = await asyncio.to_thread(self._append, b"".join(map(_line, notices)))
        return [error] * len(notices)

    def _append(self, lines: bytes) -> str:
        try:
            with self._path.open("r+b") as file:
                file.seek(self._end)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, self._end)
            return f"{self._path} cannot be written: {error.strerror}"
        self._end += len(lines)
        return ""


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
