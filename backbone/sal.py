"""The observatory's messages as they come from Kafka: read from given positions, decoded, or refused."""

import asyncio
import base64
import heapq
import io
import math
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from fastavro import schemaless_reader

from backbone.registry_client import RegistryClient
from backbone.sal_events import TOPICS, Record, event_of
from backbone.topic_ids import TopicIds
from schemas.errors import BadData, Transient
from schemas.events import Event, InputRefused

_HEADER = struct.Struct(">bI")
_POLL_S, _PROBE_S, _BATCH = 1.0, 5.0, 500
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_LONG_POLL_MS = 50  # Tansu answers a waiting fetch when half of this is over, whatever came meanwhile

_log = structlog.get_logger()


@dataclass(frozen=True)
class Received:
    """A message: the event it tells of (None: none for us), and where to read on once it is kept.

    `record`: as it came.
    """

    event: Event | None
    topic: str
    partition: int
    next_offset: int
    record: ConsumerRecord | None = field(default=None, compare=False, repr=False)

    def refused(self, reason: str) -> InputRefused:
        """The message as a dead letter."""
        assert self.record is not None
        return _refused(self.record, reason)


class SalReader:
    """Reads SAL topics from `positions`, {(topic, partition): next offset}.

    A partition without one is read from the beginning, and what was sent before `since` (POSIX s) passed over: it
    was told to others, before whoever reads now was there. (Not every broker can be asked for an offset by time.)

    No consumer group: who keeps the positions keeps them with what the messages caused. They belong to one
    broker's logs: for a broker that starts empty, give none; a topic that is made anew meanwhile is read from its
    beginning. All partitions that a topic has, or gets, are read. An async context manager. A dead broker or
    registry is waited for; Transient after `deadline_s`.
    After an error, go on with a new reader from the kept positions.
    """

    def __init__(
        self,
        bootstrap: str,
        registry: RegistryClient,
        positions: Mapping[tuple[str, int], int],
        *,
        since: float = 0.0,
        topics: Sequence[str] = TOPICS,
        deadline_s: float = 60.0,
    ) -> None:
        self._bootstrap, self._registry, self._deadline_s = bootstrap, registry, deadline_s
        self._positions, self._topics, self._since = dict(positions), tuple(topics), since
        self._consumer: AIOKafkaConsumer | None = None
        self._reached: dict[TopicPartition, int] = {}
        self._in_hand = False
        self._ids, self._recognised_at = TopicIds(bootstrap, topics), -math.inf
        self._patience = _Patience(deadline_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await _stop(self._consumer)
            self._consumer = None

    async def messages(self) -> AsyncIterator[Received]:
        """All messages, for ever: each partition in its order, partitions merged by the time of sending.

        The order over topics is that of one fetch: a message that the broker yields late comes late.
        """
        consumer = self._consumer = self._consumer or await self._connected()
        while True:
            fetched = await self._fetched(consumer)
            rows = [[await self._read(record) for record in records] for records in fetched]
            for _, message in heapq.merge(*rows, key=lambda row: row[0]):
                yield message
            self._in_hand = False  # whoever asks for more has done with the last

    async def at_end(self) -> bool:
        """Whether all that the broker holds, asked now, was yielded and done with; false while it does not answer."""
        consumer = self._consumer
        if consumer is None or self._in_hand:
            return False
        there = [p for p in consumer.assignment() if p.partition in (consumer.partitions_for_topic(p.topic) or ())]
        try:
            async with asyncio.timeout(_PROBE_S):
                await consumer.topics()  # a broker is asked, also where none of the topics is there yet
                ends = await consumer.end_offsets(there)
                places = {place: await consumer.position(place) for place in ends}
        except (KafkaError, OSError, TimeoutError):
            return False
        return places == ends and not self._in_hand

    async def _connected(self) -> AIOKafkaConsumer:
        while True:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=_LONG_POLL_MS,
                request_timeout_ms=int(1000 * _PROBE_S),  # one that hung is read on as soon after
                metadata_max_age_ms=int(1000 * _PROBE_S),
            )
            try:
                await consumer.start()
                await self._assign(consumer)
            except (KafkaError, OSError, TimeoutError) as error:
                await _stop(consumer)
                await self._patience.wait(f"broker {self._bootstrap}", error)
            except BaseException:
                await _stop(consumer)
                raise
            else:
                self._patience.answered()
                return consumer

    async def _assign(self, consumer: AIOKafkaConsumer) -> None:
        async with asyncio.timeout(_PROBE_S):
            await consumer.topics()
        await self._recognise(consumer)
        self._take(consumer)

    def _take(self, consumer: AIOKafkaConsumer) -> None:
        """Read every partition of our topics, also one that is new; a topic that does not exist yet has partition 0."""
        found = [
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in sorted(consumer.partitions_for_topic(topic) or {0})
        ]
        if set(found) != consumer.assignment():
            consumer.assign(found)
            for place in found:
                consumer.seek(place, self._reached.get(place, self._positions.get((place.topic, place.partition), 0)))

    async def _fetched(self, consumer: AIOKafkaConsumer) -> list[list[ConsumerRecord]]:
        """The next records, by partition. aiokafka hides a dead broker, so silence is probed."""
        while True:
            try:
                self._take(consumer)
                batch = await consumer.getmany(timeout_ms=int(1000 * _POLL_S), max_records=_BATCH)
                if batch:
                    self._in_hand = True
                    self._patience.answered()
                    self._reached |= {place: records[-1].offset + 1 for place, records in batch.items()}
                    return [batch[key] for key in sorted(batch, key=self._order)]
                async with asyncio.timeout(_PROBE_S):
                    await consumer.topics()
                await self._recognise(consumer)
            except (KafkaError, OSError, TimeoutError) as error:
                await self._patience.wait(f"broker {self._bootstrap}", error)
            else:
                self._patience.answered()

    async def _recognise(self, consumer: AIOKafkaConsumer) -> None:
        """Begin again with a topic that is not the one it was: places in that one mean nothing in this one."""
        now = asyncio.get_running_loop().time()
        if now - self._recognised_at < _PROBE_S:
            return
        self._recognised_at = now
        for topic in await asyncio.to_thread(self._ids.made_anew):
            _log.warning("topic made anew, read from its beginning", topic=topic)
            for place in consumer.assignment():
                if place.topic == topic:
                    self._reached[place] = 0
                    consumer.seek(place, 0)

    def _order(self, key: TopicPartition) -> tuple[int, int]:
        return self._topics.index(key.topic), key.partition

    async def _read(self, record: ConsumerRecord) -> tuple[tuple[int, float], Received]:
        """When it was sent (broker's ms, then the sender's own stamp), and the message."""
        payload, sent = record.value or b"", 0.0
        event: Event | None
        if self._is_past(record):
            return (record.timestamp, sent), _received(None, record)
        try:
            values = await self._decoded(payload)
            event = event_of(record.topic, values)
            stamp = values.get("private_sndStamp")
            sent = stamp if isinstance(stamp, float) else 0.0
        except BadData as error:
            event = _refused(record, str(error))
        return (record.timestamp, sent), _received(event, record)

    def _is_past(self, record: ConsumerRecord) -> bool:
        known = (record.topic, record.partition) in self._positions
        return not known and record.timestamp < 1000.0 * self._since

    async def _decoded(self, payload: bytes) -> Record:
        """See `decoded`; a registry that does not answer is waited for."""
        while True:
            try:
                record = await decoded(payload, self._registry)
            except Transient as error:
                await self._patience.wait("schema registry", error)
            else:
                self._patience.answered()
                return record


