from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.imaging import calibrate as module
from payloads.imaging.calibrate import calibrate
from payloads.imaging.characterize import Characterized, characterize
from payloads.imaging.stars import STAR_DTYPE
from schemas.clock import tai_from_mjd
from schemas.errors import BadData
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs, separation_arcsec
from tests.payloads.imaging.star_field import StarField, star_field

SHAPE = (1024, 1024)
TEN_YEARS_ON = tai_from_mjd(57388.5 + 3652.5)
NJY = 1.7


def pointing(ra: float, dec: float, rotation: float) -> Wcs:
    scale, angle = 0.2 / 3600, np.radians(rotation)
    cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Wcs((ra, dec), (1500.0, -800.0), cd)


def distorted(wcs: Wcs) -> Wcs:
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[1, 1, 1], sip[0, 3, 0], sip[1, 1, 2] = 4e-7, -3e-7, 5e-11, -4e-11
    return Wcs(wcs.crval, wcs.crpix, wcs.cd, sip)


TRUE = distorted(pointing(359.95, -30.0, 35.0))


@pytest.fixture(scope="module")
def field() -> StarField:
    return star_field(51, stars=300, log_flux=(3.3, 5.7))


@pytest.fixture(scope="module")
def known(field: StarField) -> Characterized:
    return characterize(field.observed)


def catalogue(field: StarField, seed: int = 1, fainter: int = 500) -> Table:
    """The field's stars as of J2016.0, one in twenty variable, among fainter ones that the image does not
    show."""
    rng = np.random.default_rng(seed)
    n = len(field.x) + fainter
    x = np.concatenate([field.x, rng.uniform(-200, 1224, fainter)])
    y = np.concatenate([field.y, rng.uniform(-200, 1224, fainter)])
    table = np.zeros(n, REFCAT_DTYPE)
    ra, dec = TRUE.pixel_to_sky(x, y)
    table["pm_ra"], table["pm_dec"] = rng.normal(0, 20, n), rng.normal(0, 20, n)
    table["dec"] = dec - table["pm_dec"] * 10 / 3.6e6
    table["ra"] = (ra - table["pm_ra"] * 10 / 3.6e6 / np.cos(np.radians(dec))) % 360
    true = np.concatenate([field.flux, 10 ** rng.uniform(2, 3, fainter)]) * NJY
    table["variable"] = rng.random(n) < 0.05
    table["r_flux"] = true * np.where(table["variable"], rng.uniform(0.3, 3, n), rng.normal(1, 0.003, n))
    table["r_fluxErr"] = 0.003 * table["r_flux"]
    return table


def off_by(arcsec: float, direction: float, turn_arcsec: float = 30.0) -> Wcs:
    angle = np.radians(direction)
    ra = 359.95 + arcsec * np.cos(angle) / 3600 / np.cos(np.radians(30))
    return pointing(ra, -30.0 + arcsec * np.sin(angle) / 3600, 35.0 + turn_arcsec / 3600)


def map_error_mas(wcs: Wcs) -> NDArray[np.float64]:
    x, y = np.meshgrid(np.linspace(20, 1003, 25), np.linspace(20, 1003, 25))
    return 1000 * separation_arcsec(*TRUE.pixel_to_sky(x, y), *wcs.pixel_to_sky(x, y))


@pytest.mark.parametrize(("off", "direction"), [(0.0, 0.0), (9.0, 30.0), (30.0, 200.0), (39.0, 320.0)])
def test_the_map_is_found_to_milliarcseconds(
    field: StarField, known: Characterized, off: float, direction: float
) -> None:
    visit, summary = calibrate(known, catalogue(field), off_by(off, direction), "r", TEN_YEARS_ON, 30.0)
    assert np.sqrt(np.mean(map_error_mas(visit.wcs) ** 2)) < 2.0
    assert summary.wcs_rms_mas < 5.0
    assert summary.wcs_order == 3
    assert summary.offset_arcsec == pytest.approx(off, abs=1.0)
    assert summary.n_matched > 150


