"""Hosts in Ray actors: one process each, started anew whenever it dies."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import structlog

from actors.ccd_worker import CcdWorker
from cluster import logs
from cluster.host import Host, Outcome, unbuilt
from cluster.pixels import KEPT_PRODUCT_BYTES, SHELF, RayPixels, Shelf, keep_answering
from cluster.rehearsal import rehearse_alerts
from cluster.settings import Settings
from cluster.site import ServerSite
from cluster.topology import POOLS, Pool
from schemas.errors import PachonError, Transient
from schemas.events import Event
from schemas.identity import DatasetId
from schemas.image import DiaProducts, Observation, Raw

NAMESPACE = "pachon"
BACK_S, BACK_POLL_S = 60.0, 0.5
"""How long a host that died may take until it is there again, and between two looks."""
START_DEADLINE_S = 240.0
"""For all hosts, the first compilation of the kernels on a new machine included."""
PID_DEADLINE_S = 30.0
"""For a host that may just be starting anew."""


class RayHost:
    """What runs in a Ray actor's process: one host, built at the first call so that it may await its connections."""

    def __init__(self, pool: str, slot: int, settings: Settings) -> None:
        logs.configure(settings.log, f"{pool}-{slot}")
        if POOLS[pool].nice:
            os.nice(POOLS[pool].nice)
        self._pool = POOLS[pool]
        self._settings = settings
        self._pixels = RayPixels()
        self._host: Host | None = None
        self._building = asyncio.Lock()

    async def ready(self) -> int:
        """Build the actor; the process's id."""
        await self._built()
        return os.getpid()

    async def rehearse(self, raws: Sequence[Raw]) -> DiaProducts:
        """Have a CCD's worker compile its kernels on the raws of a visit; what it made of them."""
        worker = (await self._built()).actor
        assert isinstance(worker, CcdWorker)
        return worker.rehearse(raws)

    async def repeat(self, raws: Sequence[Raw]) -> None:
        """As `rehearse`, when nobody wants what was made."""
        await self.rehearse(raws)

    async def rehearse_alerts(self, detector: int, last: Observation, products: DiaProducts) -> None:
        """Have the process of an associator or emitter compile its kernels on what was made of a visit."""
        await self._built()
        await rehearse_alerts(self._settings.camera, detector, last, products)

    async def handle(self, event: Event) -> Outcome:
        """See `Host.handle`."""
        try:
            host = await self._built()
        except PachonError as error:
            return unbuilt(error)
        return await host.handle(event)

    async def hand_over(self, name: DatasetId) -> tuple[object, bool]:
        """Give the shelf a value that `RayPixels.put` left for it, as two results: the value, and whether it is there.

        It is not if the shelf asks when `put` has given up.
        """
        return self._pixels.leaving.get(name), name in self._pixels.leaving

    async def _built(self) -> Host:
        async with self._building:
            if self._host is None:
                actor = await self._pool.make(ServerSite(self._settings, self._pixels))
                self._host = Host(actor, self._pool.name)
                structlog.get_logger().info("ready")
        return self._host


