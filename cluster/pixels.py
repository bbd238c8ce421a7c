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

from schemas.errors import Transient
from schemas.identity import DatasetId

SHELF = "pachon-shelf"
KEPT_RAWS = 32
"""Raws stay until newer ones need the room: 75 MB each, and the DAQ has them for two days."""

DEADLINE_S = 20.0


class Shelf:
    """A Ray actor that owns pixels on their way."""

    def __init__(self) -> None:
        self._held: OrderedDict[DatasetId, ray.ObjectRef[object]] = OrderedDict()

    async def collect(self, name: DatasetId, maker: Any) -> bool:  # noqa: ANN401 - Ray's handles are untyped
        """Have `maker` hand a value over; false if it did not within the deadline."""
        ref = maker.hand_over.remote(name)
        ready, _ = await asyncio.to_thread(ray.wait, [ref], timeout=DEADLINE_S, fetch_local=False)
        if not ready:
            return False
        self._held[name] = ref
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
        self._held.pop(name, None)

    def _make_room(self) -> None:
        raws = [name for name in self._held if name.dataset_type == "raw"]
        for name in raws[: max(0, len(raws) - KEPT_RAWS)]:
            del self._held[name]


class RayPixels:
    """The store as an actor in a Ray process sees it."""

    def __init__(self) -> None:
        self._shelf = ray.get_actor(SHELF)
        self.leaving: dict[DatasetId, object] = {}

    async def put(self, name: DatasetId, value: object) -> None:
        """Raises Transient if the shelf does not take the value."""
        self.leaving[name] = value
        try:
            taken = await self._shelf.collect.remote(name, ray.get_runtime_context().current_actor)
        except ray.exceptions.RayError as error:
            raise Transient(f"{name}: the pixel store did not take it: {error}") from error
        finally:
            self.leaving.pop(name, None)
        if not taken:
            raise Transient(f"{name}: not handed to the pixel store within {DEADLINE_S:.0f} s")

    async def get(self, name: DatasetId) -> object | None:
        """The value with its arrays in shared memory, read-only; None if it is not there any more."""
        try:
            refs = await self._shelf.find.remote(name)
            return await asyncio.wait_for(refs[0], DEADLINE_S) if refs else None
        except (ray.exceptions.RayError, TimeoutError):
            return None  # a lost object is an object that is not held: whoever asks has another way

    async def drop(self, name: DatasetId) -> None:
        """Forget a value."""
        with suppress(ray.exceptions.RayError):  # a shelf that has died holds nothing
            await self._shelf.drop.remote(name)


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
