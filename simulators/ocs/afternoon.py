"""What is taken each afternoon, in the dark dome and under its lamp: 25 exposures, as DMS-REQ-0131 counts them."""

from collections.abc import Iterator
from typing import NamedTuple

from schemas.clock import noon_of
from simulators.ocs.schedule import READOUT_S, SHUTTER_S, PlannedVisit, group_name

BIASES, DARKS, FLATS = 10, 5, 10
DARK_S, FLAT_S = 30.0, 2.0

FIRST = 90_001
"""The afternoon's first exposure: a night's own are numbered from 1."""


class Shot(NamedTuple):
    """One of them: a type, and seconds."""

    image_type: str
    seconds: float


def shots() -> Iterator[Shot]:
    """In their order."""
    yield from [Shot("bias", 0.0)] * BIASES
    yield from [Shot("dark", DARK_S)] * DARKS
    yield from [Shot("flat", FLAT_S)] * FLATS


def plan_afternoon(physical_filter: str, day_obs: int, instrument: str = "LSSTCam") -> list[PlannedVisit]:
    """The exposures before a night (YYYYMMDD), each in a group of its own, one after another, flats in one filter.

    Raises BadData for what is no night.
    """
    start, plan = noon_of(day_obs), list[PlannedVisit]()
    for number, shot in enumerate(shots()):
        plan.append(
            PlannedVisit(
                start_tai=start, ra=0.0, dec=0.0, rotation=0.0, physical_filter=physical_filter,
                exposure_time=shot.seconds, n_snaps=1, survey="calibration", seq_num=FIRST + number,
                group=group_name(start), instrument=instrument, image_type=shot.image_type,
            )
        )  # fmt: skip
        start += shot.seconds + SHUTTER_S + READOUT_S
    return plan
