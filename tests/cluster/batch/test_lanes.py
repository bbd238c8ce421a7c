"""Prompt work first, then runs by their priority: on a Ray of this machine with two CPUs."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray
from lsst.daf.butler import Butler
from rich.console import Console

from backbone.butler import ButlerArchive
from backbone.journal import MemoryJournal
from cluster import proc
from cluster.batch import commands, graph
from cluster.batch.executor import Executor
from cluster.batch.joining import NAMESPACE, of_night
from cluster.batch.keeper import MARK, batch_processes, take_second_place
from cluster.batch.lanes import FORGOTTEN_S, LANES, LEASE_S, RENEW_S, Share, lanes
from cluster.batch.prompt_first import OPEN_AFTER_S, PromptFirst
from cluster.batch.quanta_work import QuantaWork
from cluster.batch.request import BatchRequest, Needs, Priority
from cluster.batch.run_folder import CUT_OFF, DONE, Progress, RunFolder
from cluster.bus import Bus, Route
from cluster.host import Outcome
from schemas.clock import REAL_TIME, ManualClock
from schemas.errors import BadData
from schemas.events import Event, VisitDone
from schemas.instrument import camera

FOREIGN = Path(__file__).parent / "foreign"
SLACK_S = 20.0
"""What processes may take to begin on a machine that has too much to do."""

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # coordinators do
]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False,
        _node_ip_address="127.0.0.2",
    )  # fmt: skip
    yield
    ray.shutdown()


def eventually(reached: Callable[[], object], within_s: float = SLACK_S) -> float:
    """After how long it is true."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + within_s
        time.sleep(0.01)
    return time.monotonic() - began


def burn(until: Path) -> int:
    """Use CPU, as a batch process, until there is a file."""
    take_second_place()
    while not until.exists():
        sum(range(1000))
    return os.getpid()


@pytest.fixture
def burning(_open: None, tmp_path: Path) -> Iterator[None]:
    """Two units of batch work under way, each of which comes to its end."""
    begun = ray.remote(burn).options(runtime_env={"env_vars": {MARK: "1"}}, num_cpus=1, max_retries=0)
    refs = [begun.remote(tmp_path / "enough") for _ in range(2)]
    eventually(lambda: at_work() == 2, 60.0)
    yield
    prompt(busy=False)
    (tmp_path / "enough").touch()
    assert len(set(ray.get(refs, timeout=SLACK_S))) == 2


def raylet() -> int:
    return next(each.pid for each in proc.descendants(os.getpid()) if each.name == "raylet")


def at_work() -> int:
    """How many batch processes have something to do."""
    names = [each.name for each in batch_processes(raylet())]
    return len([name for name in names if name.startswith("ray::") and name != "ray::IDLE"])


def states() -> set[str]:
    return {each.state for each in batch_processes(raylet())}


def prompt(*, busy: bool, lease_s: float = LEASE_S) -> int:
    return int(ray.get(lanes().prompt.remote(busy, lease_s), timeout=SLACK_S))


def share(run: str, priority: Priority, wanted: int = 9, limit: int = 0) -> int:
    return int(ray.get(lanes().share.remote(run, priority, wanted, limit), timeout=SLACK_S))


