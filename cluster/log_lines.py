"""What the night's log says: of a visit, and of what went wrong last."""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_WRONG = {"warning", "error", "critical"}
_FIRST = ("utc", "level", "process", "event")
_AS_GOOD_AS_SAID = {"pid", "part", "group", "visit", "exception"}


def lines_of(path: Path) -> Iterator[Line]:
    """Each line of a log; none if there is no log. A line that is being written is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def about(path: Path, group: str, visit: int | None) -> list[Line]:
    """The lines about a visit."""
    return [line for line in lines_of(path) if line.get("group") == group or (visit and line.get("visit") == visit)]


def last_wrong(path: Path, most: int) -> list[Line]:
    """The last warnings and errors."""
    return list(deque((line for line in lines_of(path) if line.get("level") in _WRONG), maxlen=most))


def told(line: Line) -> str:
    """What a line says beside when, how grave, whose and what: its other fields; the last line of a trace."""
    more = [f"{name}={value}" for name, value in line.items() if name not in {*_FIRST, *_AS_GOOD_AS_SAID}]
    trace = str(line.get("exception", "")).strip().splitlines()
    return " ".join([*more, *trace[-1:]])
