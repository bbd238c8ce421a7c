"""What a worker process does with a job: starts its command line, watches what it takes, tells how it ended."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.batch.keeper import take_second_place
from cluster.batch.request import Needs
from cluster.batch.work import Made
from cluster.batch.workflow import Job
from cluster.child_process import ChildProcess
from cluster.proc import descendants, resident_mb
from schemas.errors import BadData

EXIT = "exit"
"""The class of error of a command that ended with another exit code than 0."""

_NOT_FOUND, _KILLED = 127, 128 + signal.SIGKILL
_LOOK_S, _WEIGH_S = 0.1, 1.0

_SUPERVISED = """
trap 'read -r _ _ _ parent _ < /proc/$$/stat; [ "$parent" = "$PPID" ] || kill -KILL 0' CONT
bash -c "$1" &
while kill -0 $! 2> /dev/null; do wait $!; done
wait $!
"""
"""Runs a command, and kills it with all its group when the worker dies.

The worker's death is told by SIGCONT, which also wakes what stands still for prompt work. When that goes on it gets
the same signal, and still has its parent.
"""


@dataclass(frozen=True)
class Attempt:
    """What a worker is told. `log`: the file to append to. `folder`: where the command is started.

    `last_words`: see `RunFolder.last_words`.
    """

    job: Job
    needs: Needs
    log: Path
    folder: Path
    last_words: Path


def execute(attempt: Attempt) -> Made:
    """Run a job's command to its end; its exit code is told. Interrupted, it kills all that it started."""
    take_second_place()
    attempt.last_words.touch()
    started = time.monotonic()
    try:
        child = _child(attempt)
        child.start()
    except (BadData, OSError) as cause:
        return Made(time.monotonic() - started, 0.0, str(_NOT_FOUND), EXIT, str(cause))
    try:
        memory_mb, error, message = _watch(child, attempt)
    finally:
        child.kill()  # also what it may have left behind
    return Made(time.monotonic() - started, memory_mb, str(_shell_code(child.returncode)), error, message)


def _child(attempt: Attempt) -> ChildProcess:
    job = attempt.job
    environment = dict(os.environ)
    environment |= {name: _filled(value, environment, job) for name, value in job.environment.items()}
    command = _filled(job.command, environment, job)
    attempt.log.parent.mkdir(parents=True, exist_ok=True)
    with attempt.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {command}\n")
    os.chdir(attempt.folder)
    program = ["bash", "-c", _SUPERVISED, "bash", command]
    return ChildProcess(job.name, program, attempt.log, environment=environment, death_signal=signal.SIGCONT)


def _filled(text: str, environment: Mapping[str, str], job: Job) -> str:
    """With the values of the environment variables that it names."""

    def value(named: re.Match[str]) -> str:
        if named[1] not in environment:
            raise BadData(f"{job.name}: the environment variable {named[1]} is not set where the job runs")
        return environment[named[1]]

    return re.sub(r"<ENV:([^>]+)>", value, text)


def _watch(child: ChildProcess, attempt: Attempt) -> tuple[float, str, str]:
    """Until it has ended, or took more memory or time than it asked for: peak memory (MB), error, message.

    Time in which this process stands still, for prompt work to go first, does not count.
    """
    needs, peak, ran, weighed = attempt.needs, 0.0, 0.0, -_WEIGH_S
    while child.returncode is None:
        if ran - weighed >= _WEIGH_S:
            weighed, used = ran, _memory_mb(child.pid)
            peak = max(peak, used)
            if used > needs.memory_mb:
                return peak, "memory", f"used {used:.0f} MB, asked for {needs.memory_mb}"
        if ran > needs.deadline_s:
            return peak, "hung", f"not done within {needs.deadline_s:g} s"
        time.sleep(_LOOK_S)
        ran += _LOOK_S
    code = _shell_code(child.returncode)
    if code == 0:
        return peak, "", ""
    said = next(iter(child.log_tail(1).splitlines()), "")
    return peak, "memory" if code == _KILLED else EXIT, f"exit code {code}: {said} ({attempt.log})"


def _shell_code(code: int | None) -> int:
    """An exit code as the shell has it: 128 and more is a signal."""
    return _KILLED if code is None else code if code >= 0 else 128 - code


def _memory_mb(pid: int) -> float:
    """Of a process and all that it started."""
    total = 0.0
    for each in (pid, *(found.pid for found in descendants(pid))):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += resident_mb(each)
    return total