class Held:
    """Hosts that answer when they are let."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:  # noqa: ARG002 - all pools alike
        await self.go_on.wait()
        return Outcome("done", (), "", 0.0, 0.0, 1, 1)

    async def replace(self, pool: str, lane: int) -> None:
        """Nothing to replace."""

    async def back(self, pool: str, lane: int) -> None:
        """Nor to come back."""


def held_bus(hosts: Held) -> Bus:
    routes = [Route("ccd_worker", 1, frozenset({"VisitDone"}), 60.0), Route("herald", 1, frozenset(), 60.0)]
    return Bus(routes, hosts, MemoryJournal(), ManualClock(0.0))


async def reached(what: Callable[[], object], within_s: float = SLACK_S) -> float:
    return await asyncio.to_thread(eventually, what, within_s)


async def test_a_night_tells_lanes_as_soon_as_there_are_some() -> None:
    """Must be the first here: there are no lanes yet."""
    hosts = Held()
    bus = held_bus(hosts)
    first = PromptFirst(bus, ["ccd_worker"])
    bus.listen(first.hear)
    jobs = [asyncio.create_task(bus.run()), asyncio.create_task(first.keep())]
    await bus.publish([VisitDone(group="g1", visit=1, detectors=())])
    await asyncio.sleep(RENEW_S + 0.5)
    with pytest.raises(ValueError, match=LANES):
        ray.get_actor(LANES)
    await asyncio.to_thread(lanes)
    await asyncio.sleep(LEASE_S + 1.0)
    assert await asyncio.to_thread(share, "r", Priority.OFFLINE) == 0
    hosts.go_on.set()
    took = await reached(lambda: share("r", Priority.OFFLINE) == 2, 3.0)
    assert took > OPEN_AFTER_S / 2
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)


@pytest.fixture
def _open(_ray: None) -> None:
    """Lanes that have CPUs to give."""
    prompt(busy=False)
    eventually(lambda: share("probe", Priority.OFFLINE) == 2)
    share("probe", Priority.OFFLINE, wanted=0)


@pytest.mark.usefixtures("_open")
def test_a_run_of_a_higher_class_has_the_slots_until_it_is_silent() -> None:
    assert share("release", Priority.RELEASE) == 2
    assert share("ocs", Priority.OCS, limit=1) == 1
    assert share("release", Priority.RELEASE) == 1
    assert share("offline", Priority.OFFLINE) == 2
    assert (share("ocs", Priority.OCS), share("release", Priority.RELEASE)) == (0, 0)
    began = time.monotonic()
    eventually(lambda: share("release", Priority.RELEASE) == 2, FORGOTTEN_S + 2.0)
    assert time.monotonic() - began > FORGOTTEN_S / 2


@pytest.mark.usefixtures("burning")
def test_batch_processes_stand_still_while_prompt_work_is_under_way() -> None:
    assert prompt(busy=True) >= 2
    eventually(lambda: states() == {"T"}, 1.0)
    assert share("r", Priority.OFFLINE) == 0
    used = [proc.cpu_s(each.pid) for each in batch_processes(raylet())]
    time.sleep(1.0)
    assert [proc.cpu_s(each.pid) for each in batch_processes(raylet())] == used
    prompt(busy=False)
    eventually(lambda: "T" not in states(), 1.0)


@pytest.mark.usefixtures("burning")
def test_they_go_on_when_the_night_is_silent() -> None:
    prompt(busy=True, lease_s=2.0)
    eventually(lambda: states() == {"T"}, 1.0)
    eventually(lambda: "T" not in states(), 5.0)


@pytest.mark.usefixtures("burning")
def test_they_go_on_when_their_keeper_dies_and_stop_again_when_it_is_told() -> None:
    prompt(busy=True, lease_s=60.0)
    eventually(lambda: states() == {"T"}, 1.0)
    (keeper,) = [each for each in proc.descendants(raylet()) if each.name.startswith("ray::Keeper")]
    os.kill(keeper.pid, signal.SIGKILL)
    eventually(lambda: "T" not in states())
    eventually(lambda: prompt(busy=True) >= 2)
    eventually(lambda: states() == {"T"}, 1.0)


class Maker:
    """Runs that burn CPU."""

    def __init__(self, butler: Path, folder: Path) -> None:
        self.butler, self.folder = butler, folder

    def asked(self, quanta: int, seconds: float, needs: Needs | None = None, **changed: object) -> BatchRequest:
        return BatchRequest(
            butler=self.butler, pipeline=str(FOREIGN / "burning.yaml"), inputs=("LSSTCam/defaults",), output="u/tester",
            where=f"instrument='LSSTCam' AND detector < {quanta}", settings=(f"burn:seconds={seconds}",),
            python_path=(str(FOREIGN),), needs={"burn": needs} if needs else {},
        ).model_copy(update=changed)  # fmt: skip

    def ran(self, name: str, request: BatchRequest) -> Progress:
        folder = RunFolder.make(self.folder / name, request)
        run = f"u/tester/{self.folder.name}/{name}"
        graph.build(folder, run)
        butler = Butler.from_config(str(self.butler), run=run, writeable=True)
        share = Share(run, request.priority, request.slots)
        executor = Executor(folder, QuantaWork(folder, butler, run), lambda: share.cpus(executor.wanted), REAL_TIME)
        return executor.run()

    def begun(self, name: str) -> list[float]:
        butler = Butler.from_config(str(self.butler), collections=f"u/tester/{self.folder.name}/{name}")
        refs = butler.query_datasets("burnt", explain=False)
        return sorted(butler.get(ref)["began"] for ref in refs)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.syspath_prepend(str(FOREIGN))
    ButlerArchive.create(tmp_path / "butler").register_camera(camera("LSSTCam"))
    return Maker(tmp_path / "butler", tmp_path)


@pytest.mark.usefixtures("_open")
def test_time_in_which_a_quantum_stands_still_counts_neither_as_its_own_nor_to_its_deadline(make: Maker) -> None:
    ended: list[Progress] = []
    running = threading.Thread(target=lambda: ended.append(make.ran("r", make.asked(2, 1.0, Needs(deadline_s=8.0)))))
    running.start()
    eventually(at_work)
    for _ in range(5):
        prompt(busy=True)
        time.sleep(RENEW_S)
    prompt(busy=False)
    running.join(SLACK_S + 20.0)
    (progress,) = ended
    assert (progress.state, progress.retried) == (DONE, 0)
    assert progress.steps["burn"].seconds / 2 < 8.0


@pytest.mark.usefixtures("_open")
def test_a_run_of_a_higher_class_goes_first(make: Maker) -> None:
    ended: list[Progress] = []
    asked = make.asked(16, 0.5), make.asked(4, 0.5, priority=Priority.OCS)
    low = threading.Thread(target=lambda: ended.append(make.ran("release", asked[0])))
    low.start()
    eventually(at_work)
    ended.append(make.ran("ocs", asked[1]))
    low.join(SLACK_S + 30.0)
    assert [progress.state for progress in ended] == [DONE, DONE]
    first, *_, last = make.begun("ocs")
    assert len([began for began in make.begun("release") if first < began < last]) <= 1
    assert make.begun("release")[-1] > last


NIGHT = """
import sys, time
from pathlib import Path
import cluster, ray
from cluster.batch.joining import joinable
ray.init(address="local", num_cpus=2, namespace="pachon", include_dashboard=False, log_to_driver=False,
         _node_ip_address="127.0.0.3")
