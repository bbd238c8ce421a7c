"""Puts back what a broker that keeps all in memory lost when it died: its topics, and the night's alerts."""

import asyncio
import sys
import time
from contextlib import ExitStack

import structlog

from backbone.alert_archive import AlertArchive
from backbone.alert_stream import create_topic, topics_of
from cluster.child_process import ChildProcess
from cluster.settings import Settings
from payloads.alert_production.alert_schema import alert_schema
from schemas.errors import PachonError

RETRY_S = 5.0


class Topics:
    """The topics of a broker that forgets them when it dies."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._known: dict[str, int] = {}

    def note(self) -> None:
        """Remember those that are there. Raises Transient if the broker does not answer."""
        self._known |= topics_of(self._bootstrap)

    def restore(self) -> None:
        """Make those that were. Raises Transient if the broker does not answer."""
        for topic, partitions in self._known.items():
            create_topic(self._bootstrap, topic, partitions=partitions)
        structlog.get_logger().info("topics made again", topics=len(self._known))


class Refill:
    """Of a night's own broker. `due`: something is still to be put back."""

    def __init__(self, settings: Settings, day_obs: int, stack: ExitStack) -> None:
        self.topics = Topics(settings.kafka)
        self.due = False
        self._settings, self._day_obs, self._stack = settings, day_obs, stack
        self._replay: ChildProcess | None = None
        self._not_before = 0.0

    def begin(self) -> None:
        """The broker has died: whatever is put back already is gone, too."""
        self.due, self._replay = True, None

    async def step(self) -> None:
        """Do what can be done now; what fails is tried again, after a while."""
        if not self.due or time.monotonic() < self._not_before:
            return
        if self._replay is None:
            await self._start()
        elif (code := self._replay.returncode) is not None:
            self.due, self._replay = code != 0, None
            structlog.get_logger().info("alerts sent again", exit_code=code)
            self._not_before = time.monotonic() + RETRY_S

    async def _start(self) -> None:
        """The topics, and then, in a process of its own, the alerts, which were acknowledged before."""
        try:
            await asyncio.to_thread(self.topics.restore)
            archive = AlertArchive(self._settings.alerts, alert_schema())
            self.due = bool(await asyncio.to_thread(archive.files_of_night, self._day_obs))
        except PachonError as error:
            structlog.get_logger().warning("the broker cannot yet be filled again", error=str(error))
            self._not_before = time.monotonic() + RETRY_S
            return
        if self.due:
            self._replay = ChildProcess("replay of alerts", self._command(), self._settings.output / "replay.log")
            self._stack.enter_context(self._replay)

    def _command(self) -> list[str]:
        settings = self._settings
        given = ("--output", str(settings.output), "--night", str(self._day_obs), "--kafka", settings.kafka)
        where = ("--topic", settings.alert_topic, "--postgres", settings.postgres)
        return [sys.executable, "-m", "cluster.cli", "replay-alerts", *given, *where]
