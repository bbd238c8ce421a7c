"""Releases whose every figure is known: what was put in comes out."""

import numpy as np
import pytest
from scipy.stats import binomtest

from access.release.figures import false_objects, half_found, wilson
from access.release.model import Found
from schemas.wcs import from_tangent, to_tangent
from tests.access.release.small_release import ERROR, SmallRelease, release, stars

EVERYWHERE = [(150.0, 2.0), (0.0, -0.5), (359.95, -70.0), (40.0, 88.5)]


def moved(small: SmallRelease, east_mas: float, north_mas: float) -> None:
    middle = small.tables.middle
    x, y = to_tangent(small.objects["coord_ra"], small.objects["coord_dec"], middle)
    small.objects["coord_ra"], small.objects["coord_dec"] = from_tangent(
        x + east_mas / 3.6e6, y + north_mas / 3.6e6, middle
    )


@pytest.mark.parametrize(("ra", "dec"), EVERYWHERE)
def test_where_nothing_is_wrong_all_is_found_and_nothing_is_off(ra: float, dec: float) -> None:
    small = release(["star", "galaxy"] * 400, np.linspace(17.0, 25.0, 800), ra=ra, dec=dec)
    band = small.band()
    assert all(found.share == 1.0 for found in (*band.stars, *band.galaxies))
    assert (band.stars_50_mag, band.galaxies_50_mag) == (None, None)
    assert band.ra_mas == pytest.approx(0.0, abs=0.01)
    assert band.position_rms_mas == pytest.approx(0.0, abs=0.01)
    assert band.star_bias_mmag == pytest.approx(0.0, abs=1e-3)
    assert band.galaxy_bias_mmag == pytest.approx(0.0, abs=1e-3)
    assert not small.examined().held.objects["false"].any()
    assert sum(found.true for found in band.stars) == 400


def test_a_flux_bias_that_was_put_in_comes_out() -> None:
    small = stars(np.linspace(17.0, 21.99, 500))
    small.objects["r_psfFlux"] *= 0.98
    band = small.band()
    too_faint = -2500.0 * np.log10(0.98)
    assert band.star_bias_mmag == pytest.approx(too_faint, abs=0.01)
    assert [fluxes.bias_mmag for fluxes in band.star_fluxes] == pytest.approx([too_faint] * 10, abs=0.01)


def test_fluxes_as_noisy_as_their_errors_say_have_pulls_of_one() -> None:
    small = stars(np.full(1500, 23.2))
    small.objects["r_psfFlux"] += np.random.default_rng(2).normal(0.0, ERROR, 1500)
    (fluxes,) = small.band().star_fluxes
    assert (fluxes.mag_min, fluxes.mag_max, fluxes.n) == (23.0, 23.5, 1500)
    assert fluxes.pull_width == pytest.approx(1.0, abs=0.08)
    assert fluxes.pull == pytest.approx(0.0, abs=0.1)
    assert fluxes.scatter_mmag == pytest.approx(1085.7 * ERROR / 1905.5, rel=0.1)


def test_positions_are_measured_less_true_on_the_sky() -> None:
    for ra, dec in EVERYWHERE:
        small = stars(np.full(900, 19.0), ra=ra, dec=dec)
        moved(small, 30.0, -20.0)
        east, north = np.random.default_rng(3).normal(0.0, 5.0 / 3.6e6, (2, 900))
        small.objects["coord_dec"] += north
        small.objects["coord_ra"] += east / np.cos(np.radians(small.objects["coord_dec"]))
        band = small.band()
        # Near the pole the offset's east is not everywhere the stars' own east.
        assert np.hypot(band.ra_mas or 0.0, band.dec_mas or 0.0) == pytest.approx(np.hypot(30.0, 20.0), abs=1.0)
        if dec < 80.0:
            assert (band.ra_mas, band.dec_mas) == pytest.approx((30.0, -20.0), abs=1.0)
            assert band.position_rms_mas == pytest.approx(5.0, rel=0.1)
            assert band.position_width_mas == pytest.approx(5.0, rel=0.15)


def test_completeness_is_the_share_of_the_covered_truth_that_is_found() -> None:
    small = release(["star"] * 800 + ["galaxy"] * 800, np.tile(np.repeat([22.2, 23.2, 24.2, 25.2], 200), 2))
    keep = np.ones(1600, bool)
    keep[200:400:4] = False  # a quarter of the second, half of the third, all of the last
    keep[400:600:2] = keep[600:800] = False
    keep[1000:1600] = False
    small.objects = small.objects[keep]
    band = small.band()
    assert [(found.true, found.share) for found in band.stars] == [(200, 1.0), (200, 0.75), (200, 0.5), (200, 0.0)]
    assert band.stars_50_mag == pytest.approx(24.25)
    assert [found.share for found in band.galaxies] == [1.0, 0.0, 0.0, 0.0]
    assert band.galaxies_50_mag == pytest.approx(22.75)


def test_what_is_seen_in_other_bands_only_is_not_found_in_this_one() -> None:
    small = release(["star"] * 100, np.full(100, 23.2), bands="ri")
    small.objects["r_psfFlux"][:40] = 4.9 * ERROR
    small.objects["r_psfFlux"][40:50] = np.nan
    assert small.band("r").stars[0].share == 0.5
    assert small.band("i").stars[0].share == 1.0


