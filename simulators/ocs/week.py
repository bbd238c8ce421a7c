"""The nights before a night: its fields, observed again and again, for templates and releases."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from schemas.errors import BadData
from schemas.wcs import separation_arcsec
from simulators.ocs.planner import Pointing, dithered
from simulators.ocs.schedule import CADENCE_S, PlannedVisit, group_name

SIDEREAL_DAY_S = 86164.0905
_SAME_FIELD_ARCSEC = 1800.0


def plan_week(
    night: Sequence[PlannedVisit], *, seed: int, nights: int, filters: Sequence[str], fields: int
) -> list[PlannedVisit]:
    """Visits of the first `fields` fields of a night's plan, in each of `filters` once a night, on `nights` before it.

    They are at the same hour angle as the night's first visit, in order of time, each dithered in its own way. Raises
    BadData for a number that is not positive, and for a plan without visits.
    """
    if not night or min(nights, fields, len(filters)) < 1:
        raise BadData(f"{nights} nights of {fields} fields in {len(filters)} filters of a plan of {len(night)} visits")
    first, places = night[0], fields_of(night)[:fields]
    rng = np.random.default_rng((seed, nights))
    return [
        _visit(rng, first, places[number % len(places)], filters[number // len(places)], back, number)
        for back in range(nights, 0, -1)
        for number in range(len(filters) * len(places))
    ]


def fields_of(plan: Sequence[PlannedVisit]) -> list[PlannedVisit]:
    """The first visit of each field, which visits less than half a degree apart share."""
    found: list[PlannedVisit] = []
    for visit in plan:
        if all(separation_arcsec(visit.ra, visit.dec, f.ra, f.dec) > _SAME_FIELD_ARCSEC for f in found):
            found.append(visit)
    return found


def _visit(
    rng: np.random.Generator, first: PlannedVisit, field: PlannedVisit, physical_filter: str, back: int, number: int
) -> PlannedVisit:
    start = round(first.start_tai - back * SIDEREAL_DAY_S, 3) + number * CADENCE_S
    place = dithered(rng, Pointing(field.ra, field.dec, field.rotation, physical_filter))
    return dataclasses.replace(
        first, start_tai=start, ra=place.ra, dec=place.dec, rotation=place.rotation, physical_filter=physical_filter,
        seq_num=1 + number * first.n_snaps, group=group_name(start), survey="week",
    )  # fmt: skip
