"""Whether a topic is still the one that it was: brokers give each an id when it is made (KIP-516)."""

from collections.abc import Sequence

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

ANSWER_S = 5.0


class TopicIds:
    """Of some topics of a broker. A topic that was deleted, or lost with its broker, and made again has another one."""

    def __init__(self, bootstrap: str, topics: Sequence[str]) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
        self._topics = list(topics)
        self._known: dict[str, str] = {}

    def made_anew(self) -> set[str]:
        """The topics that have another id than when they were seen last, of those of which the broker tells one."""
        told = self._admin.describe_topics(TopicCollection(self._topics), request_timeout=ANSWER_S)
        ids: dict[str, str] = {}
        for name, answer in told.items():
            try:
                ids[name] = str(answer.result(ANSWER_S).topic_id)
            except (KafkaException, TimeoutError):
                continue  # it is not there, or the broker is not: whoever reads it will be told so
        changed = {name for name, found in ids.items() if self._known.get(name, found) != found}
        self._known |= ids
        return changed
