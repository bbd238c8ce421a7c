"""What a worker process does with a quantum: executes it on a quantum-backed Butler that it keeps warm."""

import ctypes
import gc
import itertools
import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lsst.daf.butler import ButlerConfig, DatasetRef, Quantum, QuantumBackedButler, QuantumProvenanceData
from lsst.pipe.base import ExecutionResources, InvalidQuantumError, RepeatableQuantumError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from sqlalchemy.exc import DBAPIError

from cluster.batch.keeper import take_second_place
from cluster.batch.request import Needs
from cluster.batch.work import Made
from cluster.proc import resident_mb
from schemas.errors import BadData, Transient

WATCH_S = 0.2
"""How often a process looks at its memory."""

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class QuantumJob:
    """What a worker is told. `quantum`: pickled."""

    butler: str
    graph: str
    label: str
    id: uuid.UUID
    quantum: bytes
    needs: Needs
    last_words: Path
    """See `RunFolder.last_words`."""


class _WarmButler(QuantumBackedButler):
    """A datastore that quantum after quantum is executed on: opening one takes 50 ms, most of it configuration."""

    _known: tuple[DatasetRef, ...] = ()

    def of(self, quantum: Quantum) -> QuantumBackedButler:
        """A Butler that knows this quantum's datasets and no others; the one before must not be used any more."""
        inputs = [*itertools.chain.from_iterable(quantum.inputs.values()), *quantum.initInputs.values()]
        outputs = list(itertools.chain.from_iterable(quantum.outputs.values()))
        self._datastore.forget(self._known)
        self._known = (*inputs, *outputs)
        self._datastore.import_records(quantum.datastore_records)
        return QuantumBackedButler(
            [ref.id for ref in inputs], [ref.id for ref in outputs], self.dimensions, self._datastore,
            self.storageClasses, dataset_types=self._dataset_types,
        )  # fmt: skip


def execute(job: QuantumJob) -> Made:
    """Execute a quantum; what it raises is told, not raised. Partial outputs of an earlier attempt are removed.

    What it made is told as `QuantumProvenanceData`, in JSON; of one that failed, the log that it has left.
    """
    take_second_place()
    logging.getLogger().setLevel(logging.INFO)  # what a quantum logs is kept as a dataset beside its outputs
    job.last_words.touch()
    started = time.monotonic()
    _make_room(job)
    with _bounded(job):
        told: list[str] = []
        try:
            _execute(job, told)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a PipelineTask raises is told by its class
            return _made(started, "".join(told), error=error_class(error), message=f"{type(error).__name__}: {error}")
        return _made(started, *told)


def _made(started: float, told: str, **failure: str) -> Made:
    return Made(time.monotonic() - started, resident_mb(os.getpid()), told, **failure)


def _execute(job: QuantumJob, told: list[str]) -> None:
    pipeline, butler = _opened(job.butler, job.graph)
    quantum: Quantum = pickle.loads(job.quantum)  # noqa: S301 - our own coordinator's
    step, limited = pipeline.tasks[job.label], butler.of(quantum)
    resources = ExecutionResources(num_cores=job.needs.cpus, max_mem=f"{job.needs.memory_mb} MB")
    executor = SingleQuantumExecutor(
        limited_butler_factory=lambda _: limited, clobber_outputs=True, resources=resources
    )
    try:
        executor.execute(step, quantum, job.id)
    except BaseException:
        if step.log_output is not None:
            told.append(_only(limited, quantum.outputs[step.log_output.dataset_type_name]))
        raise
    told.append(limited.extract_provenance_data().model_dump_json())


def _only(butler: QuantumBackedButler, refs: Iterable[DatasetRef]) -> str:
    """What is told of a quantum of which only these outputs are to be kept."""
    kept = [ref for ref in refs if butler.stored(ref)]
    records = {name: found.to_simple() for name, found in butler._datastore.export_records(kept).items()}  # noqa: SLF001
    ids = {ref.id for ref in kept}
    return QuantumProvenanceData(
        predicted_inputs=set(), available_inputs=set(), actual_inputs=set(), predicted_outputs=ids, actual_outputs=ids,
        datastore_records=records,
    ).model_dump_json()  # fmt: skip


def _make_room(job: QuantumJob) -> None:
    """Give back what earlier quanta took: freed memory stays a process's own (see `cluster`).

    Ends the process if they have left too much behind for this one.
    """
    if not _opened.cache_info().currsize or resident_mb(os.getpid()) < 0.5 * job.needs.memory_mb:
        return
    gc.collect()
    _LIBC.malloc_trim(0)
    if (held := resident_mb(os.getpid())) > job.needs.memory_mb:
        _end(job, "died", f"its process still held {held:.0f} MB of earlier quanta, more than this one asked for")


@lru_cache(maxsize=1)
def _opened(repository: str, graph: str) -> tuple[PipelineGraph, _WarmButler]:
    """The pipeline of a graph's file, and a warm Butler: one run's at a time."""
    with PredictedQuantumGraph.open(graph) as reader:
        pipeline = reader.pipeline_graph
    types = {node.name: node.dataset_type for node in pipeline.dataset_types.values()}
    warm = _WarmButler.from_predicted(ButlerConfig(repository), [], [], pipeline.universe, {}, dataset_types=types)
    assert isinstance(warm, _WarmButler)
    return pipeline, warm


FINAL = "refused"
"""The class of errors that come again, however often a quantum is executed."""


def error_class(error: BaseException) -> str:
    """How an exception is dealt with, a key of `quanta_work.ATTEMPTS`: by the first of its causes that is known.

    The Data Butler wraps what a formatter raises.
    """
    cause: BaseException | None = error
    while cause is not None:
        if known := _class_of(cause):
            return known
        cause = cause.__cause__
    return "unknown"


def _class_of(error: BaseException) -> str:
    match error:
        case MemoryError():
            return "memory"
        case BadData() | InvalidQuantumError() | RepeatableQuantumError() | FileNotFoundError():
            return FINAL
        case Transient() | DBAPIError() | TimeoutError() | ConnectionError():
            return "transient"
        case OSError() if error.errno is not None:  # else not of the system: astropy raises such for a broken file
            return "transient"
    return ""


@contextmanager
def _bounded(job: QuantumJob) -> Iterator[None]:
    """End this process, with last words, if the quantum takes more memory or time than it asked for.

    Time in which the process stands still, for prompt work to go first, does not count.
    """
    done = threading.Event()

    def watch() -> None:
        ran = 0.0
        while not done.wait(WATCH_S):
            ran += WATCH_S
            if (used := resident_mb(os.getpid())) > job.needs.memory_mb:
                _end(job, "memory", f"used {used:.0f} MB, asked for {job.needs.memory_mb}")
            if ran > job.needs.deadline_s:
                _end(job, "hung", f"not done within {job.needs.deadline_s:g} s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _end(job: QuantumJob, error: str, message: str) -> None:
    try:
        job.last_words.write_text(f"{error} {message}", encoding="utf-8")
    finally:
        os._exit(os.EX_SOFTWARE)
