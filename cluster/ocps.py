"""`pachon ocps`: the observatory commands batch runs over Kafka (docs/batch.md)."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from rich.console import Console

from backbone.csc import LIFE, State
from backbone.dead_letters import DeadLetterTopic
from backbone.ocps import COMMANDS, EXECUTE, PATIENCE_S, AbortJob, Ack, Command, Execute, OcpsWriter, checked
from backbone.registry_client import RegistryClient
from backbone.sal import Received, SalReader, decoded
from cluster import logs
from cluster.batch.request import BatchRequest
from cluster.batch.run_folder import CANCELED, CUT_OFF, DONE, HUNG_S, RUNNING, Progress, Silence
from cluster.ocps_jobs import BROKEN, QUANTA_FAILED, REFUSED, Job, Jobs, Outcome, sole
from cluster.ocps_life import Life, check
from cluster.ocps_request import OcpsOptions, requested
from cluster.ocps_run import SUBMIT_S, JobRun
from schemas.clock import REAL_TIME, TAI_MINUS_UTC
from schemas.errors import BadData, Transient

STALE_S = 600.0
"""A command that nobody took for so long has been given up by whoever sent it."""

_POLL_S, _RENEW_S, _NEXT_S, _WAIT_S = 0.5, 60.0, 600.0, 86400.0
_PAUSES_S = (0.0, 10.0, 60.0)
"""Before each start of a run: the first, and those after it was cut off."""

_TOLD_FAILURES, _TOLD_CHARACTERS = 5, 200
_ON_A_CLUSTER = 8

_log = structlog.get_logger()


def run(options: OcpsOptions, console: Console) -> int:
    """Serve until SIGTERM, SIGINT or `exitControl`; what runs then goes on, and the next service tells of its end."""
    known = check(options)
    with sole(options.runs):
        logs.configure(options.runs / "log.jsonl", "ocps")
        console.print(f"OCPS {options.index} at {options.kafka}, jobs in {options.runs}: {', '.join(known)}")
        with suppress(asyncio.CancelledError):
            asyncio.run(_serve(options))
    return 0


async def _serve(options: OcpsOptions) -> None:
    serving = asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    async with RegistryClient(options.registry) as registry:
        writer = OcpsWriter(options.kafka, registry, options.index, os.getpid(), REAL_TIME)
        await Service(options, registry, writer, serving.cancel).run()


class Service:
    """Commands in, jobs looked after, acknowledgements out.

    A command is on disk before it is acknowledged, and its end before that is told. One that is read again is known by
    its folder, so that topics are read from the beginning, and what was sent long ago passed over.
    """

    def __init__(
        self, options: OcpsOptions, registry: RegistryClient, writer: OcpsWriter, end: Callable[[], object]
    ) -> None:
        self._options, self._registry, self._writer, self._end = options, registry, writer, end
        self._jobs, self._life = Jobs(options.runs), Life(options, writer)
        self._letters = DeadLetterTopic(options.kafka)
        self._since = REAL_TIME.now() - TAI_MINUS_UTC - STALE_S
        self._queue: list[str] = []

    async def run(self) -> None:
        """For ever, or until `exitControl`. Raises Transient if broker or registry is away for too long."""
        await self._writer.make_topics(COMMANDS)
        await self._life.begin()
        async with asyncio.TaskGroup() as jobs:
            jobs.create_task(self._life.beat())
            for job in self._jobs.unfinished():
                jobs.create_task(self._follow(job))
            reader = SalReader(
                self._options.kafka, self._registry, {}, since=self._since, topics=COMMANDS, deadline_s=PATIENCE_S
            )
            async with reader:
                async for message in reader.messages():
                    if (taken := await self._taken(message)) is None:
                        continue
                    if taken.command.name in LIFE:  # one after another, so that states are told in their order
                        await self._follow(taken)
                    else:
                        jobs.create_task(self._follow(taken))
                    if self._life.state is State.OFFLINE:
                        self._end()

    async def _taken(self, message: Received) -> Job | None:
        """The job of a command that is new, and ours."""
        assert message.record is not None
        if message.record.timestamp < 1000.0 * self._since:
            return None
        try:
            record = await decoded(message.record.value or b"", self._registry)
            command = Command.of(message.topic, record)
        except BadData as error:
            _log.warning("command not understood", topic=message.topic, offset=message.record.offset, error=str(error))
            await self._letters.keep(message.refused(str(error)))
            return None
        if command.index != self._options.index or self._jobs.get(command.job_id) is not None:
            return None
        return self._jobs.take(command, record, REAL_TIME.now(), self._life.judged(command, record))

    async def _follow(self, job: Job) -> None:
        """From the first acknowledgement to the last, from wherever an earlier service left off."""
        log = _log.bind(job=job.id)
        if not job.state.acked:
            log.info("commanded", topic=job.command.topic, identity=job.command.identity)
            await self._writer.ack(job.command, Ack.ACK)
            job.keep(acked=True)
        outcome = job.state.outcome or await self._outcome(job)
        job.keep(outcome=outcome)
        if job.command.name in LIFE and outcome.ack == Ack.COMPLETE:
            await self._life.tell()
        if job.state.submitted:
            await self._writer.job_result(job.id, outcome.exit_code, outcome.result)
        await self._writer.ack(job.command, outcome.ack, error=outcome.error, result=outcome.result)
        job.keep(told=True)
        log.info("ended", ack=outcome.ack.name, result=outcome.result)

    async def _outcome(self, job: Job) -> Outcome:
        try:
            return await (self._execute(job) if job.command.topic == EXECUTE else self._abort(job))
        except BadData as error:
            return _refused(job, str(error))
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - one command must not end this service, and the next, and the next
            _log.exception("broken", job=job.id)
            return _outcome(job, Ack.FAILED, BROKEN, 1, error=repr(error))

    async def _execute(self, job: Job) -> Outcome:
        asked = checked(Execute, job.record)
        await self._check()
        request = requested(asked, job.id, self._options)
        before = [self._known(name) for name in asked.prereq_jobs.replace(",", " ").split()]
        if not job.state.submitted:
            await self._writer.job_id(job.command, job.id)
            job.keep(submitted=True)
        follower = _Renewal(self._writer, job)
        await follower.tell("waiting")
        try:
            await self._until(lambda: job.state.aborted or all(each.state.outcome for each in before), follower)
            self._queue.append(job.id)
            limit = _ON_A_CLUSTER if self._options.ray_address else 1
            await self._until(lambda: job.state.aborted or self._queue.index(job.id) < limit, follower)
            return await _ended(job, request, follower)
        finally:
            if job.id in self._queue:
                self._queue.remove(job.id)

    async def _check(self) -> None:
        """Be in fault if no command can be executed, whatever it asks for. Raises BadData then."""
        try:
            check(self._options)
        except BadData as error:
            await self._life.fault(str(error))
            raise

    def _known(self, job_id: str) -> Job:
        found = self._jobs.get(job_id)
        if found is None or found.command.topic != EXECUTE:
            raise BadData(f"there is no job {job_id!r}")
        return found

    async def _until(self, reached: Callable[[], object], follower: "_Renewal", within_s: float = _WAIT_S) -> None:
        """Raises BadData when that took too long."""
        give_up = time.monotonic() + within_s
        while not reached():
            if time.monotonic() > give_up:
                raise BadData(f"waited for {within_s:g} s")
            await follower.again("waiting")
            await asyncio.sleep(_POLL_S)

    async def _abort(self, job: Job) -> Outcome:
        target = self._known(checked(AbortJob, job.record).job_id)
        if target.state.outcome is not None and not target.state.aborted:
            raise BadData(f"job {target.id} has ended already")
        target.keep(aborted=True)
        follower = _Renewal(self._writer, job)
        await follower.tell("ending")
        await self._until(lambda: target.state.outcome, follower, SUBMIT_S + HUNG_S)
        return _outcome(job, Ack.COMPLETE, 0, 0, aborted=target.id)


class _Renewal:
    """Says now and then that a command is under way, and how far it is: whoever waits for it then waits on."""

    def __init__(self, writer: OcpsWriter, job: Job) -> None:
        self._writer, self._job = writer, job
        self._next = 0.0

    async def tell(self, state: str, progress: Progress | None = None) -> None:
        """Say it now."""
        self._next = time.monotonic() + _RENEW_S
        steps = progress.steps.values() if progress else ()
        told = {
            "job_id": self._job.id, "state": state, "quanta": sum(step.total for step in steps),
            "done": sum(step.kept + step.done for step in steps),
        }  # fmt: skip
        await self._writer.ack(self._job.command, Ack.IN_PROGRESS, result=json.dumps(told), timeout_s=_NEXT_S)

    async def again(self, state: str, progress: Progress | None = None) -> None:
        """Say it if it is time to."""
        if time.monotonic() >= self._next:
            await self.tell(state, progress)


async def _ended(job: Job, request: BatchRequest, follower: _Renewal) -> Outcome:
    """Start a job's run, again if it was cut off, and wait for its end."""
    run = JobRun(job.path)
    silence, cut_off = Silence(), time.monotonic()
    while True:
        starting = run.starting  # asked first: what it has done when it is over is then seen
        progress = run.run.progress() if run.run is not None else None
        state = CUT_OFF if progress is None else progress.state
        if state not in {RUNNING, CUT_OFF} and not starting:
            assert progress is not None
            return summed_up(job, progress)
        if job.state.aborted:
            _end(run)
        if starting or state == RUNNING:
            cut_off = time.monotonic()
            if silence.too_long(progress):
                run.kill()
        elif job.state.aborted:
            return _outcome(job, Ack.ABORTED, 0, 255, state=CANCELED)
        elif (hopeless := _hopeless(job, run)) is not None:
            return hopeless
        elif time.monotonic() - cut_off >= _PAUSES_S[job.state.starts]:
            job.keep(starts=job.state.starts + 1)
            run.start(request)
        await follower.again("starting" if progress is None else progress.state, progress)
        await asyncio.sleep(_POLL_S)


