import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.alert_production.lobes import DIPOLE, TRAIL, fit_lobes
from schemas.image import Mask
from tests.payloads.imaging.test_photometry import field, gaussian, psf

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