def test_pixels_are_in_nanojansky(field: StarField, known: Characterized) -> None:
    visit, summary = calibrate(known, catalogue(field), off_by(5.0, 0.0), "r", TEN_YEARS_ON, 30.0)
    enclosed = field.profile.enclosed(np.array([512.0]), np.array([512.0]), known.psf.components.shape[1] // 2)[0]
    assert visit.zero_point == pytest.approx(NJY / enclosed, rel=0.002)
    assert summary.zero_point == pytest.approx(NJY, rel=0.003)
    assert summary.light_within == pytest.approx(enclosed, abs=0.002)
    scale = np.float32(visit.zero_point)
    np.testing.assert_allclose(visit.pixels.image, known.pixels.image * scale, rtol=1e-6)
    np.testing.assert_allclose(visit.pixels.variance, known.pixels.variance * scale**2, rtol=1e-6)
    np.testing.assert_allclose(visit.background, known.background * scale, rtol=1e-6)
    assert (visit.band, visit.midpoint, visit.exposure_time) == ("r", TEN_YEARS_ON, 30.0)
    assert 2.0 < summary.zero_point_scatter_mmag < 12.0
    assert set(map(type, summary.as_dict().values())) == {float}


def test_variable_stars_do_not_move_the_zero_point(field: StarField, known: Characterized) -> None:
    table = catalogue(field)
    steady, _ = calibrate(known, table, off_by(5.0, 0.0), "r", TEN_YEARS_ON, 30.0)
    table["r_flux"][table["variable"]] *= 5
    again, _ = calibrate(known, table, off_by(5.0, 0.0), "r", TEN_YEARS_ON, 30.0)
    assert again.zero_point == pytest.approx(steady.zero_point, rel=1e-6)


def test_proper_motions_count(field: StarField, known: Characterized) -> None:
    table = catalogue(field)
    table["pm_ra"] += 50.0
    visit, _ = calibrate(known, table, off_by(0.0, 0.0), "r", TEN_YEARS_ON, 30.0)
    assert np.median(map_error_mas(visit.wcs)) == pytest.approx(500.0, rel=0.02)


@pytest.mark.parametrize(("stars", "order"), [(8, 1), (17, 1), (25, 2), (39, 2), (40, 3)])
def test_few_matches_make_a_stiffer_map(known: Characterized, stars: int, order: int) -> None:
    isolated = known.stars[(known.stars["flags"] & ~np.uint16(16)) == 0][:stars]
    ra, dec = TRUE.pixel_to_sky(isolated["x"], isolated["y"])
    table = np.zeros(stars, REFCAT_DTYPE)
    table["ra"], table["dec"], table["r_flux"] = ra, dec, isolated["flux"]
    visit, summary = calibrate(known, table, off_by(4.0, 70.0), "r", TEN_YEARS_ON, 30.0)
    assert summary.wcs_order == order
    assert np.median(map_error_mas(visit.wcs)) < 200


def shifted_stars(arcsec_per_pixel: float, shift: float, unrelated: int) -> tuple[Wcs, tuple[Any, ...]]:
    """What `_offset` is given: 60 stars `shift` pixels off in x, among brighter ones that are in no catalogue."""
    rng = np.random.default_rng(8)
    wcs = Wcs((150.0, 2.0), (511.5, 511.5), arcsec_per_pixel / 3600 * np.diag([-1.0, 1.0]))
    x, y = rng.uniform(0, 1024, (2, 60 + unrelated))
    stars = np.zeros(x.size, STAR_DTYPE)
    stars["x"], stars["y"], stars["flux"] = x + shift, y, np.arange(x.size)
    return wcs, (stars[::-1], *wcs.pixel_to_sky(x[:60], y[:60]), np.ones(60))


@pytest.mark.parametrize(("scale", "most"), [(0.08, 250), (0.2, 200), (0.4, 100), (1.0, 75), (3.0, 75)])
def test_the_pointing_is_looked_for_within_40_arcsec_and_75_to_250_pixels(scale: float, most: int) -> None:
    for shift in (most - 3.0, 3.0 - most):
        wcs, given = shifted_stars(scale, shift, 0)
        dx, dy, votes = module._offset(*given, wcs, SHAPE)
        assert (dx, dy) == pytest.approx((shift, 0.0), abs=0.1)
        assert votes >= 60
    wcs, given = shifted_stars(scale, most + 3.0, 0)
    assert abs(module._offset(*given, wcs, SHAPE)[0]) < most


def test_stars_and_references_out_of_one_anothers_reach_are_no_pair() -> None:
    wcs, (stars, ra, dec, flux) = shifted_stars(0.2, 205.0, 0)
    with pytest.raises(BadData, match="no pair of 1 stars and 1 references within 200 pixels"):
        module._offset(stars[-1:], ra[:1], dec[:1], flux[:1], wcs, SHAPE)


def test_stars_that_are_in_no_catalogue_do_not_outvote_those_that_are() -> None:
    wcs, given = shifted_stars(0.2, -150.0, 1900)
    assert module._offset(*given, wcs, SHAPE)[:2] == pytest.approx((-150.0, 0.0), abs=1.0)


def test_a_pointing_further_off_is_refused(field: StarField, known: Characterized) -> None:
    with pytest.raises(BadData, match=r"a false match|stars match"):
        calibrate(known, catalogue(field), off_by(60.0, 30.0), "r", TEN_YEARS_ON, 30.0)


@pytest.mark.parametrize("seed", range(4))
def test_so_few_matches_as_chance_makes_are_refused_and_counted(known: Characterized, seed: int) -> None:
    x, y = np.random.default_rng(seed).uniform(0, 1024, (2, 2000))
    table = np.zeros(x.size, REFCAT_DTYPE)
    table["ra"], table["dec"] = TRUE.pixel_to_sky(x, y)
    table["r_flux"] = 1.0
    with pytest.raises(BadData, match=r"a false match at an offset of .*: \d+ of \d+ stars and \d+ references there"):
        calibrate(known, table, off_by(0.0, 0.0), "r", TEN_YEARS_ON, 30.0)


def test_a_wrong_sky_is_refused_with_what_was_tried(field: StarField, known: Characterized) -> None:
    table = catalogue(field)[:150]
    table["ra"] = np.random.default_rng(3).permutation(table["ra"])
    with pytest.raises(BadData, match=r"offset|false match"):
        calibrate(known, table[:30], off_by(0.0, 0.0), "r", TEN_YEARS_ON, 30.0)


def test_a_catalogue_of_another_place_is_refused(field: StarField, known: Characterized) -> None:
    with pytest.raises(BadData, match="none to match"):
        calibrate(known, catalogue(field), pointing(100.0, 20.0, 0.0), "r", TEN_YEARS_ON, 30.0)


def test_no_flux_in_the_band_is_refused(field: StarField, known: Characterized) -> None:
    table = catalogue(field)
    with pytest.raises(BadData, match="g"):
        calibrate(known, table, off_by(0.0, 0.0), "g", TEN_YEARS_ON, 30.0)
    with pytest.raises(BadData, match="no band 'w'"):
        calibrate(known, table, off_by(0.0, 0.0), "w", TEN_YEARS_ON, 30.0)
    with pytest.raises(BadData, match="columns"):
        calibrate(known, np.zeros(3, [("ra", "f8")]), off_by(0.0, 0.0), "r", TEN_YEARS_ON, 30.0)
