"""The driver's sign of life: as long as its event loop turns, and told apart from a listener that stood still."""

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from cluster import heartbeat
from cluster.heartbeat import END_S, SILENT_S, Heartbeat, Pulse


class Time:
    """A monotonic clock that is moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    moved = Time()
    monkeypatch.setattr(heartbeat, "time", moved)
    return moved


@pytest.fixture
def pulse(clock: Time) -> Iterator[Pulse]:
    assert heartbeat.time is clock
    with Pulse(begin_s=10.0) as felt:
        yield felt


def overdue_after(pulse: Pulse, clock: Time, seconds: int) -> bool:
    """As somebody says who looks five times a second."""
    for _ in range(5 * seconds):
        clock.now += 0.2
        found = pulse.stopped()
    return found


def test_a_driver_that_never_beats_is_overdue_after_its_start_has_had_its_time(pulse: Pulse, clock: Time) -> None:
    assert not overdue_after(pulse, clock, 9)
    assert overdue_after(pulse, clock, 2)


def test_a_beat_says_within_how_long_the_next_one_comes(pulse: Pulse, clock: Time) -> None:
    os.write(pulse.pipe, b"60\n900\n3\n")
    assert not overdue_after(pulse, clock, 2)
    assert overdue_after(pulse, clock, 2)
    os.write(pulse.pipe, b"60\n")
    assert not overdue_after(pulse, clock, 58)


def test_what_a_listener_slept_through_does_not_count(pulse: Pulse, clock: Time) -> None:
    """A terminal's job stopped, a machine suspended: the driver slept too."""
    os.write(pulse.pipe, b"3\n")
    assert not pulse.stopped()
    clock.now += 3600.0
    assert not pulse.stopped()
    assert overdue_after(pulse, clock, 3)


def test_an_end_of_file_is_no_beat(pulse: Pulse, clock: Time) -> None:
    pulse.given()
    assert overdue_after(pulse, clock, 11)


async def test_an_event_loop_beats_while_it_turns_and_promises_more_when_it_ends() -> None:
    with Pulse() as felt:
        async with Heartbeat(felt.pipe).kept():
            await asyncio.sleep(0)
            assert os.read(felt._listening.fileno(), 100) == b"%d\n" % SILENT_S
            time.sleep(0.01)  # noqa: ASYNC251 - a loop that hangs says nothing
            assert felt._listening.read() is None
        assert felt._listening.read() == b"%d\n" % END_S
        felt.given()


async def test_a_driver_whose_supervisor_stands_still_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.0)
    with Pulse() as felt:
        beats = Heartbeat(felt.pipe)
        for _ in range(40_000):  # more than the pipe holds
            beats._beat(SILENT_S)
        async with beats.kept():
            await asyncio.sleep(0.01)
        assert not felt.stopped()
        felt.given()
