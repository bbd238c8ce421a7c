from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import least_squares

from payloads.alert_production.lobes import DIPOLE, TRAIL, fit_lobes
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.imaging.test_photometry import UNUSABLE, field, gaussian, psf
from tests.payloads.planes import generators, lanczos_moved, masked_images, shapes

Floats = NDArray[np.float64]


def trail(flux: float, x: float, y: float, dx: float, dy: float, side: int = 81) -> Floats:
    steps = np.linspace(-0.5, 0.5, 201)
    return sum(flux / 201 * gaussian(x + t * dx, y + t * dy, side) for t in steps)


def test_a_dipole_is_fitted_lobe_by_lobe() -> None:
    pixels = field(43.0, 40.5, 900.0)
    pixels.image[...] -= (700.0 * gaussian(37.5, 39.0, 81)).astype(np.float32)
    start = np.array([[700.0, 42, 40, 600.0, 38, 39]])
    fit = fit_lobes(DIPOLE, pixels, psf()[None], start)
    error = np.sqrt(np.diagonal(fit.covariance[0]))
    truth = np.array([900, 43.0, 40.5, 700, 37.5, 39.0])
    assert (np.abs(fit.parameters[0] - truth) < 4 * error + 0.002 * np.abs(truth)).all()
    assert fit.chi2[0] / fit.n_pixels[0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(("length", "angle"), [(6.0, 0.3), (20.0, 2.0)])
def test_a_trail_is_fitted_with_its_length_and_direction(length: float, angle: float) -> None:
    pixels = field(40.0, 40.0, 0.0)
    dx, dy = length * np.cos(angle), length * np.sin(angle)
    pixels.image[...] += trail(1500.0, 40.3, 39.8, dx, dy).astype(np.float32)
    start = np.array([[1200.0, 40, 40, 0.8 * dx + 1, 0.8 * dy - 1]])
    fit = fit_lobes(TRAIL, pixels, psf()[None], start)
    error = np.sqrt(np.diagonal(fit.covariance[0]))
    truth = np.array([1500, 40.3, 39.8, dx, dy])
    assert (np.abs(fit.parameters[0] - truth) < 4 * error + 0.02).all()
    assert fit.chi2[0] / fit.n_pixels[0] == pytest.approx(1.0, abs=0.15)


def test_errors_of_a_trails_flux_say_how_it_scatters() -> None:
    pulls = []
    for seed in range(60):
        pixels = field(40.0, 40.0, 0.0, seed=seed)
        pixels.image[...] += trail(800.0, 40.0, 40.0, 8.0, 3.0).astype(np.float32)
        fit = fit_lobes(TRAIL, pixels, psf()[None], np.array([[700.0, 40, 40, 7, 3]]))
        pulls.append((fit.parameters[0, 0] - 800) / np.sqrt(fit.covariance[0, 0, 0]))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.3)
    assert abs(np.mean(pulls)) < 0.5


def test_a_fit_without_pixels_fails_with_nan() -> None:
    pixels = field(40.0, 40.0, 500.0)
    pixels.mask[...] = Mask.NO_DATA
    fit = fit_lobes(TRAIL, pixels, psf()[None], np.array([[500.0, 40, 40, 5, 0]]))
    assert np.isnan(fit.parameters).all()
    assert np.isnan(fit.chi2[0])


def test_a_fit_that_leaves_its_source_fails_with_nan() -> None:
    fit = fit_lobes(TRAIL, field(52.0, 40.0, 5000.0), psf()[None], np.array([[500.0, 40, 40, 5, 0]]))
    assert np.isnan(fit.parameters).all()


@pytest.mark.parametrize("kind", [DIPOLE, TRAIL])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_start_that_is_no_number_ends_in_nan_and_its_neighbours_do_not(kind: int, value: float) -> None:
    good = np.array([500.0, 41, 40, 500.0, 38, 40]) if kind == DIPOLE else np.array([500.0, 40, 40, 5, 1])
    pixels = field(41.0, 40.0, 600.0)
    pixels.image[...] -= (500.0 * gaussian(37.5, 40.0, 81) if kind == DIPOLE else 0.0 * pixels.image).astype(np.float32)
    starts = np.stack([good, *np.where(np.eye(kind, dtype=bool), value, good), good])
    found = fit_lobes(kind, pixels, np.repeat(psf()[None], len(starts), 0), starts)
    assert np.isfinite(found.parameters[[0, -1]]).all()
    for each in (found.parameters, found.covariance, found.chi2):
        assert np.isnan(each[1:-1]).all()
        np.testing.assert_array_equal(each[0], each[-1])
    assert (found.n_pixels[1:-1] == 0).all()


