from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import least_squares

from payloads.imaging import photometry
from payloads.imaging.photometry import (
    PointSources,
    adaptive_moments,
    aperture_fluxes,
    fit_point_sources,
    shifted,
)
from payloads.imaging.warp import lanczos_table
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.planes import generators, lanczos_moved, masked_images, shapes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

UNUSABLE = Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.EDGE | Mask.SAT_TEMPLATE | Mask.UNMASKED_NAN

SIGMA = 2.0


def gaussian(x: float, y: float, side: int, sigma: float = SIGMA) -> Floats:
    gy, gx = np.mgrid[:side, :side]
    return np.exp(-((gx - x) ** 2 + (gy - y) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def psf(side: int = 21) -> Image:
    kernel = gaussian(side // 2, side // 2, side)
    return (kernel / kernel.sum()).astype(np.float32)


def field(x: float, y: float, flux: float, noise: float = 1.0, side: int = 81, seed: int = 0) -> MaskedImage:
    image = flux * gaussian(x, y, side) + np.random.default_rng(seed).normal(0, noise, (side, side))
    return MaskedImage(
        image.astype(np.float32),
        np.zeros((side, side), np.uint16),
        np.full((side, side), noise**2, np.float32),
    )


def fit(pixels: MaskedImage, x: float, y: float, move: bool = True) -> PointSources:
    x, y = np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
    return fit_point_sources(pixels, np.repeat(psf()[None], x.size, 0), x, y, move=move)


@given(
    size=st.integers(1, 25), dx=st.integers(-9000, 9000), dy=st.integers(-9000, 9000), rng=generators()
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_moved_psf_is_interpolated_as_lanczos_defines(size: int, dx: int, dy: int, rng: np.random.Generator) -> None:
    kernel, out = rng.random((size, size)).astype(np.float32), np.empty((size, size))
    shifted(kernel, dx / 1024, dy / 1024, lanczos_table(), out)  # moves are rounded to 1/1024 pixel
    np.testing.assert_allclose(out, lanczos_moved(kernel.astype(float), dx / 1024, dy / 1024), atol=1e-5)


def test_a_psf_moved_by_whole_pixels_is_exact() -> None:
    out = np.empty((21, 21))
    shifted(psf(), 2.0, -1.0, lanczos_table(), out)
    np.testing.assert_allclose(out[5:15, 7:17], psf()[6:16, 5:15], atol=1e-9)


def cut(pixels: MaskedImage, x: float, y: float, side: int) -> tuple[Floats, Floats, Bools, Bools]:
    """About the pixel nearest (x, y): data, variance, which are usable, which are on the image; (side, side)."""
    wide = side + 60
    mask = np.pad(pixels.mask, wide, constant_values=Mask.NO_DATA)
    image, variance = (np.pad(p.astype(float), wide, constant_values=np.nan) for p in (pixels.image, pixels.variance))
    first = int(np.floor(y + 0.5)) - side // 2 + wide, int(np.floor(x + 0.5)) - side // 2 + wide
    box = tuple(slice(start, start + side) for start in first)
    on = np.pad(np.ones(pixels.shape, bool), wide)[box]
    usable = ((mask[box] & UNUSABLE) == 0) & np.isfinite(image[box]) & np.isfinite(variance[box]) & (variance[box] > 0)
    return np.where(usable, image[box], 0.0), np.where(usable, variance[box], 1.0), usable, on


def placed(kernel: Image, x: float, y: float, at_x: float, at_y: float) -> Floats:
    """The PSF at (x, y) on the pixels about the one nearest (at_x, at_y)."""
    return lanczos_moved(kernel.astype(float), x - np.floor(at_x + 0.5), y - np.floor(at_y + 0.5))


def assert_is_the_fit_of(result: PointSources, model: Floats, data: Floats, noise: Floats, usable: Bools) -> None:
    """Flux, error, chi2, likelihood and pixels are those of a linear fit in which each pixel weighs the same."""
    m, d, v = model[usable], data[usable], noise[usable]
    flux = (m @ d) / (m @ m)
    chi2 = ((d - flux * m) ** 2 / v).sum()
    assert result.flux[0] == pytest.approx(flux, rel=1e-4, abs=1e-4)
    assert result.flux_err[0] == pytest.approx(np.sqrt(m**2 @ v) / (m @ m), rel=1e-4)
    assert result.chi2[0] == pytest.approx(chi2, rel=1e-3)
    assert result.log_likelihood[0] == pytest.approx(-0.5 * (chi2 + np.log(2 * np.pi * v).sum()), rel=1e-3)
    assert result.n_pixels[0] == m.size


@given(data=st.data(), shape=shapes(1, 40), half=st.integers(0, 7), rng=generators())
@settings(max_examples=80, deadline=None)
def test_a_forced_fit_is_the_linear_one_to_the_usable_pixels_wherever_it_is(
    data: st.DataObject, shape: tuple[int, int], half: int, rng: np.random.Generator
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.SAT_TEMPLATE, Mask.CR)))
    pixels.variance[rng.random(shape) < 0.05] = rng.choice([0.0, np.inf, np.nan])
    kernel = psf(2 * half + 1)
    x, y = (rng.integers(-6 * 1024, (n + 6) * 1024) / 1024 for n in shape[::-1])
    result = fit_point_sources(pixels, kernel[None], np.array([x]), np.array([y]), move=False)
    values, noise, usable, on = cut(pixels, x, y, 2 * half + 1)
    model = placed(kernel, x, y, x, y)
    share = (model[usable] ** 2).sum() / (model**2).sum()
    assume(abs(share - 0.5) > 1e-4)
    few = photometry.FAILED_NO_PIXELS if share < 0.5 else 0
    assert result.failure[0] == few | (0 if on.all() else photometry.FAILED_EDGE)
    assert (result.x[0], result.y[0], result.xx[0], result.yy[0], result.xy[0]) == (x, y, 0.0, 0.0, 0.0)
    if few:
        assert np.isnan([result.flux[0], result.flux_err[0], result.chi2[0], result.log_likelihood[0]]).all()
        assert result.n_pixels[0] == 0
    else:
        assert_is_the_fit_of(result, model, values, noise, usable)


def covariance(slopes: Floats, noise: Floats) -> Floats:
    """Of unweighted least squares with derivatives (pixels, p), when the pixels' variances are `noise`."""
    inverse = np.linalg.inv(slopes.T @ slopes)
    return np.asarray(inverse @ (slopes.T * noise) @ slopes @ inverse)


def slopes_of(model: Callable[[Floats], Floats], at: Floats, step: float = 0.375) -> Floats:
    """Derivatives (pixels, p) of a model by its parameters, over a step that Lanczos interpolation does not disturb."""
    return np.stack([(model(at + step * e) - model(at - step * e)) / (2 * step) for e in np.eye(at.size)], axis=1)


@given(data=st.data(), shape=shapes(14, 40), rng=generators(), sign=st.sampled_from([-1.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_a_point_source_fit_is_the_least_squares_solution(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator, sign: float
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.SAT)))
    at = np.array([rng.integers(4, n - 4) for n in shape[::-1]], float)
    true, kernel = at + rng.uniform(-0.6, 0.6, 2), psf(15)
    light = gaussian(*true, max(shape))[: shape[0], : shape[1]]
    pixels.image[...] += (sign * 1500 * light).astype(np.float32)
    values, noise, usable, _ = cut(pixels, *at, 15)
    assume(usable[6:9, 6:9].all())

    def model(p: Floats) -> Floats:
        return np.asarray(p[0] * placed(kernel, p[1], p[2], *at)[usable])

    best = least_squares(lambda p: values[usable] - model(p), [sign * 1000.0, *at], x_scale=[1000, 1, 1])
    result = fit_point_sources(pixels, kernel[None], *at[:, None], move=True)
    assert (result.x[0], result.y[0]) == pytest.approx(tuple(best.x[1:]), abs=4e-3)
    assert not result.failure[0] & (photometry.FAILED_CENTROID | photometry.FAILED_NO_PIXELS)
    square = (result.flux[0] / result.flux_err[0]) ** 2
    whole = replace(result, flux=result.flux * (1 + 1 / square))  # without what is taken away for the choice of place
    rounded = np.rint(1024 * np.array([result.x[0], result.y[0]])) / 1024  # as a PSF is when it is moved
    assert_is_the_fit_of(whole, placed(kernel, *rounded, *at), values, noise, usable)
    expected = covariance(slopes_of(model, best.x), noise[usable])
    found = [[result.xx[0], result.xy[0]], [result.xy[0], result.yy[0]]]
    np.testing.assert_allclose(found, expected[1:, 1:], rtol=0.05, atol=0.03 * expected[1, 1])


def test_a_psfs_slopes_are_those_of_the_light_and_not_of_the_interpolation() -> None:
    """A Gaussian's are known; Lanczos interpolation's own are 4 % off where it is not moved."""
    rows, columns = np.mgrid[:21, :21]
    model, model_x, model_y = (np.empty((21, 21)) for _ in range(3))
    for dx, dy in ((0.0, 0.0), (0.25, -0.4), (0.5, 0.5)):
        photometry._profile(psf(), dx, dy, lanczos_table(), model, model_x, model_y)
        light = gaussian(10 + dx, 10 + dy, 21)
        for slope, offset in ((model_x, columns - 10 - dx), (model_y, rows - 10 - dy)):
            expected = light * offset / SIGMA**2
            assert (slope * expected).sum() / (expected**2).sum() == pytest.approx(1.0, abs=0.022)


def crowd(count: int, flux: float, seed: int) -> tuple[MaskedImage, Floats, Floats]:
    """A square of sources in noise of 1, and the pixels that they are nearest to."""
    rng, side = np.random.default_rng(seed), int(np.ceil(np.sqrt(count)))
    at_x, at_y = (24.0 * k.ravel()[:count] + 12.0 for k in np.mgrid[:side, :side])
    image = rng.normal(0, 1, (24 * side, 24 * side))
    for x, y in zip(at_x.astype(int), at_y.astype(int), strict=True):
        image[y - 12 : y + 12, x - 12 : x + 12] += flux * gaussian(*(12 + rng.uniform(-0.5, 0.5, 2)), 24)
    return (
        MaskedImage(image.astype(np.float32), np.zeros(image.shape, np.uint16), np.ones_like(image, "f4")),
        at_x,
        at_y,
    )


def test_faint_fluxes_are_not_too_high_for_being_taken_where_they_are_highest() -> None:
    """Of 2000 of S/N 7: without what is taken away the mean is 2 % too high, six times its error."""
    flux = 7.0 * np.sqrt(4 * np.pi) * SIGMA
    pixels, x, y = crowd(2000, flux, 1)
    psfs = np.repeat(psf()[None], 2000, 0)
    moved = fit_point_sources(pixels, psfs, x, y, move=True)
    there = fit_point_sources(pixels, psfs, moved.x, moved.y, move=False)
    kept = moved.failure == 0
    assert kept.mean() > 0.98
    error = 1.0 / 7.0 / np.sqrt(2000.0)
    assert np.mean(moved.flux[kept]) / flux == pytest.approx(1.0, abs=3 * error)
    assert np.mean(there.flux[kept]) / flux > 1.0 + 4 * error
    square = (there.flux / there.flux_err)[kept] ** 2
    np.testing.assert_allclose(moved.flux[kept], there.flux[kept] * square / (square + 1), rtol=1e-4)


@pytest.mark.parametrize("place", [np.nan, np.inf, -np.inf, 1e300, -1e12, 9e8])
@pytest.mark.parametrize("move", [True, False])
def test_a_source_that_is_nowhere_has_no_pixels(place: float, move: bool) -> None:
    for x, y in ((place, 40.0), (40.0, place), (place, place)):
        result = fit(field(40.0, 40.0, 400.0), x, y, move=move)
        assert result.failure[0] & photometry.FAILED_NO_PIXELS
        assert np.isnan([result.flux[0], result.flux_err[0]]).all()
        assert result.n_pixels[0] == 0
    both = fit(field(40.0, 40.0, 400.0), [place, 40.0], [40.0, 40.0], move=move)
    assert both.failure[1] == 0


def test_fluxes_and_positions_scatter_as_their_errors_say() -> None:
    fits = [fit(field(40.3, 39.6, 200.0, seed=s), 40, 40) for s in range(300)]
    flux, error = (np.array([getattr(f, name)[0] for f in fits]) for name in ("flux", "flux_err"))
    assert np.std((flux - 200) / error) == pytest.approx(1.0, abs=0.1)
    assert np.mean(flux) == pytest.approx(200, rel=0.01)
    for name, truth, variance in (("x", 40.3, "xx"), ("y", 39.6, "yy")):
        off = np.array([getattr(f, name)[0] - truth for f in fits])
        spread = np.sqrt([getattr(f, variance)[0] for f in fits])
        assert np.std(off / spread) == pytest.approx(1.0, abs=0.12)
        assert abs(np.mean(off)) < 4 * np.std(off) / np.sqrt(300)


def test_a_negative_source_is_fitted_as_well_as_a_positive_one() -> None:
    result = fit(field(40.3, 39.6, -400.0), 40, 40)
    assert result.flux[0] == pytest.approx(-400, abs=30)
    assert result.x[0] == pytest.approx(40.3, abs=0.15)


def test_a_forced_fit_stays_where_it_is_put() -> None:
    result = fit(field(40.3, 39.6, 400.0), 40.3, 39.6, move=False)
    assert (result.x[0], result.y[0], result.xx[0]) == (40.3, 39.6, 0.0)
    assert result.flux[0] == pytest.approx(400, abs=4 * result.flux_err[0])
    assert result.flux_err[0] == pytest.approx(1 / np.sqrt((psf().astype(float) ** 2).sum()), rel=0.02)


def test_masked_pixels_take_no_part() -> None:
    pixels = field(40.0, 40.0, 400.0)
    pixels.image[40, 41], pixels.mask[40, 41] = 1e6, Mask.SAT
    result = fit(pixels, 40, 40, move=False)
    assert result.flux[0] == pytest.approx(400, abs=5 * result.flux_err[0])
    assert result.n_pixels[0] == 440


def test_a_source_on_a_hole_has_no_flux_and_says_why() -> None:
    pixels = field(40.0, 40.0, 400.0)
    pixels.mask[:, 39:] = Mask.NO_DATA
    result = fit(pixels, 40, 40, move=False)
    assert np.isnan(result.flux[0])
    assert result.failure[0] & photometry.FAILED_NO_PIXELS


def test_a_source_whose_psf_is_cut_off_is_flagged_and_measured() -> None:
    result = fit(field(4.0, 40.0, 400.0), 4, 40)
    assert result.failure[0] == photometry.FAILED_EDGE
    assert result.flux[0] == pytest.approx(400, abs=40)


def test_a_fit_that_runs_away_is_forced_where_it_began() -> None:
    result = fit(field(40.0, 40.0, 4000.0), 46.5, 40)
    assert result.failure[0] & photometry.FAILED_CENTROID
    assert (result.x[0], result.y[0]) == (46.5, 40.0)


def test_an_aperture_holds_the_light_within_its_radius() -> None:
    pixels = field(40.3, 39.6, 1000.0, noise=1e-3)
    flux, error, lost = aperture_fluxes(pixels, np.array([40.3]), np.array([39.6]), 5.0)
    assert flux[0] == pytest.approx(1000 * (1 - np.exp(-25 / 8)), rel=4e-3)
    assert error[0] == pytest.approx(1e-3 * np.sqrt(np.pi * 25), rel=0.05)
    assert lost[0] == 0.0


@given(data=st.data(), shape=shapes(1, 30), rng=generators(), radius=st.floats(0.3, 13.0))
@settings(max_examples=60, deadline=None)
def test_an_aperture_is_the_weighted_sum_of_what_is_usable_in_it(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator, radius: float
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.EDGE, Mask.CR)))  # of which some are not finite
    x, y = (rng.uniform(-8, n + 8, 3) for n in shape[::-1])
    found = aperture_fluxes(pixels, x, y, radius)
    for k in range(3):
        values, noise, usable, _ = cut(pixels, x[k], y[k], 31)
        rows, columns = np.mgrid[-15:16, -15:16]
        distance = np.hypot(columns + np.floor(x[k] + 0.5) - x[k], rows + np.floor(y[k] + 0.5) - y[k])
        part = np.clip(radius + 0.5 - distance, 0, 1)
        expected = (part * values).sum(), np.sqrt((part**2 * noise)[usable].sum()), part[~usable].sum() / part.sum()
        assert [column[k] for column in found] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_an_aperture_over_the_edge_says_how_much_it_lost() -> None:
    pixels = field(0.0, 40.0, 1000.0)
    assert aperture_fluxes(pixels, np.array([-0.5]), np.array([40.0]), 6.0)[2][0] == pytest.approx(0.5, abs=0.01)


def test_adaptive_moments_of_a_gaussian_are_its_own() -> None:
    y, x = np.mgrid[:81, :81]
    covariance = np.array([[6.0, 1.2], [1.2, 3.5]])
    inverse = np.linalg.inv(covariance)
    dx, dy = x - 40.2, y - 39.9
    r2 = inverse[0, 0] * dx**2 + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy**2
    pixels = MaskedImage(
        np.exp(-0.5 * r2).astype(np.float32), np.zeros((81, 81), np.uint16), np.ones((81, 81), np.float32)
    )
    negative = MaskedImage(-pixels.image, pixels.mask, pixels.variance)
    for image, sign in ((pixels, 1.0), (negative, -1.0)):
        at = np.array([40.2]), np.array([39.9])
        moments, failed = adaptive_moments(image, *at, np.array([sign]), np.array([2.0]))
        assert not failed[0]
        np.testing.assert_allclose(moments[0], [6.0, 3.5, 1.2], atol=0.01)


def test_moments_of_a_hole_fail() -> None:
    pixels = field(40.0, 40.0, -1000.0)
    _, failed = adaptive_moments(pixels, np.array([40.0]), np.array([40.0]), np.ones(1), np.full(1, 2.0))
    assert failed[0]


def weighted_moments(image: Floats, usable: Bools, at: Floats, weight: Floats) -> Floats:
    """xx, yy, xy about `at` under a Gaussian weight of the covariance `weight` (2, 2)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    offset = np.stack([columns - at[0], rows - at[1]], axis=-1)[usable]
    light = image[usable] * np.exp(-0.5 * np.einsum("ni,ij,nj->n", offset, np.linalg.inv(weight), offset))
    xx, yy, xy = (light @ (offset[:, i] * offset[:, j]) / light.sum() for i, j in ((0, 0), (1, 1), (0, 1)))
    return np.array([xx, yy, xy])


@given(data=st.data(), shape=shapes(8, 50), rng=generators(), sign=st.sampled_from([-1.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_adaptive_moments_are_twice_those_under_a_weight_of_their_own_shape(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator, sign: float
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.CR)))
    at = np.array([rng.uniform(2, n - 3) for n in shape[::-1]])
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    a, b, angle = (*rng.uniform(1.5, 3.5, 2), rng.uniform(0, np.pi))
    u, v = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ np.stack(
        [(columns - at[0]).ravel(), (rows - at[1]).ravel()]
    )
    pixels.image[...] += (sign * 3000 * np.exp(-0.5 * (u**2 / a**2 + v**2 / b**2))).reshape(shape).astype(np.float32)
    usable = ((pixels.mask & UNUSABLE) == 0) & np.isfinite(pixels.image)
    (moments,), (failed,) = adaptive_moments(pixels, *at[:, None], np.array([sign]), np.array([2.0]))
    weight = 4.0 * np.eye(2) if failed else np.array([[moments[0], moments[2]], [moments[2], moments[1]]])
    if usable.any():
        expected = 2 * weighted_moments(sign * pixels.image.astype(float), usable, at, weight)
        # The weight ends at 4 of its sigmas; a step of a ten-thousandth ends the search.
        np.testing.assert_allclose(moments, expected, rtol=5e-3, atol=0.01)
