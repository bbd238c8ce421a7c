"""The coordinator of a batch run: follows the edges of its work, and has Ray execute what is ready."""

import bisect
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, median
from typing import Any, Generic

import networkx as nx  # type: ignore[import-untyped]
import ray
import structlog

from cluster.batch.request import Needs
from cluster.batch.run_folder import CANCELED, DONE, FAILED, Failure, Progress, RunFolder, Steps
from cluster.batch.walker import Walker
from cluster.batch.work import Key, Made, Work
from schemas.clock import Clock

BACKOFF_S = 1.0
"""Before the second attempt; twice as long before each further one."""

END_S = 120.0
"""What a process may take, beyond twice its deadline, to end."""

_POLL_S, _TELL_S, _KILLED_S = 0.2, 1.0, 10.0

_MOST = 10_000

_log = structlog.get_logger()


@dataclass(frozen=True)
class Waiting(Generic[Key]):
    """A unit of work to be executed, not before a time (monotonic s)."""

    id: Key
    attempt: int
    not_before: float
    needs: Needs


@dataclass(frozen=True)
class Running(Generic[Key]):
    """An attempt under way, whether its process has begun, and how long there were slots for it since, s."""

    waiting: Waiting[Key]
    begun: bool = False
    had: float = 0.0
    hung: bool = False


