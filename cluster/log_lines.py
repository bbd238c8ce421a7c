"""What the night's log says: of a visit, and of what went wrong last."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_WRONG = {"warning", "error", "critical"}
_FIRST = ("utc", "level", "process", "event")
_AS_GOOD_AS_SAID = {"pid", "part", "group", "visit", "exception"}


TAIL_BYTES = 16 * 2**20
"""What is read of a log to say how things stand: some hours of a bad night."""


def lines_of(path: Path, last_bytes: int | None = None) -> Iterator[Line]:
    """Each line of a log, or of the end of it; none if there is no log. Half a line is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        if last_bytes is not None:
            file.seek(max(0, path.stat().st_size - last_bytes))
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
    """The last warnings and errors of the log's end; of those alike the last, and how many `times` it was said."""
    found: dict[tuple[object, object], Line] = {}
    for line in lines_of(path, TAIL_BYTES):
        if line.get("level") in _WRONG:
            alike = (line.get("event"), line.get("error"))
            times = found.pop(alike, {}).get("times", 0) + 1
            found[alike] = line | {"times": times}
    return list(found.values())[-most:]


def told(line: Line) -> str:
    """What a line says beside when, how grave and whose: the event, its fields, the last line of a trace."""
    more = [f"{name}={value}" for name, value in line.items() if name not in {*_FIRST, *_AS_GOOD_AS_SAID, "times"}]
    more += [f"({line['times']} times)"] if line.get("times", 1) > 1 else []
    trace = str(line.get("exception", "")).strip().splitlines()
    return " ".join([str(line.get("event", "")), *more, *trace[-1:]])
