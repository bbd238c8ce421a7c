"""The night's clock in a file, so that every process, also one started anew, shows the same time."""

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from schemas.clock import NightClock
from schemas.errors import Broken

DUSK_S = 5.0
"""Wall seconds from the start of the simulators to the first announcement."""


class StoredClock:
    """Shows the time of the night that runs in a folder; runs from `begin` on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, clock: NightClock) -> NightClock:
        """Start the night's time; a night that runs already keeps its own."""
        if not self._path.exists():
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(asdict(clock)), encoding="utf-8")
            part.replace(self._path)
        return self.line

    @cached_property
    def line(self) -> NightClock:
        """The clock itself. Raises Broken if the night has not begun."""
        if not self._path.exists():
            raise Broken(f"the night of {self._path.parent} has not begun: there is no {self._path.name}")
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            return NightClock(**{name: float(value) for name, value in kept.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise Broken(f"{self._path} holds no clock: {error}") from error

    def now(self) -> float:
        """TAI seconds of the night."""
        return self.line.now()

    @property
    def wall_start(self) -> float:
        """POSIX seconds at which the night's time began."""
        return self.line.wall_start

    @property
    def began(self) -> float:
        """TAI seconds before which nothing of this night was told."""
        return self.line.night_start - self.line.speed * DUSK_S

    def wall_seconds(self, seconds: float) -> float:
        """How many seconds of the wall's time pass while `seconds` of the night's do."""
        return self.line.wall_seconds(seconds)
