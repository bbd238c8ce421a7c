"""Puts back what a broker that keeps all in memory lost when it died: its topics, and what they held of the night."""

import asyncio
import time
from contextlib import ExitStack

import structlog
from rich.console import Console

from backbone.alert_stream import create_topic, topics_of
from cluster.child_process import ChildProcess
from cluster.put_back import FAILED, Lost, command, noted
from cluster.settings import Settings
from schemas.errors import PachonError

RETRY_S = 5.0
"""Until the next try; after each that failed twice as long."""
MAX_TRIES = 5
"""For a broker, from one death of it to the next."""


class Topics:
    """The topics of a broker that forgets them when it dies."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._known: dict[str, int] = {}

    def note(self) -> None:
        """Remember those that are there. Raises Transient if the broker does not answer."""
        self._known = self._known | topics_of(self._bootstrap)  # anew: this thread is not the one that restores

    def restore(self) -> None:
        """Make those that were. Raises Transient if the broker does not answer."""
        for topic, partitions in self._known.items():
            create_topic(self._bootstrap, topic, partitions=partitions)
        structlog.get_logger().info("topics made again", topics=len(self._known))


class Refill:
    """Of a night's own broker. `due`: something is still to be put back."""

    def __init__(self, settings: Settings, day_obs: int, stack: ExitStack, console: Console) -> None:
        self.topics = Topics(settings.kafka)
        self.due = False
        self._settings, self._day_obs, self._stack, self._console = settings, day_obs, stack, console
        self._lost = settings.output / "refill.json"
        self._telling: ChildProcess | None = None
        self._tries = 0
        self._not_before = 0.0

    def begin(self) -> None:
        """The broker has died: whatever is put back already is gone, too."""
        if self._telling is not None:
            self._telling.kill()
        noted(self._lost).unlink(missing_ok=True)
        self.due, self._telling, self._tries = True, None, 0

    async def step(self) -> None:
        """Do what can be done now; what fails is tried again, after a while, unless it would for ever."""
        if not self.due or time.monotonic() < self._not_before:
            return
        if self._telling is None:
            await self._start()
        elif (code := self._telling.returncode) is not None:
            self._ended(self._telling, code)

    async def _start(self) -> None:
        """The topics, and then, in a process of its own, what they held."""
        self._pause()
        try:
            await asyncio.to_thread(self.topics.restore)
        except PachonError as error:
            structlog.get_logger().warning("the broker cannot yet be filled again", error=str(error))
            return
        self._not_before = 0.0
        self.due = self._settings.clock_file.exists()  # else the night has not begun
        if self.due:
            self._lost.write_text(Lost(settings=self._settings, day_obs=self._day_obs).model_dump_json(), "utf-8")
            telling = ChildProcess("refill of the broker", command(self._lost), self._settings.output / "refill.log")
            self._telling = self._stack.enter_context(telling)

    def _ended(self, telling: ChildProcess, code: int) -> None:
        self._pause()
        self._tries += 1
        self.due, self._telling = code not in {0, FAILED} and self._tries < MAX_TRIES, None
        log = structlog.get_logger().bind(exit_code=code, tries=self._tries)
        if code == 0:
            log.info("notices and alerts sent again")
            return
        log.error("the broker is not as it was", again=self.due, error=telling.log_tail(1))
        if not self.due:
            self._console.print(f"the broker has not all that it lost when it died: {telling.log}", markup=False)

    def _pause(self) -> None:
        self._not_before = time.monotonic() + RETRY_S * 2**self._tries
