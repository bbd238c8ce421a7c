"""What the observatory says and what the system hears: both ends are real, and Kafka and registry between."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pyarrow import flight

from backbone.registry_client import RegistryClient
from backbone.sal import Received, SalReader
from backbone.sal_events import TOPICS, event_of
from cluster.child_process import ChildProcess
from cluster.services import EmbeddedKafka, free_port
from schemas.clock import NightClock
from schemas.events import Event, InputRefused, IntegrationStarted, NextVisit, NextVisitCanceled, ReadoutEnded
from schemas.image import Observation
from simulators.faults import Observatory as Wrong
from simulators.faults import Planned, dump
from simulators.ocs.schedule import PlannedVisit, dump_plan, plan_own
from simulators.ocs.timeline import timeline

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 30.0
AT_ONCE = 1e6


class StubDaq(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow ships no types
    """Notes what it is told; the camera's own server is tested elsewhere."""

    def __init__(self, port: int) -> None:
        super().__init__(f"grpc://127.0.0.1:{port}")
        self.told: list[Observation] = []

    def do_action(self, _: object, action: flight.Action) -> Iterator[bytes]:
        assert action.type == "expose"
        self.told.append(Observation(**json.loads(action.body.to_pybytes())))
        return iter(())


@dataclasses.dataclass
class Observatory:
    """The services round the OCS, and a way to start it."""

    kafka: str
    registry: str
    daq: StubDaq
    folder: Path

    def command(
        self, plan: Sequence[PlannedVisit], speed: float, cancel: Sequence[str] = (), delay_s: float = 0.0
    ) -> list[str]:
        """The OCS's command line for a night that begins in `delay_s`."""
        dump_plan(plan, self.folder / "plan.json")
        first = next(timeline(plan)).tai
        clock = json.dumps(dataclasses.asdict(NightClock.starting(first, delay_s=delay_s, speed=speed)))
        peers = [
            "--bootstrap",
            self.kafka,
            "--registry",
            self.registry,
            "--daq",
            f"grpc://127.0.0.1:{self.daq.port}",
        ]
        night = ["--clock", clock, "--plan", str(self.folder / "plan.json")]
        return [sys.executable, "-m", "simulators.ocs.ocs", *peers, *night, "--cancel", *cancel]

    def run(
        self,
        plan: Sequence[PlannedVisit],
        speed: float = AT_ONCE,
        cancel: Sequence[str] = (),
        delay_s: float = 0.0,
    ) -> list[dict[str, object]]:
        """Tell the night to its end; what the OCS said."""
        command = self.command(plan, speed, cancel, delay_s)
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]

    def hear(self, count: int, seconds_of_silence: float = 0.7) -> list[Received]:
        """At least `count` messages, and whatever follows at once."""
        return asyncio.run(self._hear(count, seconds_of_silence))

    async def _hear(self, count: int, seconds_of_silence: float) -> list[Received]:
        received: list[Received] = []
        async with (
            RegistryClient(self.registry) as registry,
            SalReader(self.kafka, registry, {}) as reader,
            contextlib.aclosing(reader.messages()) as messages,
        ):
            with contextlib.suppress(TimeoutError):
                while True:
                    patience = DEADLINE_S if len(received) < count else seconds_of_silence
                    received.append(await asyncio.wait_for(anext(messages), patience))
        return received


@pytest.fixture(scope="module")
def registry_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    command = [sys.executable, "-m", "backbone.schema_registry", "--file", folder / "registry.json"]
    with ChildProcess("registry", command, folder / "registry.log") as registry:
        yield registry.wait_for("ready").split()[1]


@pytest.fixture
def observatory(tmp_path: Path, registry_url: str) -> Iterator[Observatory]:
    with EmbeddedKafka(tmp_path / "kafka.log") as kafka, StubDaq(free_port()) as daq:
        yield Observatory(kafka.bootstrap, registry_url, daq, tmp_path)


def _events(received: list[Received]) -> list[Event]:
    return [message.event for message in received if message.event is not None]


def _when(event: Event) -> float:
    if isinstance(event, IntegrationStarted):
        return event.started
    if isinstance(event, ReadoutEnded):
        return event.readout_ended
    assert isinstance(event, NextVisit)
    return event.start_time - 22.0