class RayHosts:
    """The hosts of the pools that have processes of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rehearsing: asyncio.Task[None] | None = None
        self._building: asyncio.Task[dict[tuple[str, int], int]] | None = None
        shelf = ray.remote(Shelf).options(name=SHELF, num_cpus=0, max_restarts=-1, max_concurrency=100)
        self._shelf: Any = shelf.remote(KEPT_PRODUCT_BYTES * len(settings.detectors))
        self._slots = {
            (pool.name, slot): self._start(pool, slot)
            for pool in POOLS.values() if pool.own_process
            for slot in range(pool.processes(settings))
        }  # fmt: skip

    def _start(self, pool: Pool, slot: int) -> Any:  # noqa: ANN401 - Ray's handles are untyped
        options: Mapping[str, Any] = {
            "num_cpus": 0, "max_restarts": -1, "max_concurrency": pool.lanes + 4, "name": f"{pool.name}-{slot}",
        }  # fmt: skip
        return ray.remote(RayHost).options(**options).remote(pool.name, slot, self._settings)

    def build(self) -> None:
        """Have hosts connect to what they need, before any is given work."""
        self._building = asyncio.create_task(self._build())

    async def ready(self) -> dict[tuple[str, int], int]:
        """Wait until every host that prompt work needs is built; (pool, number) -> process id.

        The niced ones are built at their first call: a driver that is started again has no time for them.
        """
        if self._building is None:
            self.build()
        assert self._building is not None
        return await self._building

    async def _build(self) -> dict[tuple[str, int], int]:
        keys = [key for key in self._slots if not POOLS[key[0]].nice]
        calls = [asyncio.ensure_future(self._slots[key].ready.remote()) for key in keys]
        done, late = await asyncio.wait(calls, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_EXCEPTION)
        for call in late:
            call.cancel()
        if failures := [error for call in done if (error := call.exception())]:
            raise failures[0]
        if late:
            names = ", ".join(f"{pool}-{slot}" for (pool, slot), call in zip(keys, calls, strict=True) if call in late)
            raise Transient(f"{len(late)} of {len(keys)} hosts are not there after {START_DEADLINE_S:g} s: {names}")
        return {key: call.result() for key, call in zip(keys, calls, strict=True)}

    def rehearse_on(self, raws: Sequence[Raw]) -> None:
        """Have the hosts rehearse a visit in the background: its first raws come most of a minute after its call.

        The first worker compiles the kernels, on a new machine; the others then find them compiled. What it made of the
        raws goes to those who make and send alerts.
        """
        if raws:
            self._rehearsing = asyncio.create_task(self._rehearse(raws))

    async def _rehearse(self, raws: Sequence[Raw]) -> None:
        held = ray.put(raws)
        first, *others = [host for (pool, _), host in self._slots.items() if pool == "ccd_worker"]
        associator, *emitters = [self._slots[pool, 0] for pool in ("associator", "alert_emitter", "lite_emitter")]
        made = first.rehearse.remote(held)
        told = raws[-1].detector, raws[-1].observation, made
        try:
            await _all([made])
            await _all([associator.rehearse_alerts.remote(*told), *(host.repeat.remote(held) for host in others)])
            await _all([host.rehearse_alerts.remote(*told) for host in emitters])
        except (ray.exceptions.RayError, PachonError, TimeoutError) as error:
            structlog.get_logger().warning("rehearsal failed", error=str(error))

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        """Raises ConnectionError if the process died; Ray starts it anew."""
        try:
            outcome: Outcome = await self._process(pool, lane).handle.remote(event)
        except ray.exceptions.RayError as error:
            raise ConnectionError(str(error).splitlines()[0]) from error
        return outcome

    def host_name(self, pool: str, lane: int) -> str:
        """The name of the host that serves a lane, `ccd_worker-0`."""
        return f"{pool}-{lane % POOLS[pool].processes(self._settings)}"

    async def pid(self, pool: str, lane: int) -> int:
        """The process id of the host that serves a lane. Raises Transient if it does not say."""
        return await _told(self._process(pool, lane).ready.remote())

    async def shelf_pid(self) -> int:
        """The process id of the pixel store. Raises Transient if it does not say."""
        return await _told(self._shelf.pid.remote())

    async def keep_shelf(self) -> None:
        """See for ever that the pixel store answers."""
        await keep_answering(self._shelf)

    async def replace(self, pool: str, lane: int) -> None:
        """Kill a host that hangs; Ray starts it anew."""
        await asyncio.to_thread(ray.kill, self._process(pool, lane), no_restart=False)

    async def back(self, pool: str, lane: int) -> None:
        """See `Hosts`. Ray refuses calls to an actor that it is starting again."""
        over = asyncio.get_running_loop().time() + BACK_S
        while asyncio.get_running_loop().time() < over:
            try:
                await asyncio.wait_for(self._process(pool, lane).ready.remote(), BACK_S)
            except (ray.exceptions.RayError, PachonError, TimeoutError):
                await asyncio.sleep(BACK_POLL_S)
            else:
                return

    def _process(self, pool: str, lane: int) -> Any:  # noqa: ANN401 - Ray's handles are untyped
        return self._slots[pool, lane % POOLS[pool].processes(self._settings)]


async def _told(call: Any) -> int:  # noqa: ANN401 - Ray's references are untyped
    try:
        return int(await asyncio.wait_for(call, PID_DEADLINE_S))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Transient(f"a process does not say its id: {error!r}") from error


async def _all(calls: Sequence[Any]) -> None:
    """Wait for what was asked of hosts. Raises TimeoutError after `START_DEADLINE_S`."""
    await asyncio.wait_for(asyncio.gather(*calls), START_DEADLINE_S)