with joinable(Path(sys.argv[1]) / "join.json"):
    time.sleep(300)
"""


@pytest.fixture
def night(make: Maker) -> Iterator[tuple[Path, int]]:
    """The folder of a night that can be joined, and the process that plays it."""
    folder = make.folder / "night"
    folder.mkdir()
    driver = subprocess.Popen([sys.executable, "-c", NIGHT, str(folder)])
    try:
        eventually((folder / "join.json").exists, 60.0)
        yield folder, driver.pid
    finally:
        _kill([driver.pid, *(each.pid for each in proc.descendants(driver.pid))])
        driver.wait()


def test_a_run_ends_with_the_night_that_it_joined_and_goes_on_by_itself(
    make: Maker, night: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOREIGN))
    folder, driver = night
    run = commands.submit(make.folder / "runs", make.asked(12, 1.0, night=folder), Console(quiet=True))
    eventually(lambda: any(step.done > 1 for step in run.progress().steps.values()), 60.0)
    _kill([driver, *(each.pid for each in proc.descendants(driver))])
    eventually(lambda: not run.coordinated(), 10.0)
    assert run.progress().state == CUT_OFF
    with pytest.raises(BadData, match="has ended"):
        of_night(folder)
    commands.start(run)
    assert commands.wait(run, Console(quiet=True)) == 0
    assert run.progress().steps["burn"].kept > 0


def test_a_folder_in_which_no_night_is_played_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=f"{tmp_path}: no night runs there"):
        of_night(tmp_path)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
