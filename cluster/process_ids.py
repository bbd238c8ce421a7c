"""Which process is what, now: they die and come back under other numbers."""

import json
import os
from collections.abc import Mapping

from cluster import proc
from cluster.ray_hosts import RayHosts
from cluster.settings import Settings
from schemas.errors import BadData, Transient

_SERVERS = {"broker": "kafka", "postgres": "postgres", "daq": "daq"}
"""Process -> its name in the supervisor's file."""
_PROGRAMS = {"raylet": "raylet", "gcs": "gcs_server"}
"""Process -> the program, a child of this process."""


class ProcessIds:
    """Of the night's processes on this machine. `last_seen`: name of a host ("ccd_worker-0") -> its last id known."""

    def __init__(self, settings: Settings, there: RayHosts, last_seen: Mapping[str, int]) -> None:
        self._settings, self._there, self._last_seen = settings, there, last_seen

    async def of(self, process: str, lane: int) -> int:
        """The id of a process (`simulators.faults.Process`), for a pool of the host that serves a lane.

        Raises BadData for one that is not ours, Transient for one that is not there.
        """
        if process == "driver":
            return os.getpid()
        if process in _SERVERS:
            return self._server(_SERVERS[process])
        if process in _PROGRAMS:
            return _program(_PROGRAMS[process])
        if process == "shelf":
            return await self._there.shelf_pid()
        known = self._last_seen.get(self._there.host_name(process, lane), 0)
        return known if proc.process(known) else await self._there.pid(process, lane)

    def _server(self, name: str) -> int:
        pids: dict[str, int] = json.loads(self._settings.process_file.read_bytes())
        if name not in pids:
            raise BadData(f"{name} was started by somebody else, and is no process of this night")
        return pids[name]


def _program(name: str) -> int:
    for each in proc.descendants(os.getpid()):
        if each.name == name:
            return each.pid
    raise Transient(f"no {name} runs")
