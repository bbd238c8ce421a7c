"""A GenericWorkflow of lsst-ctrl-bps made a Workflow of ours: command lines filled in, orderings made edges."""

import itertools
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
from lsst.ctrl.bps import (
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNode,
    GenericWorkflowNoopJob,
)
from pydantic import ValidationError

from cluster.batch.request import Needs, Priority
from cluster.batch.walker import LOOSE
from cluster.batch.workflow import Job, Workflow
from schemas.errors import BadData

DEADLINE_S = 3 * 86400.0
"""Of a job without requestWalltime."""

_MEMORY_MB = 2048
"""Of a job without requestMemory: what BPS gives a job of its own."""


def translated(config: BpsConfig, generic: GenericWorkflow) -> Workflow:
    """Raises BadData for what Pachon cannot do, naming the job and the setting."""
    owners: dict[str, GenericWorkflow] = {}
    graph = _flat(generic, owners)
    loose = {(before, after) for before, after, data in graph.edges(data=LOOSE) if data}
    final = generic.get_final()
    if isinstance(final, GenericWorkflow):
        raise BadData(f"{generic.name}: a final workflow instead of a final job is not supported")
    try:
        return Workflow(
            name=generic.name,
            folder=Path.cwd(),
            jobs=tuple(_job(config, owner, owner.get_job(name)) for name, owner in owners.items()),
            edges=tuple(edge for edge in graph.edges if edge not in loose),
            loose=tuple(edge for edge in graph.edges if edge in loose),
            final=None if final is None else _job(config, generic, final),
            about={key: str(value) for key, value in generic.run_attrs.items()},
            python_path=tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
            priority=_priority(_of_site(config, "rayPriority", "release")),
            ray_address=_of_site(config, "rayAddress", ""),
            night=_of_site(config, "rayOfNight", None),
            slots=_of_site(config, "raySlots", 0),
        )
    except ValidationError as error:
        raise BadData(f"{generic.name}: {error}") from error


def _of_site(config: BpsConfig, key: str, default: object) -> Any:  # noqa: ANN401 - BPS's configuration is untyped
    """A setting of ours: of the site that is computed on, if it has one."""
    site = config["computeSite"]
    return config.search(key, opt={"curvals": {"curr_site": site} if site else {}, "default": default})[1]


def _priority(name: str) -> Priority:
    if name.upper() not in Priority.__members__:
        raise BadData(f"rayPriority {name!r}: it is one of {', '.join(Priority.__members__).lower()}")
    return Priority[name.upper()]


def _flat(generic: GenericWorkflow, owners: dict[str, GenericWorkflow]) -> "nx.DiGraph[str]":
    """Jobs only: groups and nodes that do nothing become edges. `owners`: filled, by job, in topological order."""
    graph, between, loose_after = nx.DiGraph(), [], set()
    for name in generic:
        node: GenericWorkflowNode = generic.get_job(name)
        if isinstance(node, GenericWorkflowGroup):
            _add_group(graph, node, owners)
            between += [_begin(name), _end(name)]
            loose_after |= set() if node.blocking else {_end(name)}
        else:
            graph.add_node(name)
            if isinstance(node, GenericWorkflowNoopJob):
                between.append(name)
            else:
                owners[name] = generic
    for edge in generic.edges:
        before, after = _of_groups(graph, *edge)
        graph.add_edge(before, after, **{LOOSE: before in loose_after and after != edge[1]})
    for name in between:
        _bridge(graph, name)
    return graph


def _of_groups(graph: "nx.DiGraph[str]", before: str, after: str) -> tuple[str, str]:
    """An edge between nodes that may be groups."""
    return (
        _end(before) if _end(before) in graph else before,
        _begin(after) if _begin(after) in graph else after,
    )


def _begin(group: str) -> str:
    return f"{group} begins"


def _end(group: str) -> str:
    return f"{group} ends"


