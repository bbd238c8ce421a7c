import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.process_ids import ProcessIds
from cluster.settings import Settings
from cluster.topology import POOLS
from schemas.errors import BadData, Transient
from simulators.faults import Other


class Hosts:
    """A cluster that has started all its processes anew: they are now 1000 + lane."""

    def host_name(self, pool: str, lane: int) -> str:
        return f"{pool}-{lane}"

    async def pid(self, pool: str, lane: int) -> int:
        assert pool in {"ccd_worker", "archiver"}
        return 1000 + lane

    async def shelf_pid(self) -> int:
        return 999


@pytest.fixture
def ids(tmp_path: Path) -> ProcessIds:
    settings = Settings(output=tmp_path)
    settings.process_file.write_text(json.dumps({"driver": 5, "postgres": 6, "daq": 7}))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hosts: Any = Hosts()
    return ProcessIds(settings, hosts, {"ccd_worker-0": os.getppid(), "ccd_worker-1": ended.pid})


@pytest.mark.parametrize(
    ("process", "lane", "pid"),
    [("postgres", 0, 6), ("daq", 0, 7), ("shelf", 0, 999), ("driver", 0, os.getpid()), ("archiver", 0, 1000)],
    ids=["postgres", "daq", "shelf", "driver", "archiver"],  # the same in every process that collects tests
)
async def test_a_process_is_found_where_it_is_known(ids: ProcessIds, process: str, lane: int, pid: int) -> None:
    assert await ids.of(process, lane) == pid


async def test_a_host_that_lives_is_not_asked_and_one_that_died_is(ids: ProcessIds) -> None:
    assert await ids.of("ccd_worker", 0) == os.getppid()
    assert await ids.of("ccd_worker", 1) == 1001


async def test_a_server_that_somebody_else_started_is_left_alone(ids: ProcessIds) -> None:
    with pytest.raises(BadData, match="kafka was started by somebody else"):
        await ids.of("broker", 0)


def test_every_pool_with_processes_of_its_own_can_be_hit() -> None:
    assert {pool.name for pool in POOLS.values() if pool.own_process} <= {*get_args(Other)}


async def test_a_program_that_does_not_run_is_said(ids: ProcessIds) -> None:
    with pytest.raises(Transient, match="no gcs_server runs"):
        await ids.of("gcs", 0)
