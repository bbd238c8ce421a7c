"""The observatory's commands become batch runs: real broker, registry, service and Ray."""

import asyncio
import io
import json
import os
import shutil
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
from aiokafka import AIOKafkaConsumer
from fastavro import parse_schema, schemaless_writer
from lsst.daf.butler import Butler

from backbone.butler import ButlerArchive
from backbone.dead_letters import DeadLetterTopic
from backbone.ocps import SUMMARY_STATE, OcpsWriter
from backbone.registry_client import RegistryClient
from cluster.batch.joining import NAMESPACE
from cluster.batch.request import Priority
from cluster.batch.run_folder import CANCELED, RunFolder
from cluster.child_process import ChildProcess
from schemas.clock import REAL_TIME
from schemas.instrument import camera
from simulators.ocs.ocps import JOB_RESULT, OcpsRemote, Told, main

FOREIGN = Path(__file__).parent / "batch/foreign"
ROOT = Path(__file__).parents[2]
DETECTORS = 8
QUERY = f"instrument='LSSTCam' AND detector < {DETECTORS}"
SUM = sum(range(DETECTORS))
WITHIN_S = 120.0
ACK, IN_PROGRESS, COMPLETE, FAILED, ABORTED = 300, 301, 303, -302, -303
DISABLED, ENABLED, FAULT, OFFLINE, STANDBY = 1, 2, 3, 4, 5
EVENT = "lsst.sal.OCPS.logevent_"


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

    def __init__(
        self, broker: str, registry: str, butler: Path, ray_address: str, folder: Path, pipelines: Path = FOREIGN
    ) -> None:
        self.broker, self.registry, self.butler, self.folder = broker, registry, butler, folder
        self.index = uuid4().int % 10**6
        self.command = [
            sys.executable, "-m", "cluster.cli", "ocps", "--kafka", broker, "--registry", registry,
            "--butler", str(butler), "--runs", str(folder), "--pipelines", str(pipelines), "--index", str(self.index),
            "--ray-address", ray_address,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(FOREIGN)])}
        self.process = subprocess.Popen([*self.command, *more], env=os.environ | path, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
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
async def test_a_command_delivered_twice_to_a_service_killed_twice_is_one_run_told_of_to_its_end(
    observatory: Observatory,
) -> None:
    async with observatory.remote() as remote:
        number, value = await remote.framed(
            "execute", pipeline="numbers.yaml", config="-c number:factor=3", data_query=QUERY
        )
        await remote.send("execute", value)
        await remote.send("execute", value)
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
        summary = last(acks)
        told = await result_of(remote, summary["job_id"])
    assert codes(acks) == [ACK, IN_PROGRESS, COMPLETE]
    assert {(ack["identity"], ack["cmdtype"]) for ack in acks} == {("Script:100017", 3)}
    assert summary["steps"]["number"] == {"total": DETECTORS, "done": DETECTORS, "failed": 0, "blocked": 0}
    assert (summary["failures"], summary["state"]) == ([], "done")
    assert summary["seconds"] > 0
    assert (told["exit_code"], told["result"]) == (0, acks[-1]["result"])
    found = Butler.from_config(str(observatory.butler), collections=summary["collection"])
    assert found.get("sum", instrument="LSSTCam")["value"] == 3 * SUM
    assert found.collections.query(f"ocps/numbers/{job.name}/*") == [summary["collection"]]
    assert [path for path in observatory.folder.iterdir() if path.is_dir()] == [job]
    assert job.name == summary["job_id"]
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


async def commanded(remote: OcpsRemote, name: str, **values: str) -> tuple[object, object]:
    """What becomes of a command in the end: its code and result."""
    acks = await remote.acknowledgements(await remote.command(name, **values), WITHIN_S)
    assert acks[0]["ack"] == ACK
    assert acks[-1]["error"] == int(acks[-1]["ack"] == FAILED)
    return acks[-1]["ack"], acks[-1]["result"]


async def told_of(remote: OcpsRemote, event: str) -> Told:
    """What one who comes now finds."""
    async with asyncio.timeout(WITHIN_S):
        while (told := await remote.last(EVENT + event)) is None:  # noqa: ASYNC110 - another process tells it
            await asyncio.sleep(0.05)
    return told


def refused(command: str, state: str) -> tuple[int, str]:
    return FAILED, f"Failed: {command} not allowed in state <State.{state}>"


DONE = COMPLETE, "Done"


@pytest.fixture
def component(broker: str, registry: str, butler: Path, tmp_path: Path) -> Iterator[Observatory]:
    """One that has been started by nobody, with pipelines of its own."""
    (tmp_path / "pipelines").mkdir()
    shutil.copy(FOREIGN / "numbers.yaml", tmp_path / "pipelines")
    made = Observatory(broker, registry, butler, "127.0.0.1:9", tmp_path / "jobs", tmp_path / "pipelines")
    yield made
    made.kill()


async def test_a_script_brings_the_component_to_life_and_to_its_end(component: Observatory) -> None:
    component.start("--state", "standby")
    async with component.remote() as remote:
        assert (await told_of(remote, "summaryState"))["summaryState"] == STANDBY
        assert (await told_of(remote, "errorCode"))["errorCode"] == 0
        assert str((await told_of(remote, "softwareVersions"))["subsystemVersions"]).startswith("lsst-pipe-base=")
        available = await told_of(remote, "configurationsAvailable")
        assert (available["url"], available["private_identity"]) == (
            (component.folder.parent / "pipelines").as_uri(),
            f"OCPS:{component.index}",
        )
        assert await commanded(remote, "execute", pipeline="numbers") == refused("execute", "STANDBY: 5")
        assert await commanded(remote, "enable") == refused("enable", "STANDBY: 5")
        code, why = await commanded(remote, "start", configurationOverride="mine.yaml")
        assert (code, "mine.yaml" in str(why)) == (FAILED, True)
        assert await commanded(remote, "start") == DONE
        assert (await told_of(remote, "configurationApplied"))["url"] == available["url"]
        assert await commanded(remote, "exitControl") == refused("exitControl", "DISABLED: 1")
        assert await commanded(remote, "enable") == DONE
        assert await commanded(remote, "enable") == refused("enable", "ENABLED: 2")
        assert await commanded(remote, "disable") == DONE
        assert await commanded(remote, "abort_job", job_id="x") == refused("abort_job", "DISABLED: 1")
        assert await commanded(remote, "standby") == DONE
        assert await commanded(remote, "exitControl") == DONE
        assert component.process is not None
        assert await asyncio.to_thread(component.process.wait, 20.0) == 0
        assert await states_of(remote) == [STANDBY, DISABLED, ENABLED, DISABLED, STANDBY, OFFLINE]


async def states_of(remote: OcpsRemote) -> list[object]:
    """All that were told, in their order, up to the last."""
    final, told = await remote.last(EVENT + "summaryState"), []
    async with aclosing(remote.told(EVENT + "summaryState")) as every:
        async for each in every:
            if each["salIndex"] == remote.index:
                told.append(each["summaryState"])
                if each == final:
                    break
    return told


async def test_a_component_that_died_goes_on_as_it_was_and_one_that_cannot_work_is_in_fault(
    component: Observatory, capsys: pytest.CaptureFixture[str]
) -> None:
    component.start()
    async with component.remote() as remote:
        assert (await told_of(remote, "summaryState"))["summaryState"] == ENABLED
        pipeline = component.folder.parent / "pipelines/numbers.yaml"
        pipeline.rename(component.folder.parent / "away")
        assert (await commanded(remote, "execute", pipeline="numbers"))[0] == FAILED
        component.kill()
        pipeline.parent.joinpath("other.yaml").touch()
        before = await told_of(remote, "heartbeat")
        component.start()
        assert await commanded(remote, "execute", pipeline="numbers") == refused("execute", "FAULT: 3")
        assert "there is no pipeline" in str((await told_of(remote, "errorCode"))["errorReport"])
        async with asyncio.timeout(WITHIN_S):
            while (await told_of(remote, "heartbeat"))["private_origin"] == before["private_origin"]:
                pass
        pipeline.parent.joinpath("other.yaml").unlink()
        assert await commanded(remote, "standby") == DONE
        assert (await told_of(remote, "errorCode"))["errorCode"] == 0
        assert (await commanded(remote, "start"))[0] == FAILED
        (component.folder.parent / "away").rename(pipeline)
        assert await commanded(remote, "start") == DONE
        assert await states_of(remote) == [ENABLED, FAULT, FAULT, STANDBY, DISABLED]
    peers = ["--kafka", component.broker, "--registry", component.registry, "--index", str(component.index)]
    assert await asyncio.to_thread(main, [*peers, "state"]) == 0
    assert capsys.readouterr().out == "DISABLED\n"


async def test_what_was_said_last_is_found_however_slowly_the_broker_yields(
    broker: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, empty = AIOKafkaConsumer.getmany, [True] * 3

    async def slow(consumer: AIOKafkaConsumer, **how: int) -> object:
        return {} if empty and empty.pop() else await fetched(consumer, **how, max_records=1)

    index = uuid4().int % 10**6
    async with RegistryClient(registry) as client:
        writer, others = (OcpsWriter(broker, client, each, 1, REAL_TIME) for each in (index, index + 1))
        for state in (STANDBY, DISABLED):
            await writer.event(SUMMARY_STATE, summaryState=state)
        await others.event(SUMMARY_STATE, summaryState=FAULT)
    monkeypatch.setattr(AIOKafkaConsumer, "getmany", slow)
    async with OcpsRemote(broker, registry, index) as remote:
        found = await remote.last(SUMMARY_STATE)
        assert found is not None
        assert found["summaryState"] == DISABLED
    async with OcpsRemote(broker, registry, index + 2) as nobodys:
        assert await nobodys.last(SUMMARY_STATE) is None
        assert await nobodys.last("lsst.sal.never.made") is None
