"""A run's quantum graph: built from pipeline and Butler once, kept, and read again by every coordinator."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from lsst.daf.butler import (  # type: ignore[attr-defined] # CollectionType is not in its __all__
    Butler,
    CollectionType,
    MissingCollectionError,
)
from lsst.pipe.base import Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath
from sqlalchemy.exc import OperationalError

from cluster.batch.request import BatchRequest
from cluster.batch.run_folder import RunFolder
from schemas.errors import BadData, PachonError, Transient

_WORDS = {
    "contracts", "description", "imports", "inherits", "instrument", "parameters", "steps", "subsets", "tasks",
}  # fmt: skip
"""Of a pipeline's file; those of a step in it are class and config. pipe_base passes over all others."""


class NothingToDo(BadData):
    """All that was asked for is there already."""


def build(folder: RunFolder, run: str) -> int:
    """Build the graph of a run's request, with `run` as its RUN collection, and keep it; how many quanta it has.

    What the quanta will need of the repository is made, too: collections, dataset types, configurations, versions.
    Raises BadData, naming the pipeline, for anything that cannot be made a graph of, and for one without quanta;
    NothingToDo, if that is for the results that are there; Transient, if the registry does not answer.
    """
    request = folder.request
    try:
        pipeline = _pipeline(request)
        butler = _butler(request, run)
        there = _earlier(request, butler)
        builder = AllDimensionsQuantumGraphBuilder(
            pipeline, butler, where=request.where, input_collections=[*there, *request.inputs], skip_existing_in=there
        )
        components = builder.finish(metadata={"data_query": request.where}, attach_datastore_records=True)
        quanta = components.header.n_quanta
        _check_number(quanta, request, there)
        components.write(str(folder.graph))
        _prepare(butler, folder, request, run)
    except PachonError:
        raise
    except OperationalError as error:
        raise Transient(f"{request.butler}: {error}") from error
    except Exception as error:  # a pipeline is code, and may raise anything
        raise BadData(f"{request.pipeline}: {type(error).__name__}: {error}") from error
    return quanta


def _check_number(quanta: int, request: BatchRequest, there: Sequence[str]) -> None:
    if not quanta and there:
        raise NothingToDo(f"{request.pipeline}: {request.output} has all of it")
    if not quanta:
        raise BadData(f"{request.pipeline}: no quanta: nothing in {', '.join(request.inputs)} fits {request.where!r}")


def _pipeline(request: BatchRequest) -> PipelineGraph:
    _check_words(request.pipeline)
    pipeline = Pipeline.from_uri(request.pipeline)
    for setting in request.settings:
        label, _, rest = setting.partition(":")
        option, _, value = rest.partition("=")
        if not (label and option and value):
            raise BadData(f"{setting!r} is not label:option=value")
        pipeline.addConfigOverride(label, option, value)
    return pipeline.to_graph()


def _check_words(pipeline: str) -> None:
    """Raise BadData for words of a pipeline's own file that nobody would read."""
    told = yaml.safe_load(ResourcePath(pipeline.partition("#")[0]).read())
    if unknown := list(_unknown_words(told)):
        raise BadData(f"{pipeline}: {'; '.join(unknown)}")


def labels_of(pipeline: str) -> list[str]:
    """Of a pipeline's steps. Raises BadData for one that cannot be read."""
    try:
        return list(Pipeline.from_uri(pipeline).task_labels)
    except Exception as error:
        raise BadData(f"{pipeline}: {type(error).__name__}: {error}") from error


def _unknown_words(told: Any) -> Iterator[str]:  # noqa: ANN401 - YAML
    if not isinstance(told, dict):
        yield "not a table"
        return
    yield from (f"{word!r} is none of {', '.join(sorted(_WORDS))}" for word in told if word not in _WORDS)
    for label, step in (told.get("tasks") or {}).items():
        if isinstance(step, dict):
            yield from (f"{label}: {word!r} is neither class nor config" for word in step.keys() - {"class", "config"})


def _butler(request: BatchRequest, run: str) -> Butler:
    return Butler.from_config(str(request.butler), collections=list(request.inputs), run=run, writeable=True)


def _earlier(request: BatchRequest, butler: Butler) -> list[str]:
    """Where results of earlier runs are, which are not made again."""
    try:
        return list(butler.collections.query(request.output)) if request.skip_existing else []
    except MissingCollectionError:
        return []


def _prepare(butler: Butler, folder: RunFolder, request: BatchRequest, run: str) -> None:
    graph = opened(folder)
    graph.pipeline_graph.register_dataset_types(butler, include_packages=True)
    graph.init_output_run(butler)
    butler.collections.register(request.output, CollectionType.CHAINED)
    earlier = [name for name in butler.collections.get_info(request.output).children if name not in request.inputs]
    butler.collections.redefine_chain(request.output, [run, *earlier, *request.inputs])


def opened(folder: RunFolder) -> PredictedQuantumGraph:
    """The graph of a run, all of it."""
    return PredictedQuantumGraph.read_execution_quanta(str(folder.graph))
