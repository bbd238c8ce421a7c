import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
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

Floats = NDArray[np.float64]


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


def test_a_moved_psf_is_the_psf_interpolated() -> None:
    out = np.empty((21, 21))
    shifted(psf(), 0.3, -0.7, lanczos_table(), out)
    y, x = np.mgrid[:21, :21].astype(float)
    spline = map_coordinates(psf().astype(float), [y + 0.7, x - 0.3], order=5)
    np.testing.assert_allclose(out, spline, atol=0.003 * psf().max())
    assert out.sum() == pytest.approx(1.0, abs=1e-3)


def test_a_psf_moved_by_whole_pixels_is_exact() -> None:
    out = np.empty((21, 21))
    shifted(psf(), 2.0, -1.0, lanczos_table(), out)
    np.testing.assert_allclose(out[5:15, 7:17], psf()[6:16, 5:15], atol=1e-9)


def test_a_point_source_fit_is_the_least_squares_solution() -> None:
    pixels = field(40.3, 39.6, 400.0)
    result = fit(pixels, 41, 39)
    table, model = lanczos_table(), np.empty((21, 21))
    data = pixels.image[29:50, 31:52].astype(float)  # 21 x 21 about (41, 39)

    def residual(p: Floats) -> Floats:
        shifted(psf(), p[1] - 41, p[2] - 39, table, model)
        return (data - p[0] * model).ravel()

    best = least_squares(residual, [300.0, 41.0, 39.0], x_scale=[100, 1, 1], diff_step=1e-3)
    # Positions are rounded to 1/1024 pixel when the PSF is moved.
    assert result.flux[0] == pytest.approx(best.x[0], rel=1e-3)
    assert (result.x[0], result.y[0]) == pytest.approx(tuple(best.x[1:]), abs=3e-3)
    assert result.chi2[0] == pytest.approx((residual(best.x) ** 2).sum(), rel=1e-3)
    assert result.n_pixels[0] == 441
    normal = -0.5 * (result.chi2[0] + 441 * np.log(2 * np.pi))
    assert result.log_likelihood[0] == pytest.approx(normal)


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
