"""Where the coordinators of batch runs and the night's driver meet: prompt work first, then runs by their priority."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.batch.keeper import Keeper
from cluster.batch.shares import Asked, shared

LANES = "batch-lanes"
"""The actor's name, in the cluster's one namespace."""

LEASE_S, RENEW_S = 5.0, 2.0
"""How long what the driver said of prompt work holds, and how often it is said again."""

FORGOTTEN_S = 5.0
"""A run that did not ask for so long has ended, or died."""

TURN_S = 30.0
"""How long one run of a class keeps what cannot be shared evenly."""

_LOOK_S, _KEEPER_S = 2.0, 1.0


class Lanes:
    """One of a cluster.

    It gives nobody anything until it has been there for `LEASE_S`: a night that has work to do has told so by then.
    """

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        self._busy_until = time.monotonic() + LEASE_S
        self._cpus = 0
        self._keepers: dict[str, Any] = {}
        self._looking: asyncio.Task[None] | None = None

    async def share(self, run: str, priority: int, wanted: int, limit: int) -> int:
        """The CPUs that a run may use now. `wanted`: those that it has work for; `limit`: at most, 0 for no limit."""
        self._look()
        now = time.monotonic()
        self._asked[run] = Asked(priority, min(wanted, limit) if limit else wanted, now)
        self._asked = {name: each for name, each in self._asked.items() if now - each.at < FORGOTTEN_S}
        if now < self._busy_until:
            return 0
        return shared(self._cpus, self._asked, int(now / TURN_S))[run]

    async def prompt(self, busy: bool, lease_s: float) -> int:
        """Whether prompt work is under way; said again within `lease_s`. How many processes stand still for it."""
        self._look()
        self._busy_until = time.monotonic() + lease_s if busy else 0.0
        return sum(await asyncio.gather(*(self._tell(keeper) for keeper in self._keepers.values())))

    async def _tell(self, keeper: Any) -> int:  # noqa: ANN401 - Ray's handles are untyped
        """A keeper how long its node's batch processes are to stand still. One that does not answer is told again."""
        try:
            still = keeper.stand_still.remote(max(self._busy_until - time.monotonic(), 0.0))
            return int(await asyncio.wait_for(still, _KEEPER_S))
        except (ray.exceptions.RayError, TimeoutError) as error:
            structlog.get_logger().warning("a node's keeper does not answer", error=str(error))
            return 0

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        """See for ever which nodes there are, and that each has a keeper."""
        while True:
            nodes = await asyncio.to_thread(_nodes)
            new = [node for node in nodes if node not in self._keepers]
            keepers = {node: self._keepers.get(node) or await asyncio.to_thread(_keeper, node) for node in nodes}
            self._keepers, self._cpus = keepers, int(sum(nodes.values()))
            for node in new:
                await self._tell(self._keepers[node])
            await asyncio.sleep(_LOOK_S)


def _nodes() -> dict[str, float]:
    """CPUs of each node that is there."""
    every = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in every if node["Alive"]}


def _keeper(node: str) -> Any:  # noqa: ANN401 - Ray's handles are untyped
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    keeper = ray.remote(Keeper).options(
        name=f"batch-keeper-{node}", lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1,
        scheduling_strategy=there,
    )  # fmt: skip
    return keeper.remote()


def lanes() -> Any:  # noqa: ANN401 - Ray's handles are untyped
    """Those of this cluster, made now if there were none."""
    made = ray.remote(Lanes).options(
        name=LANES, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1, max_concurrency=1000
    )  # fmt: skip
    return made.remote()


class Share:
    """What a run may use of a cluster that it shares.

    Lanes that do not answer give nothing: prompt work may be under way.
    """

    ASK_S, ANSWER_S = 0.2, 5.0

    def __init__(self, run: str, priority: int, limit: int) -> None:
        self._lanes = lanes()
        self._run, self._priority, self._limit = run, priority, limit
        self._cpus, self._asked, self._answered = 0, -self.ASK_S, True

    def cpus(self, wanted: Callable[[], int]) -> int:
        """CPUs to use now, asked anew every `ASK_S`. `wanted` tells how many there is work for."""
        if (now := time.monotonic()) - self._asked < self.ASK_S:
            return self._cpus
        try:
            asked = self._lanes.share.remote(self._run, self._priority, wanted(), self._limit)
            self._cpus, self._answered = ray.get(asked, timeout=self.ANSWER_S), True
        except (ray.exceptions.RayError, TimeoutError) as error:
            if self._answered:
                structlog.get_logger().warning("the lanes do not answer", error=str(error))
            self._cpus, self._answered = 0, False
        self._asked = now
        return self._cpus
