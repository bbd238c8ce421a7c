"""Alerts to the broker, over Kafka: every alert's delivery is asked for, waited for, and told."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas.clock import Clock
from schemas.errors import Transient

PARTITIONS = 8
DELIVERY_S = 15.0
"""Wall seconds after which an alert that the broker has not acknowledged counts as failed."""

_GRACE_S = 2.0
"""Beyond that, for the client's own report of what timed out."""

TWO_ROUNDS_S = 2 * (DELIVERY_S + _GRACE_S)
"""What sending may take at most: once, and once more for what was refused as too large."""

_CREATE_S = 10.0
_POLL_S = 0.05
_SETTINGS: dict[str, str | int | bool] = {
    "acks": "all",
    "enable.idempotence": True,
    "compression.type": "zstd",
    "compression.level": 1,
    "linger.ms": 5,
    "batch.size": 1_000_000,  # brokers refuse, unless told otherwise, batches of more than 1 MiB
    "message.max.bytes": 10_000_000,
    "queue.buffering.max.kbytes": 512 * 2**10,
    "delivery.timeout.ms": int(DELIVERY_S * 1000),
    "socket.keepalive.enable": True,
    "log_level": 2,  # what goes wrong is told by the deliveries
}
_APART = {"batch.num.messages": 1, "max.in.flight": 1, "enable.idempotence": False}
"""For what was refused as too large, maybe for its company: a broker limits batches, not messages. A refusal leaves a
gap in the numbers of an idempotent client, at which what follows fails; one at a time messages keep their order without
numbers, and one that is sent again because an answer was lost may arrive twice, as after a crash.
"""


@dataclass(frozen=True)
class Alert:
    """A message. `key`: the id of the object, decimal; `value`: the packet behind its Confluent header.

    `headers`: name and text of what is to be told beside it.
    """

    key: bytes
    value: bytes
    dia_source_id: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Delivery:
    """The answer about an alert. `acknowledged_at`: TAI s, NaN if it failed; then `error` says why.

    `too_large`: it failed for its size, and would again.
    """

    dia_source_id: int
    acknowledged_at: float
    error: str = ""
    too_large: bool = False


class AlertSink(Protocol):
    """Where alerts go: a broker, or a file in a run without one."""

    async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:
        """Send, and wait some wall seconds at most for the answers. What failed is told, not raised."""


class AlertStream:
    """A topic of a Kafka broker. Alerts of one key stay in order, in one partition."""

    def __init__(self, bootstrap: str, topic: str, clock: Clock) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._clock = clock
        self._producer: Producer | None = self._client(_SETTINGS)  # connects, before there is anything to send
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(cls, bootstrap: str, topic: str, clock: Clock) -> "AlertStream":
        """Create the topic if there is none. Raises Transient if the broker does not answer."""
        await asyncio.to_thread(create_topic, bootstrap, topic)
        return cls(bootstrap, topic, clock)

    async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:
        """See `AlertSink`. An alert told as failed may have arrived all the same: at least once."""
        give_up = time.monotonic() + within_s
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._send, alerts, give_up)

    def _send(self, alerts: Sequence[Alert], give_up: float) -> list[Delivery]:
        producer = self._producer or self._client(_SETTINGS)
        batch = self._round(producer, alerts, give_up)
        # A client that lost messages has lost its numbering of them, too: the next attempt has a new one.
        self._producer = None if batch.lost or batch.pending else producer
        deliveries = batch.deliveries(alerts)
        refused = sorted(batch.too_large)
        if refused and len(alerts) > 1:
            apart = [alerts[place] for place in refused]
            answers = self._round(self._client(_SETTINGS | _APART), apart, give_up).deliveries(apart)
            for place, answer in zip(refused, answers, strict=True):
                deliveries[place] = answer
        return deliveries

    def _client(self, settings: Mapping[str, str | int | bool]) -> Producer:
        return Producer({"bootstrap.servers": self._bootstrap, **settings})

    def _round(self, producer: Producer, alerts: Sequence[Alert], give_up: float) -> "_Batch":
        """Send each once, and wait for the answers until the deadline, that of the round or that of the call."""
        batch = _Batch(self._clock, len(alerts))
        give_up = min(give_up, time.monotonic() + DELIVERY_S + _GRACE_S)
        for place, alert in enumerate(alerts):
            self._produce(producer, alert, batch, place, give_up)
        while batch.pending and time.monotonic() < give_up:
            batch.poll(producer, _POLL_S)
        return batch

    def _produce(self, producer: Producer, alert: Alert, batch: "_Batch", place: int, give_up: float) -> None:
        """Queue a message; while the queue is full, let some of it go."""
        while True:
            try:
                producer.produce(
                    self._topic, alert.value, alert.key, headers=list(alert.headers),
                    on_delivery=partial(batch.answer, place),
                )  # fmt: skip
            except BufferError:
                if time.monotonic() > give_up:
                    return batch.fail(place, "the producer's queue stayed full")
                batch.poll(producer, _POLL_S)
            except KafkaException as error:
                return batch.refuse(place, error.args[0])
            else:
                return batch.poll(producer, 0.0)


