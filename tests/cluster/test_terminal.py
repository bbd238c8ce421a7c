"""A console whose reader takes nothing: a pipe that is full."""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from rich.console import Console

from cluster.display import Board, Display
from cluster.terminal import Terminal, unhurried
from schemas.clock import ManualClock
from schemas.events import VisitRefused

PIPE_BYTES, AT_ONCE_S, DEADLINE_S = 4096, 5.0, 20.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    os.close(reading)


def read(descriptor: int, count: int) -> bytes:
    said, over = b"", time.monotonic() + DEADLINE_S
    while len(said) < count and time.monotonic() < over:
        said += os.read(descriptor, count - len(said))
    return said


def test_what_nobody_takes_holds_up_nobody_and_comes_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = [f"line {number}" for number in range(2000)]
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        console = Console(file=file, soft_wrap=True)
        began = time.monotonic()
        with unhurried(console):
            for line in lines:
                console.print(line, highlight=False)
            assert time.monotonic() - began < AT_ONCE_S
            terminal = console.file
            assert isinstance(terminal, Terminal)
            assert (terminal.behind, terminal.settle(0.01)) == (True, False)
            told = "".join(f"{line}\n" for line in lines).encode()
            assert read(reading, len(told)) == told
            assert terminal.settle(DEADLINE_S)
            assert not terminal.behind
        assert console.file is file


def test_a_reader_that_has_gone_ends_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    terminal = Terminal(writing, "utf-8")
    terminal.write("a")
    assert terminal.settle(DEADLINE_S)
    os.close(writing)


def test_a_picture_is_not_drawn_while_the_last_one_is_not_taken() -> None:
    master, slave = os.openpty()
    written: list[str] = []

    class Stopped(Terminal):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

        behind = False

    terminal = Stopped(slave, "utf-8")
    display = Display(Board(ManualClock(0.0)), Counter, Console(file=terminal, force_terminal=True))  # type: ignore[arg-type]
    with display:
        display.refresh()
        drawn = len(written)
        terminal.behind = True
        display.hear(VisitRefused(group="g", reason="for a test"), 0.0)
        display.refresh()
        assert len(written) == drawn
        terminal.behind = False
        display.refresh()
        assert len(written) > drawn
    os.close(master)
    os.close(slave)
