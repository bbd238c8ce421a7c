"""lsst-ctrl-bps on Pachon: its own commands, a pipeline that knows neither, and jobs that go wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNoopJob,
    WmsRunReport,
    WmsStates,
)
from lsst.ctrl.bps.drivers import cancel_driver
from lsst.ctrl.bps.report import retrieve_report
from lsst.daf.butler import Butler

from backbone.butler import ButlerArchive
from cluster import proc
from cluster.batch.bps import PachonService
from cluster.batch.bps_workflow import translated
from cluster.batch.executor import Executor
from cluster.batch.job_states import SUCCEEDED, JobState
from cluster.batch.job_work import JobWork
from cluster.batch.run_folder import DONE, RunFolder
from cluster.batch.walker import Walker
from schemas.clock import REAL_TIME
from schemas.errors import BadData
from schemas.instrument import camera

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # coordinators do

ROOT = Path(__file__).parents[3]
FOREIGN = Path(__file__).parent / "foreign"
PAGE = ROOT / "docs/batch.md"
SERVICE = "cluster.batch.bps.PachonService"
SLACK_S = 240.0
"""What a run may take on a machine that has too much to do."""


def eventually(reached: Callable[[], object]) -> None:
    give_up = time.monotonic() + SLACK_S
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def ended(run: str) -> WmsRunReport:
    """The report of a run when its coordinator has ended, by BPS's own way to ask."""
    eventually(lambda: not RunFolder(Path(run)).coordinated())
    return report(run)


def report(run: str) -> WmsRunReport:
    (found,), messages = retrieve_report(SERVICE, run_id=run, return_exit_codes=True)
    assert not messages
    return found


def states(told: WmsRunReport) -> dict[str, WmsStates]:
    return {job.name: job.state for job in told.jobs}


def log(run: str) -> str:
    return "".join(path.read_text() for path in Path(run).glob("*.log*"))


# --- the whole of it: BPS's commands, a real pipeline


@pytest.mark.ray
def test_the_submit_file_of_the_documentation_runs_and_what_failed_is_restarted(tmp_path: Path) -> None:
    ButlerArchive.create(tmp_path / "repo").register_camera(camera("LSSTCam"))
    (tmp_path / "submit.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1])
    environment = os.environ | {
        "PWD": str(tmp_path),
        "REPO": str(tmp_path / "repo"),
        "PIPELINES": str(FOREIGN),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOREIGN)]),
        "BPS_WMS_SERVICE_CLASS": SERVICE,
    }

    def bps(*said: str) -> str:
        program = [Path(sys.executable).with_name("bps"), *said]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = bps(
        "submit",
        "submit.yaml",
        "--extra-qgraph-options",
        f"-c number:misfortune=raises -c number:once={tmp_path / 'was'}",
    )
    run = re.search(r"Run Id: (.*)", told)[1]
    first = ended(run)
    assert first.state == WmsStates.FAILED, log(run)
    assert {label: codes for label, codes in first.exit_code_summary.items() if codes} == {"number": [1]}
    log_file = re.search(r"number_7: exit code 1: .*\((.*)\)", str(first.specific_info))[1]
    assert "ZeroDivisionError: seven is unlucky" in Path(log_file).read_text()
    assert {label: counts[WmsStates.SUCCEEDED] for label, counts in first.job_summary.items()} == {
        "pipetaskInit": 1, "number": 1, "sum": 0, "finalJob": 1,
    }  # fmt: skip
    assert first.job_summary["sum"][WmsStates.PRUNED] == 1

    bps("restart", "--id", run)
    second = ended(run)
    assert second.state == WmsStates.SUCCEEDED, log(run)
    assert set(states(second).values()) == {WmsStates.SUCCEEDED}
    assert len(list(Path(run).glob("jobs/number/**/*.log"))) == 2
    with Butler.from_config(str(tmp_path / "repo"), collections=f"u/{first.operator}/numbers") as butler:
        assert butler.get("sum", instrument="LSSTCam")["value"] == 10 * (6 + 7)
        assert butler.get("number", instrument="LSSTCam", detector=7)["value"] == 70