@pytest.mark.parametrize("length", [200.0, 1e5, 1e15])
def test_a_trail_begun_at_any_length_comes_to_an_end(length: float) -> None:
    """Of which a fit renders no more points than the longest one has."""
    fit = fit_lobes(TRAIL, field(40.0, 40.0, 500.0), psf()[None], np.array([[500.0, 40, 40, length, 0]]))
    assert np.isnan(fit.parameters).all()


@dataclass(frozen=True, eq=False)
class Window:
    """What SciPy is given of a fit: its square of pixels, which of them are usable, and the model there."""

    kind: int
    kernel: Floats
    x0: int
    y0: int
    side: int
    points: int

    @classmethod
    def about(cls, kind: int, kernel: Image, start: Floats) -> "Window":
        """Wide enough for the PSF, 6 pixels and half a trail either way."""
        length = float(np.hypot(*start[-2:])) if kind == TRAIL else 0.0
        half = kernel.shape[0] // 2 + 6 + int(length) // 2
        x0, y0 = int(start[1]) - half, int(start[2]) - half
        return cls(kind, kernel.astype(float), x0, y0, 2 * half + 1, int(1.3 * length) + 7)

    def of(self, plane: Floats, beyond: float) -> Floats:
        wide = np.pad(plane, self.side, constant_values=beyond)
        return wide[self.y0 + self.side :, self.x0 + self.side :][: self.side, : self.side]

    def spot(self, x: float, y: float) -> Floats:
        """The PSF moved by Lanczos interpolation from the pixel nearest to (x, y)."""
        ix, iy, half = int(np.floor(x + 0.5)), int(np.floor(y + 0.5)), self.kernel.shape[0] // 2
        wide = np.zeros((3 * self.side, 3 * self.side))
        row, column = iy - self.y0 + self.side - half, ix - self.x0 + self.side - half
        wide[row : row + 2 * half + 1, column : column + 2 * half + 1] = lanczos_moved(self.kernel, x - ix, y - iy)
        return wide[self.side : -self.side, self.side : -self.side]

    def model(self, p: Floats) -> Floats:
        if self.kind == DIPOLE:
            return p[0] * self.spot(p[1], p[2]) - p[3] * self.spot(p[4], p[5])
        along = (np.arange(self.points) + 0.5) / self.points - 0.5
        return np.asarray(sum(p[0] / self.points * self.spot(p[1] + t * p[3], p[2] + t * p[4]) for t in along))

    def slopes(self, p: Floats) -> Floats:
        """Derivatives (parameters, side, side) of the model by each parameter, places over 3/8 pixel to either side."""
        steps = np.array([[0.375, 0.0], [0.0, 0.375]])

        def of(x: float, y: float) -> list[Floats]:
            pairs = ((self.spot(x + dx, y + dy), self.spot(x - dx, y - dy)) for dx, dy in steps)
            return [self.spot(x, y), *((ahead - behind) / 0.75 for ahead, behind in pairs)]

        if self.kind == DIPOLE:
            lobes = [np.stack(of(x, y)) * np.array([1.0, f, f])[:, None, None] for f, x, y in (p[:3], p[3:])]
            return np.concatenate([lobes[0], -lobes[1]])
        along = (np.arange(self.points) + 0.5) / self.points - 0.5
        parts = np.array([of(p[1] + t * p[3], p[2] + t * p[4]) for t in along]) / self.points
        ends = p[0] * np.tensordot(along, parts[:, 1:], 1)
        return np.concatenate([parts.sum(0) * np.array([1.0, p[0], p[0]])[:, None, None], ends])


