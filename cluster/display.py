"""What a person sees while a night runs: a live table at a terminal, plain lines elsewhere."""

from collections import Counter, defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.terminal import Terminal
from schemas.clock import Clock
from schemas.events import (
    AlertsSent,
    DetectorFailed,
    Event,
    NextVisit,
    NextVisitCanceled,
    RawArchived,
    ReadoutEnded,
    VisitDone,
    VisitRefused,
)

_STATE_AFTER = {
    "VisitAssigned": "assigned",
    "RawReady": "raw",
    "DiaSourcesReady": "differenced",
    "AlertsReady": "committed",
    "AlertsSent": "sent",
    "DetectorFailed": "failed",
}
_END = {"VisitRefused": "refused", "NextVisitCanceled": "canceled", "VisitDone": "done"}
STATES = ("assigned", "raw", "differenced", "committed", "sent", "failed")
"""Of a detector, as they follow one another."""
_SHOWN = 12


class Board:
    """The state of the night, from its facts: visits and detectors by state, alerts, latency."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.visits: dict[str, str] = {}
        self.states: dict[str, dict[int, str]] = defaultdict(dict)
        self.alerts: Counter[str] = Counter()
        self.latency: dict[str, float] = {}
        self.archived = 0

    def note(self, event: Event, _at: float) -> None:
        """Bring the board up to a fact."""
        if event.kind in _STATE_AFTER:
            self.states[event.group][getattr(event, "detector", -1)] = _STATE_AFTER[event.kind]
        match event:
            case NextVisit():
                self.visits.setdefault(event.group, f"announced {event.filters}")
            case ReadoutEnded() if self.visits.get(event.group) not in _END.values():
                self.visits[event.group] = f"snap {event.snap + 1}/{event.n_snaps} read out"
            case AlertsSent():
                self._sent(event)
            case RawArchived():
                self.archived += 1
            case VisitRefused() | NextVisitCanceled() | VisitDone() if self.visits.get(event.group) != "done":
                self.visits[event.group] = _END[event.kind]

    def _sent(self, event: AlertsSent) -> None:
        self.alerts[event.group] += event.acknowledged
        seconds = self._clock.wall_seconds(event.last_acknowledged - event.readout_ended)
        self.latency[event.group] = max(seconds, self.latency.get(event.group, 0.0))

    def count(self, group: str) -> Counter[str]:
        """Detectors of a visit by state."""
        return Counter(self.states[group].values())


def _line(event: Event, board: Board) -> str | None:
    """The plain line for a fact that a person wants to hear of."""
    match event:
        case NextVisit():
            return f"{event.group}  nextVisit  {event.filters}  ra {event.ra:.3f} dec {event.dec:+.3f}"
        case ReadoutEnded():
            return f"{event.group}  {event.image_name} read out"
        case VisitDone():
            failed = sum(1 for m in event.detectors if m.gave_up)
            alerts = sum(m.alerts_acknowledged for m in event.detectors)
            late = board.latency.get(event.group)
            took = f", last one {late:.1f} s after readout" if late is not None else ""
            return f"{event.group}  done: {len(event.detectors)} detectors, {failed} failed, {alerts} alerts{took}"
        case DetectorFailed():
            return f"{event.group}  detector {event.detector} failed in {event.stage}: {event.reason}"
        case VisitRefused():
            return f"{event.group}  refused: {event.reason}"
        case _:
            return None


class Display:
    """Shows the board. A context manager; `refresh` as often as wanted."""

    def __init__(self, board: Board, waiting: Callable[[], Counter[str]], console: Console) -> None:
        self._board = board
        self._waiting = waiting
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Leave the last picture standing."""
        if self._live:
            self.refresh()
            self._live.stop()

    def hear(self, event: Event, at: float) -> None:
        """Note a fact; say it, where there is no terminal to draw on."""
        self._board.note(event, at)
        line = _line(event, self._board)
        if line and self._live is None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw the board anew, unless the terminal has not yet taken the last picture."""
        behind = isinstance(self._console.file, Terminal) and self._console.file.behind
        if self._live and not behind:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        table = Table("visit", "state", *STATES, "alerts", "last after readout", title="Pachon: the night")
        for group in list(self._board.visits)[-_SHOWN:]:
            count, latency = self._board.count(group), self._board.latency.get(group)
            table.add_row(
                group, self._board.visits[group], *(str(count[s] or "") for s in STATES),
                str(self._board.alerts[group] or ""), f"{latency:.1f} s" if latency is not None else "",
            )  # fmt: skip
        queue = ", ".join(f"{pool} {n}" for pool, n in self._waiting().items() if n) or "empty"
        total = sum(self._board.alerts.values())
        return Group(table, Text(f"alerts {total}   raws archived {self._board.archived}   queue: {queue}"))