async def decoded(payload: bytes, registry: RegistryClient) -> Record:
    """The record in Confluent's frame. Raises BadData for what is none, Transient if the registry does not answer."""
    if len(payload) < _HEADER.size:
        raise BadData(f"{len(payload)} bytes are too few for a magic byte and a schema id")
    magic, schema_id = _HEADER.unpack_from(payload)
    if magic != 0:
        raise BadData(f"the magic byte is {magic}, not 0")
    return _avro(payload[_HEADER.size :], await registry.schema(schema_id))


class _Patience:
    """Waits for a peer, longer each time; Transient when `deadline_s` have passed without an answer."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._since: float | None = None
        self._wait_s = _FIRST_WAIT_S

    def answered(self) -> None:
        self._since, self._wait_s = None, _FIRST_WAIT_S

    async def wait(self, peer: str, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
            _log.warning("peer silent", peer=peer, deadline_s=self._deadline_s, error=repr(error))
        if now - self._since >= self._deadline_s:
            raise Transient(f"{peer} did not answer for {self._deadline_s:g} s: {error!r}") from error
        await asyncio.sleep(min(self._wait_s, self._deadline_s))
        self._wait_s = min(2.0 * self._wait_s, _LONGEST_WAIT_S)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Stop it. With a dead broker, aiokafka 0.14 lets its own fetch's cancellation out and stops half-way."""
    try:
        await consumer.stop()
    except asyncio.CancelledError:
        await consumer._client.close()  # noqa: SLF001 - the other half
        ours = asyncio.current_task()
        if ours is None or ours.cancelling():
            raise


def _avro(body: bytes, schema: dict[str, object]) -> Record:
    stream = io.BytesIO(body)
    try:
        record = schemaless_reader(stream, schema, None)
    except (EOFError, LookupError, ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise BadData(f"{len(body)} bytes are not Avro of {schema.get('name')}: {error!r}") from error
    if left := len(body) - stream.tell():
        raise BadData(f"{left} bytes too many after the Avro of {schema.get('name')}")
    if not isinstance(record, dict):
        raise BadData(f"a {type(record).__name__}, not a record")
    return record


def _received(event: Event | None, record: ConsumerRecord) -> Received:
    return Received(event, record.topic, record.partition, record.offset + 1, record)


def _refused(record: ConsumerRecord, reason: str) -> InputRefused:
    return InputRefused(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=reason,
        payload=_text(record.value),
        key=_text(record.key),
        headers=tuple((name, _text(value)) for name, value in record.headers),
        sent_ms=max(record.timestamp, 0),
    )


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
