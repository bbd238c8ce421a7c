"""Carries out what is wrong with processes in a night: kills them, stops them, takes the disk away from them.

It lives in the process that holds the bus, whose facts say when. What it is about to do it writes down first, in
`faults.jsonl`, so that whoever comes after a killed driver neither does it again nor leaves a process standing still.
"""

import asyncio
import os
import resource
import signal
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict

from cluster.proc import descendants
from cluster.witness import TopicReader, dia_source_of
from schemas.clock import Clock
from schemas.errors import PachonError, Transient
from schemas.events import Event, NightBegan
from schemas.identity import day_obs_of_visit, visit_detector_of
from simulators.faults import ALERT_FILE, ALERT_SEEN, DiskFull, Freeze, Kill, Planned, ProcessFault, When
from simulators.ocs.schedule import PlannedVisit

_POLL_S = 0.002
"""Between two looks for a file: what follows it takes some hundredths of a second."""

_LAST_BEFORE = {ALERT_FILE: "AssociationDue", ALERT_SEEN: "RawReady"}
"""What no fact tells -> a fact after which to look for it."""

Pid = Callable[[str, int | None], Awaitable[int]]
"""The process id of a process (`simulators.faults.Process`), of those of a detector if there are several.

Raises PachonError if it cannot be found.
"""


