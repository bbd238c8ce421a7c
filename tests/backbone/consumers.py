"""What anybody reads from a topic."""

import time

from confluent_kafka import Consumer, Message

READ_DEADLINE_S = 20.0


def messages_of(bootstrap: str, topic: str, count: int) -> list[Message]:
    """The first `count` messages, or those that come within the deadline."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": f"reader of {topic}", "auto.offset.reset": "earliest",
        "session.timeout.ms": 2000,
    })  # fmt: skip
    consumer.subscribe([topic])
    messages: list[Message] = []
    give_up = time.monotonic() + READ_DEADLINE_S
    while len(messages) < count and time.monotonic() < give_up:
        messages += consumer.consume(count, 0.2)
    consumer.close()
    assert not any(message.error() for message in messages)
    return messages
