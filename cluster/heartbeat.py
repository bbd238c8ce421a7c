"""The driver's sign of life: told by its event loop through a pipe, so that it stops when the loop hangs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

BEAT_S = 1.0
SILENT_S = 60.0
"""For how long an event loop may be busy with one thing, on a machine that has too much to do."""
BEGIN_S = 300.0
"""From the start of the process until its event loop runs: imports, and Ray."""
END_S = 900.0
"""Without an event loop that beats: all of a night is read and counted at once, and Ray is shut down."""

_LOOK_S = 1.0
"""What a look counts at most: whoever listens may have stood still, too, in the same suspended terminal or machine."""


class Heartbeat:
    """Of the driver. Each beat says within how many seconds the next one comes."""

    def __init__(self, pipe: int) -> None:
        """`pipe`: the file descriptor to write to."""
        self._pipe = pipe
        os.set_blocking(pipe, False)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Beat while the context is open and the event loop turns."""
        beating = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            beating.cancel()
            self._beat(END_S)

    async def _keep(self) -> None:
        while True:
            self._beat(SILENT_S)
            await asyncio.sleep(BEAT_S)

    def _beat(self, within_s: float) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # nobody listens just now: what is in the pipe is enough
            os.write(self._pipe, f"{within_s:g}\n".encode())


class Pulse:
    """What the supervisor feels of it. `pipe`: the file descriptor that the driver is to be given."""

    def __init__(self, begin_s: float = BEGIN_S) -> None:
        """`begin_s`: wall seconds until the first beat must have come."""
        listening, self.pipe = os.pipe()
        os.set_blocking(listening, False)
        self._listening = os.fdopen(listening, "rb", buffering=0)
        self._within_s, self._silent_s = begin_s, 0.0
        self._looked = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def given(self) -> None:
        """The driver has its end of the pipe: close ours."""
        os.close(self.pipe)

    @property
    def silent_s(self) -> float:
        """Seconds without a beat, as far as somebody looked."""
        return self._silent_s

    def stopped(self) -> bool:
        """Whether the next beat is overdue; to be asked again and again."""
        now = time.monotonic()
        if said := self._listening.read():
            self._within_s, self._silent_s = float(said.split()[-1]), 0.0
        else:
            self._silent_s += min(now - self._looked, _LOOK_S)
        self._looked = now
        return self._silent_s > self._within_s
