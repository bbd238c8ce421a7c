"""Who notices that a driver hangs, and what becomes of it. What dies is for the tests of whole nights."""

import asyncio
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from cluster import proc
from cluster.heartbeat import Pulse
from cluster.options import NightOptions
from cluster.outside import Servers
from cluster.services import EmbeddedKafka
from cluster.settings import Settings
from cluster.supervisor import AGAIN, MAX_DEATHS, Driver, Supervisor
from schemas.errors import Broken

BEGINS_A_CHILD_BEATS_ONCE_AND_HANGS = """
import os, signal, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
os.kill(child.pid, signal.SIGSTOP)
os.write(int(sys.argv[1]), b"0.5\\n")
os.kill(os.getpid(), signal.SIGSTOP)
"""

BEATS_AND_ENDS = """
import os, sys, time
for _ in range(8):
    os.write(int(sys.argv[1]), b"1\\n")
    time.sleep(0.1)
sys.exit(3)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    options, settings = NightOptions(output=tmp_path), Settings(output=tmp_path)
    return Supervisor(options, 20260705, settings, Servers("", ""), Console(quiet=True), tmp_path / "x", ExitStack())


async def ended(supervisor: Supervisor, program: str, begins: Path | None = None) -> tuple[Driver, int]:
    """`begins`: a file that it writes first."""
    touch = f"open({str(begins)!r}, 'w').close()\n" if begins else ""
    with Pulse() as pulse:
        driver = Driver([sys.executable, "-c", touch + program], pulse)
        code = await asyncio.wait_for(supervisor.watch(driver), 30.0)
        driver.tell_silence()
        return driver, code


async def test_a_driver_that_hangs_is_killed_with_all_that_it_began(supervisor: Supervisor) -> None:
    watched = asyncio.create_task(ended(supervisor, BEGINS_A_CHILD_BEATS_ONCE_AND_HANGS))
    over = time.monotonic() + 20.0
    child: list[proc.Process] = []
    while not child and time.monotonic() < over:
        await asyncio.sleep(0.02)
        child = [each for each in proc.descendants(supervisor._pids.get("driver", -1)) if each.name == "sleep"]
    driver, code = await watched
    assert (code, driver.hung) == (-signal.SIGKILL, True)
    assert child
    while (left := proc.process(child[0].pid)) is not None and left.runs:
        assert time.monotonic() < over, f"{left} still runs"
        await asyncio.sleep(0.02)


async def test_a_driver_that_beats_is_left_alone(supervisor: Supervisor) -> None:
    driver, code = await ended(supervisor, BEATS_AND_ENDS)
    assert (code, driver.hung) == (3, False)


async def test_a_broker_that_hangs_holds_up_no_look_at_the_driver(supervisor: Supervisor, tmp_path: Path) -> None:
    answers = threading.Event()
    supervisor.servers.own_kafka = EmbeddedKafka(tmp_path / "kafka.log")
    supervisor.refill.topics.note = lambda: answers.wait(20.0) and None  # type: ignore[method-assign]
    try:
        began = time.monotonic()
        assert (await ended(supervisor, BEATS_AND_ENDS))[1] == 3
        assert time.monotonic() - began < 15.0
    finally:
        answers.set()


class Old:
    """A driver that has been there for long."""

    age_s = 4000.0

    def __init__(self, *, hung: bool = False, played: bool = True) -> None:
        self.hung, self.played = hung, played


async def test_a_driver_that_hangs_again_and_again_ends_the_night(supervisor: Supervisor) -> None:
    supervisor.settings.clock_file.touch()
    driver = Old(hung=True)
    for _ in range(MAX_DEATHS - 1):
        supervisor._mourn(driver, -9)  # type: ignore[arg-type]
    with pytest.raises(Broken, match="hung, and had 10 times hung, or ended soon after its start"):
        supervisor._mourn(driver, -9)  # type: ignore[arg-type]


@pytest.mark.parametrize("began", [False, True], ids=["before the night", "in the night"])
async def test_drivers_that_cannot_play_are_given_up_however_long_they_try(supervisor: Supervisor, began: bool) -> None:
    if began:
        supervisor.settings.clock_file.touch()
    driver = Old(played=False)
    for _ in range(MAX_DEATHS - 1):
        supervisor._mourn(driver, AGAIN)  # type: ignore[arg-type]
    how = "soon after its start" if began else "before the night began"
    with pytest.raises(Broken, match=f"gave up, and had 10 times hung, or ended {how}"):
        supervisor._mourn(driver, AGAIN)  # type: ignore[arg-type]


async def test_a_driver_that_played_for_long_may_die(supervisor: Supervisor) -> None:
    supervisor.settings.clock_file.touch()
    for _ in range(3 * MAX_DEATHS):
        supervisor._mourn(Old(), -9)  # type: ignore[arg-type]
    assert supervisor.early_deaths == 0


async def test_a_driver_plays_when_its_ray_may_be_joined(supervisor: Supervisor) -> None:
    assert (await ended(supervisor, BEATS_AND_ENDS))[0].played is False
    assert (await ended(supervisor, BEATS_AND_ENDS, begins=supervisor.settings.join_file))[0].played is True
