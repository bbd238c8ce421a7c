"""What became of each job of a run, on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

RUNNING, SUCCEEDED, FAILED = "running", "succeeded", "failed"


@dataclass(frozen=True)
class JobState:
    """What became of a job. `exit_code`: the last attempt's, as a shell has it."""

    name: str
    state: str
    attempt: int = 1
    exit_code: int = 0
    seconds: float = 0.0
    memory_mb: float = 0.0
    message: str = ""


class JobStates:
    """A file of them, to which the coordinator appends: the last line of a job counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, state: JobState) -> None:
        """One more line."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(state)) + "\n")

    def read(self) -> dict[str, JobState]:
        """By name. Half a line at the end, of a full disk, is none."""
        if not self._path.exists():
            return {}
        states = (JobState(**json.loads(line)) for line in self._path.read_text(encoding="utf-8").split("\n")[:-1])
        return {state.name: state for state in states}

    def forget_all_but_done(self) -> None:
        """A new coordinator begins: what failed or was under way is to be done."""
        done = [state for state in self.read().values() if state.state == SUCCEEDED]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(asdict(state)) + "\n" for state in done), encoding="utf-8")
        partial.replace(self._path)
