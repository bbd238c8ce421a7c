"""Who makes the batch processes of a node stand still while prompt work is under way."""

import os
import signal
import threading
import time

import structlog

from cluster import proc
from cluster.child_process import dying_with

MARK = "PACHON_BATCH"
"""The variable in a batch process's environment, and in that of all it starts."""

LOOK_S = 0.5
"""How often a keeper looks for processes that have come meanwhile, and at its lease."""

_NICENESS = 19


def take_second_place() -> None:
    """Of a batch process: use what others leave, and end with the node's Ray, also when it stands still."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    dying_with(os.getppid(), signal.SIGKILL)()


def batch_processes(above: int) -> list[proc.Process]:
    """Those that a process started, directly or not: `above` is a node's raylet."""
    return [each for each in proc.descendants(above) if each.runs and MARK in proc.environment(each.pid)]


class Keeper:
    """Of one node. What stands still goes on when its lease is over, or when a keeper starts: the one before died."""

    def __init__(self, raylet: int = 0) -> None:
        """`raylet`: process id; default: whose child we are."""
        self._raylet = raylet or os.getppid()
        self._until = 0.0
        self._still = True
        self._lock = threading.Lock()
        self._look()
        threading.Thread(target=self._keep_looking, name="keeper", daemon=True).start()

    def stand_still(self, lease_s: float) -> int:
        """Stop all for so long, 0 s to let them go on; how many stand still now."""
        with self._lock:
            self._until = time.monotonic() + lease_s
        return self._look()

    def _keep_looking(self) -> None:
        while True:
            time.sleep(LOOK_S)
            try:
                self._look()
            except OSError as error:  # of /proc, or of a process that is not ours: the others must go on
                structlog.get_logger().error("the keeper cannot look", error=str(error))

    def _look(self) -> int:
        with self._lock:
            still = time.monotonic() < self._until
            if not still and not self._still:
                return 0
            self._still = still
            stopped = batch_processes(self._raylet)
            for each in stopped:
                _signal(each.pid, signal.SIGSTOP if still else signal.SIGCONT)
            return len(stopped) if still else 0


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        structlog.get_logger().debug("ended meanwhile", pid=pid)
