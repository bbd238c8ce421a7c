import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import least_squares

from payloads.drp.blends import Field, share
from payloads.drp.galaxies import Light, fit_discs, fit_points
from payloads.drp.optics import Optics, Shapes, draw
from payloads.drp.profiles import add_profile, disc_profile, psf_mixture
from schemas.image import Psf
from tests.payloads.drp.object_sky import Thing, kernel, stamp

Floats = NDArray[np.float64]

FWHM, SIZE = 4.0, 120


def psf() -> Psf:
    return Psf(kernel(FWHM)[None].astype(np.float32), 0, (SIZE, SIZE))


def observed(thing: Thing, noise: float, seed: int) -> Field:
    image = np.zeros((SIZE, SIZE))
    x0, y0, light = stamp(thing, FWHM)
    n = light.shape[0]
    image[y0 : y0 + n, x0 : x0 + n] += thing.flux["r"] * light
    image += np.random.default_rng(seed).normal(0.0, noise, image.shape)
    return Field(image.astype(np.float32), np.full((SIZE, SIZE), noise**2, np.float32), np.ones((SIZE, SIZE), np.bool_))


def lit(field: Field, shapes: Shapes) -> Light:
    optics = Optics.at(psf(), shapes.x, shapes.y)
    models = draw(shapes, optics, np.full(shapes.x.size, 20))
    shares = share(field, models)
    return Light(field, shares.residual, models, shares.flux, optics)


def gaussians(shape: tuple[int, int], x: float, y: float, lower: Floats, moments: Floats) -> Floats:
    """A disc of flux 1 whose ellipse has the root `lower` (2, 2), through a PSF's Gaussians (n, 4)."""
    v, u = np.indices(shape)
    offset, light = np.stack([u - x, v - y], axis=-1), np.zeros(shape)
    for part, size in disc_profile():
        for weight, xx, xy, yy in moments:
            covariance = np.array([[xx, xy], [xy, yy]]) + size * lower @ lower.T
            exponent = np.einsum("...i,ij,...j->...", offset, np.linalg.inv(covariance), offset)
            light += part * weight * np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return light


LOWER = np.array([[2.1, 0.0], [-0.8, 1.3]])
ROOT = np.array([2.1, -0.8, 1.3])


def test_a_profile_is_the_sum_of_its_gaussians() -> None:
    parts, moments = disc_profile(), psf_mixture(kernel(FWHM).astype(np.float32))
    out = np.zeros((41, 45))
    add_profile(out, 21.3, 18.6, ROOT, parts, moments, 7.0)
    wanted = 7.0 * gaussians(out.shape, 21.3, 18.6, LOWER, moments)
    np.testing.assert_allclose(out, wanted, atol=3e-7 * wanted.max() * len(parts) * len(moments))


def test_a_disc_has_what_the_psf_has_over_its_gaussians_smeared_out_as_it_is_wide() -> None:
    at = np.array([60.0])
    optics = Optics.at(psf(), at, at)
    model = draw(Shapes(at, at, ROOT[None]), optics, np.array([20])).box(0)
    core, square = 0.4**2 * LOWER @ LOWER.T, optics.sigma[0] ** 2
    part = square / np.sqrt(np.linalg.det(square * np.eye(2) + core))
    smooth = gaussians((41, 41), 20.0, 20.0, LOWER, optics.mixtures[optics.place[0]])
    np.testing.assert_allclose(model, smooth + part * optics.excess[0], atol=1e-5 * model.max())


def test_a_point_is_drawn_as_the_psf_is() -> None:
    x, y = np.array([60.0, 40.4, 31.5]), np.array([60.0, 70.8, 52.5])
    models = draw(Shapes.points(x, y), Optics.at(psf(), x, y), np.full(3, 20))
    for k in range(3):
        wanted = kernel(FWHM, x[k] - models.x0[k] - 20, y[k] - models.y0[k] - 20)
        np.testing.assert_allclose(models.box(k), wanted, atol=2e-4 * wanted.max())


@pytest.mark.parametrize(("radius", "axis_ratio"), [(1.0, 0.9), (2.5, 0.5), (5.0, 0.8)])
def test_a_disc_is_drawn_as_an_exponential_seen_through_the_psf(radius: float, axis_ratio: float) -> None:
    thing = Thing(60.3, 59.8, {"r": 1.0}, radius, axis_ratio, 0.6)
    moments = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    square = moments @ np.diag([radius**2, (axis_ratio * radius) ** 2]) @ moments.T
    lower = np.linalg.cholesky(square)
    x, y = np.array([thing.x]), np.array([thing.y])
    shapes = Shapes(x, y, np.array([[lower[0, 0], lower[1, 0], lower[1, 1]]]))
    _, _, wanted = stamp(thing, FWHM)
    half = wanted.shape[0] // 2
    model = draw(shapes, Optics.at(psf(), x, y), np.array([half])).box(0)
    assert np.abs(model - wanted).max() < 0.02 * wanted.max()
    assert model.sum() == pytest.approx(wanted.sum(), rel=0.005)


def test_a_star_is_placed_as_well_as_its_noise_allows() -> None:
    pulls = []
    for seed in range(60):
        thing = Thing(60.0 + 0.013 * seed, 59.7, {"r": 4000.0})
        shapes = Shapes.points(np.array([60.0]), np.array([60.0]))
        fit = fit_points(lit(observed(thing, 5.0, seed), shapes), shapes, np.array([0]), np.array([14]))
        assert not fit.failed[0]
        pulls.append((fit.x[0] - thing.x) / np.sqrt(fit.covariance[0, 0, 0]))
    assert abs(np.mean(pulls)) < 0.4
    assert np.std(pulls) == pytest.approx(1.0, abs=0.25)


