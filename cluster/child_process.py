"""A program that runs beside us and never longer than we live. Linux only, by its parent-death signal."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from schemas.errors import BadData, Broken, Transient

_READY_S, _STOP_S, _POLL_S = 30.0, 10.0, 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

_log = structlog.get_logger()


Reached = TypeVar("Reached")


class ChildProcess:
    """A program that runs while its context is open, never longer than its parent lives.

    Its stdout and stderr are appended to the file `log`. It has its own process group. `stop_signal` asks it
    to end; `death_signal` reaches it when the parent dies. `user`: (uid, gid) to run as, for root only.
    Must be started by the main thread: Linux ties the death signal to the thread that forked.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name, self.log = name, log
        self._command = [str(part) for part in command]
        self._environment, self._user = environment, user
        self._stop_signal, self._death_signal = stop_signal, death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id. Raises Broken if it was never started."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._running().poll()

    def start(self) -> None:
        """Raises BadData if the program cannot be started."""
        if threading.current_thread() is not threading.main_thread():
            raise Broken(f"{self.name} must be started by the main thread, with which it is to die")
        uid, gid = self._user or (None, None)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd="/" if self._user else None,
                    process_group=0,
                    user=uid,
                    group=gid,
                    extra_groups=None if self._user is None else [],
                    preexec_fn=dying_with(os.getpid(), self._death_signal),  # noqa: PLW1509 - see there
                )
            except OSError as error:
                raise BadData(f"{self.name}: cannot start {self._command[0]}: {error}") from error

    def wait_for(self, text: str, deadline_s: float = _READY_S) -> str:
        """The first line of its log since the start that contains `text`.

        Raises Broken with the log's end if it dies first, Transient after `deadline_s`.
        """
        return self._until(lambda: self._line(text), deadline_s, f"say {text!r}")

    def _until(self, reached: Callable[[], Reached | None], deadline_s: float, what: str) -> Reached:
        """What `reached` gives, once it is true, while the child lives and has time left."""
        give_up = time.monotonic() + deadline_s
        while True:
            ended = self.returncode is not None  # looked at first: what it said before it ended counts
            if found := reached():
                return found
            if ended:
                raise Broken(f"{self.name} ended with {self.returncode} and did not {what}:\n{self.log_tail()}")
            if time.monotonic() > give_up:
                raise Transient(f"{self.name} did not {what} within {deadline_s:g} s:\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def _line(self, text: str) -> str | None:
        return next((line for line in self._said().splitlines() if text in line), None)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it wrote since the start."""
        return "\n".join(self._said().splitlines()[-lines:])

    def _said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def stop(self, deadline_s: float = _STOP_S) -> int | None:
        """Ask it to end; after `deadline_s` kill it, with all its group. Its exit code."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(self._stop_signal)
            try:
                process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                _log.warning("child killed", name=self.name, waited_s=deadline_s)
                self._kill_group()
        return process.wait(_STOP_S)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._kill_group()
        self._running().wait(_STOP_S)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise Broken(f"{self.name} was not started")
        return self._process


def dying_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """What a child does between fork and exec, to die with its parent; after a change of user, which resets the signal.

    Two system calls through a library loaded beforehand: nothing that another thread of the parent can hold.
    """

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare
