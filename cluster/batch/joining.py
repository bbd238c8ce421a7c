"""The Ray cluster of a batch run: one of its own, or one that is there already, with which it ends."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
import structlog

from cluster import proc
from cluster.batch.lanes import Share
from cluster.batch.request import OnCluster
from cluster.exits import complain
from cluster.settings import Settings
from schemas.errors import BadData, Transient

NAMESPACE = "pachon"
_NICENESS = 10
_STARTS = 3
"""How often a Ray of one's own is started: its parts give one another up on a machine that has too much to do."""

_LOOK_S, _SILENT_S, _ANSWER_S = 0.5, 5.0, 2.0


@dataclass(frozen=True)
class Joined:
    """A cluster. `address`: of its GCS, host:port. `driver`: the process that it ends with, 0 if none is known."""

    address: str
    driver: int = 0

    @property
    def ended(self) -> bool:
        """Whether its driver did."""
        found = proc.process(self.driver)
        return bool(self.driver) and not (found is not None and found.runs)

    @property
    def listens(self) -> bool:
        """Whether somebody does at its address."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        except (OSError, ValueError):
            return False
        return True


@contextmanager
def joinable(file: Path) -> Iterator[None]:
    """Tell in a file, while the context is open, where this process's cluster is."""
    part = file.with_suffix(".part")
    here = Joined(ray.get_runtime_context().gcs_address, os.getpid())
    part.write_text(json.dumps(asdict(here)), encoding="utf-8")
    part.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def of_night(folder: Path) -> Joined:
    """The cluster of the night that is played into a folder. Raises BadData if none is, or none that can be joined."""
    file = Settings(output=folder).join_file
    try:
        joined = Joined(**json.loads(file.read_bytes()))
    except FileNotFoundError as error:
        raise BadData(f"{folder}: no night runs there whose Ray could be joined") from error
    except (TypeError, ValueError) as error:
        raise BadData(f"{file} does not tell where a night's Ray is: {error}") from error
    if joined.ended or not joined.listens:
        raise BadData(f"{folder}: the night that was played there has ended")
    return joined


@contextmanager
def on_ray(asked: OnCluster, run: str) -> Iterator[Callable[[Callable[[], int]], int]]:
    """The cluster that was asked for, else one of the run's own; a night that has ended meanwhile has none.

    What it gives tells the CPUs that the run may use now, and is told how many it has work for. Raises Transient if
    there is no cluster.
    """
    joined = _asked_for(asked)
    _start(joined)
    _take_second_place()  # only now: beside other work a niced Ray gives itself up before it has begun
    try:
        with ending_with(joined or _made_here()):
            yield Share(run, asked.priority, asked.slots).cpus if joined else lambda _wanted: _own(asked)
    finally:
        ray.shutdown()


def _made_here() -> Joined:
    """The cluster that this process has made, which ends with its raylet."""
    raylet = next((each.pid for each in proc.descendants(os.getpid()) if each.name == "raylet"), 0)
    return Joined(ray.get_runtime_context().gcs_address, raylet)


def _asked_for(asked: OnCluster) -> Joined | None:
    if asked.ray_address:
        return Joined(asked.ray_address)
    if asked.night is None:
        return None
    try:
        return of_night(asked.night)
    except BadData as error:
        structlog.get_logger().warning("on a Ray of its own", reason=str(error))
        return None


def _take_second_place() -> None:
    """Of a coordinator and all that it started. Linux may compare niceness only within a session: it has its own."""
    own = os.getsid(0) == os.getpid()
    os.setpriority(os.PRIO_PGRP if own else os.PRIO_PROCESS, 0, _NICENESS)  # with Ray's threads and processes
    if own:
        with suppress(OSError):  # a kernel without automatic groups
            Path("/proc/self/autogroup").write_text(str(_NICENESS), encoding="ascii")


def _start(joined: Joined | None) -> None:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's spelling
    others = {each.pid for each in proc.descendants(os.getpid())}
    for left in reversed(range(_STARTS if joined is None else 1)):
        try:
            _init(joined)
        except Exception as error:  # Ray raises many kinds, plain ones among them
            where = joined.address if joined else "this machine"
            said = f"Ray on {where} does not start: {(str(error) or repr(error)).splitlines()[0]}"
            if not left:
                raise Transient(said) from error
            structlog.get_logger().warning("once more", reason=said)
            _kill_all_but(others)
        else:
            return


def _init(joined: Joined | None) -> None:
    if joined is None:
        ray.init(address="local", include_dashboard=False, namespace=NAMESPACE, log_to_driver=False)
    else:
        ray.init(address=joined.address, namespace=NAMESPACE, log_to_driver=False)


def _kill_all_but(others: AbstractSet[int]) -> None:
    """What is left, below this process, of a Ray that did not start."""
    for each in proc.descendants(os.getpid()):
        if each.pid not in others:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


def _own(asked: OnCluster) -> int:
    every = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    return min(every, asked.slots) if asked.slots else every


@contextmanager
def ending_with(joined: Joined) -> Iterator[None]:
    """End this process, as a crash would, when its cluster is gone: Ray would fail unit after unit, or wait."""
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(_LOOK_S):
            heard = time.monotonic() if joined.listens else heard
            if joined.ended or time.monotonic() - heard > _SILENT_S:
                structlog.get_logger().error("cut off: the cluster is gone", address=joined.address)
                complain(f"the run's Ray at {joined.address} is gone")
                os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, name="joined", daemon=True).start()
    try:
        yield
    finally:
        over.set()
