"""Batch: what a quantum costs, whether two workers do twice as much as one, and what a night notices of a data release.

    python -m bench.batch overhead [--quanta 600]      # trivial quanta, and the same graph by pipe_base's own executor
    python -m bench.batch scaling [--quanta 60]        # quanta of 0.5 CPU s on one worker and on two
    python -m bench.batch night --output FOLDER        # a night by itself, and one beside quanta for all idle cores

A quantum writes a dataset, its metadata and its log into a Butler of its own with a SQLite registry. Wall seconds of a
machine that has other work to do say little: the load before each part is told with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from backbone.butler import ButlerArchive
from cluster import proc
from cluster.batch import graph
from cluster.batch.executor import Executor
from cluster.batch.joining import on_ray
from cluster.batch.keeper import batch_processes
from cluster.batch.quanta_work import QuantaWork
from cluster.batch.request import BatchRequest, OnCluster
from cluster.batch.run_folder import RunFolder
from schemas.clock import REAL_TIME
from schemas.instrument import camera

FOREIGN = Path(__file__).parent.parent / "tests" / "cluster" / "batch" / "foreign"
"""Where `burning`, a PipelineTask that uses CPU, is."""

WORKERS, DETECTORS, FEW = 2, 150, 4
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spent:
    """Seconds. `cpu`: of this process, those that it started and waited for, and batch processes."""

    wall: float
    cpu: float

    @classmethod
    def so_far(cls) -> "Spent":
        """Since some time."""
        used = sum(proc.cpu_s(each.pid) for each in batch_processes(os.getpid()))
        return cls(time.perf_counter(), used + sum(os.times()[:4]))

    def __sub__(self, earlier: "Spent") -> "Spent":
        return Spent(self.wall - earlier.wall, self.cpu - earlier.cpu)

    def told(self, workers: int, quanta: int) -> str:
        """Of each quantum: the time of a worker, and of a CPU."""
        worker, cpu = 1e3 * self.wall * workers / quanta, 1e3 * self.cpu / quanta
        return f"{quanta} in {self.wall:.2f} s, each {worker:.1f} ms of a worker, {cpu:.1f} ms of a CPU"


@dataclass(frozen=True)
class Bench:
    """A repository in a folder of its own."""

    folder: Path

    @property
    def butler(self) -> Path:
        """The repository."""
        return self.folder / "butler"

    def make(self) -> None:
        """It, with a camera."""
        ButlerArchive.create(self.butler).register_camera(camera("LSSTCam"))

    def request(self, quanta: int, seconds: float) -> BatchRequest:
        """So many quanta, of so many CPU seconds each: as many labels of `DETECTORS` as are needed."""
        labels = [f"burn{number}" for number in range(-(-quanta // DETECTORS))]
        steps = [
            f"  {label}:\n    class: burning.BurnTask\n"
            f"    config:\n      connections.burnt: burnt_{label}\n      seconds: {seconds}\n"
            for label in labels
        ]
        pipeline = self.folder / f"{len(labels)}-{seconds}.yaml"
        pipeline.write_text("description: CPU seconds\ntasks:\n" + "".join(steps), encoding="utf-8")
        each = quanta // len(labels)
        return BatchRequest(
            butler=self.butler, pipeline=str(pipeline), inputs=("LSSTCam/defaults",), output="u/bench",
            where=f"instrument='LSSTCam' AND detector < {each}", python_path=(str(FOREIGN),),
        )  # fmt: skip

    def built(self, name: str, request: BatchRequest) -> RunFolder:
        """Its graph."""
        folder = RunFolder.make(self.folder / name, request)
        graph.build(folder, f"u/bench/{name}")
        return folder

    def ours(self, name: str, request: BatchRequest, slots: int) -> "Spent":
        """A run on Ray, from a built graph to the last row of the registry."""
        folder, run = self.built(name, request), f"u/bench/{name}"
        butler = Butler.from_config(str(self.butler), run=run, writeable=True)
        began = Spent.so_far()
        progress = Executor(folder, QuantaWork(folder, butler, run), lambda: slots, REAL_TIME).run()
        if progress.failed:
            sys.exit(f"{progress.failed} quanta failed: {progress.failures[:1]}")
        return Spent.so_far() - began

    def theirs(self, name: str, request: BatchRequest, processes: int) -> "Spent":
        """Pipe_base's executor on such a graph."""
        folder, run = self.built(name, request), f"u/bench/{name}"
        butler = Butler.from_config(str(self.butler), collections=["LSSTCam/defaults"], run=run, writeable=True)
        quanta = PredictedQuantumGraph.read_execution_quanta(str(folder.graph))
        single = SingleQuantumExecutor(butler=butler)
        many = MPGraphExecutor(num_proc=processes, timeout=3600.0, quantum_executor=single)
        butler.registry.resetConnectionPool()
        began = Spent.so_far()
        SeparablePipelineExecutor(butler).run_pipeline(quanta, graph_executor=many)
        return Spent.so_far() - began


