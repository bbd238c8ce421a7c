"""When what the archive missed is fetched: one raw at a time, and never while a visit's pixels are being pulled."""

import asyncio
import math

import structlog

from schemas.clock import Clock
from schemas.events import (
    CatchUpDue,
    CaughtUp,
    DetectorReadOut,
    Event,
    NextVisit,
    RawNotArchived,
    RawReady,
    VisitDone,
    VisitRefused,
)

GRACE_S = 60.0
"""TAI seconds after its readout in which a raw is the prompt's, whose events may still be on their way."""
RETRY_S = 10.0
"""Wall seconds until a DAQ that did not answer is asked again."""
SILENT_S = 60.0
"""Wall seconds for which the DAQ may be silent at the end of a night."""


class CatchUpTimes:
    """Listens to the night's facts, and says what is due when.

    A round fetches all that lacks, each raw by a `CatchUpDue` of its own: the next one when the last was answered and
    no live detector's pixels are being pulled. There is a round when the first visit is announced, for what the camera
    took while this system was down; `GRACE_S` after a visit ended of which raws are missing; `RETRY_S` after the DAQ
    did not answer; and when the night ends.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._coming: set[tuple[int | None, int | None]] = set()
        self._misses = False
        self._wanted: list[tuple[float, str]] = []
        self._asked: CatchUpDue | None = None
        self._goes_on: CatchUpDue | None = None
        self._number = 0
        self._not_before = -math.inf
        self._silent_since = math.inf
        self._begun, self._ends = False, False
        self._idle = asyncio.Event()
        self._idle.set()

    def end(self) -> None:
        """Nothing is left to the prompt any more."""
        self._ends = True
        self._coming.clear()
        self._want("the night ends")

    async def over(self) -> None:
        """Return when nothing is wanted nor under way."""
        await self._idle.wait()

    def hear(self, event: Event, _at: float) -> None:
        """Note a fact."""
        match event:
            case NextVisit() if not self._begun:  # there is time before its pixels, and the observatory is awake
                self._begun = True
                self._want("the night begins")
            case DetectorReadOut():
                self._coming.add((event.observation.exposure, event.detector))
            case RawReady() | RawNotArchived():
                self._coming.discard((event.raw.exposure, event.raw.detector))
                self._misses |= isinstance(event, RawNotArchived)
            case VisitDone() | VisitRefused() if self._misses:
                self._misses = False
                self._want("raws of a visit are missing", self._clock.now())
            case CaughtUp() if self._asked and (event.at, event.number) == (self._asked.at, self._asked.number):
                asked, self._asked = self._asked, None
                self._note(event, asked)
                if not (self._goes_on or self._wanted):
                    self._idle.set()

    def due(self) -> list[CatchUpDue]:
        """What is to be published now."""
        if self._asked or self._coming or asyncio.get_running_loop().time() < self._not_before:
            return []
        if self._goes_on:
            return [self._ask(self._goes_on.at, self._goes_on.occasion, begins=False)]
        before = self._clock.now() - (0.0 if self._ends else GRACE_S)
        ripe = [wanted for wanted in self._wanted if wanted[0] <= before]
        self._wanted = [wanted for wanted in self._wanted if wanted[0] > before]
        return [self._ask(before, ripe[-1][1], begins=True)] if ripe else []

    def _want(self, occasion: str, since: float = -math.inf) -> None:
        """A round that looks at least at what was read out before `since` (TAI s)."""
        self._wanted.append((since, occasion))
        self._idle.clear()

    def _ask(self, before: float, occasion: str, *, begins: bool) -> CatchUpDue:
        self._asked = CatchUpDue(at=before, number=self._number, occasion=occasion, begins=begins)
        self._goes_on = None
        self._number += 1
        return self._asked

    def _note(self, answer: CaughtUp, asked: CatchUpDue) -> None:
        if answer.reason:
            self._failed(answer.reason)
            return
        self._silent_since = math.inf
        self._goes_on = asked if answer.left else None
        self._misses |= answer.failed > 0 and not answer.left

    def _failed(self, reason: str) -> None:
        """Again later; at the end of a night not for ever."""
        now = asyncio.get_running_loop().time()
        self._silent_since = min(self._silent_since, now)
        self._not_before = now + RETRY_S
        log = structlog.get_logger().bind(part="catch_up", reason=reason)
        if self._ends and now - self._silent_since >= SILENT_S:
            log.error("catch-up given up", silent_s=SILENT_S)
        else:
            log.warning("catch-up must wait", retry_s=RETRY_S)
            self._want("what failed is tried again")
