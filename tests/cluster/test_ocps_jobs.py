"""What an OCS's command asks for, and what is kept of it; no broker, no service."""

import json
from pathlib import Path
from typing import Any

import pytest

from backbone.csc import State
from backbone.ocps import ABORT_JOB, EXECUTE, Command, Execute, OcpsWriter
from backbone.registry_client import RegistryClient
from cluster.batch.request import BatchRequest
from cluster.batch.run_folder import Failure, Progress, Steps
from cluster.ocps import summed_up
from cluster.ocps_jobs import Jobs, sole
from cluster.ocps_life import Life
from cluster.ocps_request import OcpsOptions, requested
from schemas.clock import REAL_TIME
from schemas.errors import BadData

FOREIGN = Path(__file__).parent / "batch/foreign"
FAILED = -302
RECORD = {
    "salIndex": 3, "private_seqNum": 7, "private_origin": 12, "private_identity": "Script:1",
    "private_sndStamp": 1.8e9 + 37.0,
}  # fmt: skip


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


def life(tmp_path: Path, **changed: Any) -> Life:
    """Of a component that nobody hears."""
    return Life(options(tmp_path, **changed), OcpsWriter("", RegistryClient(""), 3, 1, REAL_TIME))


def command(name: str, number: int) -> Command:
    return Command.of(f"lsst.sal.OCPS.command_{name}", {**RECORD, "private_seqNum": number})


def test_a_command_that_was_not_noted_before_its_service_died_is_not_refused_for_having_worked(tmp_path: Path) -> None:
    first = life(tmp_path, state=State.STANDBY)
    start = command("start", 1)
    assert [first.judged(start, {}), first.state] == [life(tmp_path).judged(start, {}), State.DISABLED]
    again = life(tmp_path).judged(command("start", 2), {})
    assert again is not None
    assert again.result == "Failed: start not allowed in state <State.DISABLED: 1>"


def test_the_next_service_takes_up_the_state_unless_told_otherwise_or_the_last_had_ended(tmp_path: Path) -> None:
    assert life(tmp_path).state is State.ENABLED
    assert life(tmp_path).judged(command("disable", 1), {}) is not None
    assert life(tmp_path).state is State.DISABLED
    assert life(tmp_path, state=State.STANDBY).state is State.STANDBY
    assert life(tmp_path).judged(command("standby", 2), {}) is not None
    assert life(tmp_path).judged(command("exitControl", 3), {}) is not None
    assert life(tmp_path).state is State.ENABLED
