"""Commands of the OCS on disk: each has a folder, made before it is acknowledged. What a service that died knew."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from backbone.ocps import Ack, Command, Record
from schemas.errors import BadData

REFUSED, QUANTA_FAILED, BROKEN = 1, 2, 3
"""What `Outcome.error` says: the command cannot be executed; quanta failed; ours is the fault."""

_Model = TypeVar("_Model", bound=BaseModel)


class Outcome(BaseModel):
    """How a command ended, as it is told. `result`: JSON. `exit_code`: of its job."""

    model_config = ConfigDict(frozen=True)

    ack: Ack
    error: int
    exit_code: int
    result: str


class JobState(BaseModel):
    """How far a command is. `received`: TAI s. `starts`: how often a process was started for it."""

    received: float
    acked: bool = False
    submitted: bool = False
    aborted: bool = False
    starts: int = 0
    outcome: Outcome | None = None
    told: bool = False


class _Kept(BaseModel):
    command: Command
    record: dict[str, str]


class Job:
    """A command and its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = read(_Kept, path / "command.json")
        self.command, self.record = kept.command, kept.record
        self.state = read(JobState, path / "job.json")

    @property
    def id(self) -> str:
        """The job's name, for the OCS too."""
        return self.path.name

    def keep(self, **changed: object) -> None:
        """Change the state, on disk first."""
        state = self.state.model_copy(update=changed)
        write(self.path / "job.json", state.model_dump_json())
        self.state = state


class Jobs:
    """The jobs in a folder, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = sorted(path.parent for path in folder.glob("*/command.json") if not path.parent.name.startswith("."))
        self._by_id = {path.name: Job(path) for path in found}

    def get(self, job_id: str) -> Job | None:
        """One of them."""
        return self._by_id.get(job_id)

    def unfinished(self) -> list[Job]:
        """Those whose end was not told, those that have begun first."""
        left = [job for job in self._by_id.values() if not job.state.told]
        return sorted(left, key=lambda job: (not job.state.starts, job.state.received))

    def take(self, command: Command, record: Record, now: float, outcome: Outcome | None = None) -> Job | None:
        """A new one, kept on disk; None for a command that has one already. `outcome`: if that is known."""
        if command.job_id in self._by_id:
            return None
        part, path = self._folder / f".{command.job_id}", self._folder / command.job_id
        part.mkdir(exist_ok=True)  # there, if whoever made it died over it
        told = {name: value for name, value in record.items() if isinstance(value, str)}  # all that commands ask with
        write(part / "command.json", _Kept(command=command, record=told).model_dump_json())
        write(part / "job.json", JobState(received=now, outcome=outcome).model_dump_json())
        part.rename(path)
        job = self._by_id[command.job_id] = Job(path)
        return job


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only service of a folder. Raises BadData if there is another, or the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".service").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise BadData(f"{folder}: another service has its jobs there") from error


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, also when the machine stops."""
    part = path.with_name(f".{path.name}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(model: type[_Model], path: Path) -> _Model:
    """What was written. Raises BadData naming a file that is none of these."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{path} does not tell of a command or a state: {error}") from error