def test_what_no_visit_has_covered_is_not_missed() -> None:
    small = stars(np.full(1600, 22.2))
    small.beside_px = 2000.0  # the detector's edge is in the patch's middle now
    covered = small.tables.visits_at("r", small.sources["ra"], small.sources["dec"]) > 0
    assert 750 < covered.sum() < 850
    small.objects = small.objects[covered]
    (found,) = small.band().stars
    assert (found.true, found.share) == (covered.sum(), 1.0)


@pytest.mark.parametrize(("found", "true"), [(0, 5), (3, 5), (5, 5), (50, 100), (999, 1000)])
def test_intervals_of_shares_are_wilsons(found: int, true: int) -> None:
    known = binomtest(found, true).proportion_ci(confidence_level=0.682689492, method="wilson")
    assert wilson(found, true) == pytest.approx((known.low, known.high), abs=1e-9)


def test_half_is_found_where_the_line_between_two_bins_crosses_it() -> None:
    def bins(*shares: float) -> list[Found]:
        return [
            Found(mag_min=20 + k / 2, mag_max=20.5 + k / 2, true=9, share=s, low=s, high=s)
            for k, s in enumerate(shares)
        ]  # fmt: skip

    assert half_found(bins(1.0, 0.9, 0.4)) == pytest.approx(20.75 + 0.5 * 0.8)
    assert half_found(bins(1.0, 0.5, 0.5)) is None
    assert half_found(bins(0.3, 0.2)) is None
    assert half_found([]) is None


def test_a_blend_of_two_is_found_once() -> None:
    small = stars(np.array([20.2, 21.2]))
    small.sources["ra"][1] = small.sources["ra"][0] + 0.3 / 3600.0
    small.sources["dec"][1] = small.sources["dec"][0]
    small.objects = small.objects[:1]
    moved(small, 200.0, 0.0)  # nearer to the faint one
    assert [found.share for found in small.band().stars] == [1.0, 0.0]


def test_completeness_of_what_is_alone_leaves_neighbours_out() -> None:
    small = stars(np.full(20, 22.2))
    small.sources["ra"][:5] = small.sources["ra"][5:10] + 2.0 / 3600.0
    small.sources["dec"][:5] = small.sources["dec"][5:10]
    small.objects = small.objects[5:]
    band = small.band()
    assert [(found.true, found.share) for found in band.stars] == [(20, 0.75)]
    assert [(found.true, found.share) for found in band.stars_alone] == [(10, 1.0)]


def test_only_sources_that_are_alone_judge_fluxes() -> None:
    small = stars(np.array([20.2] * 10 + [24.2] * 2))
    small.sources["ra"][10:] = small.sources["ra"][:2] + 2.0 / 3600.0
    small.sources["dec"][10:] = small.sources["dec"][:2]
    assert small.band().star_fluxes[0].n == 8
    small.sources["mean_flux"][10] = 0.005 * small.sources["mean_flux"][0]
    assert small.band().star_fluxes[0].n == 9


def test_galaxies_are_judged_by_their_kron_fluxes() -> None:
    small = release(["galaxy"] * 300, np.full(300, 20.2))
    small.objects["r_kronFlux"] *= 0.9
    small.objects["r_kronFlux"][:10] = np.nan
    small.objects["r_kronFlux"][10:200] *= 2.0
    small.objects["r_kronFlux_flag"][10:200] = True
    band = small.band()
    assert band.galaxy_bias_mmag == pytest.approx(-2500 * np.log10(0.9), abs=0.01)
    assert [fluxes.n for fluxes in band.galaxy_fluxes] == [100]


def test_objects_at_nothing_are_false_and_those_at_transients_are_not() -> None:
    small = release(["star"] * 90 + ["transient"] * 10, np.full(100, 21.2))
    small.sources["mean_flux"][90:] = 0.0
    small.sources = small.sources[10:]
    small.objects["r_psfFlux"][:4] = 5.5 * ERROR
    told = {(b.snr_min, b.snr_max): (b.objects, b.false) for b in false_objects(small.examined().held.objects)}
    assert told[5.0, 6.0] == (4, 4)
    assert told[50.0, None] == (96, 6)
    assert sum(found.true for found in small.band().stars) == 80
    small.complete = False
    assert not small.examined().held.objects["false"].any()


def test_stars_and_galaxies_are_told_apart_by_the_share_taken_for_stars() -> None:
    small = release(["star"] * 100 + ["galaxy"] * 100, np.full(200, 22.2))
    small.objects["refExtendedness"][:10] = 1.0
    small.objects["refExtendedness"][100:130] = 0.0
    small.objects["refExtendedness"][130:150] = np.nan
    (told,) = small.band().told_apart
    assert (told.stars, told.galaxies) == (100, 80)
    assert (told.stars_as_stars, told.galaxies_as_stars) == pytest.approx((0.9, 30 / 80))


def test_the_depth_is_five_sigma_of_what_is_faint() -> None:
    small = stars(np.concatenate([np.full(20, 25.0), np.full(80, 16.0)]))
    small.objects["r_psfFluxErr"][20:] = 1e4
    assert small.band().depth_mag == pytest.approx(31.4 - 2.5 * np.log10(5 * ERROR), abs=1e-3)


def test_a_patch_in_which_nothing_was_found_has_all_its_sources_missed() -> None:
    small = release(["star"] * 5 + ["transient"] * 2, np.full(7, 21.0))
    small.sources["mean_flux"][5:] = 0.0
    small.objects = small.objects[:0]
    assert sum(found.true for found in small.band().stars) == 5
    assert [found.share for found in small.band().stars if found.true] == [0.0]