class Injected(BaseModel):
    """What was done about the `number`-th fault of the night, at a time (TAI s), to which processes.

    `limit`: the soft limit of file size that they had. `until`: TAI s at which it is to end, if it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    name: str
    state: Literal["begun", "ended", "missed"]
    what: str
    at: float
    pids: tuple[int, ...] = ()
    limit: int = resource.RLIM_INFINITY
    until: float | None = None
    reason: str = ""


class Notes:
    """What was injected, a line each, on the disk before it happens."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.injected = read(file)

    def add(self, injected: Injected) -> None:
        """Write it down, now."""
        self.injected.append(injected)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(injected.model_dump_json() + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def begun(self, number: int) -> Injected | None:
        """How a fault began, if it did."""
        return next((i for i in self.injected if i.number == number and i.state != "ended"), None)

    def ended(self, number: int) -> bool:
        """Whether nothing is left to be done about a fault."""
        return any(i.number == number and i.state != "begun" for i in self.injected)


def read(file: Path) -> list[Injected]:
    """What was injected so far; a last line cut short by a crash is none."""
    if not file.exists():
        return []
    return [Injected.model_validate_json(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


class Places:
    """Where to look for what no fact tells: the folder of the alert archive, and the topic of alerts."""

    def __init__(self, archive: Path, kafka: str, topic: str) -> None:
        self._archive, self._kafka, self._topic = archive, kafka, topic

    def await_file(self, visit: int, detector: int | None, stop: threading.Event) -> bool:
        """Wait until a visit-detector's alerts lie in the archive; false if told to stop before."""
        folder = self._archive / str(day_obs_of_visit(visit)) / str(visit)
        begin = f"{visit}_" if detector is None else f"{visit}_{detector:03d}_"
        while not stop.wait(_POLL_S):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                if any(entry.name.startswith(begin) and entry.name.endswith(".avro") for entry in entries):
                    return True
        return False

    def await_alert(self, visit: int, detector: int | None, stop: threading.Event) -> bool:
        """Wait until the first alert of a visit-detector is in the topic; false if told to stop before."""
        reader = TopicReader(self._kafka, self._topic)
        try:
            while not stop.is_set():
                for message in reader.poll():
                    alert = dia_source_of(message.value() or b"")
                    own = None if alert is None else visit_detector_of(alert)
                    if own is not None and own[0] == visit and detector in {None, own[1]}:
                        return True
        finally:
            reader.close()
        return False


class Injector:
    """The faults of processes in a night of a plan."""

    def __init__(
        self,
        faults: Sequence[Planned],
        plan: Sequence[PlannedVisit],
        pid: Pid,
        places: Places,
        notes: Notes,
        clock: Clock,
    ) -> None:
        self._faults = [(number, each) for number, each in enumerate(faults) if isinstance(each.fault, ProcessFault)]
        self._plan, self._pid, self._places, self._notes, self._clock = plan, pid, places, notes, clock
        self._numbers = {visit.group: number for number, visit in enumerate(plan, start=1)}
        self._heard: defaultdict[tuple[int | None, str, int | None], asyncio.Event] = defaultdict(asyncio.Event)
        self._detectors: dict[tuple[int | None, str], int | None] = {}
        self._stop = threading.Event()
        self._looking = ThreadPoolExecutor(max(1, len(self._faults)), "fault")

    @property
    def awaits(self) -> set[str]:
        """Kinds of the facts that say when."""
        kinds = {_process_fault(each).at.fact for _, each in self._faults}
        return {"NightBegan", *_LAST_BEFORE.values(), *kinds} - _LAST_BEFORE.keys()

    def hear(self, event: Event, _at: float) -> None:
        """A fact was told."""
        visit = None if isinstance(event, NightBegan) else self._numbers.get(event.group, 0)
        detector = getattr(event, "detector", None)
        self._detectors.setdefault((visit, event.kind), detector)
        for key in {(visit, event.kind, None), (visit, event.kind, detector)}:
            self._heard[key].set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inject while the context is open; at its end everything runs again, and what never came is said.

        After an error nothing is said: another driver will go on.
        """
        jobs = [asyncio.create_task(self._carry_out(number, each)) for number, each in self._faults]
        try:
            yield
        finally:
            self._stop.set()
            self._looking.shutdown(wait=False)
            for job in jobs:
                job.cancel()
            for result in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(result, Exception):
                    structlog.get_logger().error("fault not injected", error=repr(result))
        for number, each in self._faults:
            if self._notes.begun(number) is None:
                self._miss(number, each, f"{_when(_process_fault(each).at)} never came")

    async def _carry_out(self, number: int, each: Planned) -> None:
        """One fault, from waiting for its moment to its end."""
        fault = _process_fault(each)
        begun = self._notes.begun(number)
        if self._notes.ended(number) or (begun is not None and isinstance(fault, Kill)):
            return None
        if begun is None:
            try:
                pid = await self._at_its_moment(fault)
            except PachonError as error:
                return None if self._stop.is_set() else self._miss(number, each, str(error))
            begun = self._begin(number, each, pid)
        try:
            await asyncio.sleep(self._clock.wall_seconds((begun.until or begun.at) - self._clock.now()))
        finally:
            self._end(begun)

    async def _at_its_moment(self, fault: ProcessFault) -> int:
        """Wait for it; the id of the process that is hit."""
        at = fault.at
        if at.fact in _LAST_BEFORE:
            return await self._looked_for(fault)
        key = (None, "NightBegan") if at.visit is None else (at.visit, at.fact)
        await self._heard[*key, at.detector].wait()
        await asyncio.sleep(at.after_s)
        detector = self._detectors.get(key) if at.detector is None else at.detector
        return await self._pid(fault.process, detector)

    async def _looked_for(self, fault: ProcessFault) -> int:
        at = fault.at
        assert at.visit is not None
        await self._heard[at.visit, _LAST_BEFORE[at.fact], at.detector].wait()
        visit = self._plan[at.visit - 1].observation(0).visit
        pid = await self._pid(fault.process, at.detector)  # there is no time for it afterwards
        look = self._places.await_file if at.fact == ALERT_FILE else self._places.await_alert
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._looking, look, visit, at.detector, self._stop):
            raise Transient(f"{_when(at)} did not come before the end")
        await asyncio.sleep(at.after_s)
        return pid

    def _begin(self, number: int, each: Planned, pid: int) -> Injected:
        fault, now = _process_fault(each), self._clock.now()
        seconds = 0.0 if isinstance(fault, Kill) else fault.seconds
        pids = (pid, *(each.pid for each in descendants(pid))) if isinstance(fault, Freeze) else (pid,)
        limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] if isinstance(fault, DiskFull) else -1
        begun = Injected(
            number=number, name=each.name, state="begun", what=_what(each), at=now, pids=pids,
            limit=limit, until=now + seconds / self._clock.wall_seconds(1.0) if seconds else None,
        )  # fmt: skip
        self._notes.add(begun)
        structlog.get_logger().warning("fault", fault=each.name, what=begun.what, pids=pids)
        _act(fault, pids)
        return begun

    def _end(self, begun: Injected) -> None:
        fault = dict(self._faults)[begun.number].fault
        if isinstance(fault, Kill):
            return
        for pid in begun.pids:
            with suppress(ProcessLookupError):
                if isinstance(fault, Freeze):
                    os.kill(pid, signal.SIGCONT)
                elif isinstance(fault, DiskFull):
                    _limit_files(pid, begun.limit)
        self._notes.add(begun.model_copy(update={"state": "ended", "at": self._clock.now()}))

    def _miss(self, number: int, each: Planned, reason: str) -> None:
        """Say that a fault did not come to pass."""
        missed = Injected(number=number, name=each.name, state="missed", what=_what(each), at=self._clock.now(),
                          reason=reason)  # fmt: skip
        self._notes.add(missed)


def _process_fault(each: Planned) -> ProcessFault:
    assert isinstance(each.fault, ProcessFault)
    return each.fault


def _what(each: Planned) -> str:
    return f"{each.fault.do} {_process_fault(each).process}"


def _when(at: When) -> str:
    where = "" if at.detector is None else f" of detector {at.detector}"
    return f"{at.fact}{where} of visit {at.visit}" if at.visit else f"{at.after_s:g} s of the night"


def _act(fault: ProcessFault, pids: Sequence[int]) -> None:
    """Do it. A process that is gone already cannot be hit."""
    for pid in pids:
        with suppress(ProcessLookupError):
            match fault:
                case Kill():
                    os.kill(pid, signal.SIGKILL)
                case Freeze():
                    os.kill(pid, signal.SIGSTOP)
                case DiskFull():
                    _limit_files(pid, 0)


def _limit_files(pid: int, most: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
