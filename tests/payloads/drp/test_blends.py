import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.drp.blends import Field, Models, Shares, point_fluxes, share

Floats = NDArray[np.float64]

NY, NX, NOISE = 70, 80, 2.0


def a_blend(n: int = 9, seed: int = 1) -> tuple[Models, Floats, Field]:
    """Gaussians of several widths close together, some over the rim, their fluxes, and noise with holes upon them."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-3.0, 30.0, n), rng.uniform(-3.0, 30.0, n)
    models = Models.around(x, y, rng.integers(6, 12, n))
    for k in range(n):
        v, u = np.mgrid[: models.side[k], : models.side[k]]
        sigma = rng.uniform(1.5, 3.0)
        box = np.exp(-((u + models.x0[k] - x[k]) ** 2 + (v + models.y0[k] - y[k]) ** 2) / (2.0 * sigma**2))
        models.box(k)[:] = box / (2.0 * np.pi * sigma**2)
    flux = rng.uniform(300.0, 3000.0, n)
    variance = rng.uniform(0.5, 2.0, (NY, NX)).astype(np.float32) * np.float32(NOISE**2)
    image = flux @ basis(models) + (np.sqrt(variance) * rng.normal(size=(NY, NX))).ravel()
    return models, flux, Field(image.reshape(NY, NX).astype(np.float32), variance, rng.random((NY, NX)) > 0.05)


def basis(models: Models) -> Floats:
    """(n, pixels): the models on the whole image."""
    planes = np.zeros((models.side.size, NY, NX))
    for k, (x0, y0, side) in enumerate(zip(models.x0, models.y0, models.side, strict=True)):
        for r in range(side):
            for c in range(side):
                if 0 <= y0 + r < NY and 0 <= x0 + c < NX:
                    planes[k, y0 + r, x0 + c] = models.box(k)[r, c]
    return planes.reshape(models.side.size, -1)


def test_fluxes_and_errors_are_those_of_a_plain_least_squares() -> None:
    models, _, field = a_blend()
    shares = share(field, models)
    used = field.usable.ravel()
    planes = basis(models)[:, used]
    wanted = np.linalg.lstsq(planes.T, field.image.ravel()[used], rcond=None)[0]
    np.testing.assert_allclose(shares.flux, wanted, rtol=1e-4)
    inverse = np.linalg.inv(planes @ planes.T)
    covariance = inverse @ (planes * field.variance.ravel()[used]) @ planes.T @ inverse
    np.testing.assert_allclose(shares.flux_err, np.sqrt(np.diag(covariance)), rtol=1e-3)
    left = field.image.ravel()[used] - wanted @ planes
    np.testing.assert_allclose(shares.residual[field.usable], left, atol=1e-2)
    assert np.isnan(shares.residual[~field.usable]).all()


def test_neighbours_errors_and_light_are_told() -> None:
    models, _, field = a_blend()
    shares = share(field, models)
    planes = basis(models)[:, field.usable.ravel()]
    noise = (planes**2 @ field.variance[field.usable]) ** 0.5 / (planes**2).sum(1)
    np.testing.assert_allclose(shares.larger, shares.flux_err / noise, rtol=1e-4)
    assert shares.larger.min() >= 1.0
    own = shares.flux * (planes**2).sum(1) / (planes @ (shares.flux @ planes))
    np.testing.assert_allclose(shares.blended, np.clip(1.0 - own, 0.0, 1.0), atol=1e-4)
    np.testing.assert_allclose(
        shares.seen, (planes**2).sum(1) / [np.sum(models.box(k) ** 2) for k in range(9)], rtol=1e-4
    )


def test_fluxes_are_unbiased_and_as_uncertain_as_they_say() -> None:
    pulls = []
    for seed in range(40):
        models, flux, field = a_blend(seed=seed)
        shares = share(field, models)
        clear = shares.larger < 5.0
        pulls.append(((shares.flux - flux) / shares.flux_err)[clear])
    pull = np.concatenate(pulls)
    assert pull.size > 200
    assert abs(pull.mean()) < 0.2
    assert pull.std() == pytest.approx(1.0, abs=0.12)


def test_point_fluxes_are_those_of_each_objects_own_light() -> None:
    models, _, field = a_blend()
    shares = share(field, models)
    flux, error, seen = point_fluxes(field, shares, models, models)
    np.testing.assert_allclose(flux, shares.flux, rtol=1e-3)
    np.testing.assert_allclose(error, shares.flux_err, rtol=1e-4)
    np.testing.assert_allclose(seen, shares.seen, rtol=1e-5)
    alone, lonely_error, _ = point_fluxes(field, Shares.none(field, 9), models, models)
    planes = basis(models)[:, field.usable.ravel()]
    np.testing.assert_allclose(alone, planes @ field.image[field.usable] / (planes**2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(lonely_error * shares.larger, shares.flux_err, rtol=1e-4)


def test_two_equal_models_share_what_there_is_and_one_without_pixels_has_nothing() -> None:
    models, _, field = a_blend(3)
    twice = models.of(np.array([0, 0, 1, 2]))
    shares, once = share(field, twice), share(field, models)
    assert shares.flux[:2].sum() == pytest.approx(once.flux[0], rel=1e-3)
    assert np.isfinite(shares.flux_err).all()
    blind = share(Field(field.image, field.variance, np.zeros((NY, NX), np.bool_)), models)
    assert np.isnan(blind.flux).all()
    assert np.isnan(blind.flux_err).all()
    nothing = share(field, models.of(np.zeros(0, np.int64)))
    assert nothing.flux.size == 0
    np.testing.assert_array_equal(nothing.residual[field.usable], field.image[field.usable])
