"""The batch run of an OCS's job: made and started by a process of its own, and looked after by the service.

By a process of its own, since to build a graph is to import a pipeline's code: it may be slow, may crash, and may be
another by the next command. It goes on when the service dies.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cluster.batch.request import BatchRequest
from cluster.batch.run_folder import RunFolder, last_line
from schemas.errors import BadData

SUBMIT_S = 600.0
"""What building a graph may take."""

_MOST_SAID = 500


class JobRun:
    """In a job's folder: `request.json`, `submit.log`, and the run in `run`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "submit.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> RunFolder | None:
        """The run, once it is made, graph and all."""
        path = self._folder / "run"
        return RunFolder(path) if (path / "run").is_file() else None

    def start(self, request: BatchRequest) -> None:
        """Start a process that makes the run if there is none, and starts its coordinator.

        It holds a lock on its log for as long as it lives, whoever looks after it.
        """
        (self._folder / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
        with self._log.open("wb") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "ocps-submit", str(self._folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def starting(self) -> bool:
        """Whether such a process is at work."""
        if self._child is not None:
            self._child.poll()
        try:
            with self._log.open("rb") as log:
                fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def stop_starting(self) -> None:
        """End that process, if it is ours; another's ends in `SUBMIT_S`."""
        if self._child is not None:
            self._child.terminate()

    def said(self) -> tuple[bool, str]:
        """Whether that process refused the request; the last line that it, or the coordinator after it, has printed."""
        last = last_line(self._log)
        refused = last.startswith("pachon: ")
        if self.run is not None and not refused:
            last = last_line(self.run.log) or last
        return refused, last.removeprefix("pachon: ")[:_MOST_SAID]

    def kill(self) -> None:
        """End a coordinator that hangs."""
        run = self.run
        if run is not None and run.coordinated():
            with suppress(OSError, ValueError):
                os.kill(int((run.path / "coordinator.pid").read_text(encoding="ascii")), signal.SIGKILL)


def submit(folder: Path) -> int:
    """Be the process that `start` starts. Raises BadData for what cannot be run, or not be made ready in time."""
    from cluster.batch import commands  # noqa: PLC0415 - the service needs none of Ray and pipe_base

    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, SUBMIT_S)
    run = JobRun(folder).run
    if run is None:
        shutil.rmtree(folder / "run", ignore_errors=True)  # half made by one that died
        request = BatchRequest.model_validate_json((folder / "request.json").read_bytes())
        name = f"{request.output}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        run, _ = commands.prepare(folder / "run", request, name)
    commands.start(run)
    return 0


def _too_late(_number: int, _frame: object) -> None:
    raise BadData(f"no graph within {SUBMIT_S:g} s")
