"""A batch run on disk: what was asked, its graph, how far it is. `pachon batch` and its coordinator meet here."""

import fcntl
import json
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from cluster.batch.job_states import JobStates
from cluster.batch.request import BatchRequest, OnCluster
from cluster.batch.workflow import Workflow
from schemas.clock import REAL_TIME
from schemas.errors import BadData

RUNNING, DONE, FAILED, CANCELED, CUT_OFF = "running", "done", "failed", "canceled", "cut off"

HUNG_S = 600.0
"""A coordinator that tells nothing for so long hangs: Ray's start, in which it cannot, may take half of that."""

_LOCK = struct.Struct("hhqqi")
"""fcntl(2)'s struct flock: type, whence, start, length, process id."""


@dataclass
class Steps:
    """Quanta of a label, by what became of them. `seconds`: of those done, in all."""

    total: int = 0
    kept: int = 0
    """Done by an earlier coordinator."""
    done: int = 0
    running: int = 0
    failed: int = 0
    blocked: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """To be done, or under way."""
        return self.total - self.kept - self.done - self.failed - self.blocked


@dataclass(frozen=True)
class Failure:
    """A quantum that was given up."""

    label: str
    data_id: str
    error: str
    message: str
    attempts: int


@dataclass
class Progress:
    """How far a run is. Times: TAI s. `ends_at`: an estimate, 0 where there is none yet."""

    state: str = RUNNING
    run: str = ""
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    ends_at: float = 0.0
    retried: int = 0
    steps: dict[str, Steps] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Quanta given up, or that cannot be reached for those."""
        return sum(step.failed + step.blocked for step in self.steps.values())


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @classmethod
    def make(cls, path: Path, request: BatchRequest) -> "RunFolder":
        """A new one. Raises BadData if there is one of that name."""
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise BadData(f"{path}: the run's folder cannot be made: {error.strerror}") from error
        (path / "request.json").write_text(request.model_dump_json(indent=1), encoding="utf-8")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """One that is there. Raises BadData if it is not."""
        run = cls(path)
        if not run.exists:
            raise BadData(f"{path}: there is no batch run")
        return run

    @property
    def exists(self) -> bool:
        """Whether there is one, of a request, submitted to its end, or of a workflow."""
        return self.name_file.is_file() or self.of_jobs

    @property
    def of_jobs(self) -> bool:
        """Whether it is made of a workflow's jobs, and not of a request's quanta."""
        return (self.path / "workflow.json").is_file()

    @property
    def on_cluster(self) -> OnCluster:
        """Where it is executed."""
        return self.workflow if self.of_jobs else self.request

    @property
    def request(self) -> BatchRequest:
        """What was asked."""
        return BatchRequest.model_validate_json((self.path / "request.json").read_text(encoding="utf-8"))

    @property
    def workflow(self) -> Workflow:
        """The jobs of a run that is made of such."""
        return Workflow.model_validate_json((self.path / "workflow.json").read_text(encoding="utf-8"))

    def write_workflow(self, workflow: Workflow) -> None:
        """Make it a run of these jobs."""
        (self.path / "workflow.json").write_text(workflow.model_dump_json(indent=1), encoding="utf-8")

    @property
    def job_states(self) -> JobStates:
        """What became of each job."""
        return JobStates(self.path / "jobs.jsonl")

    @property
    def graph(self) -> Path:
        """The quantum graph."""
        return self.path / "graph.qg"

    @property
    def log(self) -> Path:
        """What the coordinator printed."""
        return self.path / "coordinator.log"

    def last_words(self, name: object, attempt: int) -> Path:
        """A file that the process of an attempt makes when it begins, and in which it says why it ends itself."""
        return self.path / f"{quote(str(name), safe='')}.{attempt}.last"

    def tell(self, progress: Progress) -> None:
        """Keep how far it is; a reader sees the last one or this one, whole."""
        partial = self.path / f".progress.{os.getpid()}"
        partial.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        partial.replace(self.path / "progress.json")

    def progress(self) -> Progress:
        """How far it is; `cut off` if it says that it is running, and its coordinator does not."""
        try:
            told = json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            told = asdict(Progress())
        told["steps"] = {label: Steps(**step) for label, step in told["steps"].items()}
        told["failures"] = [Failure(**failure) for failure in told["failures"]]
        progress = Progress(**told)
        if progress.state == RUNNING and not self.coordinated():
            progress.state = CUT_OFF
        return progress

    def coordinated(self) -> bool:
        """Whether its coordinator runs, or is being started."""
        try:
            lock = os.open(self._lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            held = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(lock)
        return bool(_LOCK.unpack(held)[0] != fcntl.F_UNLCK)

    def claim(self) -> int:
        """The right to coordinate it: an open file, held by whoever has it open, and free again when nobody has.

        Raises BadData if another has it.
        """
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError as error:
            os.close(lock)
            raise BadData(f"{self.path}: this run has a coordinator already") from error
        (self.path / "canceled").unlink(missing_ok=True)
        self.tell(Progress(updated=REAL_TIME.now()))
        return lock

    def hand_over(self, pid: int) -> None:
        """Say which process coordinates it from now on."""
        (self.path / "coordinator.pid").write_text(str(pid), encoding="ascii")

    @property
    def _lock(self) -> Path:
        return self.path / "coordinator.lock"

    @property
    def name_file(self) -> Path:
        """The name of the collection that it writes; made when all else of a request's run is."""
        return self.path / "run"

    def cancel(self) -> None:
        """Ask its coordinator to end it."""
        (self.path / "canceled").touch()

    @property
    def canceled(self) -> bool:
        """Whether it was."""
        return (self.path / "canceled").exists()


class Silence:
    """How long a run's coordinator has told nothing new."""

    def __init__(self) -> None:
        self._heard, self._last = time.monotonic(), -1.0

    def too_long(self, progress: Progress | None) -> bool:
        """Whether it hangs. `progress`: what it told last, None of a run that is not there yet."""
        updated = progress.updated if progress is not None else -1.0
        if updated != self._last:
            self._heard, self._last = time.monotonic(), updated
        return time.monotonic() - self._heard > HUNG_S


def last_line(log: Path) -> str:
    """What was printed last into a log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def run_folders(folder: Path) -> Iterable[RunFolder]:
    """Those in a folder, however deep, by name."""
    for path, inner, _ in os.walk(folder):
        if (run := RunFolder(Path(path))).exists:
            inner.clear()
            yield run
        inner.sort()
