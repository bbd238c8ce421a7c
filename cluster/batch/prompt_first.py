"""The night's side of `Lanes`: tells them while prompt work is under way. Batch can do nothing to a night from here."""

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
import structlog

from cluster.batch.lanes import LANES, LEASE_S, RENEW_S
from cluster.bus import Bus
from cluster.topology import POOLS
from schemas.events import Event

OPEN_AFTER_S = 0.2
"""Without prompt work: between two parts of a visit there are moments in which nobody has any."""

PROMPT = tuple(pool.name for pool in POOLS.values() if not pool.nice and not pool.aside)
"""Pools for which batch stands still."""

_ANSWER_S = 2.0


class PromptFirst:
    """Listens to a bus. As long as no batch run has come to this cluster nobody is told anything."""

    def __init__(self, bus: Bus, prompt: Sequence[str] = PROMPT) -> None:
        self._bus, self._prompt = bus, prompt
        self._heard = asyncio.Event()
        self._heard.set()  # the journal may owe something from before
        self._lanes: Any = None
        self._over = threading.Event()
        self._warned = self._said = False
        self._telling: set[asyncio.Task[None]] = set()

    def hear(self, _event: Event, _at: float) -> None:
        """A new fact: somebody may have work now."""
        self._heard.set()

    async def keep(self) -> None:
        """Tell for ever."""
        threading.Thread(target=self._find, name="lanes", daemon=True).start()
        try:
            while True:
                await self._heard.wait()
                self._heard.clear()
                await self._while_busy()
        finally:
            self._over.set()

    async def _while_busy(self) -> None:
        if not self._busy():
            return
        while self._busy():
            self._tell(busy=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_S):
                    await self._open()
        self._tell(busy=False)

    async def _open(self) -> None:
        """Return when there has been no prompt work for a while."""
        while True:
            await self._bus.none_of(self._prompt)
            await asyncio.sleep(OPEN_AFTER_S)
            if not self._busy():
                return

    def _busy(self) -> bool:
        owed = self._bus.owed()
        return any(owed[pool] for pool in self._prompt)

    def _tell(self, *, busy: bool) -> None:
        if self._lanes is not None:
            telling = asyncio.create_task(self._told(self._lanes, busy=busy))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _told(self, lanes: Any, *, busy: bool) -> None:  # noqa: ANN401 - Ray's handles are untyped
        """Tell, and let be whoever does not answer: the next time is soon."""
        began = time.perf_counter()
        try:
            still = await asyncio.wait_for(lanes.prompt.remote(busy, LEASE_S), _ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if not self._warned:
                structlog.get_logger().warning("batch does not answer", error=str(error))
            self._warned = True
            return
        if busy != self._said:
            structlog.get_logger().info("batch yields" if busy else "batch goes on", still=still, took_s=_since(began))
        self._said = busy

    def _find(self) -> None:
        """Look for Lanes until there are some, in a thread: Ray may keep who asks waiting."""
        while not self._over.wait(RENEW_S):
            with suppress(ValueError, ray.exceptions.RayError):  # there are none yet
                self._lanes = ray.get_actor(LANES)
                return


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 4)