class Executor(Generic[Key]):
    """One run, until all that can be done is done.

    `slots`: asked again and again, how many CPUs it may use now.
    """

    def __init__(self, folder: RunFolder, work: Work[Key], slots: Callable[[], int], clock: Clock) -> None:
        self._folder = folder
        self._work = work
        self._slots = slots
        self._clock = clock
        self._walker: Walker[Key] = Walker(nx.DiGraph())
        self._queue: list[Waiting[Key]] = []
        self._running: dict[Any, Running[Key]] = {}
        self._told = 0.0
        self._pace = 1
        """CPUs of late, while there were any."""
        self._environment = {"env_vars": {"PACHON_BATCH": "1", **work.environment}}
        self._remote = ray.remote(work.execute)
        every = [(work.label(key), work.needs(key).cpus) for stage in work.stages for key in stage]
        totals = Counter(label for label, _ in every)
        steps = {label: Steps(total=totals[label]) for label in work.labels}
        self._cpus = {name: fmean(cpus for label, cpus in every if label == name) for name in totals}
        self.progress = Progress(run=work.run, pid=os.getpid(), started=clock.now(), steps=steps)

    def run(self) -> Progress:
        """Execute what is not done. What is under way when the run is canceled is killed."""
        try:
            for stage in self._work.stages:
                if not self._walk(stage):
                    return self._end(CANCELED)
        finally:
            self._kill_all()
            self._work.keep()
        return self._end(FAILED if self.progress.failed else DONE)

    def _walk(self, stage: "nx.DiGraph[Key]") -> bool:
        """Whether it was walked to its end, and not canceled."""
        done = self._work.done() & set(stage)
        self._walker = Walker(nx.DiGraph(stage.subgraph(set(stage) - done)))
        for key in done:
            self._step(key).kept += 1
        for ready in self._walker:
            for key in sorted(ready, key=self._order):
                self._wait(Waiting(key, 1, 0.0, self._work.needs(key)))
            if self._folder.canceled:
                return False
            self._start()
            self._settle()
            self._tell()
        return True

    def wanted(self) -> int:
        """CPUs of all that is ready or under way, as far as any cluster may have them."""
        running = (each.waiting for each in self._running.values())
        return sum(each.needs.cpus for each in islice(chain(running, self._queue), _MOST))

    def _order(self, key: Key) -> tuple[str, str]:
        return self._work.label(key), self._work.name(key)

    def _wait(self, waiting: Waiting[Key]) -> None:
        """Queue it behind all that has its priority or more."""
        bisect.insort(self._queue, waiting, key=lambda each: -self._work.priority(each.id))

    def _step(self, key: Key) -> Steps:
        return self.progress.steps[self._work.label(key)]

    def _start(self) -> None:
        """Hand to Ray while there are slots; what needs more than there are has all of them."""
        slots, now = self._slots(), time.monotonic()
        used = sum(running.waiting.needs.cpus for running in self._running.values())
        left: list[Waiting[Key]] = []
        for place, waiting in enumerate(self._queue):
            if used >= slots:
                left += self._queue[place:]
                break
            fits = used + min(waiting.needs.cpus, max(slots, 1)) <= slots
            if not fits or waiting.not_before > now:
                left.append(waiting)
                continue
            self._hand_over(waiting)
            used += waiting.needs.cpus
        self._queue = left

    def _hand_over(self, waiting: Waiting[Key]) -> None:
        label, needs, room = self._work.label(waiting.id), waiting.needs, _largest_node()
        self._words(waiting).unlink(missing_ok=True)  # of an earlier coordinator's
        ref = self._remote.options(
            num_cpus=min(needs.cpus, room["CPU"]), memory=min(needs.memory_mb * 10**6, room["memory"]),
            name=f"batch {label}", max_retries=0, runtime_env=self._environment,
        ).remote(self._work.begin(waiting.id, waiting.attempt, needs))  # fmt: skip
        self._running[ref] = Running(waiting)
        self._step(waiting.id).running += 1

    def _settle(self) -> None:
        """Wait a moment for what is under way, and deal with what has ended."""
        if not self._running:
            time.sleep(_POLL_S if self._queue else 0.0)  # only attempts that are not due yet, or no slots
            return
        started = time.monotonic()
        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0.0)
        for ref in {*ended, *more}:
            running = self._running.pop(ref)
            self._step(running.waiting.id).running -= 1
            self._settle_one(running, self._made(ref, running))
        self._kill_hanging(time.monotonic() - started)

    def _made(self, ref: Any, running: Running[Key]) -> Made:  # noqa: ANN401 - Ray's references are untyped
        """What an attempt came to, also if its process did not live to say so."""
        try:
            made: Made = ray.get(ref)
        except (ray.exceptions.RayError, ray.exceptions.TaskCancelledError) as error:
            if running.hung:
                return Made(0.0, 0.0, error="hung", message=f"not done within {running.waiting.needs.deadline_s:g} s")
            return self._last_words(running.waiting, error)
        finally:
            self._words(running.waiting).unlink(missing_ok=True)
        return made

    def _words(self, waiting: Waiting[Key]) -> Path:
        return self._folder.last_words(waiting.id, waiting.attempt)

    def _last_words(self, waiting: Waiting[Key], error: Exception) -> Made:
        words = self._words(waiting)
        kind, _, message = (words.read_text(encoding="utf-8") if words.exists() else "").partition(" ")
        if kind:
            return Made(0.0, 0.0, error=kind, message=message)
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return Made(0.0, 0.0, error="memory", message="killed by Ray: its node ran out of memory")
        return Made(0.0, 0.0, error="died", message=f"its process died: {str(error).splitlines()[0]}")

    def _settle_one(self, running: Running[Key], made: Made) -> None:
        waiting = running.waiting
        step = self._step(waiting.id)
        if not made.error:
            self._walker.finish(waiting.id)
            self._work.end(waiting.id, made)
            step.done += 1
            step.seconds += min(made.seconds, running.had + 2.0 * _POLL_S)  # it may have stood still meanwhile
            return
        label, name = self._order(waiting.id)
        _log.warning(
            "attempt failed", label=label, name=name, error=made.error, message=made.message, attempt=waiting.attempt
        )
        if waiting.attempt < self._work.attempts(waiting.id, made):
            self.progress.retried += 1
            self._wait(self._again(waiting, made))
            return
        self._work.end(waiting.id, made)
        step.failed += 1
        for blocked in self._walker.fail(waiting.id):
            self._step(blocked).blocked += 1
        self.progress.failures.append(Failure(label, name, made.error, made.message, waiting.attempt))

    def _again(self, waiting: Waiting[Key], made: Made) -> Waiting[Key]:
        """The next attempt: later and later, with more memory if that was what lacked."""
        needs = waiting.needs
        if made.error == "memory":
            needs = self._work.more_memory(waiting.id, needs)
        pause = BACKOFF_S * 2.0 ** (waiting.attempt - 1)
        return Waiting(waiting.id, waiting.attempt + 1, time.monotonic() + pause, needs)

    def _kill_hanging(self, seconds: float) -> None:
        """Kill what its own process did not, in twice its deadline: one that holds Python's lock cannot."""
        if not self._slots():
            return
        for ref, running in self._running.items():
            begun = running.begun or self._words(running.waiting).exists()  # else it waits for room, in Ray's queue
            had = running.had + seconds if begun else 0.0
            hung = had > 2.0 * running.waiting.needs.deadline_s + END_S
            if hung and not running.hung:
                ray.cancel(ref, force=not self._work.interrupted)
            self._running[ref] = dataclasses.replace(running, begun=begun, had=had, hung=hung)

    def _kill_all(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=not self._work.interrupted)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_KILLED_S)
        for running in self._running.values():
            self._words(running.waiting).unlink(missing_ok=True)

    def _tell(self) -> None:
        now = self._clock.now()
        if now - self._told > _TELL_S:
            self._told = self.progress.updated = now
            self.progress.ends_at = self._estimate(now)
            self._folder.tell(self.progress)
            self._work.keep_due()

    def _estimate(self, now: float) -> float:
        """When it will end; 0 if nothing is done.

        What is left of each step takes as long as what was done of it, all CPUs share it, and one unit is not shared.
        """
        means = {label: step.seconds / step.done for label, step in self.progress.steps.items() if step.done}
        if not means:
            return 0.0
        guess = median(means.values())
        self._pace = self._slots() or self._pace
        rounds = {
            label: max(step.left * self._cpus[label] / self._pace, 1.0)
            for label, step in self.progress.steps.items()
            if step.left
        }
        return now + sum(means.get(label, guess) * number for label, number in rounds.items())

    def _end(self, state: str) -> Progress:
        self._kill_all()
        self._work.keep()
        self.progress.state = state
        self.progress.updated = self.progress.ends_at = self._clock.now()
        for step in self.progress.steps.values():
            step.running = 0
        self._folder.tell(self.progress)
        return self.progress


def _largest_node() -> dict[str, float]:
    """The most CPUs, and the most memory (bytes), that a node of the cluster has: Ray waits forever for more."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return {kind: max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "memory")}
