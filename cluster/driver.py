"""The driver of a night: the process that holds the bus, and Ray."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from ray.exceptions import RayError
from rich.console import Console

from access.report.collect import Collected
from cluster import logs, proc
from cluster.heartbeat import Heartbeat
from cluster.live import play, ray_cluster
from cluster.run import told
from cluster.supervisor import AGAIN, Errand
from cluster.terminal import unhurried
from schemas.errors import BadData, Transient
from simulators.ocs.schedule import load_plan

TICK_S = 0.5
_RAY = ("raylet", "gcs_server")


def drive(errand: Path, pulse: int, console: Console) -> int:
    """Play the night that a file tells of; the exit code: `AGAIN` if a server does not answer.

    `pulse`: the file descriptor of a pipe that takes signs of life. Raises PachonError for what cannot be played.
    """
    try:
        given = Errand.model_validate_json(errand.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{errand} does not tell a driver what to do: {error}") from error
    logs.configure(given.settings.log, "night")
    with unhurried(console):
        return _played(given, pulse, console)


def _played(given: Errand, pulse: int, console: Console) -> int:
    plan = load_plan(given.settings.plan_file)
    night: Collected | None = None
    try:
        with ray_cluster(given.options), _no_longer_than(_RAY):
            playing = play(given.options, plan, given.settings, console, _observatory(), Heartbeat(pulse))
            night = asyncio.run(playing)
    except* (Transient, RayError, TimeoutError) as errors:
        why = str(errors.exceptions[0])
        structlog.get_logger().error("the night cannot go on", error=why)
        console.print(f"the night cannot go on: {why}", markup=False)
    return AGAIN if night is None else told(night, given.settings.output, console)


def _observatory() -> Callable[[], bool]:
    """Whether the observatory may still say something: until our standard input ends."""
    silent = threading.Event()

    def listen() -> None:
        while os.read(0, 4096):  # not by `sys.stdin`: at the exit of the interpreter its lock would be waited for
            pass
        silent.set()

    threading.Thread(target=listen, name="observatory", daemon=True).start()
    return lambda: not silent.is_set()


@contextmanager
def _no_longer_than(programs: tuple[str, ...]) -> Iterator[None]:
    """End this process, as a crash would, when a child of it that runs one of these has died.

    Without Ray it is of no use; Ray would let it wait for a minute before it ends it.
    """
    pids = [each.pid for each in proc.descendants(os.getpid()) if each.name in programs]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(TICK_S):
            if dead := [pid for pid in pids if not _runs(pid)]:
                structlog.get_logger().error("Ray died", pids=dead)
                os._exit(AGAIN)

    threading.Thread(target=watch, name="ray", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _runs(pid: int) -> bool:
    found = proc.process(pid)
    return found is not None and found.runs