@contextmanager
def _bench() -> Iterator[Bench]:
    sys.path.insert(0, str(FOREIGN))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOREIGN), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="pachon-bench-") as folder:
        bench = Bench(Path(folder))
        bench.make()
        with on_ray(OnCluster(), "bench"):
            yield bench


def overhead(quanta: int) -> None:
    """Trivial quanta, by us and by pipe_base."""
    with _bench() as bench:
        request = bench.request(quanta, 0.0)
        bench.ours("warm", bench.request(2 * WORKERS, 0.0), WORKERS)
        count = (quanta // DETECTORS or 1) * min(quanta, DETECTORS)
        print(f"load {os.getloadavg()[0]:.1f}; {count} trivial quanta, {WORKERS} workers", flush=True)
        for number in range(3):
            took = bench.ours(f"ours{number}", request, WORKERS)
            print(f"pachon: {took.told(WORKERS, count)}", flush=True)
        for processes, part in ((1, count), (WORKERS, min(count, FEW))):  # it starts a process for each quantum
            took = bench.theirs(f"theirs{processes}", bench.request(part, 0.0), processes)
            print(f"MPGraphExecutor, {processes} processes: {took.told(processes, part)}", flush=True)


def scaling(quanta: int) -> None:
    """Quanta of 0.5 CPU s on one worker and on two."""
    with _bench() as bench:
        request = bench.request(quanta, 0.5)
        bench.ours("warm", bench.request(2 * WORKERS, 0.0), WORKERS)
        alone = 0.0
        for slots in (1, WORKERS):
            load = os.getloadavg()[0]
            took = bench.ours(f"on{slots}", request, slots).wall
            alone = alone or took
            print(f"load {load:.1f}: {slots} workers: {took:.2f} s, {alone / took:.2f} times as fast", flush=True)


@dataclass
class Watched:
    """CPU seconds of the machine and of its batch processes, while a night's visits are played."""

    idle: float = 0.0
    busy: float = 0.0
    batch: dict[int, float] = field(default_factory=dict)


def _machine() -> tuple[float, float]:
    """CPU seconds since the start: idle (waiting for a disk included), and used."""
    numbers = [int(each) / _TICK for each in Path("/proc/stat").read_text("ascii").split("\n")[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers) - numbers[3] - numbers[4]


class _Watch(threading.Thread):
    """Of the time from the first visit's announcement until the night winds down: while it may be joined."""

    def __init__(self, night: Path, pid: int) -> None:
        super().__init__(daemon=True)
        self._file, self._pid = night / "join.json", pid
        self.joinable, self.over, self.seen = threading.Event(), threading.Event(), Watched()

    def run(self) -> None:
        while not self._file.exists() and not self.over.wait(0.1):
            pass
        self.joinable.set()
        idle, busy = _machine()
        while self._file.exists() and not self.over.wait(1.0):
            for each in batch_processes(self._pid):
                self.seen.batch[each.pid] = max(self.seen.batch.get(each.pid, 0.0), proc.cpu_s(each.pid))
        now = _machine()
        self.seen.idle, self.seen.busy = now[0] - idle, now[1] - busy


def _night(output: Path, visits: int, detectors: str, beside: BatchRequest | None) -> Watched:
    command = [sys.executable, "-m", "cluster.cli", "night", "--visits", str(visits), "--detectors", detectors]
    command += ["--workers", str(WORKERS), "--metrics-port", "0", "--output", str(output)]
    with (output.parent / f"{output.name}.screen").open("wb") as screen:
        night = subprocess.Popen(command, stdout=screen, stderr=subprocess.STDOUT)
        watch = _Watch(output, night.pid)
        watch.start()
        try:
            if beside is not None:
                _submit(watch, beside.model_copy(update={"night": output}), output.parent / "runs")
            night.wait()
        finally:
            night.terminate()
            night.wait()
            watch.over.set()
            watch.join()
    return watch.seen


def _submit(watch: _Watch, request: BatchRequest, runs: Path) -> None:
    """By the command line, as soon as the night can be joined."""
    watch.joinable.wait()
    command = [sys.executable, "-m", "cluster.cli", "batch", "submit", "--pipeline", request.pipeline]
    command += ["--butler", str(request.butler), "--input", ",".join(request.inputs), "--output", request.output]
    command += ["--where", request.where, "--night", str(request.night), "--runs", str(runs)]
    subprocess.run(command, check=True)


def _told(name: str, output: Path, seen: Watched) -> None:
    report: dict[str, Any] = json.loads((output / "report.json").read_text("utf-8"))
    latency = report["latency"]
    figures = " / ".join(f"{latency[each]:.2f}" for each in ("median_s", "p98_s", "max_s"))
    print(f"{name}: latency median / p98 / max {figures} s, within 60 s {latency['within_60s']}")
    print(f"    CPU s of the machine: {seen.busy:.0f} used, {seen.idle:.0f} idle; batch {sum(seen.batch.values()):.0f}")


def _yields(log: Path) -> list[float]:
    """Seconds from the driver's word until every batch process stood still."""
    lines: Sequence[dict[str, Any]] = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return sorted(line["took_s"] for line in lines if line["event"] == "batch yields" and line["still"])


def night(output: Path, visits: int, detectors: str) -> None:
    """One by itself, and one beside quanta that never end."""
    output.mkdir(parents=True)
    bench = Bench(output)
    bench.make()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOREIGN), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(FOREIGN))
    print(f"load {os.getloadavg()[0]:.1f}; {visits} visits of {detectors}", flush=True)
    alone = _night(output / "alone", visits, detectors, None)
    _told("alone", output / "alone", alone)
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    beside = _night(output / "beside", visits, detectors, bench.request(20 * DETECTORS, 2.0))
    _told("beside batch", output / "beside", beside)
    took = _yields(output / "beside" / "log.jsonl")
    used = sum(beside.batch.values()) / alone.idle
    print(f"batch used {used:.0%} of the CPU seconds that the first night left idle")
    if took:
        middle, most = took[len(took) // 2], took[-1]
        print(f"batch stood still {len(took)} times, median {middle:.3f} s after the word, at most {most:.3f} s")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "scaling", "night"])
    parser.add_argument("--quanta", type=int, default=600)
    parser.add_argument("--visits", type=int, default=4)
    parser.add_argument("--detectors", default="R22_S10,R22_S11")
    parser.add_argument("--output", type=Path, default=Path("bench-nights"))
    given = parser.parse_args()
    match given.what:
        case "overhead":
            overhead(given.quanta)
        case "scaling":
            scaling(min(given.quanta, 60))
        case "night":
            night(given.output, given.visits, given.detectors)


if __name__ == "__main__":
    main()
