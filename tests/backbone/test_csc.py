"""States of a component, by the table of ts_salobj's `BaseCsc`."""

import pytest

from backbone.csc import LIFE, State, state_after
from schemas.errors import BadData

OFFLINE, STANDBY, DISABLED, ENABLED, FAULT = State.OFFLINE, State.STANDBY, State.DISABLED, State.ENABLED, State.FAULT
ALLOWED = {
    ("start", STANDBY): DISABLED, ("enable", DISABLED): ENABLED, ("disable", ENABLED): DISABLED,
    ("standby", DISABLED): STANDBY, ("standby", FAULT): STANDBY, ("exitControl", STANDBY): OFFLINE,
    ("execute", ENABLED): ENABLED,
}  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("command", [*LIFE, "execute"])
def test_a_command_leads_where_it_may_and_is_refused_elsewhere(command: str, state: State) -> None:
    if (command, state) in ALLOWED:
        assert state_after(command, state) is ALLOWED[command, state]
    else:
        with pytest.raises(BadData, match=f"{command} not allowed in state <State.{state.name}: {state.value}>"):
            state_after(command, state)


def test_states_have_the_numbers_of_sal() -> None:
    assert {state.name: int(state) for state in State} == {
        "OFFLINE": 4, "STANDBY": 5, "DISABLED": 1, "ENABLED": 2, "FAULT": 3,
    }  # fmt: skip
