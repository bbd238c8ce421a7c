"""One short night, played inline and live, for all tests of this folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from cluster import prepare
from cluster.settings import Settings
from schemas.instrument import camera
from simulators.ocs.schedule import plan_own

DETECTOR, VISITS, SEED = "R22_S11", 2, 3
DEADLINE_S = 400.0

Fact = dict[str, Any]


@dataclass
class Night:
    """What a played night left behind."""

    output: Path
    code: int
    screen: str
    seen: list[bytes] = field(default_factory=list)
    told: list[bytes] = field(default_factory=list)

    @property
    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.output / "report.json").read_text("utf-8"))
        return loaded

    @property
    def facts(self) -> list[Fact]:
        return [json.loads(line) for line in (self.output / "facts.jsonl").read_text("utf-8").splitlines()]


def command(output: Path, *options: str) -> list[str]:
    own = ["night", "--visits", str(VISITS), "--detectors", DETECTOR, "--seed", str(SEED), "--output", str(output)]
    return [sys.executable, "-c", "from cluster.cli import main; main()", *own, *options]


@pytest.fixture(scope="session")
def earlier(session_folder: Path) -> Path:
    """A folder in which there is what the night needs from earlier ones, and no more."""
    detectors = tuple(detector.id for detector in camera("LSSTCam").select(DETECTOR))
    settings = Settings(output=session_folder / "earlier", detectors=detectors)
    lacking, _ = prepare.missing(settings, plan_own(SEED, VISITS))
    prepare.make_and_put(lacking, SEED, settings)
    return settings.output


def begun(earlier: Path, output: Path) -> Path:
    """The folder of a night to be played, in which this is there already."""
    shutil.copytree(earlier, output, copy_function=_linked)
    return output


def _linked(source: str, place: str) -> None:
    (shutil.copy2 if source.endswith(".sqlite3") else os.link)(source, place)


@pytest.fixture(scope="session")
def inline_night(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    output = begun(earlier, tmp_path_factory.mktemp("inline") / "night")
    done = subprocess.run(
        command(output, "--inline"), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Night(output, done.returncode, done.stdout)


def consume(bootstrap: str, topic: str, seen: list[bytes], stop: threading.Event) -> None:
    """A stranger: reads the topic from its start until told to stop, and then what is left."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest",
                         "session.timeout.ms": 6000, "log_level": 0})  # fmt: skip
    consumer.subscribe([topic])
    while True:
        message = consumer.poll(1.0)
        if message is None and stop.is_set():
            break
        if message is not None and message.error() is None:
            seen.append(message.value())
    consumer.close()


FAULTS = "kill-worker-during", "kill-postgres", "kill-associator-before-commit", "kill-emitter-before-answer"
"""All in the second visit, one after the other."""


@pytest.fixture(scope="session")
def live_night(earlier: Path, session_folder: Path) -> Night:
    """The same night with real parts, a consumer of its own beside it, and `FAULTS`."""
    output, faults = begun(earlier, session_folder / "night"), session_folder / "faults.json"
    faults.write_text(json.dumps(FAULTS), "utf-8")
    night, stop = Night(output, -1, ""), threading.Event()
    options = ("--workers", "1", "--metrics-port", "0", "--linger", "8", "--speed", "2", "--fault", str(faults))
    process = subprocess.Popen(
        command(output, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    readers: list[threading.Thread] = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            night.screen += line
            address = re.search(r"Kafka (\S+),.*alerts on (\S+)", line)
            if address:
                for topic, heard in ((address[2], night.seen), (f"{address[2]}-visits", night.told)):
                    known = (address[1], topic, heard, stop)
                    readers.append(threading.Thread(target=consume, args=known, daemon=True))
                    readers[-1].start()
            if "the broker stays up" in line:
                stop.set()
    night.code = process.returncode
    watchdog.cancel()
    stop.set()
    for reader in readers:
        reader.join(15.0)
    return night
