"""`pachon batch`: submit, status, cancel, restart; and `coordinate`, the process that they start."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from lsst.daf.butler import Butler
from rich.console import Console

from cluster import logs
from cluster.batch import graph
from cluster.batch.executor import Executor
from cluster.batch.job_work import JobWork
from cluster.batch.joining import of_night, on_ray
from cluster.batch.quanta_work import QuantaWork
from cluster.batch.request import BatchRequest, OnCluster
from cluster.batch.run_folder import (
    CUT_OFF,
    DONE,
    HUNG_S,
    RUNNING,
    Progress,
    RunFolder,
    Silence,
    last_line,
    run_folders,
)
from cluster.batch.work import Work
from schemas.clock import REAL_TIME
from schemas.errors import BadData, Transient

_LOOK_S, _SILENT_S = 0.5, 60.0

_PATIENCE = {"RAY_raylet_start_wait_time_s": "60"}
"""What Ray's start may take beside whatever else there is to do: Ray itself gives up after 30 s."""


def submit(folder: Path, request: BatchRequest, console: Console) -> RunFolder:
    """Build a run's graph and start its coordinator. Raises BadData for what cannot be run, and leaves no run."""
    if request.night is not None:
        of_night(request.night)
    name = f"{request.output}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    run, quanta = prepare(folder / name.replace("/", "_"), request, name)
    console.print(f"{run.path}: {quanta} quanta, into {name}")
    start(run)
    return run


def prepare(path: Path, request: BatchRequest, name: str) -> tuple[RunFolder, int]:
    """Make a run's folder and graph, with the RUN collection `name`; how many quanta. Raises BadData as `submit`."""
    run = RunFolder.make(path, request)
    try:
        quanta = graph.build(run, name)
    except BaseException:
        shutil.rmtree(run.path)
        raise
    run.name_file.write_text(name, encoding="utf-8")
    return run, quanta


def start(run: RunFolder) -> None:
    """Start a coordinator that outlives this command. Raises BadData if there is one."""
    claim = run.claim()
    try:
        with run.log.open("ab") as log:
            coordinator = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "batch", "coordinate", str(run.path)],
                env=_PATIENCE | os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=[claim],
            )  # fmt: skip
        run.hand_over(coordinator.pid)
    finally:
        os.close(claim)  # the coordinator has it open, and nobody that it starts


def wait(run: RunFolder, console: Console) -> int:
    """Until the run has ended; 0 if all is done. Raises Transient if its coordinator tells nothing for `HUNG_S`."""
    silence = Silence()
    while run.coordinated():
        if silence.too_long(run.progress()):
            raise Transient(f"{run.path}: the run's coordinator has told nothing for {HUNG_S:g} s: see {run.log}")
        time.sleep(_LOOK_S)
    show(run, console)
    return 0 if run.progress().state == DONE else 1


def coordinate(path: Path) -> int:
    """Be the coordinator of a run, until it has ended."""
    run = RunFolder.open(path)
    logs.configure(run.path / "log.jsonl", "batch")
    with on_ray(run.on_cluster, str(run.path)) as cpus, _work(run) as work:
        executor = Executor(run, work, lambda: cpus(executor.wanted), REAL_TIME)
        progress = executor.run()
    return 0 if progress.state == DONE else 1


@contextmanager
def _work(run: RunFolder) -> Iterator[Work[Any]]:
    if run.of_jobs:
        yield JobWork(run)
        return
    sys.path[:0] = run.request.python_path  # whoever restarts a run may have another one than who submitted it
    name = run.name_file.read_text(encoding="utf-8")
    with Butler.from_config(str(run.request.butler), run=name, writeable=True) as butler:
        yield QuantaWork(run, butler, name)


def ping(ray_address: str) -> str:
    """What the cluster there has; default: one of our own. Raises Transient if it cannot be joined, or made."""
    with on_ray(OnCluster(ray_address=ray_address), "ping"):
        cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        return f"Ray {ray.__version__} on {ray_address or 'this machine'}: {cpus:g} CPUs"


def status(folder: Path, console: Console) -> None:
    """A line for each run in a folder."""
    for run in run_folders(folder):
        progress = run.progress()
        console.print(f"{run.path.relative_to(folder)}: {_line(progress)}")


def show(run: RunFolder, console: Console) -> None:
    """All that is known of a run."""
    progress = run.progress()
    console.print(f"{run.path}: {_line(progress)}")
    if progress.state == CUT_OFF:
        console.print(f"  its coordinator said last: {last_line(run.log) or 'nothing'}")
    for label, step in progress.steps.items():
        mean = f"{step.seconds / step.done:.2f} s each" if step.done else ""
        counted = f"{step.kept + step.done} of {step.total} done, {step.running} running"
        console.print(f"  {label}: {counted}, {step.failed} failed, {step.blocked} blocked {mean}".rstrip())
    for failure in progress.failures:
        where = f"{failure.label} {failure.data_id}"
        console.print(f"  failed: {where}: {failure.error} ({failure.attempts} attempts): {failure.message}")


def _line(progress: Progress) -> str:
    every = progress.steps.values()
    done, total = sum(step.kept + step.done for step in every), sum(step.total for step in every)
    line = f"{progress.state}, {done} of {total} done, {progress.failed} failed or blocked"
    if progress.state == RUNNING and progress.ends_at:
        line += f", ends in about {max(progress.ends_at - REAL_TIME.now(), 0.0):.0f} s"
    silent = REAL_TIME.now() - progress.updated
    if progress.state == RUNNING and silent > _SILENT_S:
        line += f", has told nothing for {silent:.0f} s"
    return f"{line}, {progress.retried} attempts repeated"


def cancel(run: RunFolder) -> None:
    """Ask the coordinator to end. Raises BadData if there is none."""
    if not run.coordinated():
        raise BadData(f"{run.path}: this run is {run.progress().state}")
    run.cancel()
