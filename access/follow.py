"""`pachon alerts`: follows the alert topic as a broker does, with Kafka's and the registry's own clients."""

import io
import json
import struct
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import fastavro
import httpx
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from access.alert_line import Record, line
from access.stamp_picture import write_picture
from schemas.errors import BadData, Transient

METADATA_DEADLINE_S = 15.0
POLL_S = 0.5
_HEADER = struct.Struct(">bI")


def follow(
    kafka: str, registry: str, topic: str, *, start: str = "earliest", count: int = 0, wait: float = 0.0,
    stamps: Path | None = None,
) -> int:  # fmt: skip
    """Print one line an alert, and with `stamps` write its cutouts as `<diaSourceId>.png` there; 0 at the end.

    `start`: `earliest`, `latest`, or an offset, of every partition. Ends after `count` alerts, or `wait` seconds of the
    wall without one (0: never). Raises Transient if broker or registry do not answer, BadData for a start or topic
    that there is none of.
    """
    if stamps is not None:
        stamps.mkdir(parents=True, exist_ok=True)
    with Decoder(registry) as decoder:
        for number, message in enumerate(messages(kafka, topic, start, wait), start=1):
            alert = decoder.decode(message.value() or b"", f"{topic} {message.partition()}:{message.offset()}")
            sys.stdout.write(line(alert) + "\n")
            sys.stdout.flush()
            if stamps is not None:
                write_picture(alert, stamps / f"{alert['diaSourceId']}.png")
            if number == count:
                break
    return 0


class Decoder:
    """Decodes Confluent-framed Avro by the schemas of a registry. A context manager: it keeps a connection."""

    def __init__(self, registry: str) -> None:
        self._client = SchemaRegistryClient({"url": registry, "timeout": METADATA_DEADLINE_S})
        self._schema = lru_cache(maxsize=8)(self._fetch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def decode(self, payload: bytes, where: str) -> Record:
        """The alert in a message. Raises BadData naming where it stood if it is none."""
        if len(payload) < _HEADER.size or payload[0] != 0:
            raise BadData(f"{where}: the message has no Confluent header")
        schema = self._schema(_HEADER.unpack_from(payload)[1])
        try:
            record = fastavro.schemaless_reader(io.BytesIO(payload[_HEADER.size :]), schema, None)
        except (EOFError, ValueError, IndexError, UnicodeDecodeError) as error:
            raise BadData(f"{where}: the message is not what its schema says: {error}") from error
        assert isinstance(record, dict)
        return record

    def _fetch(self, schema_id: int) -> Any:  # noqa: ANN401 - fastavro's parsed schemas are untyped
        try:
            text = self._client.get_schema(schema_id).schema_str
        except SchemaRegistryError as error:
            raise BadData(f"the registry has no schema {schema_id}: {error}") from error
        except (OSError, httpx.HTTPError) as error:
            raise Transient(f"the schema registry does not answer: {error}") from error
        assert text is not None
        return fastavro.parse_schema(json.loads(text))


def messages(kafka: str, topic: str, start: str, wait: float) -> Iterator[Message]:
    """Messages of all partitions of a topic, from a start; until `wait` wall seconds pass without one."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "pachon-alerts", "enable.auto.commit": False, "log_level": 2}
    )
    try:
        consumer.assign(_partitions(consumer, topic, start))
        yield from _polled(consumer, wait)
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str, start: str) -> list[TopicPartition]:
    offsets = {"earliest": -2, "latest": -1}  # OFFSET_BEGINNING and OFFSET_END of librdkafka
    if start not in offsets and not start.isdigit():
        raise BadData(f"--start {start!r} is neither `earliest` nor `latest` nor an offset")
    try:
        found = consumer.list_topics(topic, METADATA_DEADLINE_S).topics[topic]
    except KafkaException as error:
        raise Transient(f"the broker does not answer: {error.args[0].str()}") from error
    if found.error is not None or not found.partitions:
        raise BadData(f"the broker has no topic {topic!r}")
    offset = offsets.get(start, int(start) if start.isdigit() else 0)
    return [TopicPartition(topic, partition, offset) for partition in found.partitions]


def _polled(consumer: Consumer, wait: float) -> Iterator[Message]:
    last = time.monotonic()
    while not wait or time.monotonic() - last < wait:
        message = consumer.poll(POLL_S)
        if message is None:
            continue
        error = message.error()
        if error is None:
            last = time.monotonic()
            yield message
        elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():  # noqa: SLF001 - its public name
            raise Transient(f"the broker failed: {error.str()}")
