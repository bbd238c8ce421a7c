"""What a run's quanta made, written into the Butler's registry: by one process, many at a time."""

import time
from collections.abc import Iterable, Mapping
from uuid import UUID

from lsst.daf.butler import Butler, Quantum, QuantumProvenanceData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

EVERY_S, MANY = 1.0, 500
"""How long what was made waits at most, and how many quanta wait."""


class Ledger:
    """The registry of a run. `quanta`: by id, all of them."""

    def __init__(self, butler: Butler, quanta: Mapping[UUID, Quantum]) -> None:
        self._butler = butler
        self._quanta = quanta
        self._waiting: dict[UUID, str] = {}
        self._last = time.monotonic()

    def done(self, graph: PredictedQuantumGraph) -> set[UUID]:
        """The quanta whose metadata, the last thing that is written of one, the registry has."""
        metadata = {
            label: graph.pipeline_graph.tasks[label].metadata_output.dataset_type_name for label in graph.quanta_by_task
        }
        wanted = {
            quantum_id: next(iter(self._quanta[quantum_id].outputs[metadata[label]]))
            for label, quanta in graph.quanta_by_task.items()
            for quantum_id in quanta.values()
        }
        stored = self._butler.stored_many(wanted.values())
        return {quantum_id for quantum_id, ref in wanted.items() if stored[ref]}

    def add(self, quantum_id: UUID, provenance: str) -> None:
        """A quantum that succeeded; kept soon."""
        self._waiting[quantum_id] = provenance
        if len(self._waiting) >= MANY or time.monotonic() - self._last > EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, {}
        quanta = [self._quanta[quantum_id] for quantum_id in waiting]
        made: Iterable[QuantumProvenanceData] = map(QuantumProvenanceData.model_validate_json, waiting.values())
        with self._butler.transaction():
            QuantumProvenanceData.collect_and_transfer(self._butler, quanta, made)
        self._last = time.monotonic()
