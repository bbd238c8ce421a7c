"""The observatory's commands become batch runs: real broker, registry, service and Ray."""

import asyncio
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray
from fastavro import parse_schema, schemaless_writer
from lsst.daf.butler import Butler

from backbone.butler import ButlerArchive
from backbone.dead_letters import DeadLetterTopic
from backbone.ocps import ABORT_JOB, EXECUTE, Command, Execute
from cluster.batch.joining import NAMESPACE
from cluster.batch.request import BatchRequest, Priority
from cluster.batch.run_folder import CANCELED, Failure, Progress, RunFolder, Steps
from cluster.child_process import ChildProcess
from cluster.ocps import summed_up
from cluster.ocps_jobs import Jobs, sole
from cluster.ocps_request import OcpsOptions, requested
from schemas.errors import BadData
from schemas.instrument import camera
from simulators.ocs.ocps import JOB_RESULT, OcpsRemote, Told, main

FOREIGN = Path(__file__).parent / "batch/foreign"
ROOT = Path(__file__).parents[2]
DETECTORS = 8
QUERY = f"instrument='LSSTCam' AND detector < {DETECTORS}"
SUM = sum(range(DETECTORS))
WITHIN_S = 120.0
RECORD = {
    "salIndex": 3, "private_seqNum": 7, "private_origin": 12, "private_identity": "Script:1",
    "private_sndStamp": 1.8e9 + 37.0,
}  # fmt: skip
ACK, IN_PROGRESS, COMPLETE, FAILED, ABORTED = 300, 301, 303, -302, -303


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    ButlerArchive.create(folder).register_camera(camera("LSSTCam"))
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    command = [sys.executable, "-m", "backbone.schema_registry", "--file", str(folder / "registry.json")]
    with ChildProcess("registry", command, folder / "registry.log") as server:
        yield server.wait_for("ready").split()[1]


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    ray.init(
        address="local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False,
        _node_ip_address="127.0.0.3",
    )  # fmt: skip
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class Observatory:
    """A service of its own SAL index, so that commands of other tests are not its."""

    def __init__(self, broker: str, registry: str, butler: Path, ray_address: str, folder: Path) -> None:
        self.broker, self.registry, self.butler, self.folder = broker, registry, butler, folder
        self.index = uuid4().int % 10**6
        self.command = [
            sys.executable, "-m", "cluster.cli", "ocps", "--kafka", broker, "--registry", registry,
            "--butler", str(butler), "--runs", str(folder), "--pipelines", str(FOREIGN), "--index", str(self.index),
            "--ray-address", ray_address,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = os.pathsep.join([str(ROOT), str(FOREIGN)])
        self.process = subprocess.Popen(self.command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10.0)

    def remote(self) -> OcpsRemote:
        return OcpsRemote(self.broker, self.registry, self.index)

    def job(self, told: Told) -> Path:
        return self.folder / str(json.loads(str(told["result"]))["job_id"])


@pytest.fixture
def observatory(broker: str, registry: str, butler: Path, ray_address: str, tmp_path: Path) -> Iterator[Observatory]:
    made = Observatory(broker, registry, butler, ray_address, tmp_path / "jobs")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def idle(broker: str, registry: str, butler: Path, tmp_path: Path) -> Iterator[Observatory]:
    """One whose runs have no Ray."""
    made = Observatory(broker, registry, butler, "127.0.0.1:9", tmp_path / "jobs")
    made.start()
    yield made
    made.kill()


def codes(acks: list[Told]) -> list[object]:
    """Without renewals."""
    told = [ack["ack"] for ack in acks]
    return [code for code, before in zip(told, [None, *told], strict=False) if code != before]


def last(acks: list[Told]) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(str(acks[-1]["result"]))
    return summary


async def result_of(remote: OcpsRemote, job_id: str) -> Told:
    async with asyncio.timeout(WITHIN_S), aclosing(remote.told(JOB_RESULT)) as every:
        async for told in every:
            if told["job_id"] == job_id:
                return told
    raise AssertionError


async def eventually(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not reached():  # noqa: ASYNC110 - files of other processes
            await asyncio.sleep(0.05)


@pytest.mark.ray
async def test_a_command_delivered_twice_is_one_run_acknowledged_to_its_end(observatory: Observatory) -> None:
    async with observatory.remote() as remote:
        number, value = await remote.framed(
            "execute", pipeline="numbers.yaml", config="-c number:factor=3", data_query=QUERY
        )
        await remote.send("execute", value)
        await remote.send("execute", value)
        acks = await remote.acknowledgements(number, WITHIN_S)
        assert codes(acks) == [ACK, IN_PROGRESS, COMPLETE]
        assert {(ack["identity"], ack["cmdtype"]) for ack in acks} == {("Script:100017", 3)}
        summary = last(acks)
        assert summary["steps"]["number"] == {"total": DETECTORS, "done": DETECTORS, "failed": 0, "blocked": 0}
        assert (summary["failures"], summary["state"]) == ([], "done")
        assert summary["seconds"] > 0
        told = await result_of(remote, summary["job_id"])
    assert (told["exit_code"], told["result"]) == (0, acks[-1]["result"])
    found = Butler.from_config(str(observatory.butler), collections=summary["collection"])
    assert found.get("sum", instrument="LSSTCam")["value"] == 3 * SUM
    (job,) = (path for path in observatory.folder.iterdir() if path.is_dir())
    assert job.name == summary["job_id"]
    assert summary["collection"].startswith(f"ocps/numbers/{job.name}/")
    assert RunFolder(job / "run").request.priority == Priority.OCS


@pytest.mark.ray
async def test_a_job_that_is_aborted_ends_and_says_so(observatory: Observatory) -> None:
    async with observatory.remote() as remote:
        hangs = await remote.command("execute", pipeline="numbers", config="number:misfortune=hangs", data_query=QUERY)
        await eventually(lambda: list(observatory.folder.glob("2*/run/run")))
        (run,) = (RunFolder(path.parent) for path in observatory.folder.glob("2*/run/run"))
        job_id = run.path.parent.name
        await eventually(lambda: run.progress().steps and run.progress().steps["number"].done)
        ended = await remote.acknowledgements(await remote.command("abort_job", job_id=job_id), WITHIN_S)
        assert codes(ended) == [ACK, IN_PROGRESS, COMPLETE]
        assert codes(await remote.acknowledgements(hangs, WITHIN_S)) == [ACK, IN_PROGRESS, ABORTED]
        assert (await result_of(remote, job_id))["exit_code"] == 255
    assert run.progress().state == CANCELED


@pytest.mark.ray
async def test_a_service_that_was_killed_twice_goes_on_and_tells_the_end(observatory: Observatory) -> None:
    async with observatory.remote() as remote:
        number = await remote.command("execute", pipeline="numbers", data_query=QUERY)
        seen: list[Told] = []
        waiting = asyncio.create_task(remote.acknowledgements(number, WITHIN_S, seen.append))
        await eventually(lambda: any(ack["ack"] == IN_PROGRESS for ack in seen))
        observatory.kill()
        observatory.start()
        job = observatory.job(seen[-1])
        await eventually(lambda: RunFolder(job / "run").progress().steps)
        observatory.kill()
        observatory.start()
        acks = await waiting
    assert codes(acks) == [ACK, IN_PROGRESS, COMPLETE]
    summary = last(acks)
    assert summary["steps"]["number"]["done"] == DETECTORS
    found = Butler.from_config(str(observatory.butler), collections=summary["collection"])
    assert found.get("sum", instrument="LSSTCam")["value"] == 10 * SUM
    assert found.collections.query(f"ocps/numbers/{job.name}/*") == [summary["collection"]]


async def _short(remote: OcpsRemote) -> int:
    """An `execute` that names no pipeline, with a schema that has none."""
    number, value = await remote.framed("execute", pipeline="numbers")
    names = {
        "salIndex": "long", "private_seqNum": "long", "private_origin": "long", "private_identity": "string",
        "private_sndStamp": "double",
    }  # fmt: skip
    fields = [{"name": name, "type": kind} for name, kind in names.items()]
    schema: dict[str, object] = {"type": "record", "name": "x", "fields": fields}
    record = {name: value for name, value in (await remote.decoded(value)).items() if name in names}
    buffer = io.BytesIO(struct.pack(">bI", 0, await remote.registered("short", schema)))
    buffer.seek(5)
    schemaless_writer(buffer, parse_schema(schema), record)
    await remote.send("execute", buffer.getvalue())
    return number


async def test_bad_commands_are_refused_with_a_reason_and_the_service_goes_on(
    idle: Observatory, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {
        "execute": [
            ({"pipeline": "nombres"}, "burning, numbers"),
            ({"pipeline": "../foreign/numbers"}, "burning, numbers"),
            ({"pipeline": "numbers", "config": '{"number:factor": 3'}, "config"),
            ({"pipeline": "numbers", "config": '{"number:factor": 3}'}, "not label:option=value"),
            ({"pipeline": "numbers", "config": "-c"}, "nothing after -c"),
            ({"pipeline": "numbers", "version": "w_2020_01"}, "w_2020_01"),
            ({"pipeline": "numbers", "prereq_jobs": "yesterday"}, "no job 'yesterday'"),
            ({"pipeline": "numbers", "data_query": "instrument='LSSTCam' AND detector < 0"}, "no quanta"),
            ({"pipeline": "numbers", "data_query": QUERY, "config": "number:faktor=3"}, "faktor"),
        ],
        "abort_job": [({"job_id": "yesterday"}, "no job 'yesterday'")],
    }
    async with idle.remote() as remote:
        await remote.send("execute", b"no command at all")
        sent = [
            (await remote.command(name, **values), why) for name, commands in bad.items() for values, why in commands
        ]
        sent.append((await _short(remote), "pipeline: Field required"))
        for number, why in sent:
            acks = await remote.acknowledgements(number, WITHIN_S)
            assert (codes(acks)[0], codes(acks)[-1], acks[-1]["error"]) == (ACK, FAILED, 1)
            assert why in last(acks)["error"]
    peers = ["--kafka", idle.broker, "--registry", idle.registry, "--index", str(idle.index), "--within", "60"]
    assert await asyncio.to_thread(main, [*peers, "execute", "--pipeline", "nombres"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["300", "-302"]
    assert idle.process is not None
    idle.process.terminate()
    assert await asyncio.to_thread(idle.process.wait, 20.0) == 0
    letters = DeadLetterTopic(idle.broker).read()
    assert [letter.reason for letter in letters if letter.value == b"no command at all"] == [
        "the magic byte is 110, not 0"
    ]


def test_a_command_is_kept_once_and_found_again_with_how_far_it_was(tmp_path: Path) -> None:
    command = Command.of(EXECUTE, RECORD)
    jobs = Jobs(tmp_path)
    job = jobs.take(command, {**RECORD, "pipeline": "numbers", "blob": b"\xff"}, now=5.0)
    assert job is not None
    assert jobs.take(command, RECORD, now=6.0) is None
    job.keep(acked=True, starts=1)
    (found,) = Jobs(tmp_path).unfinished()
    assert (found.command, found.record["pipeline"], found.state) == (command, "numbers", job.state)
    assert Jobs(tmp_path).take(command, RECORD, now=7.0) is None
    found.keep(told=True)
    assert Jobs(tmp_path).unfinished() == []


def test_quanta_that_failed_are_told_by_step_and_the_first_by_name(tmp_path: Path) -> None:
    job = Jobs(tmp_path).take(Command.of(EXECUTE, RECORD), RECORD, now=0.0)
    assert job is not None
    steps = {"number": Steps(total=12, done=5, failed=7), "sum": Steps(total=1, blocked=1)}
    failures = [Failure("number", f"{{detector: {k}}}", "refused", "x" * 1000, 1) for k in range(7)]
    outcome = summed_up(job, Progress(state="failed", run="r", steps=steps, failures=failures))
    told = json.loads(outcome.result)
    assert (outcome.ack, outcome.error, outcome.exit_code) == (FAILED, 2, 1)
    assert told["steps"]["number"] == {"total": 12, "done": 5, "failed": 7, "blocked": 0}
    assert (told["steps"]["sum"]["blocked"], told["collection"]) == (1, "r")
    assert [each["data_id"] for each in told["failures"]] == [f"{{detector: {k}}}" for k in range(5)]
    assert told["failures_left_out"] == 2
    assert len(outcome.result) < 3000


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    with sole(tmp_path), pytest.raises(BadData, match="another service"), sole(tmp_path):
        pass


def options(tmp_path: Path, **changed: Any) -> OcpsOptions:
    return OcpsOptions(
        kafka="", registry="", butler=tmp_path, pipelines=FOREIGN, runs=tmp_path, inputs=("LSSTCam/defaults",), index=3
    ).model_copy(update=changed)


def test_a_configuration_is_words_of_pipetask(tmp_path: Path) -> None:
    asked = Execute(pipeline="numbers.yaml#number", config="-c number:factor=3 -i u/a,u/b number:once='a b'")
    request: BatchRequest = requested(asked, "j", options(tmp_path))
    assert request.settings == ("number:factor=3", "number:once=a b")
    assert request.inputs == ("LSSTCam/defaults", "u/a", "u/b")
    assert (request.pipeline, request.output) == (f"{FOREIGN}/numbers.yaml#number", "ocps/numbers/j")


def test_each_command_has_a_job_of_its_own() -> None:
    job = Command.of(EXECUTE, RECORD).job_id
    assert job == Command.of(EXECUTE, dict(RECORD)).job_id
    assert job.startswith("20270115T080000Z-7-")
    others: list[dict[str, object]] = [
        {"private_seqNum": 8},
        {"private_origin": 13},
        {"private_identity": "x"},
        {"private_sndStamp": 1.8e9},
    ]
    ids = {Command.of(EXECUTE, {**RECORD, **other}).job_id for other in others} | {
        Command.of(ABORT_JOB, RECORD).job_id,
        job,
    }
    assert len(ids) == 6


@pytest.mark.parametrize(
    ("field", "value"), [("private_sndStamp", float("nan")), ("salIndex", "3"), ("private_origin", None)]
)
def test_who_cannot_be_answered_is_named(field: str, value: object) -> None:
    with pytest.raises(BadData, match=field):
        Command.of(EXECUTE, {**RECORD, field: value})