def _add_group(graph: "nx.DiGraph[str]", group: GenericWorkflowGroup, owners: dict[str, GenericWorkflow]) -> None:
    inner = _flat(group, owners)
    graph.add_edges_from(inner.edges(data=True))
    graph.add_edges_from((_begin(group.name), name) for name in inner)
    graph.add_edges_from((name, _end(group.name)) for name in inner)


def _bridge(graph: "nx.DiGraph[str]", name: str) -> None:
    """Remove a node between jobs: what was before it is before all that was after it, loosely if either edge was."""
    pairs = itertools.product(graph.in_edges(name, data=LOOSE), graph.out_edges(name, data=LOOSE))
    for (before, _, one), (_, after, other) in list(pairs):
        firm = graph.has_edge(before, after) and not graph.edges[before, after].get(LOOSE)
        graph.add_edge(before, after, **{LOOSE: bool(one or other) and not firm})
    graph.remove_node(name)


def _job(config: BpsConfig, owner: GenericWorkflow, job: GenericWorkflowJob) -> Job:
    if job.abort_on_value is not None:
        raise BadData(f"{job.name}: abortOnValue is not supported")
    limits = [limit for limit in (job.request_memory_max, config["memoryLimit"]) if limit]
    try:
        return Job(
            name=job.name,
            label=job.label,
            command=_command(owner, job),
            log=_log(config, job),
            environment={name: _braced(str(value)) for name, value in job.environment.items()},
            needs=_needs(job),
            memory_growth=job.memory_multiplier or 1.0,
            memory_max_mb=min(limits, default=None),
            retries=job.number_of_retries or 0,
            final_exits=_exits(job),
            priority=job.priority or 0,
        )
    except ValidationError as error:
        raise BadData(f"{job.name}: {error}") from error


def _needs(job: GenericWorkflowJob) -> Needs:
    return Needs(
        cpus=job.request_cpus or 1,
        memory_mb=job.request_memory or _MEMORY_MB,
        deadline_s=job.request_walltime or DEADLINE_S,
    )


def _exits(job: GenericWorkflowJob) -> tuple[int, ...]:
    exits = job.retry_unless_exit
    if exits is None:
        return ()
    return (exits,) if isinstance(exits, int) else tuple(exits)


def _command(owner: GenericWorkflow, job: GenericWorkflowJob) -> str:
    """The command line; environment variables stay, since they may be others where the job runs.

    Values may name files, and files variables of the environment.
    """
    if job.executable is None or job.executable.src_uri is None:
        raise BadData(f"{job.name}: it has no executable")
    files = {file.name: file.src_uri for file in (*owner.get_job_inputs(job.name), *owner.get_job_outputs(job.name))}
    values = job.cmdvals
    arguments = re.sub(r"(?<!\$)\{(\w+)\}", lambda named: str(values.get(named[1], named[0])), job.arguments or "")
    command = f"{job.executable.src_uri} {arguments}".strip()
    command = _braced(re.sub(r"<FILE:([^>]+)>", lambda named: _file(files, named[1], job), command))
    if job.pre_cmdline:
        command = f"{job.pre_cmdline} && {{ {command}; }}"
    if job.post_cmdline:
        command = f"{command}; code=$?; {job.post_cmdline}; exit $code"
    return command


def _file(files: dict[str, Any], name: str, job: GenericWorkflowJob) -> str:
    if not files.get(name):
        raise BadData(f"{job.name}: its command names a file {name!r} that the job does not have")
    return str(files[name])


def _braced(text: str) -> str:
    """Environment variables in BPS's own spelling."""
    return re.sub(r"\$\{(\w+)\}", r"<ENV:\1>", text)


def _log(config: BpsConfig, job: GenericWorkflowJob) -> str:
    """Within the submit folder, by BPS's own template."""
    _, template = config.search("subDirTemplate", opt={"replaceVars": False, "default": "{label}"})
    folder = str(template).format_map(defaultdict(str, {**job.tags, "label": job.label}))
    return str(Path("jobs") / folder.strip("/") / f"{job.name}.log")
