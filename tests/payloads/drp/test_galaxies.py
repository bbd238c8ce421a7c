import numpy as np
import pytest
from numpy.typing import NDArray

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


def test_a_profile_is_the_sum_of_its_gaussians() -> None:
    root, x, y = np.array([2.1, -0.8, 1.3]), 21.3, 18.6
    parts, moments = disc_profile(), psf_mixture(kernel(FWHM).astype(np.float32))
    out = np.zeros((41, 45))
    add_profile(out, x, y, root, parts, moments, 7.0)
    v, u = np.mgrid[:41, :45]
    offset = np.stack([u - x, v - y], axis=-1)
    lower = np.array([[root[0], 0.0], [root[1], root[2]]])
    wanted = np.zeros_like(out)
    for part, size in parts:
        for weight, xx, xy, yy in moments:
            covariance = np.array([[xx, xy], [xy, yy]]) + size * lower @ lower.T
            exponent = np.einsum("...i,ij,...j->...", offset, np.linalg.inv(covariance), offset)
            wanted += 7.0 * part * weight * np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    np.testing.assert_allclose(out, wanted, atol=3e-7 * wanted.max() * len(parts) * len(moments))


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


def test_what_has_no_pixels_or_only_nan_fails_and_stays_where_it_was() -> None:
    field = observed(Thing(60.0, 60.0, {"r": 1e4}), 5.0, 1)
    blind = Field(np.full_like(field.image, np.nan), field.variance, np.zeros_like(field.usable))
    shapes = Shapes.points(np.array([60.0, 500.0]), np.array([60.0, -90.0]))
    for given in (blind, field):
        fit = fit_points(lit(given, shapes), shapes, np.array([0, 1]), np.array([12, 12]))
        assert fit.failed[1]
        assert (fit.x[1], fit.y[1]) == (500.0, -90.0)
        assert bool(fit.failed[0]) == (given is blind)
