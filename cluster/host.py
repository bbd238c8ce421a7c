"""Runs one actor: reacts to events one after another, and turns what went wrong into an answer, not an exception."""

import os
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from structlog.contextvars import bound_contextvars

from actors.base import Actor
from cluster.logs import subject
from schemas.errors import BadData, Broken, PachonError, Transient
from schemas.events import Event

Verdict = Literal["done", "transient", "bad data", "broken", "bug"]


@dataclass(frozen=True)
class Outcome:
    """A host's answer: what followed, or what went wrong; and what it cost its process."""

    verdict: Verdict
    events: tuple[Event, ...]
    error: str
    wall_s: float
    cpu_s: float
    pid: int
    max_rss_bytes: int


class Host:
    """Holds one actor. The same class serves inline and inside a Ray actor."""

    def __init__(self, actor: Actor, pool: str) -> None:
        self.actor = actor
        self._pool = pool

    async def handle(self, event: Event) -> Outcome:
        """React to an event. Whatever is logged meanwhile, wherever, says in which pool and about what.

        Errors are told to the bus, which decides what becomes of them and logs that. Only a bug's trace is logged here.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        with bound_contextvars(pool=self._pool, event_kind=event.kind, **subject(event)):
            verdict, events, error = await self._react(event)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Outcome(
            verdict, tuple(events), error, time.perf_counter() - wall, time.process_time() - cpu, os.getpid(),
            usage.ru_maxrss * 1024,
        )  # fmt: skip

    async def _react(self, event: Event) -> tuple[Verdict, Sequence[Event], str]:
        log = structlog.get_logger()
        try:
            return "done", await self.actor.react(event), ""
        except PachonError as error:
            return verdict_on(error), (), str(error)
        except Exception as error:  # the boundary: a bug in one detector's way must not take the host down
            log.exception("bug")
            last = traceback.extract_tb(error.__traceback__)[-1]
            return "bug", (), f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"


def unbuilt(error: PachonError) -> Outcome:
    """The answer of a host whose actor cannot be built, as while a server that it needs is away."""
    return Outcome(verdict_on(error), (), str(error), 0.0, 0.0, os.getpid(), 0)


def verdict_on(error: PachonError) -> Verdict:
    """What an error says to whoever asked."""
    match error:
        case Transient():
            return "transient"
        case BadData():
            return "bad data"
        case Broken():
            return "broken"
        case _:
            return "bug"
