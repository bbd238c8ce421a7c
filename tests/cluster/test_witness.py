"""What a stranger sees of a topic, on a broker that dies and comes back with nothing."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import Producer

from backbone.alert_stream import create_topic
from cluster.child_process import ChildProcess
from cluster.services import EmbeddedKafka, free_port
from cluster.witness import dia_source_of, read

TOPIC = "alerts"
SOON_S = 40.0
ALERT = b"\0\0\0\x04\x4d" + b"\xf2\xc0\x01" + b"the rest of 12345"
OTHER = b"\0\0\0\x04\x4d" + b"\x02" + b"the rest of 1"


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def send(kafka: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka, "log_level": 0})
    for value in values:
        producer.produce(TOPIC, value, partition=0)
    assert producer.flush(SOON_S) == 0


def test_an_alerts_id_is_its_first_field() -> None:
    assert dia_source_of(ALERT) == 12345
    assert dia_source_of(OTHER) == 1
    for none in (b"", b"\0\0\0\x04\x4d", b"{}", b"\x01" + ALERT):
        assert dia_source_of(none) is None


def test_every_message_is_noted_once_although_the_broker_dies(tmp_path: Path) -> None:
    notes, port = tmp_path / "witness.jsonl", free_port()
    with EmbeddedKafka(tmp_path / "kafka.log", port=port) as kafka:
        create_topic(kafka.bootstrap, TOPIC)
        command = [sys.executable, "-m", "cluster.witness", "--kafka", kafka.bootstrap, "--topic", TOPIC]
        with ChildProcess("witness", [*command, "--file", notes], tmp_path / "witness.log") as witness:
            witness.wait_for("ready")
            send(kafka.bootstrap, ALERT, OTHER)
            until(lambda: len(read(notes)) == 2)
            assert kafka.process is not None
            os.kill(kafka.process.pid, signal.SIGKILL)
            kafka.process.stop()
            with EmbeddedKafka(tmp_path / "kafka.log", port=port) as again:
                create_topic(again.bootstrap, TOPIC)
                send(again.bootstrap, OTHER)
                until(lambda: len(read(notes)) >= 3)
                assert witness.stop() == 0
    seen = read(notes)
    assert [each.dia_source_id for each in seen] == [12345, 1, 1]
    assert [each.sha256 for each in seen] == [hashlib.sha256(value).hexdigest() for value in (ALERT, OTHER, OTHER)]
    assert all(abs(each.at - notes.stat().st_mtime) < 2 * SOON_S for each in seen)
