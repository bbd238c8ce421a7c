"""How CPUs are shared among batch runs: the rule, without Ray."""

from collections.abc import Mapping
from typing import NamedTuple


class Asked(NamedTuple):
    """What a run asked for. `priority`: 1 goes first. `wanted`: CPUs that it has work for. `at`: when, monotonic s."""

    priority: int
    wanted: int
    at: float


def shared(cpus: int, asked: Mapping[str, Asked], turn: int) -> dict[str, int]:
    """CPUs for each run: higher classes first, evenly within one; none more than it wants.

    Where an even share leaves a rest, who has it changes with `turn`.
    """
    shares: dict[str, int] = {}
    for priority in sorted({each.priority for each in asked.values()}):
        wanted = {run: each.wanted for run, each in sorted(asked.items()) if each.priority == priority}
        shares |= _evenly(cpus - sum(shares.values()), wanted, turn)
    return shares


def _evenly(cpus: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    runs, first = list(wanted), turn % max(len(wanted), 1)
    shares = dict.fromkeys(runs, 0)
    while cpus > 0 and (hungry := [run for run in runs[first:] + runs[:first] if shares[run] < wanted[run]]):
        each = max(min(cpus // len(hungry), *(wanted[run] - shares[run] for run in hungry)), 1)
        for run in hungry[: cpus // each]:
            shares[run] += each
            cpus -= each
    return shares
