"""What is said of a Ray cluster that others run: nodes that are lost, CPUs that are too few."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import ray
from structlog.testing import capture_logs

from cluster import ray_state
from cluster.ray_state import RayState, Watched, await_cpus, read_state, watch
from schemas.errors import Transient


def node(name: str, cpus: float = 4.0, *, alive: bool = True, **more: float) -> dict[str, Any]:
    """As Ray tells of one; of one that died it knows no resources."""
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus, **more} if alive else {}}


def test_a_node_that_was_there_is_lost_and_not_one_of_before_nor_of_batch_work() -> None:
    watched = Watched(cpus_wanted=6)
    before = watched.state([node("old", alive=False), node("a"), node("b"), node("c", 64.0, batch=16.0)])
    assert (before.ready, str(before)) == (True, "2 nodes, 8 CPUs")
    after = watched.state([node("old", alive=False), node("a"), node("b", alive=False), node("c", alive=False)])
    assert not after.ready
    assert str(after) == "1 nodes, 4 CPUs; 1 nodes lost; 6 CPUs are wanted"
    assert watched.state([node("a"), node("d")]).nodes_lost == 0  # another came in its stead


async def test_a_driver_that_is_started_again_knows_the_nodes_that_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_state, "LOOK_S", 0.0)
    file = tmp_path / "ray.json"
    file.write_text(RayState(nodes=2, nodes_lost=1, cpus=8, cpus_wanted=4).model_dump_json(), "utf-8")
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    looks = iter(range(3))

    def nodes() -> list[dict[str, Any]]:
        if next(looks) == 2:
            loop.call_soon_threadsafe(done.set)
        return [node("a")]

    watching = asyncio.create_task(watch(file, 4, nodes))
    await asyncio.wait_for(done.wait(), 20.0)
    watching.cancel()
    state = read_state(file)
    assert state is not None
    assert (state.nodes, state.nodes_lost) == (1, 2)


async def test_a_cluster_with_too_few_cpus_is_waited_for_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_state, "LOOK_S", 0.0)
    told = [[], [node("a")], [node("a"), node("b")]]
    await await_cpus(8, lambda: told.pop(0))
    assert told == []
    monkeypatch.setattr(ray_state, "CPU_DEADLINE_S", 0.02)
    with pytest.raises(Transient, match=r"too little for this night after 0.02 s: 1 nodes, 4 CPUs; 9 CPUs are wanted"):
        await await_cpus(9, lambda: [node("a")])


async def test_what_changes_is_logged_once_and_kept_for_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_state, "LOOK_S", 0.0)
    one, two = [node("a")], [node("a"), node("b")]
    told, done = [two, two, RuntimeError, one, one], asyncio.Event()
    loop = asyncio.get_running_loop()

    def nodes() -> list[dict[str, Any]]:
        if not told:
            loop.call_soon_threadsafe(done.set)
            return one
        now = told.pop(0)
        if now is RuntimeError:
            raise ray.exceptions.RaySystemError("the control store is away")
        return now  # type: ignore[return-value]

    with capture_logs() as logs:
        watching = asyncio.create_task(watch(tmp_path / "ray.json", 8, nodes))
        await asyncio.wait_for(done.wait(), 20.0)
        watching.cancel()
    assert [line["log_level"] for line in logs] == ["info", "warning", "error"]
    state = read_state(tmp_path / "ray.json")
    assert str(state) == "1 nodes, 4 CPUs; 1 nodes lost; 8 CPUs are wanted"


def test_a_night_on_its_own_ray_and_half_a_file_tell_nothing(tmp_path: Path) -> None:
    assert read_state(tmp_path / "ray.json") is None
    (tmp_path / "ray.json").write_text(json.dumps({"nodes": 2}), "utf-8")
    assert read_state(tmp_path / "ray.json") is None