def _hopeless(job: Job, run: JobRun) -> Outcome | None:
    """How it ended, if there is no sense in starting it again."""
    refused, said = run.said()
    if refused:
        return _refused(job, said)
    if job.state.starts >= len(_PAUSES_S):
        return _outcome(job, Ack.FAILED, BROKEN, 1, error=f"it died {job.state.starts} times, at last saying: {said}")
    return None


def _end(run: JobRun) -> None:
    """What starts it, and its coordinator, as far as there are such."""
    run.stop_starting()
    if run.run is not None:
        run.run.cancel()


def summed_up(job: Job, progress: Progress) -> Outcome:
    """A run's end: numbers by step, and the first failures."""
    steps = {
        label: {"total": step.total, "done": step.kept + step.done, "failed": step.failed, "blocked": step.blocked}
        for label, step in progress.steps.items()
    }
    failures = [
        {"label": each.label, "data_id": each.data_id, "error": each.error, "message": each.message[:_TOLD_CHARACTERS]}
        for each in progress.failures[:_TOLD_FAILURES]
    ]
    ack, error, code = {DONE: (Ack.COMPLETE, 0, 0), CANCELED: (Ack.ABORTED, 0, 255)}.get(
        progress.state, (Ack.FAILED, QUANTA_FAILED, 1)
    )
    return _outcome(
        job, ack, error, code, state=progress.state, collection=progress.run, steps=steps, failures=failures,
        failures_left_out=len(progress.failures) - len(failures),
    )  # fmt: skip


def _refused(job: Job, why: str) -> Outcome:
    return _outcome(job, Ack.FAILED, REFUSED, 1, error=why)


def _outcome(job: Job, ack: Ack, code: int, exit_code: int, **told: Any) -> Outcome:  # noqa: ANN401 - JSON
    seconds = round(REAL_TIME.now() - job.state.received, 1)
    result = json.dumps({"job_id": job.id, **told, "seconds": seconds})
    return Outcome(ack=ack, error=code, exit_code=exit_code, result=result)
