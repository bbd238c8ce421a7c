"""Who is told of a host that does not come up, and when."""

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace

import pytest

from cluster import ray_hosts
from cluster.ray_hosts import RayHosts
from schemas.errors import Transient


class Ready:
    """As a handle's method: the process id; an error; None: nothing, ever."""

    def __init__(self, answer: int | Exception | None) -> None:
        self._answer = answer

    def remote(self) -> Awaitable[int]:
        return self._told()

    async def _told(self) -> int:
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is None:
            await asyncio.Event().wait()
        assert self._answer is not None
        return self._answer


def hosts(*answers: int | Exception | None) -> RayHosts:
    made = RayHosts.__new__(RayHosts)
    made._building = None
    made._slots = {("ccd_worker", slot): SimpleNamespace(ready=Ready(answer)) for slot, answer in enumerate(answers)}
    return made


async def test_all_hosts_tell_their_processes() -> None:
    assert await hosts(7, 8).ready() == {("ccd_worker", 0): 7, ("ccd_worker", 1): 8}


async def test_a_host_that_fails_is_told_at_once_while_others_still_start() -> None:
    async with asyncio.timeout(20.0):
        with pytest.raises(Transient, match="the broker is away"):
            await hosts(7, None, Transient("the broker is away"), None).ready()


async def test_a_host_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_hosts, "START_DEADLINE_S", 0.05)
    with pytest.raises(Transient, match=r"1 of 2 hosts are not there after 0.05 s: ccd_worker-1"):
        await hosts(7, None).ready()