def assert_is_least_squares(kind: int, pixels: MaskedImage, kernel: Image, start: Floats) -> None:
    """Parameters, covariance and chi2 are those that SciPy finds in the same window from the same start."""
    window, fit = Window.about(kind, kernel, start), fit_lobes(kind, pixels, kernel[None], start[None])
    values, variance = (window.of(plane.astype(float), np.nan) for plane in (pixels.image, pixels.variance))
    usable = (window.of(pixels.mask, Mask.NO_DATA) & UNUSABLE) == 0
    usable &= np.isfinite(values) & (variance > 0) & (variance < np.inf)
    sigma = np.sqrt(variance[usable])

    def pulls(p: Floats) -> Floats:
        return np.asarray((window.model(p)[usable] - values[usable]) / sigma)

    best = least_squares(pulls, start, x_scale=np.where(np.abs(start) > 100, 100.0, 1.0))
    slopes = window.slopes(best.x)[:, usable] / sigma
    covariance = np.linalg.inv(slopes @ slopes.T)
    error = np.sqrt(np.diagonal(covariance))
    # Positions are rounded to 1/1024 pixel when the PSF is moved.
    np.testing.assert_allclose((fit.parameters[0] - best.x) / error, 0.0, atol=0.2)
    np.testing.assert_allclose((fit.covariance[0] - covariance) / np.outer(error, error), 0.0, atol=0.05)
    assert fit.chi2[0] == pytest.approx((pulls(best.x) ** 2).sum(), rel=1e-3, abs=0.1)
    assert fit.n_pixels[0] == usable.sum()


def scene(data: st.DataObject, at: Floats, shape: tuple[int, int]) -> MaskedImage:
    """Noise with holes and spoilt pixels, but none right where a source lies."""
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.SAT, Mask.CR)))
    pixels.variance[0, 0], pixels.variance[1::9, 2::7], pixels.variance[3::11, ::8] = np.nan, np.inf, 0.0
    for x, y in np.rint(at).astype(int):
        core = np.s_[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
        pixels.mask[core] = 0
        np.nan_to_num(pixels.image[core], copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return pixels


def lit(pixels: MaskedImage, kernel: Image, kind: int, true: Floats) -> None:
    whole = Window(kind, kernel.astype(float), 0, 0, max(pixels.shape), int(1.3 * np.hypot(*true[-2:])) + 7)
    pixels.image[...] += whole.model(true)[: pixels.shape[0], : pixels.shape[1]].astype(np.float32)


@given(data=st.data(), shape=shapes(20, 45), rng=generators())
@settings(max_examples=25, deadline=None)
def test_a_dipole_is_the_least_squares_solution_at_edges_and_beside_holes(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    kernel, middle = psf(15), np.array([rng.uniform(6, n - 7) for n in shape[::-1]])
    angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(2.0, 3.5)
    plus, minus = (middle + sign * apart * np.array([np.cos(angle), np.sin(angle)]) for sign in (1, -1))
    pixels = scene(data, np.stack([plus, minus]), shape)
    fluxes = rng.uniform(300, 800, 2)
    lit(pixels, kernel, DIPOLE, np.array([fluxes[0], *plus, fluxes[1], *minus]))
    assert_is_least_squares(DIPOLE, pixels, kernel, np.array([400.0, *np.rint(plus), 400.0, *np.rint(minus)]))


@given(data=st.data(), shape=shapes(26, 50), rng=generators())
@settings(max_examples=20, deadline=None)
def test_a_trail_is_the_least_squares_solution_at_edges_and_beside_holes(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    kernel, middle = psf(15), np.array([rng.uniform(9, n - 10) for n in shape[::-1]])
    angle, length = rng.uniform(0, np.pi), rng.uniform(7.0, 15.0)
    vector = length * np.array([np.cos(angle), np.sin(angle)])
    pixels = scene(data, middle + np.linspace(-0.5, 0.5, 7)[:, None] * vector, shape)
    start = np.array([800.0, *np.rint(middle), *(0.9 * vector)])
    true = np.array([rng.uniform(700, 1500), *middle, *vector])
    lit(pixels, kernel, TRAIL, true)
    assert_is_least_squares(TRAIL, pixels, kernel, start)
