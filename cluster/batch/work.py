"""What an Executor executes: the quanta of a graph, or the jobs of a workflow."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import networkx as nx  # type: ignore[import-untyped]

from cluster.batch.request import Needs

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Made:
    """What came of an attempt. `told`: what the work keeps of it. `error`: its class, empty if it succeeded."""

    seconds: float
    memory_mb: float
    told: str = ""
    error: str = ""
    message: str = ""


class Work(Protocol[Key]):
    """Units of work, by keys, and which must be done before which."""

    @property
    def run(self) -> str:
        """The run's name."""

    @property
    def stages(self) -> "Sequence[nx.DiGraph[Key]]":
        """Graphs of keys, for `Walker`: a stage begins when the one before has ended, whatever failed in it."""

    @property
    def labels(self) -> Sequence[str]:
        """Every label there is, in the order in which they are told."""

    @property
    def execute(self) -> Callable[[Any], Made]:
        """What a worker process does with what `begin` made."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What worker processes find in their environment."""

    @property
    def interrupted(self) -> bool:
        """How an attempt is ended: by KeyboardInterrupt, for it to end what it started, or with its process."""

    def label(self, key: Key) -> str:
        """The step that a unit belongs to."""

    def name(self, key: Key) -> str:
        """What people know a unit by, within its step."""

    def needs(self, key: Key) -> Needs:
        """Of its first attempt."""

    def priority(self, key: Key) -> int:
        """What is ready and has more goes first."""

    def done(self) -> AbstractSet[Key]:
        """What earlier coordinators did."""

    def begin(self, key: Key, attempt: int, needs: Needs) -> object:
        """An attempt begins: the argument of `execute`."""

    def attempts(self, key: Key, made: Made) -> int:
        """How often a unit is tried, by what became of the last attempt."""

    def more_memory(self, key: Key, needs: Needs) -> Needs:
        """Of the next attempt, if memory was what lacked."""

    def end(self, key: Key, made: Made) -> None:
        """A unit succeeded, or failed and is given up."""

    def keep_due(self) -> None:
        """Write down what has ended, if that is due: asked once a second, also while nothing ends."""

    def keep(self) -> None:
        """Write down all that has ended."""
