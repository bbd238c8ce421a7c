"""Processes that stand still and go on again, without Ray: those below this one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster import proc
from cluster.batch.keeper import LOOK_S, MARK, Keeper

BURN = "while True: pass"
START = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"


@contextmanager
def running(code: str, **variables: str) -> Iterator[int]:
    """A process, and what it starts."""
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | variables)
    try:
        yield child.pid
    finally:
        for each in [child.pid, *(below.pid for below in proc.descendants(child.pid))]:
            os.kill(each, signal.SIGKILL)
        child.wait()


def eventually(reached: Callable[[], object], within_s: float = 20.0) -> None:
    give_up = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def states(pid: int) -> set[str]:
    found = [proc.process(pid), *proc.descendants(pid)]
    return {each.state for each in found if each is not None}


@pytest.fixture
def batch() -> Iterator[int]:
    """A batch process that has started another."""
    with running(START, **{MARK: "1"}) as pid:
        eventually(lambda: proc.descendants(pid))
        yield pid


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper(os.getpid())
    yield made
    made.stand_still(0.0)


def test_it_stops_what_is_batch_and_what_that_started_and_nothing_else(keeper: Keeper, batch: int) -> None:
    with running(BURN) as other:
        assert keeper.stand_still(30.0) == 2
        eventually(lambda: states(batch) == {"T"}, 1.0)
        assert "T" not in states(other)


def test_it_lets_go_on_at_once(keeper: Keeper, batch: int) -> None:
    keeper.stand_still(30.0)
    eventually(lambda: states(batch) == {"T"}, 1.0)
    assert keeper.stand_still(0.0) == 0
    eventually(lambda: "T" not in states(batch), 1.0)


def test_it_lets_go_on_when_nobody_renews_its_lease(keeper: Keeper, batch: int) -> None:
    keeper.stand_still(1.0)
    eventually(lambda: states(batch) == {"T"}, 1.0)
    eventually(lambda: "T" not in states(batch), 1.0 + 6 * LOOK_S)


def test_what_comes_later_is_stopped_too(keeper: Keeper) -> None:
    keeper.stand_still(30.0)
    with running(BURN, **{MARK: "1"}) as late:
        eventually(lambda: states(late) == {"T"})


def test_a_keeper_that_starts_lets_go_on_what_another_left(batch: int) -> None:
    for each in [batch, *(below.pid for below in proc.descendants(batch))]:
        os.kill(each, signal.SIGSTOP)
    eventually(lambda: states(batch) == {"T"}, 1.0)
    Keeper(os.getpid())
    eventually(lambda: "T" not in states(batch), 1.0)
