"""Somebody else's eyes: a process that reads the alert topic as a broker does, and notes what it sees.

    python -m cluster.witness --kafka HOST:PORT --topic NAME --file witness.jsonl

It belongs to no consumer group. When it has lost the broker it reads the topic again from the beginning, since a broker
may have come back with nothing, and passes over what it has noted. It ends when SIGTERM has come and nothing more does.
"""

import argparse
import hashlib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from fastavro import schemaless_reader

POLL_S, METADATA_S, LAST_S = 0.2, 5.0, 2.0
_BATCH = 500
_HEADER_BYTES = 5


@dataclass(frozen=True)
class Seen:
    """A message. `at`: POSIX s. `dia_source_id`: None if it is no alert. `sha256`: of all its bytes."""

    at: float
    partition: int
    offset: int
    sent_ms: int
    dia_source_id: int | None
    sha256: str


class TopicReader:
    """Every message of a topic once, in each partition's order, whatever becomes of the broker."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._topic, self._lost = topic, threading.Event()
        self._known: set[tuple[int, int, int]] = set()
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka, "group.id": "pachon-witness", "enable.auto.commit": False,
                "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20, "reconnect.backoff.max.ms": 500,
                "error_cb": self._on_error, "log_level": 0,
            }
        )  # fmt: skip
        self._assigned = False

    def close(self) -> None:
        """Hang up."""
        self._consumer.close()

    def poll(self) -> Iterator[Message]:
        """What has come within `POLL_S`."""
        if self._lost.is_set() or not self._assigned:
            self._begin()
        first = self._consumer.poll(POLL_S)  # `consume` alone would wait for a whole batch
        for message in [] if first is None else [first, *self._consumer.consume(_BATCH, 0.0)]:
            if message.error() is None and place_of(message) not in self._known:
                self._known.add(place_of(message))
                yield message

    def _begin(self) -> None:
        try:
            found = self._consumer.list_topics(self._topic, METADATA_S).topics[self._topic]
        except KafkaException:
            return
        if found.error is None and found.partitions:
            self._lost.clear()
            self._consumer.assign([TopicPartition(self._topic, each, OFFSET_BEGINNING) for each in found.partitions])
            self._assigned = True

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT}:  # noqa: SLF001 - their public names
            self._lost.set()


def place_of(message: Message) -> tuple[int, int, int]:
    """Partition, offset, and when it was sent (POSIX ms): no two messages of a topic share all three."""
    return message.partition() or 0, message.offset() or 0, message.timestamp()[1]


def dia_source_of(value: bytes) -> int | None:
    """The `diaSourceId` of an alert behind its Confluent header: the packet's first field. None for what is none."""
    if value[:1] != b"\0" or len(value) <= _HEADER_BYTES:
        return None
    first = schemaless_reader(io.BytesIO(value[_HEADER_BYTES:]), "long", None)
    assert isinstance(first, int)
    return first


def seen(message: Message) -> Seen:
    """A message as it is noted."""
    value = message.value() or b""
    return Seen(
        time.time(),  # noqa: TID251 - a process of its own, beside the night's clock
        *place_of(message),
        dia_source_of(value),
        hashlib.sha256(value).hexdigest(),
    )


def read(file: Path) -> list[Seen]:
    """What a witness noted; a last line cut short by a crash is none."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [Seen(**json.loads(line)) for line in lines[:-1]]


def watch(kafka: str, topic: str, file: Path, stop: threading.Event) -> None:
    """Note every message until told to stop, and then what still comes within `LAST_S` of the last."""
    reader, last = TopicReader(kafka, topic), time.monotonic()
    try:
        with file.open("a", encoding="utf-8") as notes:
            while not stop.is_set() or time.monotonic() - last < LAST_S:
                for message in reader.poll():
                    notes.write(json.dumps(asdict(seen(message))) + "\n")
                    last = time.monotonic()
                notes.flush()
    finally:
        reader.close()


def main() -> None:
    """Watch until SIGTERM."""
    parser = argparse.ArgumentParser(prog="cluster.witness", description="Note what is in the alert topic.")
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    watch(options.kafka, options.topic, options.file, stop)


if __name__ == "__main__":
    main()
