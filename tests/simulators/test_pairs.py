"""Pairs of images hold what their truth says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from schemas.wcs import Wcs
from simulators.pairs import Pair, Recipe, View, make_pair, sky_of, write_pair

Floats = NDArray[np.float64]

SMALL = Recipe(5, shape=(500, 600), stars=300, galaxies=60, transients=10)
BRIGHT = replace(SMALL, seed=11, stars=12, galaxies=0, transients=0, brightest=17.0, faintest=19.0)
BLANK = replace(SMALL, shape=(900, 900), stars=0, galaxies=0)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(SMALL)


@pytest.fixture(scope="module")
def bright() -> Pair:
    return make_pair(BRIGHT)


def test_a_seed_makes_the_same_pair_again_and_another_seed_another(pair: Pair) -> None:
    again, other = make_pair(SMALL), make_pair(replace(SMALL, seed=6))
    np.testing.assert_array_equal(again.science, pair.science)
    np.testing.assert_array_equal(again.template, pair.template)
    assert all(np.array_equal(again.truth[name], pair.truth[name]) for name in pair.truth.colnames)
    assert not np.array_equal(other.science, pair.science)
    assert not np.array_equal(other.truth["ra"], pair.truth["ra"])


def test_images_are_adu_of_the_recipes_shape_over_its_sky(pair: Pair) -> None:
    for image, view in ((pair.science, SMALL.science), (pair.template, SMALL.template)):
        assert image.shape == SMALL.shape
        assert image.dtype == np.float32
        assert np.percentile(image, 40.0) == pytest.approx(view.sky / view.gain, rel=0.02)


def test_blank_sky_has_photon_and_read_noise() -> None:
    blank = make_pair(replace(BLANK, transients=0))
    for image, view in ((blank.science, BLANK.science), (blank.template, BLANK.template)):
        assert image.mean() * view.gain == pytest.approx(view.sky, rel=1e-3)
        assert image.var() * view.gain**2 == pytest.approx(view.sky + view.read_noise**2, rel=0.01)


def _core(view: View) -> float:
    """Radius of (1 + (r / core)**2)**-3, of which the FWHM is 2 core sqrt(2**(1/3) - 1)."""
    return view.fwhm_arcsec / SMALL.pixel_arcsec / (2.0 * np.sqrt(2.0 ** (1.0 / 3.0) - 1.0))


def _moffat(view: View, x: float, y: float, at: tuple[Floats, Floats]) -> Floats:
    core = _core(view)
    profile = (1.0 + ((at[0] - x) ** 2 + (at[1] - y) ** 2) / core**2) ** -3.0
    return profile * 2.0 / (np.pi * core**2)


def fitted(image: Floats, view: View, x: float, y: float) -> tuple[float, float, float]:
    """Flux (electrons) and offset (pixels) of a star, by a linear fit of the profile and its slopes."""
    rows, columns = (slice(round(c) - 12, round(c) + 13) for c in (y, x))
    grid = np.mgrid[rows, columns][::-1].astype(np.float64)
    at = (grid[0], grid[1])
    step = 1e-3
    slopes = [
        (_moffat(view, x + dx, y + dy, at) - _moffat(view, x - dx, y - dy, at)) / (2.0 * step)
        for dx, dy in ((step, 0.0), (0.0, step))
    ]
    model = np.stack([_moffat(view, x, y, at), *slopes, np.ones_like(at[0])])
    light = image[rows, columns] * view.gain
    weight = np.sqrt(1.0 / light)
    answer = np.linalg.lstsq((model * weight).reshape(4, -1).T, (light * weight).ravel(), rcond=None)[0]
    return answer[0], answer[1] / answer[0], answer[2] / answer[0]


@pytest.mark.parametrize("name", ["science", "template"])
def test_a_bright_star_lies_where_wcs_and_magnitude_say(name: str, bright: Pair) -> None:
    view = getattr(BRIGHT, name)
    wcs: Wcs = getattr(bright, f"{name}_wcs")
    ra, dec, mag = sky_of(BRIGHT, np.random.default_rng(BRIGHT.seed))
    x, y = wcs.sky_to_pixel(ra, dec)
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    inside = (x > 20) & (x < SMALL.shape[1] - 20) & (y > 20) & (y < SMALL.shape[0] - 20)
    alone = np.flatnonzero(inside & (apart.min(axis=1) > 60.0))
    assert len(alone) >= 3
    for k in alone:
        flux, dx, dy = fitted(getattr(bright, name), view, x[k], y[k])
        assert flux == pytest.approx(10.0 ** (0.4 * (view.zero_point - mag[k])), rel=0.01)
        assert np.hypot(dx, dy) < 0.02


def test_a_transient_is_in_one_image_alone() -> None:
    recipe = replace(BLANK, transients=8, snr=(200.0, 400.0), seed=3)
    pair = make_pair(recipe)
    deeper = 10.0 ** (0.4 * (recipe.template.zero_point - recipe.science.zero_point))
    for row in pair.truth:
        x, y = pair.template_wcs.sky_to_pixel(row["ra"], row["dec"])
        before = fitted(pair.template, recipe.template, float(x), float(y))[0] / deeper
        after = fitted(pair.science, recipe.science, row["x"], row["y"])[0]
        error = row["flux"] / row["snr"]
        assert after == pytest.approx(max(row["flux"], 0.0), abs=6.0 * error)
        assert before == pytest.approx(max(-row["flux"], 0.0), abs=6.0 * error)
        assert np.sign(row["snr"]) == np.sign(row["flux"])


def test_a_transients_flux_over_its_snr_is_the_noise_of_the_best_psf_fit() -> None:
    """Of blank sky: the matched filter of S - K * T, whose noise is that of S and of K * T, K = P_S / P_T."""
    recipe = replace(BLANK, transients=4)
    science, template = recipe.science, replace(recipe.template, shift=(0.0, 0.0), rotation=0.0)
    pair = make_pair(replace(recipe, template=template, transients=0))
    told = make_pair(recipe).truth
    deeper = 10.0 ** (0.4 * (template.zero_point - science.zero_point))
    n = recipe.shape[0]
    offsets = np.fft.fftfreq(n, 1.0 / n)
    at = (offsets[None, :], offsets[:, None])
    p_s, p_t = (np.fft.fft2(_moffat(view, 0.0, 0.0, at)) for view in (science, template))
    s = np.fft.fft2((pair.science * science.gain - science.sky).astype(np.float64))
    t = np.fft.fft2((pair.template * template.gain - template.sky) / deeper)
    noise_s = science.sky + science.read_noise**2
    noise_t = (template.sky + template.read_noise**2) / deeper**2
    spectrum = noise_s * np.abs(p_t) ** 2 + noise_t * np.abs(p_s) ** 2
    information = np.sum(np.abs(p_s * p_t) ** 2 / spectrum) / n**2
    fits_ = np.fft.ifft2(np.conj(p_s * p_t) * (p_t * s - p_s * t) / spectrum).real / information
    assert np.std(fits_) == pytest.approx(np.median(np.asarray(told["flux"] / told["snr"])), rel=0.05)


def test_no_pixel_is_over_saturation() -> None:
    recipe = replace(SMALL, stars=40, galaxies=0, transients=0, brightest=12.0, faintest=14.0)
    pair = make_pair(recipe)
    for image, view in ((pair.science, recipe.science), (pair.template, recipe.template)):
        full = np.float32(view.saturation / view.gain)
        assert image.max() == full
        assert np.count_nonzero(image == full) > 10


def test_the_files_hold_the_images_their_places_and_the_truth(pair: Pair, tmp_path: Path) -> None:
    write_pair(pair, tmp_path)
    for name, view in (("science", SMALL.science), ("template", SMALL.template)):
        with fits.open(tmp_path / f"{name}.fits") as hdus:
            header = hdus[0].header
            np.testing.assert_array_equal(hdus[0].data, getattr(pair, name))
        del header["MJD-OBS"]  # of which astropy would make a date, and warn
        ra, dec = getattr(pair, f"{name}_wcs").pixel_to_sky([0.0, 500.0], [7.0, 400.0])
        np.testing.assert_allclose(WCS(header).all_pix2world([0.0, 500.0], [7.0, 400.0], 0), [ra, dec], atol=1e-10)
        assert header["GAIN"] == view.gain
        assert header["SATURATE"] < view.saturation / view.gain
    truth = Table.read(tmp_path / "truth.ecsv")
    assert truth.colnames == pair.truth.colnames
    np.testing.assert_allclose(truth["flux"], pair.truth["flux"])


def test_a_misplaced_view_is_right_but_for_its_header(pair: Pair) -> None:
    off = make_pair(replace(SMALL, science=replace(SMALL.science, misplaced=500.0)))
    np.testing.assert_array_equal(off.science, pair.science)
    x, y = off.science_wcs.sky_to_pixel(pair.truth["ra"], pair.truth["dec"])
    np.testing.assert_allclose(x - pair.truth["x"], 2.5, atol=1e-6)
    np.testing.assert_allclose(y - pair.truth["y"], -2.5, atol=1e-6)
