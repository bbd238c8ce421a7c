"""Time, through one seam: nothing else in Pachon reads the wall clock.

All times are TAI seconds since 1970-01-01T00:00:00 TAI, as SAL stamps them, unless a name says `mjd`
(TAI, days), `wall` (POSIX seconds) or `monotonic`.
"""

import calendar
import time
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import BadData

TAI_MINUS_UTC = 37.0
"""Seconds; constant since 2017-01-01 (IERS Bulletin C; no leap second is announced)."""

MJD_OF_UNIX_EPOCH = 40587.0


def mjd_from_tai(tai: float) -> float:
    """MJD (TAI, days) of a TAI time in seconds."""
    return MJD_OF_UNIX_EPOCH + tai / 86400.0


def tai_from_mjd(mjd: float) -> float:
    """TAI seconds of an MJD (TAI, days)."""
    return (mjd - MJD_OF_UNIX_EPOCH) * 86400.0


def day_obs_of(tai: float) -> int:
    """The night as YYYYMMDD: the UTC date 12 hours earlier (LSE-400 rolls over at noon UTC)."""
    stamp = time.gmtime(tai - TAI_MINUS_UTC - 43200.0)
    return stamp.tm_year * 10000 + stamp.tm_mon * 100 + stamp.tm_mday


def noon_of(day_obs: int) -> float:
    """TAI seconds of the beginning of a night, YYYYMMDD: 12 h UTC. Raises BadData for what is no date."""
    try:
        day = time.strptime(str(day_obs), "%Y%m%d")
    except ValueError as error:
        raise BadData(f"{day_obs} is not a night, YYYYMMDD") from error
    return calendar.timegm(day) + 43200.0 + TAI_MINUS_UTC


def midnight_of(day_obs: int) -> float:
    """TAI seconds of the middle of a night, YYYYMMDD: 0 h UTC of the day after. Raises BadData for what is no date."""
    return noon_of(day_obs) + 43200.0


class Clock(Protocol):
    """What tells the night's time."""

    def now(self) -> float:
        """TAI seconds."""

    def wall_seconds(self, seconds: float) -> float:
        """How many seconds of the wall's time pass while `seconds` of the night's do."""


@dataclass(frozen=True)
class NightClock:
    """The night's time as a line over the wall's: `tai = night_start + speed * (wall - wall_start)`.

    A live night has speed 1 and starts where the wall stands. A replayed night starts at its own date, and
    may run faster than the wall.
    """

    wall_start: float
    night_start: float
    speed: float = 1.0

    def now(self) -> float:
        """TAI seconds of the night."""
        return self.night_start + self.speed * (time.time() - self.wall_start)  # noqa: TID251 - this is the seam

    def wall_seconds(self, seconds: float) -> float:
        """How many seconds of the wall's time pass while `seconds` of the night's do."""
        return seconds / self.speed

    @classmethod
    def starting(cls, night_start: float, *, delay_s: float = 0.0, speed: float = 1.0) -> "NightClock":
        """A clock that will show `night_start` (TAI s) in `delay_s` seconds of the wall's time."""
        return cls(time.time() + delay_s, night_start, speed)  # noqa: TID251 - this is the seam


REAL_TIME = NightClock(wall_start=0.0, night_start=TAI_MINUS_UTC)
"""The time that it is."""


@dataclass
class ManualClock:
    """A clock that stands where it is set: tests, and inline runs that go as fast as they can."""

    tai: float = 0.0

    def now(self) -> float:
        """TAI seconds, as set."""
        return self.tai

    def wall_seconds(self, seconds: float) -> float:  # noqa: ARG002 - the interface of Clock
        """No wall time passes."""
        return 0.0

    def set_to(self, tai: float) -> None:
        """Move to `tai` (TAI s); never backwards."""
        self.tai = max(self.tai, tai)
