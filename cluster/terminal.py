"""A terminal that takes nothing for a while (Ctrl-S), or a pipe that nobody reads, holds up nobody who writes to it."""

import io
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import structlog
from rich.console import Console

LEAVE_S = 60.0
"""How long the end waits until what was written is taken."""


class Terminal(io.TextIOBase):
    """Takes at once whatever is written, and hands it on in a thread of its own."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor, self._encoding = descriptor, encoding
        self._waiting: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._hand_on, name="terminal", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has it as an attribute
        """As of what stands behind it."""
        return self._encoding

    def fileno(self) -> int:
        """As of what stands behind it."""
        return self._descriptor

    def isatty(self) -> bool:
        """As of what stands behind it."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Take it."""
        self._waiting.put(text.encode(self._encoding, "replace"))
        return len(text)

    @property
    def behind(self) -> bool:
        """Whether something that was written is not yet taken."""
        return self._waiting.unfinished_tasks > 0

    def settle(self, deadline_s: float) -> bool:
        """Wait until all is taken; whether it is."""
        with self._waiting.all_tasks_done:
            return self._waiting.all_tasks_done.wait_for(lambda: not self.behind, deadline_s)

    def _hand_on(self) -> None:
        while True:
            text = self._waiting.get()
            try:
                while text:  # not by `sys.stdout`: at the exit of the interpreter its lock would be waited for
                    text = text[os.write(self._descriptor, text) :]
            except OSError as error:  # whoever read it has gone
                structlog.get_logger().warning("cannot be told", error=str(error))
            self._waiting.task_done()


@contextmanager
def unhurried(console: Console) -> Iterator[None]:
    """Let a console write without waiting, and in the end give what it wrote `LEAVE_S` to be taken."""
    before = console.file
    before.flush()
    terminal = Terminal(before.fileno(), console.encoding)
    console.file = cast("IO[str]", terminal)
    try:
        yield
    finally:
        terminal.settle(LEAVE_S)
        console.file = before
