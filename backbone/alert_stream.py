"""Alerts to the broker, over Kafka: every alert's delivery is asked for, waited for, and told."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas.clock import Clock
from schemas.errors import Transient

PARTITIONS = 8
DELIVERY_S = 20.0
"""Wall seconds after which an alert that the broker has not acknowledged counts as failed."""

_GRACE_S = 2.0
"""Beyond that, for the client's own report of what timed out."""

_CREATE_S = 10.0
_POLL_S = 0.05
_SETTINGS = {
    "acks": "all",
    "enable.idempotence": True,
    "compression.type": "lz4",  # half a core-second less than zstd for 10,000 alerts
    "linger.ms": 5,
    "batch.size": 2 * 2**20,
    "message.max.bytes": 10_000_000,
    "queue.buffering.max.kbytes": 512 * 2**10,
    "delivery.timeout.ms": int(DELIVERY_S * 1000),
    "socket.keepalive.enable": True,
    "log_level": 2,  # what goes wrong is told by the deliveries
}


@dataclass(frozen=True)
class Alert:
    """A message. `key`: the id of the object, decimal; `value`: the packet behind its Confluent header."""

    key: bytes
    value: bytes
    dia_source_id: int


@dataclass(frozen=True)
class Delivery:
    """The answer about an alert. `acknowledged_at`: TAI s, NaN if it failed; then `error` says why."""

    dia_source_id: int
    acknowledged_at: float
    error: str = ""


class AlertSink(Protocol):
    """Where alerts go: a broker, or a file in a run without one."""

    async def send(self, alerts: Sequence[Alert]) -> list[Delivery]:
        """Send, and wait for the answer about each within a deadline. What failed is told, not raised."""


class AlertStream:
    """A topic of a Kafka broker. Alerts of one key stay in order, in one partition."""

    def __init__(self, bootstrap: str, topic: str, clock: Clock) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._clock = clock
        self._producer: Producer | None = None
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(cls, bootstrap: str, topic: str, clock: Clock) -> "AlertStream":
        """Create the topic if there is none. Raises Transient if the broker does not answer."""
        await asyncio.to_thread(create_topic, bootstrap, topic)
        return cls(bootstrap, topic, clock)

    async def send(self, alerts: Sequence[Alert]) -> list[Delivery]:
        """See `AlertSink`. An alert told as failed may have arrived all the same: at least once."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._send, alerts)

    def _send(self, alerts: Sequence[Alert]) -> list[Delivery]:
        producer = self._producer or Producer({"bootstrap.servers": self._bootstrap, **_SETTINGS})
        batch = _Batch(self._clock, len(alerts))
        give_up = time.monotonic() + DELIVERY_S + _GRACE_S
        for place, alert in enumerate(alerts):
            self._produce(producer, alert, batch, place, give_up)
        while batch.pending and time.monotonic() < give_up:
            producer.poll(_POLL_S)
        # A client that lost messages has lost its numbering of them, too: the next attempt has a new one.
        self._producer = producer if not batch.lost else None
        return [batch.delivery(place, alert) for place, alert in enumerate(alerts)]

    def _produce(self, producer: Producer, alert: Alert, batch: "_Batch", place: int, give_up: float) -> None:
        """Queue a message; while the queue is full, let some of it go."""
        while True:
            try:
                producer.produce(self._topic, alert.value, alert.key, on_delivery=partial(batch.answer, place))
            except BufferError:
                if time.monotonic() > give_up:
                    return batch.refuse(place, "the producer's queue stayed full")
                producer.poll(_POLL_S)
            except KafkaException as error:
                return batch.refuse(place, error.args[0].str())
            else:
                producer.poll(0)
                return None


@dataclass
class _Batch:
    """The answers about `size` messages, by their place, as they come."""

    clock: Clock
    size: int
    acknowledged_at: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    lost: bool = False

    @property
    def pending(self) -> int:
        """How many are without an answer."""
        return self.size - len(self.acknowledged_at) - len(self.errors)

    def answer(self, place: int, error: KafkaError | None, _message: Message) -> None:
        """Called by the client, from `poll`."""
        if error is None:
            self.acknowledged_at[place] = self.clock.now()
        else:
            self.lost = True
            self.errors[place] = error.str()

    def refuse(self, place: int, error: str) -> None:
        """A message that was not queued at all."""
        self.errors[place] = error

    def delivery(self, place: int, alert: Alert) -> Delivery:
        """What came, or that nothing came."""
        if place in self.acknowledged_at:
            return Delivery(alert.dia_source_id, self.acknowledged_at[place])
        return Delivery(alert.dia_source_id, math.nan, self.errors.get(place, "no answer within the deadline"))


def create_topic(bootstrap: str, topic: str) -> None:
    """Create a topic of alerts if there is none. Raises Transient if the broker does not answer."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})  # must outlive its futures
    new = NewTopic(topic, num_partitions=PARTITIONS, replication_factor=-1)
    for created in admin.create_topics([new], request_timeout=_CREATE_S).values():
        try:
            created.result(_CREATE_S + _GRACE_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Transient(f"topic {topic} cannot be made at {bootstrap}: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise Transient(f"topic {topic} cannot be made: {bootstrap} does not answer") from error
