"""The two-day buffer: what the DAQ holds, as recipes on disk and the newest pixels in memory.

Pixels are a pure function of seed, recipe and detector. So the buffer keeps each exposure's recipe for two
days of the night's clock, one line of JSON, flushed to disk before the exposure is accepted; a server that is
started again holds what the last one held. Of the pixels only the newest are in memory; what was dropped is
rendered again when it is asked for, to the same bits.
"""

import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from pydantic import TypeAdapter, ValidationError

from schemas.errors import BadData
from schemas.image import Observation
from simulators.camera.exposure import Recipe
from simulators.camera.sensor import Segments

KEPT_SECONDS = 2 * 86400.0
_NICENESS = 5

Key = tuple[int, int]
"""(exposure, detector)."""


@dataclass(frozen=True)
class Entry:
    """An exposure that the buffer holds, and of which detectors."""

    recipe: Recipe
    detectors: tuple[int, ...]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Entry":
        """Of one line. Raises BadData if it is none."""
        try:
            return TypeAdapter(cls).validate_json(line)
        except ValidationError as error:
            raise BadData(f"not an entry of the buffer: {line[:100]!r}") from error


class Catalogue:
    """The exposures of the last two days, in a file of a folder."""

    def __init__(self, folder: Path, now: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "exposures.jsonl"
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        if self._path.exists():
            self._recover(now)

    def _recover(self, now: float) -> None:
        """Read what is there; a last line cut short by a crash was never accepted, and goes."""
        lines = self._path.read_text(encoding="utf-8").split("\n")
        entries = [Entry.from_json(line) for line in lines[:-1]]
        self._entries = {e.recipe.observation.exposure: e for e in entries if _is_kept(e, now)}
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(e.to_json() + "\n" for e in self._entries.values()), encoding="utf-8")
        partial.replace(self._path)

    def add(self, observation: Observation, detectors: tuple[int, ...], now: float) -> Entry:
        """Hold an exposure; one that is held already stays as it was."""
        with self._lock:
            self._entries = {k: e for k, e in self._entries.items() if _is_kept(e, now)}
            if observation.exposure in self._entries:
                return self._entries[observation.exposure]
            same_visit = [e for e in self._entries.values() if e.recipe.observation.visit == observation.visit]
            epoch = same_visit[0].recipe.epoch if same_visit else observation.midpoint
            entry = Entry(Recipe(observation, epoch), detectors)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(entry.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._entries[observation.exposure] = entry
            return entry

    def __contains__(self, exposure: int) -> bool:
        """Whether an exposure is held."""
        with self._lock:
            return exposure in self._entries

    def find(self, exposure: int, detector: int) -> Entry:
        """The exposure, if that detector of it is held. Raises KeyError naming what is not."""
        with self._lock:
            entry = self._entries.get(exposure)
        if entry is None or detector not in entry.detectors:
            raise KeyError(f"the buffer does not hold exposure {exposure} detector {detector}")
        return entry

    def entries(self, now: float) -> Iterator[Entry]:
        """Those of the last two days, oldest first."""
        with self._lock:
            held = list(self._entries.values())
        return (e for e in held if _is_kept(e, now))


def _is_kept(entry: Entry, now: float) -> bool:
    return entry.recipe.observation.readout_ended > now - KEPT_SECONDS


@dataclass(frozen=True, eq=False)
class Raster:
    """A detector's pixels as they are sent: int32 (16, rows, columns), and the SHA-256 of them in C order."""

    segments: Segments
    sha256: str


class Rasters:
    """The newest rasters in memory, made by threads in the background.

    `size`: how many are held. Exposures are made ahead of being asked for as long as there is room: what is
    read makes room, and so does what belongs to an older exposure. What is asked for is made first, always,
    and by a thread more that does nothing else and gives way to none: somebody's deadline is running.
    """

    def __init__(self, make: Callable[[int, int], Raster], *, size: int, threads: int) -> None:
        self._make, self._size = make, size
        self._changed = threading.Condition()
        self._held: OrderedDict[Key, Raster] = OrderedDict()
        self._read: set[Key] = set()
        self._asked: deque[Key] = deque()
        self._ahead: deque[Key] = deque()
        self._making: set[Key] = set()
        self._failed: dict[Key, Exception] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, kwargs={"ahead": number < threads}, daemon=True)
            for number in range(threads + 1)
        ]
        for thread in self._threads:
            thread.start()

    def prepare(self, exposure: int, detectors: tuple[int, ...]) -> None:
        """Make these ahead; older exposures no longer take room from them."""
        with self._changed:
            self._read.update(key for key in self._held if key[0] != exposure)
            self._ahead.extend((exposure, detector) for detector in detectors)
            self._changed.notify_all()

    def get(self, key: Key, deadline: float) -> Raster:
        """A raster, by `deadline` (monotonic s).

        Raises TimeoutError, ConnectionError when closed, or what making it did.
        """
        with self._changed:
            if key not in self._held and key not in self._making and key not in self._asked:
                self._failed.pop(key, None)
                self._asked.append(key)
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: key in self._held or key in self._failed or self._closed, deadline - monotonic()
            )
            if key in self._held:
                self._read.add(key)
                self._changed.notify_all()
                return self._held[key]
            if key in self._failed:
                raise self._failed[key]
            if self._closed:
                raise ConnectionError("the camera is shutting down")
            raise TimeoutError(f"exposure {key[0]} detector {key[1]} was not rendered in time")

    def counts(self) -> dict[str, int]:
        """How many are held, being made, and waiting to be made."""
        with self._changed:
            waiting = len(self._asked) + len(self._ahead)
            return {"held": len(self._held), "making": len(self._making), "waiting": waiting}

    def close(self) -> None:
        """Stop: whoever waits is told, what is being made is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, *, ahead: bool) -> None:
        if ahead:  # it gives way to serving and to all else; Linux keeps a niceness for each thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (key := self._next(ahead=ahead)) is not None:
            try:
                raster = self._make(*key)
            except Exception as error:  # noqa: BLE001 - whoever asks for it is told
                self._done(key, None, error)
            else:
                self._done(key, raster, None)

    def _next(self, *, ahead: bool) -> Key | None:
        """What to make now; waits for it. None when closed."""
        with self._changed:
            while not self._closed:
                queue = self._asked or (self._ahead if ahead and self._has_room() else None)
                if not queue:
                    self._changed.wait()
                    continue
                key = queue.popleft()
                if queue is self._asked and key in self._ahead:
                    self._ahead.remove(key)
                if key not in self._held and key not in self._making:
                    self._making.add(key)
                    return key
            return None

    def _has_room(self) -> bool:
        unread = sum(key not in self._read for key in self._held)
        return unread + len(self._making) < self._size

    def _done(self, key: Key, raster: Raster | None, error: Exception | None) -> None:
        with self._changed:
            self._making.discard(key)
            if raster is not None:
                self._held[key] = raster
            if error is not None:
                self._failed[key] = error
            while len(self._held) > self._size:
                oldest = next((k for k in self._held if k in self._read and k != key), next(iter(self._held)))
                del self._held[oldest]
                self._read.discard(oldest)
            self._changed.notify_all()