def test_a_night_of_two_visits_is_heard_as_it_was_planned(observatory: Observatory) -> None:
    plan = plan_own(1, 2)
    said = observatory.run(plan)
    events = _events(observatory.hear(10))
    assert [type(event).__name__ for event in events] == [
        "NextVisit", "IntegrationStarted", "NextVisit", "ReadoutEnded", "IntegrationStarted", "ReadoutEnded",
        "IntegrationStarted", "ReadoutEnded", "IntegrationStarted", "ReadoutEnded",
    ]  # fmt: skip
    assert [_when(event) for event in events] == sorted(_when(event) for event in events)
    for visit, heard in zip(plan, [event for event in events if isinstance(event, NextVisit)], strict=True):
        assert (heard.group, heard.instrument, heard.filters) == (
            visit.group,
            "LSSTCam",
            visit.physical_filter,
        )
        assert (heard.ra, heard.dec, heard.rotation) == (visit.ra, visit.dec, visit.rotation)
        assert (heard.start_time, heard.duration, heard.n_images) == (visit.start_tai, 36.0, 2)
    expected = [visit.observation(snap) for visit in plan for snap in (0, 1)]
    assert observatory.daq.told == expected
    ended = [event for event in events if isinstance(event, ReadoutEnded)]
    assert [(e.group, e.exposure, e.snap, e.n_snaps, e.started, e.readout_ended) for e in ended] == [
        (o.group, o.exposure, o.snap, o.n_snaps, o.started, o.readout_ended) for o in expected
    ]
    assert said[0]["ready"] is True
    assert said[-1] == {"done": True, "told": 26, "stopped": False}


def test_the_timeline_told_in_process_gives_the_same_events_as_over_kafka(observatory: Observatory) -> None:
    plan = plan_own(7, 2)
    observatory.run(plan, cancel=[plan[1].group])
    over_kafka = {event.event_id: event for event in _events(observatory.hear(7))}
    in_process = {
        event.event_id: event
        for _, kind, payload in timeline(plan, [plan[1].group])
        if not isinstance(payload, Observation)
        and kind in TOPICS
        and (event := event_of(kind, payload | {"private_sndStamp": 1.0}))
    }
    assert {type(event) for event in over_kafka.values()} == {
        NextVisit, NextVisitCanceled, IntegrationStarted, ReadoutEnded
    }  # fmt: skip
    without_stamp: Callable[[Event], object] = lambda event: event.model_dump(exclude={"announced"})  # noqa: E731
    assert {k: without_stamp(e) for k, e in over_kafka.items()} == {k: without_stamp(e) for k, e in in_process.items()}
    assert {observation.group for observation in observatory.daq.told} == {plan[0].group}


def test_latiss_is_heard_as_latiss(observatory: Observatory) -> None:
    observatory.run(plan_own(1, 1, instrument="LATISS"))
    events = _events(observatory.hear(5))
    assert not [event for event in events if isinstance(event, InputRefused)]
    assert {event.instrument for event in events if isinstance(event, ReadoutEnded | NextVisit)} == {"LATISS"}


def test_the_night_keeps_its_time(observatory: Observatory) -> None:
    speed, begun = 20.0, time.monotonic()
    said = observatory.run(plan_own(1, 1), speed, delay_s=3.0)
    assert time.monotonic() - begun > 3.0 + (22.0 + 36.3) / speed
    late = [float(str(line["late_s"])) / speed for line in said if "late_s" in line]
    assert len(late) == 13
    assert -0.01 < min(late) < max(late) < 1.0


def test_at_sigterm_the_observatory_ends_its_sentence_and_leaves(observatory: Observatory) -> None:
    plan = plan_own(1, 2)
    with subprocess.Popen(
        observatory.command(plan, speed=1.0), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as ocs:
        assert ocs.stderr is not None
        watchdog = threading.Timer(DEADLINE_S, ocs.kill)
        watchdog.start()
        while "nextVisit" not in ocs.stderr.readline():
            assert ocs.poll() is None
        ocs.send_signal(signal.SIGTERM)
        last = json.loads(ocs.stderr.read().splitlines()[-1])
        assert ocs.wait(DEADLINE_S) == 0
        watchdog.cancel()
    assert last == {"done": True, "told": 1, "stopped": True}


def test_what_the_observatory_cannot_use_or_reach_it_says_and_ends(observatory: Observatory, tmp_path: Path) -> None:
    command = observatory.command(plan_own(1, 1), AT_ONCE, ["2026-01-01T00:00:00.000"])
    wrong_group = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert wrong_group.returncode == 2
    assert "the plan has no group 2026-01-01T00:00:00.000" in json.loads(wrong_group.stderr)["error"]
    alone = dataclasses.replace(observatory, kafka=f"127.0.0.1:{free_port()}", folder=tmp_path)
    command = alone.command(plan_own(1, 1), AT_ONCE)
    no_broker = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert no_broker.returncode == 1
    assert f"broker {alone.kafka}" in json.loads(no_broker.stderr.splitlines()[-1])["error"]


def test_what_cannot_be_understood_is_refused_with_its_reason_and_hides_nothing(observatory: Observatory) -> None:
    plan = plan_own(1, 1)
    dump(observatory.folder / "faults.json", [Planned("malformed", Wrong(what="malformed", visit=1))])
    command = [*observatory.command(plan, AT_ONCE), "--faults", str(observatory.folder / "faults.json")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    events = _events(observatory.hear(25))
    reasons = [event.reason for event in events if isinstance(event, InputRefused)]
    assert len(reasons) == 4 * (len(events) - len(reasons)) == 20
    for why in ("the magic byte is 110", "ids/987654", "no field groupId", "is not a finite number"):
        assert sum(why in reason for reason in reasons) >= 1, (why, reasons)
