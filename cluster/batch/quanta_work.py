"""The quanta of a graph, as the work of an Executor."""

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any
from uuid import UUID

import networkx as nx  # type: ignore[import-untyped]
from lsst.daf.butler import Butler, Quantum

from cluster.batch import graph
from cluster.batch.ledger import Ledger
from cluster.batch.quanta import FINAL, QuantumJob, execute
from cluster.batch.request import Needs
from cluster.batch.run_folder import RunFolder
from cluster.batch.work import Made

ATTEMPTS = {FINAL: 1, "unknown": 2, "memory": 2, "hung": 2, "died": 3, "transient": 5}
"""How often a quantum is tried, by what became of the last attempt."""


class QuantaWork:
    """The quanta of a run's folder: what the Butler's registry has is done. `run`: the collection that they write."""

    interrupted = False

    def __init__(self, folder: RunFolder, butler: Butler, run: str) -> None:
        self.run = run
        self._folder = folder
        self._request = folder.request
        self._graph = graph.opened(folder)
        self._quanta: dict[UUID, Quantum] = self._graph.build_execution_quanta()
        self._ledger = Ledger(butler, self._quanta)
        self._labels: dict[UUID, str] = {
            quantum_id: label for label, quanta in self._graph.quanta_by_task.items() for quantum_id in quanta.values()
        }

    @property
    def stages(self) -> "Sequence[nx.DiGraph[UUID]]":
        """One: the graph."""
        return [self._graph.quantum_only_xgraph]

    @property
    def labels(self) -> Sequence[str]:
        """Those of the pipeline."""
        return list(self._graph.quanta_by_task)

    @property
    def execute(self) -> Callable[[Any], Made]:
        """By pipe_base, in the worker's own process."""
        return execute

    @property
    def environment(self) -> Mapping[str, str]:
        """Where PipelineTasks are found."""
        return {"PYTHONPATH": os.pathsep.join(self._request.python_path)}

    def label(self, key: UUID) -> str:
        """Its PipelineTask's."""
        return self._labels[key]

    def name(self, key: UUID) -> str:
        """Its data id."""
        return str(self._quanta[key].dataId)

    def needs(self, key: UUID) -> Needs:
        """As the request has it."""
        return self._request.needs_of(self._labels[key])

    def priority(self, key: UUID) -> int:
        """Visit by visit: what a process has read for one quantum serves the next."""
        data_id = self._quanta[key].dataId
        assert data_id is not None
        return -int(data_id.mapping.get("visit", 0))

    def done(self) -> AbstractSet[UUID]:
        """What the registry has."""
        return self._ledger.done(self._graph)

    def begin(self, key: UUID, attempt: int, needs: Needs) -> QuantumJob:
        """What a worker is told."""
        quantum, words = pickle.dumps(self._quanta[key]), self._folder.last_words(key, attempt)
        return QuantumJob(
            str(self._request.butler), str(self._folder.graph), self._labels[key], key, quantum, needs, words
        )

    def attempts(self, key: UUID, made: Made) -> int:  # noqa: ARG002 - every quantum's
        """By the class of the error."""
        return ATTEMPTS[made.error]

    def more_memory(self, key: UUID, needs: Needs) -> Needs:  # noqa: ARG002 - every quantum's
        """Double."""
        return needs.model_copy(update={"memory_mb": 2 * needs.memory_mb})

    def end(self, key: UUID, made: Made) -> None:
        """What it made goes to the registry, soon; of one that failed, its log."""
        if made.told:
            self._ledger.add(key, made.told)

    def keep_due(self) -> None:
        """To the registry, if what waits has waited long enough."""
        self._ledger.keep_due()

    def keep(self) -> None:
        """To the registry, now."""
        self._ledger.keep()
