"""The life of a SAL component (CSC): its summary states, and the commands that lead from one to another.

Codes, rules and the words of a refusal are those of ts_xml (`SALGenerics.xml`) and of ts_salobj's `BaseCsc`.
"""

from collections.abc import Mapping
from enum import IntEnum

from schemas.errors import BadData


class State(IntEnum):
    """Summary states. A component works when it is enabled."""

    DISABLED = 1
    ENABLED = 2
    FAULT = 3
    OFFLINE = 4
    STANDBY = 5


LIFE: Mapping[str, tuple[tuple[State, ...], State]] = {
    "start": ((State.STANDBY,), State.DISABLED),
    "enable": ((State.DISABLED,), State.ENABLED),
    "disable": ((State.ENABLED,), State.DISABLED),
    "standby": ((State.DISABLED, State.FAULT), State.STANDBY),
    "exitControl": ((State.STANDBY,), State.OFFLINE),
}
"""Command -> the states in which it is allowed, and the one it leads to."""


def state_after(command: str, state: State) -> State:
    """The state that a command leads to; any other than those of `LIFE` wants an enabled component, and leaves it so.

    Raises BadData if the command is not allowed in this state.
    """
    allowed, then = LIFE.get(command, ((State.ENABLED,), State.ENABLED))
    if state not in allowed:
        raise BadData(f"{command} not allowed in state {state!r}")
    return then
