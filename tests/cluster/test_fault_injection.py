"""Faults of processes, carried out on small programs of the test's own."""

import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.fault_injection import Injected, Injector, Notes, Places, read
from cluster.proc import descendants
from schemas.clock import NightClock
from schemas.errors import Transient
from schemas.events import DetectorFailed, Event, NightBegan
from simulators.faults import ALERT_FILE, DiskFull, Freeze, Kill, Planned, When
from simulators.ocs.schedule import plan_own

PLAN = plan_own(1, 3)
SECOND, THIRD = PLAN[1].group, PLAN[2].group
SOON_S = 10.0
FOREVER = "import time\nwhile True: time.sleep(0.05)"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {FOREVER!r}], check=False)"

WRITER = """
import pathlib, time
while True:
    try:
        pathlib.Path({path!r}).write_text("x")
        print("ok", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts Python programs, and ends them."""
    started: list[subprocess.Popen[str]] = []

    def one(program: str) -> "subprocess.Popen[str]":
        started.append(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        for pid in (each.pid for each in descendants(process.pid)):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        process.kill()
        process.communicate()


def told(group: str, detector: int) -> Event:
    """A fact, of any kind that has a detector."""
    return DetectorFailed(group=group, visit=1, detector=detector, stage="s", reason="r")


def state(pid: int) -> str:
    """Of a process, as proc(5) has it."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]


async def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


class Night:
    """An injector over one process."""

    def __init__(self, folder: Path, fault: Kill | Freeze | DiskFull, process: "subprocess.Popen[str]") -> None:
        self.file = folder / "faults.jsonl"
        self.hit: list[tuple[str, int | None]] = []
        self.process = process
        self.injector = Injector(
            [Planned("the fault", fault)], PLAN, self.pid, Places(folder, "", ""), Notes(self.file),
            NightClock.starting(0.0),
        )  # fmt: skip

    async def pid(self, process: str, detector: int | None) -> int:
        self.hit.append((process, detector))
        return self.process.pid

    def states(self) -> list[str]:
        return [injected.state for injected in read(self.file)]


def at(fact: str = "DetectorFailed", detector: int | None = 94, after_s: float = 0.0) -> When:
    return When(visit=2, fact=fact, detector=detector, after_s=after_s)


async def test_a_process_is_killed_at_the_fact_of_its_visit_and_detector_and_at_no_other(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="ccd_worker", at=at()), start(FOREVER))
    async with night.injector.running():
        for group, detector in ((THIRD, 94), (SECOND, 90), (PLAN[0].group, 94)):
            night.injector.hear(told(group, detector), 0.0)
        await asyncio.sleep(0.1)
        assert night.process.poll() is None
        night.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: night.process.poll() == -signal.SIGKILL)
    assert night.hit == [("ccd_worker", 94)]
    (injected,) = read(night.file)
    assert (injected.name, injected.what, injected.state) == ("the fault", "kill ccd_worker", "begun")
    assert injected.pids == (night.process.pid,)


async def test_of_several_detectors_the_first_one_told_of_is_meant(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="ccd_worker", at=at(detector=None, after_s=0.1)), start(FOREVER))
    async with night.injector.running():
        night.injector.hear(told(SECOND, 91), 0.0)
        night.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: night.process.poll() == -signal.SIGKILL)
    assert night.hit == [("ccd_worker", 91)]


async def test_a_process_stands_still_with_its_children_and_goes_on(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    parent = start(PARENT)
    await until(lambda: len(descendants(parent.pid)) == 1)
    pids = [parent.pid, *(each.pid for each in descendants(parent.pid))]
    night = Night(tmp_path, Freeze(process="postgres", seconds=0.5, at=When(after_s=0.1)), parent)
    async with night.injector.running():
        night.injector.hear(NightBegan(day_obs=20260705, at=0.0), 0.0)
        await until(lambda: [state(pid) for pid in pids] == ["T", "T"])
        assert night.states() == ["begun"]
        await until(lambda: night.states() == ["begun", "ended"])
        await until(lambda: [state(pid) for pid in pids] == ["S", "S"])


async def test_at_the_end_of_the_night_everything_runs_again(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Freeze(process="broker", seconds=600.0, at=at()), start(FOREVER))
    async with night.injector.running():
        night.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: state(night.process.pid) == "T")
    assert night.states() == ["begun", "ended"]
    await until(lambda: state(night.process.pid) == "S")


async def test_whoever_comes_after_a_killed_driver_ends_what_it_began_and_repeats_nothing(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = start(FOREVER)
    night = Night(tmp_path, Freeze(process="broker", seconds=600.0, at=at()), process)
    process.send_signal(signal.SIGSTOP)
    await until(lambda: state(process.pid) == "T")
    Notes(night.file).add(
        Injected(
            number=0, name="the fault", state="begun", what="freeze broker", at=0.0, pids=(process.pid,), until=0.2
        )
    )
    again = Night(tmp_path, Freeze(process="broker", seconds=600.0, at=at()), process)
    async with again.injector.running():
        again.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: again.states() == ["begun", "ended"])
        await until(lambda: state(process.pid) == "S")
    assert again.hit == []
    third = Night(tmp_path, Freeze(process="broker", seconds=600.0, at=at()), process)
    async with third.injector.running():
        third.injector.hear(told(SECOND, 94), 0.0)
        await asyncio.sleep(0.1)
    assert third.states() == ["begun", "ended"]


async def test_a_full_disk_refuses_every_write_and_then_none(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    target = tmp_path / "written"
    process = start(WRITER.format(path=str(target)))
    assert process.stdout is not None
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    night = Night(tmp_path, DiskFull(process="archiver", seconds=0.5, at=at()), process)
    async with night.injector.running():
        assert process.stdout.readline() == "ok\n"
        night.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: night.states() == ["begun", "ended"])
    assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == before
    process.kill()
    said = process.stdout.read().split("\n")
    assert "File too large" in said
    assert process.wait(SOON_S) == -signal.SIGKILL


async def test_a_file_that_appears_is_a_moment_as_good_as_a_fact(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="associator", at=at(ALERT_FILE)), start(FOREVER))
    visit = PLAN[1].observation(0).visit
    folder = tmp_path / str(PLAN[1].day_obs) / str(visit)
    async with night.injector.running():
        for detector in (None, 94):
            night.injector._heard[2, "AssociationDue", detector].set()
        folder.mkdir(parents=True)
        (folder / f"{visit}_090_0123456789abcdef.avro").touch()
        await asyncio.sleep(0.1)
        assert night.process.poll() is None
        (folder / f"{visit}_094_0123456789abcdef.avro").touch()
        await until(lambda: night.process.poll() == -signal.SIGKILL)


async def test_what_never_comes_to_pass_is_said(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="archiver", at=at()), start(FOREVER))
    async with night.injector.running():
        pass
    (missed,) = read(night.file)
    assert (missed.state, missed.reason) == ("missed", "DetectorFailed of detector 94 of visit 2 never came")


async def test_after_an_error_nothing_is_missed_for_another_driver_goes_on(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="archiver", at=at()), start(FOREVER))
    with pytest.raises(Transient):
        async with night.injector.running():
            raise Transient("the database is gone")
    assert read(night.file) == []


async def test_a_process_that_cannot_be_found_is_said(
    tmp_path: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    night = Night(tmp_path, Kill(process="archiver", at=at()), start(FOREVER))

    async def nobody(*_: object) -> int:
        raise Transient("no archiver runs")

    night.injector._pid = nobody
    async with night.injector.running():
        night.injector.hear(told(SECOND, 94), 0.0)
        await until(lambda: night.states() == ["missed"])
    assert read(night.file)[0].reason == "no archiver runs"
