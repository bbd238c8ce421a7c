"""Repeatability that is known beforehand."""

import numpy as np
import pytest

from access.release.figures import visit_offsets
from access.release.repeated import MMAG, as_of_many, pa2_mmag
from tests.access.release.small_release import FIRST_VISIT, VISIT_ERROR, positions, stars

BRIGHT = np.full(1500, 19.0)
FLUX = 10.0 ** (0.4 * (31.4 - 19.0))


@pytest.mark.parametrize("visits", [2, 3, 10])
def test_the_scatter_that_was_put_in_comes_out_however_few_visits_there_are(visits: int) -> None:
    repeats = stars(BRIGHT, visits=visits).band().repeats
    assert repeats.stars == 1500
    assert repeats.pa1_mmag == pytest.approx(MMAG * VISIT_ERROR / FLUX, rel=0.06)
    assert repeats.pull_width == pytest.approx(1.0, abs=0.05)
    assert repeats.forced_bias_mmag == pytest.approx(0.0, abs=0.1)
    assert repeats.pf1 == 0.0


def test_the_scatter_of_few_values_has_the_true_one_as_its_median() -> None:
    values = np.random.default_rng(5).normal(0.0, 3.0, (20_000, 2))
    assert np.median(as_of_many(values.std(axis=1, ddof=1), np.full(20_000, 2))) == pytest.approx(3.0, rel=0.03)


def test_errors_that_are_too_small_show_in_chi2_and_pulls() -> None:
    small = stars(BRIGHT, visits=8)
    small.forced["psfFluxErr"] /= 2.0
    repeats = small.band().repeats
    assert repeats.pull_width == pytest.approx(2.0, abs=0.1)
    assert repeats.chi2_dof == pytest.approx(4.0, abs=0.25)


def test_fluxes_that_are_too_far_off_count_for_pf1() -> None:
    small = stars(BRIGHT, visits=10)
    off = small.forced["visit"] == FIRST_VISIT
    small.forced["psfFlux"][off] *= 1.03
    assert pa2_mmag("r") < MMAG * 0.03 * 0.9 < 2 * pa2_mmag("r")
    assert small.band().repeats.pf1 == pytest.approx(0.1, abs=0.002)


def test_zero_points_that_were_put_off_are_seen_visit_by_visit() -> None:
    small = stars(BRIGHT, visits=4)
    for visit, factor in enumerate((1.01, 1.0, 1.0, 0.99)):
        small.forced["psfFlux"][small.forced["visit"] == FIRST_VISIT + visit] *= factor
    offsets = visit_offsets(small.examined().repeated.visits)
    assert offsets["off_mmag"] == pytest.approx(MMAG * np.array([0.01, 0.0, 0.0, -0.01]), abs=0.1)
    assert small.band().repeats.zero_point_mmag == pytest.approx(MMAG * np.std([0.01, 0.0, 0.0, -0.01]), abs=0.1)


def test_forced_fluxes_are_held_to_the_true_ones() -> None:
    small = stars(BRIGHT, visits=4)
    small.forced["psfFlux"] *= 0.97
    assert small.band().repeats.forced_bias_mmag == pytest.approx(-2500 * np.log10(0.97), abs=0.1)


def test_distances_between_stars_scatter_as_their_places_do() -> None:
    small = stars(np.full(400, 19.0), visits=6)
    small.positions = positions(small.sources, small.frames, 10.0, np.random.default_rng(7))
    repeats = small.band().repeats
    assert repeats.pairs > 500
    assert repeats.am1_mas == pytest.approx(10.0 * np.sqrt(2.0), rel=0.04)


def test_a_shift_of_a_whole_visit_changes_no_distance() -> None:
    small = stars(np.full(400, 19.0), visits=6)
    small.positions = positions(small.sources, small.frames, 0.0, np.random.default_rng(7))
    small.positions["dec"][small.positions["visit"] == FIRST_VISIT] += 100.0 / 3.6e6
    assert small.band().repeats.am1_mas == pytest.approx(0.0, abs=0.1)


def test_without_a_reference_what_looks_like_stars_repeats() -> None:
    small = stars(BRIGHT, visits=5)
    small.objects["refExtendedness"][:500] = 1.0
    repeats = small.band(held=False).repeats
    assert repeats.stars == 1000
    assert repeats.pa1_mmag == pytest.approx(MMAG * VISIT_ERROR / FLUX, rel=0.06)
    assert repeats.forced_bias_mmag is None


def test_flagged_and_unmeasured_forced_sources_are_left_out() -> None:
    small = stars(BRIGHT, visits=3)
    third = small.forced["visit"] == FIRST_VISIT + 2
    for name in ("psfFlux_flag", "pixelFlags_saturatedCenter", "pixelFlags_crCenter"):
        small.forced[name] = False
        small.forced[name][third] = True
        small.forced["psfFlux"][third] = 1e6
        assert small.band().repeats.pf1 == 0.0
        small.forced[name] = False
    small.forced["psfFlux"][third] = np.nan
    assert small.band().repeats.pf1 == 0.0


def test_one_visit_repeats_nothing() -> None:
    repeats = stars(BRIGHT, visits=1).band().repeats
    assert (repeats.stars, repeats.pa1_mmag, repeats.pf1, repeats.chi2_dof, repeats.am1_mas) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert repeats.zero_point_mmag is None
