"""Processes of this machine, as Linux tells of them: proc(5)."""

import os
import resource
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/proc")


class Process(NamedTuple):
    """`name`: of its program, 15 characters at most. `state`: one letter, Z of one that has died and is not buried."""

    pid: int
    name: str
    state: str
    parent: int

    @property
    def runs(self) -> bool:
        """Whether it is not dead."""
        return self.state not in {"Z", "X"}


def process(pid: int) -> Process | None:
    """What is known of a process; None if there is none."""
    try:
        text = (_ROOT / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent, *_ = rest.split()
    return Process(pid, name, state, int(parent))


def descendants(pid: int) -> list[Process]:
    """Children of a process, their children, and so on."""
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for folder in _ROOT.iterdir():
        if folder.name.isdecimal() and (found := process(int(folder.name))) is not None:
            children[found.parent].append(found)
    every = list(children[pid])
    for each in every:
        every += children[each.pid]
    return every


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that a process has used; 0 of one that is gone."""
    try:
        text = (_ROOT / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def environment(pid: int) -> dict[str, str]:
    """What a process found when it began to run its program; nothing of one that is gone, or another user's."""
    try:
        text = (_ROOT / str(pid) / "environ").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value for name, _, value in (entry.partition("=") for entry in text.split("\0") if entry)}


def resident_mb(pid: int) -> float:
    """Memory of a process that is its own, MB: shared pages, such as Ray's object store, do not count."""
    resident, shared = (_ROOT / str(pid) / "statm").read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize() / 1e6
