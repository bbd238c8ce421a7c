"""Whether the Ray cluster is what the night began on: looked at by the driver, told in the log and in a file."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import Transient

LOOK_S = 5.0
CPU_DEADLINE_S = 60.0
"""For a cluster that has too few CPUs: nodes may be on their way."""

Nodes = Callable[[], Sequence[Mapping[str, Any]]]
"""As `ray.nodes`."""


class RayState(BaseModel):
    """How many nodes live, of how many that did; the CPUs that they have, and that are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int
    nodes_lost: int
    cpus: float
    cpus_wanted: int

    @property
    def ready(self) -> bool:
        """Whether nothing lacks."""
        return not self.nodes_lost and self.cpus >= self.cpus_wanted

    def __str__(self) -> str:
        """For messages."""
        said = f"{self.nodes} nodes, {self.cpus:g} CPUs"
        lost = f"; {self.nodes_lost} nodes lost" if self.nodes_lost else ""
        return said + lost + (f"; {self.cpus_wanted} CPUs are wanted" if self.cpus < self.cpus_wanted else "")


class Watched:
    """How many nodes have lived at once, but for those of batch work, which come and go."""

    def __init__(self, cpus_wanted: int, before: RayState | None = None) -> None:
        """`before`: as it was seen last, by a driver that died since."""
        self._cpus_wanted = cpus_wanted
        self._most = before.nodes + before.nodes_lost if before else 0

    def state(self, nodes: Sequence[Mapping[str, Any]]) -> RayState:
        """What `ray.nodes` says now."""
        alive = [node["Resources"] for node in nodes if node["Alive"] and "batch" not in node["Resources"]]
        self._most = max(self._most, len(alive))
        cpus = sum(float(resources.get("CPU", 0.0)) for resources in alive)
        lost = self._most - len(alive)
        return RayState(nodes=len(alive), nodes_lost=lost, cpus=cpus, cpus_wanted=self._cpus_wanted)


async def await_cpus(cpus_wanted: int, nodes: Nodes = ray.nodes) -> None:
    """Wait until there are enough. Raises Transient, saying what there is, after `CPU_DEADLINE_S`."""
    loop, watched = asyncio.get_running_loop(), Watched(cpus_wanted)
    over = loop.time() + CPU_DEADLINE_S
    while (state := watched.state(await asyncio.to_thread(nodes))).cpus < cpus_wanted:
        if loop.time() > over:
            raise Transient(f"the Ray cluster has too little for this night after {CPU_DEADLINE_S:g} s: {state}")
        structlog.get_logger().warning("Ray has too few CPUs", state=str(state))
        await asyncio.sleep(LOOK_S)


async def watch(file: Path, cpus_wanted: int, nodes: Nodes = ray.nodes) -> None:
    """Tell for ever, whenever it changes, how the cluster is."""
    before, watched = None, Watched(cpus_wanted, read_state(file))
    while True:
        try:
            state = watched.state(await asyncio.to_thread(nodes))
            if state != before:
                _tell(state, file)
            before = state
        except (ray.exceptions.RayError, OSError) as error:  # Ray's control store, or the disk
            structlog.get_logger().warning("how the Ray cluster is cannot be told", error=str(error))
        await asyncio.sleep(LOOK_S)


def _tell(state: RayState, file: Path) -> None:
    log = structlog.get_logger().bind(state=str(state))
    if state.ready:
        log.info("the Ray cluster is whole")
    else:
        log.error("the Ray cluster is not whole")
    part = file.with_suffix(".part")
    part.write_text(state.model_dump_json(), encoding="utf-8")
    part.replace(file)


def read_state(file: Path) -> RayState | None:
    """What was told last; None if nothing was."""
    try:
        return RayState.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
