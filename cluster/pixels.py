"""The pixel store on Ray's object store: arrays are written once and read in place by every process of a node.

The shelf owns what it holds, so that the death of whoever made it loses nothing: it has the maker hand a value
over as the result of a call, which Ray stores for the caller.
"""

import asyncio
import os
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import ray
import structlog

from schemas.errors import Transient
from schemas.identity import DatasetId

SHELF = "pachon-shelf"
KEPT_RAWS = 32
"""Raws stay until newer ones need the room: 75 MB each, and the DAQ has them for two days."""
KEPT_PRODUCT_BYTES = 2 * 2**30
"""For each live detector, its products of some six visits: while nobody takes them. Those that had to make room are
made again offline."""

DEADLINE_S = 20.0
"""Of every call to the shelf, wall seconds."""
LOOK_S, START_S = 5.0, 240.0
"""Between two looks whether the shelf answers; and for its first answer after a start."""


class Shelf:
    """A Ray actor that owns pixels on their way: `KEPT_RAWS` raws, and products of `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[DatasetId, ray.ObjectRef[object]] = OrderedDict()
        self._bytes: dict[DatasetId, int] = {}

    async def collect(self, name: DatasetId, maker: Any) -> bool:  # noqa: ANN401 - Ray's handles are untyped
        """Have `maker` hand a value over; false if it did not within the deadline: then what is held stays."""
        ref, there = maker.hand_over.options(num_returns=2).remote(name)
        try:
            if not await asyncio.wait_for(there, DEADLINE_S):
                return False
        except (ray.exceptions.RayError, TimeoutError):
            return False
        self._forget(name)
        self._held[name] = ref
        self._bytes[name] = ray.experimental.get_object_locations([ref])[ref]["object_size"] or 0
        self._make_room()
        return True

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    async def find(self, name: DatasetId) -> list[ray.ObjectRef[object]]:
        """The reference, in a list so that Ray passes it on unread; empty if there is none."""
        return [self._held[name]] if name in self._held else []

    async def drop(self, name: DatasetId) -> None:
        """Forget a value."""
        self._forget(name)

    def _forget(self, name: DatasetId) -> None:
        self._held.pop(name, None)
        self._bytes.pop(name, None)

    def _make_room(self) -> None:
        raws = [name for name in self._held if name.dataset_type == "raw"]
        for name in raws[: max(0, len(raws) - KEPT_RAWS)]:
            self._forget(name)
        products = [name for name in self._held if name.dataset_type != "raw"]
        while len(products) > 1 and sum(self._bytes[name] for name in products) > self._most_bytes:
            self._forget(products.pop(0))


class RayPixels:
    """The store as an actor in a Ray process sees it."""

    def __init__(self) -> None:
        self._shelf = ray.get_actor(SHELF)
        self.leaving: dict[DatasetId, object] = {}

    async def put(self, name: DatasetId, value: object) -> None:
        """Raises Transient if the shelf does not take the value."""
        self.leaving[name] = value
        try:
            call: Any = self._shelf.collect.remote(name, ray.get_runtime_context().current_actor)
            taken = await asyncio.wait_for(call, DEADLINE_S + LOOK_S)
        except ray.exceptions.RayError as error:
            raise Transient(f"{name}: the pixel store did not take it: {error}") from error
        except TimeoutError:
            taken = False
        finally:
            self.leaving.pop(name, None)
        if not taken:
            raise Transient(f"{name}: not handed to the pixel store within {DEADLINE_S:.0f} s")

    async def get(self, name: DatasetId) -> object | None:
        """The value with its arrays in shared memory, read-only; None if it is not there any more."""
        try:
            call: Any = self._shelf.find.remote(name)
            refs = await asyncio.wait_for(call, DEADLINE_S)
            return await asyncio.wait_for(refs[0], DEADLINE_S) if refs else None
        except (ray.exceptions.RayError, TimeoutError):
            return None  # a lost object is an object that is not held: whoever asks has another way

    async def drop(self, name: DatasetId) -> None:
        """Forget a value."""
        with suppress(ray.exceptions.RayError, TimeoutError):  # a shelf that has died, or is about to, holds nothing
            await asyncio.wait_for(self._shelf.drop.remote(name), DEADLINE_S)


async def keep_answering(shelf: Any) -> None:  # noqa: ANN401 - Ray's handles are untyped
    """See for ever that the shelf answers: one that hangs is killed, and Ray starts it anew, empty."""
    within_s = START_S
    while True:
        try:
            await asyncio.wait_for(shelf.pid.remote(), within_s)
            within_s = DEADLINE_S
        except ray.exceptions.RayError:
            within_s = START_S  # it has died, and is being started
        except TimeoutError:
            structlog.get_logger().error("the pixel store hangs, and is replaced", silent_s=within_s)
            await asyncio.to_thread(ray.kill, shelf, no_restart=False)
            within_s = START_S
        await asyncio.sleep(LOOK_S)


class MemoryPixels:
    """The store of an inline run: a dictionary."""

    def __init__(self) -> None:
        self._held: OrderedDict[DatasetId, object] = OrderedDict()

    async def put(self, name: DatasetId, value: object) -> None:
        """Hold a value; raws make room for newer ones."""
        self._held[name] = value
        raws = [n for n in self._held if n.dataset_type == "raw"]
        for old in raws[: max(0, len(raws) - KEPT_RAWS)]:
            del self._held[old]

    async def get(self, name: DatasetId) -> object | None:
        """The value, or None."""
        return self._held.get(name)

    async def drop(self, name: DatasetId) -> None:
        """Forget a value."""
        self._held.pop(name, None)
