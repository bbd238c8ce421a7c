"""A program run as a child process, to a deadline, with what it spent.

Between it and this process stands a small one that starts it: Linux counts what its parent holds as a child's own
memory from before it became another program.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_REPORT = "spent.json"


class FailedError(Exception):
    """A child that did not end well: its name and the last line that it wrote to stderr."""


@dataclass(frozen=True)
class Spent:
    """CPU seconds, user and system, and the most memory resident, MB, of a process and its own children."""

    seconds: float
    megabytes: float

    def __add__(self, other: "Spent") -> "Spent":
        """Of one process after the other."""
        return Spent(self.seconds + other.seconds, max(self.megabytes, other.megabytes))


def run(command: Sequence[str | Path], folder: Path, deadline: float) -> Spent:
    """Run it in a folder, with one thread where it listens to that. Raises FailedError, also after `deadline` seconds.

    What it wrote stays in `folder`, as NAME.out and NAME.err.
    """
    name = Path(command[0]).name
    told, said = folder / f"{name}.err", folder / f"{name}.out"
    with told.open("wb") as err, said.open("wb") as out:
        starter = [sys.executable, "-I", "-S", __file__, *command]
        # It leads a group of its own, so that at the deadline, or with us, whatever it started ends with it.
        child = subprocess.Popen(
            starter, cwd=folder, env=_environment(), stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = child.wait(deadline)
        except subprocess.TimeoutExpired as late:
            raise FailedError(f"{name} was not done after {deadline:.0f} s") from late
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if code:
        raise FailedError(f"{name} ended with {code}: {_last_line(told)}")
    return Spent(**json.loads((folder / _REPORT).read_text(encoding="ascii")))


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")


def _environment() -> dict[str, str]:
    """Ours, with our root where a child that is Python finds our modules."""
    root = str(Path(__file__).parent.parent)
    found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | _ONE_THREAD | {"PYTHONPATH": found}


def main() -> int:
    """Start what the arguments say, wait for it, leave in the folder what it spent; its exit code."""
    child = subprocess.Popen(sys.argv[1:])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    spent = {"seconds": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss / 1024.0}
    Path(_REPORT).write_text(json.dumps(spent), encoding="ascii")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
