"""The coordinator of a batch run: follows a quantum graph's edges, and has Ray execute what is ready."""

import dataclasses
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import UUID

import ray
import structlog
from lsst.daf.butler import Butler, Quantum
from lsst.pipe.base.graph_walker import GraphWalker
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from cluster.batch.ledger import Ledger
from cluster.batch.quanta import FINAL, Made, QuantumJob, execute
from cluster.batch.request import BatchRequest, Needs
from cluster.batch.run_folder import CANCELED, DONE, FAILED, Failure, Progress, RunFolder, Steps
from schemas.clock import Clock

ATTEMPTS = {FINAL: 1, "unknown": 2, "memory": 2, "hung": 2, "died": 3, "transient": 5}
"""How often a quantum is tried, by what became of the last attempt."""

BACKOFF_S = 1.0
"""Before the second attempt; twice as long before each further one."""

_POLL_S, _TELL_S = 0.2, 1.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Waiting:
    """A quantum to be executed, not before a time (monotonic s)."""

    id: UUID
    attempt: int
    not_before: float
    needs: Needs


@dataclass(frozen=True)
class Running:
    """An attempt under way, and when it is given up (monotonic s)."""

    waiting: Waiting
    give_up: float
    hung: bool = False


class Executor:
    """One run, until all that can be done is done.

    `slots`: asked again and again, how many CPUs it may use now.
    """

    def __init__(
        self,
        folder: RunFolder,
        graph: PredictedQuantumGraph,
        butler: Butler,
        run: str,
        slots: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._request: BatchRequest = folder.request
        self._graph = graph
        self._quanta: dict[UUID, Quantum] = graph.build_execution_quanta()
        self._labels: dict[UUID, str] = {
            quantum_id: label for label, quanta in graph.quanta_by_task.items() for quantum_id in quanta.values()
        }
        self._ledger = Ledger(butler, self._quanta)
        self._walker: GraphWalker[UUID] = GraphWalker(graph.quantum_only_xgraph.copy())
        self._slots = slots
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._running: dict[Any, Running] = {}
        self._told = 0.0
        environment = {"PACHON_BATCH": "1", "PYTHONPATH": os.pathsep.join(self._request.python_path)}
        self._environment = {"env_vars": environment}
        self._remote = ray.remote(execute)
        totals = Counter(self._labels.values())
        steps = {label: Steps(total=totals[label]) for label in graph.quanta_by_task}
        self.progress = Progress(run=run, pid=os.getpid(), started=clock.now(), steps=steps)

    def run(self) -> Progress:
        """Execute what the registry lacks. What is under way when the run is canceled is killed."""
        for quantum_id in self._ledger.done(self._graph):
            self._walker.finish(quantum_id)
            self._step(quantum_id).kept += 1
        try:
            for ready in self._walker:
                self._queue.extend(self._first(quantum_id) for quantum_id in sorted(ready, key=self._order))
                if self._folder.canceled:
                    return self._end(CANCELED)
                self._start()
                self._settle()
                self._tell()
        finally:
            self._kill_all()
            self._ledger.keep()
        return self._end(FAILED if self.progress.failed else DONE)

    def _order(self, quantum_id: UUID) -> tuple[str, str]:
        return self._labels[quantum_id], str(self._quanta[quantum_id].dataId)

    def _first(self, quantum_id: UUID) -> Waiting:
        return Waiting(quantum_id, 1, 0.0, self._request.needs_of(self._labels[quantum_id]))

    def _step(self, quantum_id: UUID) -> Steps:
        return self.progress.steps[self._labels[quantum_id]]

    def _start(self) -> None:
        """Hand quanta to Ray while there are slots; one that needs more than there are has all of them."""
        slots, now = self._slots(), time.monotonic()
        used = sum(running.waiting.needs.cpus for running in self._running.values())
        for _ in range(len(self._queue)):
            waiting = self._queue.popleft()
            fits = used + min(waiting.needs.cpus, max(slots, 1)) <= slots
            if not fits or waiting.not_before > now:
                self._queue.append(waiting)
                continue
            self._hand_over(waiting, now)
            used += waiting.needs.cpus

    def _hand_over(self, waiting: Waiting, now: float) -> None:
        quantum, needs = self._quanta[waiting.id], waiting.needs
        job = QuantumJob(
            str(self._request.butler), str(self._folder.graph), self._labels[waiting.id], waiting.id,
            pickle.dumps(quantum), needs, str(self._folder.last_words(waiting.id, waiting.attempt)),
        )  # fmt: skip
        ref = self._remote.options(
            num_cpus=needs.cpus, memory=needs.memory_mb * 10**6, name=f"batch {job.label}", max_retries=0,
            runtime_env=self._environment,
        ).remote(job)  # fmt: skip
        self._running[ref] = Running(waiting, now + needs.deadline_s)
        self._step(waiting.id).running += 1

    def _settle(self) -> None:
        """Wait a moment for what is under way, and deal with what has ended."""
        if not self._running:
            time.sleep(_POLL_S if self._queue else 0.0)  # only attempts that are not due yet, or no slots
            return
        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0.0)
        for ref in {*ended, *more}:
            running = self._running.pop(ref)
            self._step(running.waiting.id).running -= 1
            self._settle_one(running, self._made(ref, running))
        self._kill_hanging()

    def _made(self, ref: Any, running: Running) -> Made:  # noqa: ANN401 - Ray's references are untyped
        """What an attempt came to, also if its process did not live to say so."""
        try:
            made: Made = ray.get(ref)
        except (ray.exceptions.RayError, ray.exceptions.TaskCancelledError) as error:
            if running.hung:
                return Made(0.0, 0.0, error="hung", message=f"not done within {running.waiting.needs.deadline_s:g} s")
            return self._last_words(running.waiting, error)
        return made

    def _last_words(self, waiting: Waiting, error: Exception) -> Made:
        words = self._folder.last_words(waiting.id, waiting.attempt)
        if words.exists():
            told = words.read_text(encoding="utf-8")
            words.unlink()
            return Made(0.0, 0.0, error="memory", message=told)
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return Made(0.0, 0.0, error="memory", message="killed by Ray: its node ran out of memory")
        return Made(0.0, 0.0, error="died", message=f"its process died: {str(error).splitlines()[0]}")

    def _settle_one(self, running: Running, made: Made) -> None:
        waiting = running.waiting
        step = self._step(waiting.id)
        if not made.error:
            self._walker.finish(waiting.id)
            self._ledger.add(waiting.id, made.provenance)
            step.done += 1
            step.seconds += made.seconds
            return
        named = {"label": self._labels[waiting.id], "data_id": str(self._quanta[waiting.id].dataId)}
        _log.warning("quantum failed", error=made.error, message=made.message, attempt=waiting.attempt, **named)
        if waiting.attempt < ATTEMPTS[made.error]:
            self.progress.retried += 1
            self._queue.append(_again(waiting, made))
            return
        step.failed += 1
        for blocked in self._walker.fail(waiting.id):
            self._step(blocked).blocked += 1
        self.progress.failures.append(
            Failure(named["label"], named["data_id"], made.error, made.message, waiting.attempt)
        )

    def _kill_hanging(self) -> None:
        now = time.monotonic()
        for ref, running in self._running.items():
            if now > running.give_up and not running.hung:
                self._running[ref] = dataclasses.replace(running, hung=True)
                ray.cancel(ref, force=True)

    def _kill_all(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)

    def _tell(self) -> None:
        now = self._clock.now()
        if now - self._told > _TELL_S:
            self._told = self.progress.updated = now
            self.progress.ends_at = self._estimate(now)
            self._folder.tell(self.progress)

    def _estimate(self, now: float) -> float:
        """When it will end: what is left of each step, as long as those before took; 0 if none of any is done."""
        means = {label: step.seconds / step.done for label, step in self.progress.steps.items() if step.done}
        if not means:
            return 0.0
        guess = median(means.values())
        left = sum(step.left * means.get(label, guess) for label, step in self.progress.steps.items())
        return now + left / max(self._slots(), 1)

    def _end(self, state: str) -> Progress:
        self._kill_all()
        self._ledger.keep()
        self.progress.state = state
        self.progress.updated = self.progress.ends_at = self._clock.now()
        for step in self.progress.steps.values():
            step.running = 0
        self._folder.tell(self.progress)
        return self.progress


def _again(waiting: Waiting, made: Made) -> Waiting:
    """The next attempt: later and later, with double the memory if that was what lacked."""
    needs = waiting.needs
    if made.error == "memory":
        needs = needs.model_copy(update={"memory_mb": 2 * needs.memory_mb})
    pause = BACKOFF_S * 2.0 ** (waiting.attempt - 1)
    return Waiting(waiting.id, waiting.attempt + 1, time.monotonic() + pause, needs)
