"""The jobs of a workflow, as the work of an Executor."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import networkx as nx  # type: ignore[import-untyped]

from cluster.batch.job_states import FAILED, RUNNING, SUCCEEDED, JobState
from cluster.batch.jobs import EXIT, Attempt, execute
from cluster.batch.request import Needs
from cluster.batch.run_folder import RunFolder
from cluster.batch.walker import LOOSE
from cluster.batch.work import Made

_HANGS = 2
"""How often a job may take longer than it asked for."""


class JobWork:
    """The jobs of a run's folder: those whose command ended with 0 are done. Only one process may have it at a time."""

    interrupted = True
    execute: Callable[[Any], Made] = staticmethod(execute)

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._workflow = folder.workflow
        self._jobs = {job.name: job for job in self._workflow.every}
        self._attempts: dict[str, int] = {}
        self._states = folder.job_states
        self._states.forget_all_but_done()

    @property
    def run(self) -> str:
        """As it was submitted."""
        return self._workflow.name

    @property
    def stages(self) -> "Sequence[nx.DiGraph[str]]":
        """The final job is a stage of its own."""
        main, final = nx.DiGraph(), nx.DiGraph()
        main.add_nodes_from(job.name for job in self._workflow.jobs)
        main.add_edges_from(self._workflow.edges)
        main.add_edges_from(self._workflow.loose, **{LOOSE: True})
        final.add_nodes_from(self._jobs.keys() - set(main))
        return [main, final]

    @property
    def labels(self) -> Sequence[str]:
        """In the order of the workflow."""
        return list(dict.fromkeys(job.label for job in self._workflow.every))

    @property
    def environment(self) -> Mapping[str, str]:
        """Where PipelineTasks are found."""
        return {"PYTHONPATH": os.pathsep.join(self._workflow.python_path)}

    def label(self, key: str) -> str:
        """Of the job."""
        return self._jobs[key].label

    def name(self, key: str) -> str:
        """The key itself."""
        return key

    def needs(self, key: str) -> Needs:
        """As it was submitted."""
        return self._jobs[key].needs

    def priority(self, key: str) -> int:
        """As it was submitted."""
        return self._jobs[key].priority

    def done(self) -> AbstractSet[str]:
        """What earlier coordinators did; never the final job, which sums up what all of them did."""
        done = {state.name for state in self._states.read().values() if state.state == SUCCEEDED}
        return done & {job.name for job in self._workflow.jobs}

    def begin(self, key: str, attempt: int, needs: Needs) -> Attempt:
        """What a worker is told."""
        job = self._jobs[key]
        self._attempts[key] = attempt
        self._states.add(JobState(key, RUNNING, attempt))
        words = self._folder.last_words(key, attempt)
        return Attempt(job, needs, self._folder.path / job.log, self._workflow.folder, words)

    def attempts(self, key: str, made: Made) -> int:
        """As it was submitted, but a job that hung is not left to hang again and again."""
        job = self._jobs[key]
        if made.error == EXIT and int(made.told) in job.final_exits:
            return 1
        return min(_HANGS, 1 + job.retries) if made.error == "hung" else 1 + job.retries

    def more_memory(self, key: str, needs: Needs) -> Needs:
        """As it was submitted."""
        job = self._jobs[key]
        more = max(int(needs.memory_mb * job.memory_growth), needs.memory_mb)
        return needs.model_copy(update={"memory_mb": min(more, job.memory_max_mb or more)})

    def end(self, key: str, made: Made) -> None:
        """Written down at once."""
        state = FAILED if made.error else SUCCEEDED
        code = int(made.told or 128 + signal.SIGKILL)  # its process was killed before it could tell
        self._states.add(JobState(key, state, self._attempts[key], code, made.seconds, made.memory_mb, made.message))

    def keep_due(self) -> None:
        """All is written down."""

    def keep(self) -> None:
        """The same."""