# --- jobs that are shell scripts: quicker to go wrong


class Jobs:
    """A workflow of BPS, of shell commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generic = GenericWorkflow("shell")
        self.generic.run_attrs = {"bps_operator": "tester", "bps_payload": "shell"}

    def made(self, name: str, command: str, **asked: object) -> GenericWorkflowJob:
        asked.setdefault("request_memory", 1000)
        script = self.folder / f"{name}.sh"
        script.write_text(f"{command}\n")
        return GenericWorkflowJob(
            name, name, executable=GenericWorkflowExec("bash", "bash"), arguments=f"{script}", **asked
        )

    def add(self, name: str, command: str, *after: str, **asked: object) -> None:
        self.generic.add_job(self.made(name, command, **asked), parent_names=list(after))

    def config(self, **settings: object) -> BpsConfig:
        return BpsConfig({"wmsServiceClass": SERVICE, **settings}, defaults=BPS_DEFAULTS)

    def submit(self) -> str:
        (self.folder / "run").mkdir()
        config = self.config()
        service = PachonService(config)
        return service.submit(service.prepare(config, self.generic, str(self.folder / "run")), config=config).run_id


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.mark.ray
def test_a_job_is_repeated_and_given_up_as_it_asked_to_be(jobs: Jobs, tmp_path: Path) -> None:
    jobs.add("unsteady", f"test -e {tmp_path}/was || {{ touch {tmp_path}/was; exit 3; }}", number_of_retries=1)
    jobs.add("refuses", "echo not for us; exit 2", number_of_retries=5, retry_unless_exit=[1, 2])
    jobs.add("after", "touch never", "refuses")
    eat = f'{sys.executable} -c "import time; held = bytearray(200_000_000); time.sleep(2.5)"'
    jobs.add("eats", eat, number_of_retries=1, request_memory=100, memory_multiplier=5)
    jobs.add("hangs", "sleep 600", request_walltime=1)
    jobs.add("outside", f"echo $COLOR $PACHON_BATCH > {tmp_path}/said", environment={"COLOR": "dark <ENV:SHADE>"})
    jobs.add("unset", "true", environment={"COLOR": "<ENV:NO_SUCH>"})
    os.environ["SHADE"] = "red"
    jobs.generic.add_final(jobs.made("sums-up", f"touch {tmp_path}/final"))
    run = jobs.submit()
    del os.environ["SHADE"]
    told = ended(run)
    assert told.state == WmsStates.FAILED, log(run)
    assert states(told) == {
        "unsteady": WmsStates.SUCCEEDED, "refuses": WmsStates.FAILED, "after": WmsStates.PRUNED,
        "eats": WmsStates.SUCCEEDED, "hangs": WmsStates.FAILED, "outside": WmsStates.SUCCEEDED,
        "unset": WmsStates.FAILED, "sums-up": WmsStates.SUCCEEDED,
    }  # fmt: skip
    assert {name: codes for name, codes in told.exit_code_summary.items() if codes} == {
        "refuses": [2], "hangs": [137], "unset": [127],
    }  # fmt: skip
    found = RunFolder(Path(run)).job_states.read()
    assert {name: found[name].attempt for name in ("unsteady", "refuses", "eats", "hangs")} == {
        "unsteady": 2, "refuses": 1, "eats": 2, "hangs": 1,
    }  # fmt: skip
    assert "not for us" in found["refuses"].message
    assert "NO_SUCH" in found["unset"].message
    assert (tmp_path / "said").read_text().split() == ["dark", "red", "1"]
    assert (tmp_path / "final").exists()


@pytest.mark.ray
def test_a_run_is_canceled_or_loses_its_coordinator_and_goes_on(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.add("before", f"echo did >> {tmp_path}/before")
    hangs = f"test -e {tmp_path}/enough || {{ sleep 600 & echo $$ $! > {tmp_path}/pids; wait; }}"
    jobs.add("hangs", hangs, "before")
    run = jobs.submit()
    for end in (kill, cancel):
        eventually(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
        assert states(report(run))["hangs"] == WmsStates.RUNNING
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        end(run)
        eventually(lambda: not any(found.runs for pid in pids if (found := proc.process(pid))))  # noqa: B023
        (tmp_path / "pids").unlink()
        PachonService({}).restart(run) if end is kill else None
    assert "Successfully canceled" in capsys.readouterr().out
    assert report(run).state == WmsStates.DELETED
    assert states(report(run)) == {"before": WmsStates.SUCCEEDED, "hangs": WmsStates.DELETED}
    (tmp_path / "enough").touch()
    PachonService({}).restart(run)
    assert set(states(ended(run)).values()) == {WmsStates.SUCCEEDED}, log(run)
    assert (tmp_path / "before").read_text().count("\n") == 1


def kill(run: str) -> None:
    os.kill(int((Path(run) / "coordinator.pid").read_text()), signal.SIGKILL)


def cancel(run: str) -> None:
    cancel_driver(SERVICE, run, user=None, require_bps=True, pass_thru="")


@pytest.mark.ray
def test_ping_tells_whether_ray_can_be_had() -> None:
    asked = "from cluster.batch.bps import PachonService; print(PachonService({}).ping(''))"
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "(0, " in told, told
    assert "on this machine" in told


def test_what_is_done_is_not_done_again_whatever_came_before_it(jobs: Jobs, tmp_path: Path) -> None:
    names = [f"job-{number}" for number in range(20)]
    for before, name in zip(["", *names], names, strict=False):
        jobs.add(name, "true", *filter(None, [before]))
    run = RunFolder(tmp_path)
    run.write_workflow(translated(jobs.config(), jobs.generic))
    for name in names:
        run.job_states.add(JobState(name, SUCCEEDED))
    progress = Executor(run, JobWork(run), lambda: 1, REAL_TIME).run()
    assert progress.state == DONE
    assert sum(step.kept for step in progress.steps.values()) == len(names)


# --- what BPS asks for, in our words


def test_orderings_become_edges_between_jobs(jobs: Jobs) -> None:
    for name in ("a", "b", "c"):
        jobs.add(name, "true")
    group = GenericWorkflowGroup("group", "group", blocking=True)
    for name in ("d", "e"):
        group.add_job(jobs.made(name, "true"))
    group.add_edge("d", "e")
    jobs.generic.add_job(GenericWorkflowNoopJob("noop", "noop"))
    jobs.generic.add_job(group)
    jobs.generic.add_edges_from([("a", "noop"), ("b", "noop"), ("noop", "c"), ("c", "group")])
    made = translated(jobs.config(), jobs.generic)
    assert [job.name for job in made.jobs] == ["a", "b", "c", "d", "e"]
    assert set(made.edges) == {("a", "c"), ("b", "c"), ("c", "d"), ("c", "e"), ("d", "e")}


def test_a_command_line_is_filled_in_except_for_the_environment(jobs: Jobs) -> None:
    job = jobs.made(
        "number", "true", cmdvals={"more": "--log <FILE:graph>"}, pre_cmdline="before", post_cmdline="after"
    )
    job.executable = GenericWorkflowExec("pipetask", "<ENV:HERE>/bin/pipetask")
    job.arguments = "run-qbb <FILE:graph> ${WHERE} {more} '{}'"
    jobs.generic.add_job(job)
    jobs.generic.add_job_inputs("number", [GenericWorkflowFile("graph", "/graphs/a.qg")])
    (made,) = translated(jobs.config(), jobs.generic).jobs
    command = "<ENV:HERE>/bin/pipetask run-qbb /graphs/a.qg <ENV:WHERE> --log /graphs/a.qg '{}'"
    assert made.command == f"before && {{ {command}; }}; code=$?; after; exit $code"


def test_what_a_job_asks_for_is_what_it_gets(jobs: Jobs) -> None:
    jobs.add(
        "big", "true", request_cpus=4, request_memory=3000, request_memory_max=8000, memory_multiplier=2.5,
        request_walltime=120, number_of_retries=3, retry_unless_exit=2, priority=7, tags={"visit": 12},
    )  # fmt: skip
    sites = {"usdf": {"rayAddress": "10.0.0.1:6379", "raySlots": 8, "rayPriority": "calibration"}}
    made = translated(jobs.config(computeSite="usdf", site=sites), jobs.generic)
    (job,) = made.jobs
    assert (job.needs.cpus, job.needs.memory_mb, job.needs.deadline_s) == (4, 3000, 120.0)
    assert (job.memory_growth, job.memory_max_mb) == (2.5, 8000)
    assert (job.retries, job.final_exits, job.priority) == (3, (2,), 7)
    assert job.log == "jobs/big/12/big.log"
    assert (made.ray_address, made.slots, made.priority.name) == ("10.0.0.1:6379", 8, "CALIBRATION")


@pytest.mark.parametrize(
    ("asked", "settings", "said"),
    [
        ({"abort_on_value": 3}, {}, "number: abortOnValue"),
        ({"arguments": "<FILE:lost>"}, {}, "'lost'"),
        ({"executable": None}, {}, "number: it has no executable"),
        ({}, {"rayPriority": "highest"}, "'highest'"),
        ({}, {"raySlots": -1}, "slots"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    jobs: Jobs, asked: dict[str, object], settings: dict[str, object], said: str
) -> None:
    job = jobs.made("number", "true")
    jobs.generic.add_job(job)
    for name, value in asked.items():
        setattr(job, name, value)
    with pytest.raises(BadData, match=said):
        translated(jobs.config(**settings), jobs.generic)


def test_a_group_that_does_not_block_holds_up_the_next_group_only_until_it_has_ended(jobs: Jobs) -> None:
    for name, members in {"visit_1": "ab", "visit_2": "c"}.items():
        group = GenericWorkflowGroup(name, "visits")
        for member in members:
            group.add_job(jobs.made(member, "true"))
        jobs.generic.add_job(group)
    jobs.add("after", "true", "visit_1")
    jobs.generic.add_edge("visit_1", "visit_2")
    made = translated(jobs.config(), jobs.generic)
    assert set(made.edges) == {("a", "after"), ("b", "after")}
    assert set(made.loose) == {("a", "c"), ("b", "c")}


def test_what_fails_blocks_nothing_by_a_loose_edge() -> None:
    graph = nx.DiGraph([("a", "b"), ("b", "c")])
    graph.add_edges_from([("b", "x"), ("c", "x"), ("o", "x")], loose=True)
    walker = Walker(graph)
    assert next(walker) == {"a", "o"}
    assert set(walker.fail("a")) == {"b", "c"}
    assert next(walker) == set()
    walker.finish("o")
    assert next(walker) == {"x"}


def test_a_folder_without_a_run_is_told_by_its_name(tmp_path: Path) -> None:
    service, said = PachonService({}), f"{tmp_path}: there is no batch run"
    assert service.get_status(str(tmp_path)) == (WmsStates.UNKNOWN, said)
    assert service.restart(str(tmp_path)) == (None, None, said)
    assert service.cancel(str(tmp_path)) == (False, said)
    assert service.list_submitted_jobs(str(tmp_path)) == []
    assert retrieve_report(SERVICE, run_id=str(tmp_path)) == ([], [said])
    assert retrieve_report(SERVICE, pass_thru=str(tmp_path)) == ([], [])