@dataclass
class _Batch:
    """The answers about `size` messages, by their place, as they come."""

    clock: Clock
    size: int
    acknowledged_at: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    too_large: set[int] = field(default_factory=set)
    lost: bool = False

    @property
    def pending(self) -> int:
        """How many are without an answer."""
        return self.size - len(self.acknowledged_at) - len(self.errors)

    def poll(self, producer: Producer, within_s: float) -> None:
        """Hear the answers that have come."""
        try:
            producer.poll(within_s)
        except KafkaException:
            self.lost = True  # it can send nothing any more, as when a broker forgot its numbers; each message says why

    def answer(self, place: int, error: KafkaError | None, _message: Message) -> None:
        """Called by the client, from `poll`."""
        if error is None:
            self.acknowledged_at[place] = self.clock.now()
        else:
            self.lost = True
            self.refuse(place, error)

    def refuse(self, place: int, error: KafkaError) -> None:
        """A message that was not taken, by the broker or by the client."""
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.too_large.add(place)
        self.fail(place, error.str())

    def fail(self, place: int, error: str) -> None:
        """A message that did not go."""
        self.errors[place] = error

    def deliveries(self, alerts: Sequence[Alert]) -> list[Delivery]:
        """What came about each, or that nothing came."""
        return [self._delivery(place, alert) for place, alert in enumerate(alerts)]

    def _delivery(self, place: int, alert: Alert) -> Delivery:
        if place in self.acknowledged_at:
            return Delivery(alert.dia_source_id, self.acknowledged_at[place])
        error = self.errors.get(place, "no answer within the deadline")
        return Delivery(alert.dia_source_id, math.nan, error, too_large=place in self.too_large)


def create_topic(bootstrap: str, topic: str, *, partitions: int = PARTITIONS) -> None:
    """Create a topic if there is none. Raises Transient if the broker does not answer."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})  # must outlive its futures
    new = NewTopic(topic, num_partitions=partitions, replication_factor=-1)
    for created in admin.create_topics([new], request_timeout=_CREATE_S).values():
        try:
            created.result(_CREATE_S + _GRACE_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Transient(f"topic {topic} cannot be made at {bootstrap}: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise Transient(f"topic {topic} cannot be made: {bootstrap} does not answer") from error


def topics_of(bootstrap: str) -> dict[str, int]:
    """Name -> partitions of the topics of a broker. Raises Transient if it does not answer."""
    try:
        listed = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2}).list_topics(timeout=_CREATE_S)
    except KafkaException as error:
        raise Transient(f"{bootstrap} does not tell its topics: {error.args[0].str()}") from error
    return {name: len(topic.partitions) for name, topic in listed.topics.items() if not name.startswith("__")}
