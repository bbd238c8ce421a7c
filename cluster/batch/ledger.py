"""What a run's quanta made, written into the Butler's registry: by one process, many at a time."""

import itertools
import time
from collections.abc import Iterable, Mapping
from uuid import UUID

import structlog
from lsst.daf.butler import Butler, DatasetRef, Quantum, QuantumProvenanceData
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from sqlalchemy.exc import OperationalError

from schemas.errors import Transient

EVERY_S, MANY = 1.0, 500
"""How long what was made waits at most, and how many quanta wait."""

PATIENCE_S = 600.0
"""How long a registry may not answer, or have no room, before the run ends."""


class Ledger:
    """The registry of a run. `quanta`: by id, all of them."""

    def __init__(self, butler: Butler, quanta: Mapping[UUID, Quantum]) -> None:
        self._butler = butler
        self._quanta = quanta
        self._waiting: dict[UUID, str] = {}
        self._last = self._kept = time.monotonic()

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
        """A quantum that succeeded; kept soon. Raises as `keep_due` does."""
        if not self._waiting:
            self._kept = time.monotonic()
        self._waiting[quantum_id] = provenance
        self.keep_due()

    def keep_due(self) -> None:
        """Write what waits, if it is time to. Raises Transient if nothing can be written, for `PATIENCE_S`."""
        soon = len(self._waiting) < MANY and time.monotonic() - self._last <= EVERY_S
        if soon or not self._waiting:
            return
        try:
            self.keep()
        except Transient as error:
            if time.monotonic() - self._kept > PATIENCE_S:
                raise
            structlog.get_logger().warning("not kept yet", quanta=len(self._waiting), error=str(error))

    def keep(self) -> None:
        """Write what waits. Raises Transient, and it waits on, if the registry cannot be written."""
        try:
            self._write()
        except OperationalError as error:
            raise Transient(f"the registry cannot be written: {error.orig}") from error
        finally:
            self._last = time.monotonic()  # a locked registry takes minutes to say so: not again for the next quantum
        self._waiting = {}

    def _write(self) -> None:
        quanta = [self._quanta[quantum_id] for quantum_id in self._waiting]
        made: Iterable[QuantumProvenanceData] = map(QuantumProvenanceData.model_validate_json, self._waiting.values())
        with self._butler.transaction():
            # Of a quantum that is done again, as its metadata were gone or it failed: files are known once only.
            self._butler._datastore.forget(itertools.chain.from_iterable(map(_outputs, quanta)))  # noqa: SLF001
            QuantumProvenanceData.collect_and_transfer(self._butler, quanta, made)


def _outputs(quantum: Quantum) -> Iterable[DatasetRef]:
    return itertools.chain.from_iterable(quantum.outputs.values())
