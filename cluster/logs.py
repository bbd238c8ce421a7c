"""One structured log: every process appends JSON lines to the same file."""

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from schemas.events import Event
from schemas.image import Observation


class _LineFile:
    """Appends whole lines: one `write` a line with O_APPEND, so that processes do not tear each other's.

    What a full disk does not take is counted, and told with the first line that it takes again: to log never fails.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lost = 0

    def msg(self, message: str) -> None:
        line = message.encode() + b"\n"
        if self._lost:
            lost = {"event": "log lines lost", "lines": self._lost, "level": "error", "pid": os.getpid()}
            line += json.dumps(lost).encode() + b"\n"
        try:
            os.write(self._fd, line)
        except OSError:
            self._lost += 1
        else:
            self._lost = 0

    log = debug = info = warning = warn = error = critical = exception = failure = fatal = msg


def configure(path: Path, process: str) -> None:
    """Send this process's log to `path`, each line with the process's name and pid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _LineFile(path)
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            partial(_name, process, os.getpid()),
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_args: lines,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)


class _Library(logging.Handler):
    """What libraries warn of through `logging` goes the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it, with its trace if it has one."""
        level = max(record.levelno, logging.WARNING)
        structlog.get_logger().log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def subject(event: Event) -> dict[str, object]:
    """What a line about an event says it is about: `group`, `visit`, `detector`, as far as there is one."""
    seen: Observation | None = getattr(event, "observation", None)
    visit = seen.visit if seen is not None else getattr(event, "visit", None)
    known = {"group": event.group or None, "visit": visit, "detector": getattr(event, "detector", None)}
    return {name: value for name, value in known.items() if value is not None}


def _name(
    process: str, pid: int, _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Whose line it is: said by a processor, since a context variable does not reach an actor's own event loop."""
    return {"process": process, "pid": pid, **line}


def _stamp(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """UTC wall time: a log is read beside other machines' logs."""
    now = time.time()  # noqa: TID251 - cluster may
    line["utc"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}"
    return line


def plain(message: str) -> None:
    """A line for the person at the terminal."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()
