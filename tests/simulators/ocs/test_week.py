"""The nights before a night."""

import itertools

import pytest

from schemas.errors import BadData
from schemas.identity import day_obs_of_visit
from schemas.wcs import separation_arcsec
from simulators.ocs.schedule import PlannedVisit, plan_own
from simulators.ocs.week import fields_of, plan_week

NIGHT = plan_own(1)


def week(*, nights: int = 7, filters: tuple[str, ...] = ("g_6", "r_57", "i_39"), fields: int = 1) -> list[PlannedVisit]:
    return plan_week(NIGHT, seed=1, nights=nights, filters=filters, fields=fields)


def test_each_night_before_sees_each_field_once_in_each_filter() -> None:
    plan = week(fields=2)
    assert len(plan) == 7 * 3 * 2
    nights = sorted({visit.day_obs for visit in plan})
    assert len(nights) == 7
    assert nights[-1] < NIGHT[0].day_obs
    for night in nights:
        seen = [visit for visit in plan if visit.day_obs == night]
        assert len({(visit.physical_filter, round(visit.ra), round(visit.dec)) for visit in seen}) == 6


def test_its_fields_are_the_nights_own_a_little_beside() -> None:
    first, second = fields_of(NIGHT)
    for visit in week(fields=2):
        apart = min(float(separation_arcsec(visit.ra, visit.dec, f.ra, f.dec)) for f in (first, second))
        assert 1.0 < apart < 130.0


def test_visits_follow_one_another_and_have_numbers_and_groups_of_their_own() -> None:
    plan = week(fields=2)
    for visit, later in itertools.pairwise(plan):
        assert visit.start_tai + visit.duration <= later.start_tai
    exposures = [visit.observation(snap).exposure for visit in plan for snap in range(visit.n_snaps)]
    assert len(set(exposures)) == len(exposures)
    assert len({visit.group for visit in plan}) == len(plan)
    assert {day_obs_of_visit(number) for number in exposures} == {visit.day_obs for visit in plan}


def test_the_same_week_is_planned_again() -> None:
    assert week() == week()


@pytest.mark.parametrize("wrong", [{"nights": 0}, {"fields": 0}, {"filters": ()}])
def test_a_week_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadData, match="nights of"):
        week(**wrong)