def test_a_discs_ellipse_and_flux_are_found() -> None:
    thing = Thing(60.3, 59.8, {"r": 60_000.0}, 3.0, 0.5, 0.6)
    shapes = Shapes.points(np.array([60.0]), np.array([60.0]))
    start = np.array([[1.0, 0.0, 1.0]])
    fit = fit_discs(lit(observed(thing, 5.0, 1), shapes), shapes, start, np.array([0]), np.array([25]))
    a, c, b = fit.root[0]
    values, vectors = np.linalg.eigh(np.array([[a * a, a * c], [a * c, b * b + c * c]]))
    assert np.sqrt(values) == pytest.approx([1.5, 3.0], rel=0.04)
    assert np.arctan2(*vectors[::-1, 1]) % np.pi == pytest.approx(0.6, abs=0.03)
    assert fit.flux[0] == pytest.approx(60_000.0, rel=0.015)
    points = fit_points(lit(observed(thing, 5.0, 1), shapes), shapes, np.array([0]), np.array([25]))
    assert points.chi2[0] - fit.chi2[0] > 1000.0


def test_a_fit_is_the_least_squares_of_its_model_and_what_is_known_beforehand() -> None:
    half, rng = 18, np.random.default_rng(4)
    seen = observed(Thing(60.3, 59.8, {"r": 8000.0}, 2.5, 0.4, 0.5), 5.0, 3)
    variance = (seen.variance * rng.uniform(0.5, 2.0, seen.variance.shape)).astype(np.float32)
    field = Field(seen.image, variance, rng.random(variance.shape) > 0.03)
    shapes, which = Shapes.points(np.array([60.0]), np.array([60.0])), np.array([0])
    light = lit(field, shapes)
    fit = fit_discs(light, shapes, np.array([[1.0, 0.0, 1.0]]), which, np.array([half]))
    window = np.s_[60 - half : 61 + half, 60 - half : 61 + half]
    used = field.usable[window]
    data, noise = field.image[window][used].astype(np.float64), variance[window][used].astype(np.float64)

    def model(p: Floats) -> Floats:
        drawn = draw(Shapes(p[:1], p[1:2], p[None, 2:5]), light.optics, np.array([half + 4]))
        out = np.zeros((SIZE, SIZE))
        out[drawn.y0[0] : drawn.y0[0] + 45, drawn.x0[0] : drawn.x0[0] + 45] = drawn.box(0)
        return out[window][used]

    def misfit(p: Floats) -> Floats:
        one, scatter = model(p), 0.2 * (abs(p[2]) + abs(p[4])) + 0.2
        left = (data - (one @ data) / (one @ one) * one) / np.sqrt(noise.mean())
        return np.append(left, [(p[2] - p[4]) / scatter, p[3] / scatter])

    found = np.array([fit.x[0], fit.y[0], *fit.root[0]])
    wanted = least_squares(misfit, [60.0, 60.0, 1.0, 0.0, 1.0], diff_step=1e-3)
    np.testing.assert_allclose(found, wanted.x, atol=0.02)
    assert np.sum(misfit(found) ** 2) < 2.0 * wanted.cost + 0.05
    one = model(found)
    assert fit.flux[0] == pytest.approx((one @ data) / (one @ one), rel=1e-4)
    assert fit.chi2[0] == pytest.approx(np.sum((data - fit.flux[0] * one) ** 2 / noise), rel=1e-4)
    steps = 0.01 * np.eye(5)
    slopes = [fit.flux[0] * (model(found + step) - model(found - step)) / 0.02 for step in steps]
    design = np.stack([*slopes, one], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    covariance = inverse @ (design.T * noise) @ design @ inverse
    np.testing.assert_allclose(fit.covariance[0], covariance[:2, :2], rtol=0.05, atol=0.02 * covariance[0, 0])


def test_a_window_of_which_the_model_has_no_usable_pixel_fails() -> None:
    field = observed(Thing(60.0, 60.0, {"r": 1e4}), 5.0, 1)
    v, u = np.indices(field.usable.shape) - 60
    far = Field(field.image, field.variance, np.hypot(u, v) > 35.0)
    narrow = kernel(FWHM) * (np.hypot(*np.indices((41, 41)) - 20) < 6)
    optics = Optics.at(Psf(narrow[None].astype(np.float32), 0, (SIZE, SIZE)), np.array([60.0]), np.array([60.0]))
    optics.mixtures[:, 1:, 0] = 0.0  # a PSF that ends
    shapes = Shapes.points(np.array([60.0]), np.array([60.0]))
    models = draw(shapes, optics, np.array([20]))
    light = Light(far, share(far, models).residual, models, np.zeros(1), optics)
    assert fit_points(light, shapes, np.array([0]), np.array([40])).failed[0]


def test_what_has_no_pixels_or_only_nan_fails_and_stays_where_it_was() -> None:
    field = observed(Thing(60.0, 60.0, {"r": 1e4}), 5.0, 1)
    blind = Field(np.full_like(field.image, np.nan), field.variance, np.zeros_like(field.usable))
    shapes = Shapes.points(np.array([60.0, 500.0]), np.array([60.0, -90.0]))
    for given in (blind, field):
        fit = fit_points(lit(given, shapes), shapes, np.array([0, 1]), np.array([12, 12]))
        assert fit.failed[1]
        assert (fit.x[1], fit.y[1]) == (500.0, -90.0)
        assert bool(fit.failed[0]) == (given is blind)
