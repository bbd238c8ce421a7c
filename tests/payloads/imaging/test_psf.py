import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.imaging import psf
from payloads.imaging.psf import Field
from schemas.errors import BadData
from schemas.image import Image, Mask, Psf
from tests.payloads.imaging.star_field import Profile, StarField, draw, observe, sky_of

Floats = NDArray[np.float64]
SHAPE = (1024, 1024)
HALF = 13
SKY_VARIANCE = 936.0


def lattice(seed: int, side: int, log_flux: tuple[float, float]) -> tuple[Floats, Floats, Floats]:
    """Stars near the points of a grid, none a neighbour of another."""
    rng = np.random.default_rng(seed)
    x, y = (g.ravel() + rng.uniform(-6, 6, side * side) for g in np.mgrid[40 : 984 : side * 1j, 40 : 984 : side * 1j])
    return x, y, 10 ** rng.uniform(*log_flux, side * side)


@pytest.fixture(scope="module")
def isolated() -> StarField:
    """196 stars of S/N 80 to 1000."""
    profile = Profile(SHAPE)
    x, y, flux = lattice(1, 14, (4.3, 6.0))
    sky = sky_of(SHAPE)
    clean = sky.copy()
    draw(clean, profile, x, y, flux)
    return StarField(observe(clean, 2), clean, sky, profile, x, y, flux)


def field_of(stars: StarField) -> Field:
    return Field(stars.observed.image - stars.sky, stars.observed.mask, int(Mask.BAD))


@pytest.fixture(scope="module")
def fitted(isolated: StarField) -> Psf:
    n = len(isolated.x)
    start = np.rint(isolated.x), np.rint(isolated.y)
    model, used = psf.fit(field_of(isolated), *start, np.full(n, SKY_VARIANCE), psf.nobody(n), 4.5, HALF)
    assert used.sum() > 0.9 * n
    return model


def test_the_kernel_is_the_true_one_everywhere(isolated: StarField, fitted: Psf) -> None:
    for x, y in ((512.0, 512.0), (60.0, 60.0), (980.0, 100.0), (500.0, 1000.0)):
        true = isolated.profile.at(x, y, HALF)[2]
        error = np.abs(fitted.at(x, y) - true / true.sum()).max() / true.max()
        assert error < 0.01, (x, y)


def test_photometry_with_it_is_unbiased_and_fits(isolated: StarField, fitted: Psf) -> None:
    n = len(isolated.x)
    fits = psf.measure(field_of(isolated), fitted, isolated.x, isolated.y, np.full(n, SKY_VARIANCE), 10)
    ratio = fits.flux / (isolated.flux * isolated.profile.enclosed(isolated.x, isolated.y, HALF))
    pull = (ratio - 1) * fits.flux / fits.flux_err
    assert abs(np.median(ratio) - 1) < 0.002
    for corner in (isolated.x < 340, isolated.x > 680, isolated.y < 340, isolated.y > 680):
        assert abs(np.median(ratio[corner]) - 1) < 0.005
    assert np.median(fits.chi2) == pytest.approx(1.0, abs=0.05)
    assert 1.4826 * np.median(np.abs(pull)) == pytest.approx(1.0, abs=0.25)


def test_positions_are_good_to_their_errors(isolated: StarField, fitted: Psf) -> None:
    n = len(isolated.x)
    fits = psf.measure(field_of(isolated), fitted, isolated.x, isolated.y, np.full(n, SKY_VARIANCE), 10)
    dx = fits.x - isolated.x
    assert abs(np.median(dx)) < 0.003
    assert 1.4826 * np.median(np.abs(dx) / np.hypot(fits.position_err, 0.01)) < 1.2


def test_each_kernel_sums_to_one(fitted: Psf) -> None:
    assert fitted.components[0].sum() == pytest.approx(1.0, abs=1e-5)
    assert np.abs(fitted.components[1:].sum(axis=(1, 2))).max() < 1e-5


def test_what_is_no_star_is_left_out(isolated: StarField) -> None:
    image = isolated.observed.image - isolated.sky
    pair = 77
    x, y = round(isolated.x[pair]), round(isolated.y[pair])
    image[y - 4 : y + 5, x - 3 : x + 12] += image[y - 4 : y + 5, x - 8 : x + 7]
    n = len(isolated.x)
    field = Field(image, isolated.observed.mask, 0)
    _, used = psf.fit(field, isolated.x, isolated.y, np.full(n, SKY_VARIANCE), psf.nobody(n), 4.5, HALF)
    assert not used[pair]


@pytest.mark.parametrize(("stars", "order"), [(5, 0), (14, 0), (15, 1), (39, 1), (40, 2)])
def test_few_stars_make_a_simpler_psf(isolated: StarField, stars: int, order: int) -> None:
    x, y = isolated.x[:stars], isolated.y[:stars]
    model, used = psf.fit(field_of(isolated), x, y, np.full(stars, SKY_VARIANCE), psf.nobody(stars), 4.5, HALF)
    assert model.order == order if used.all() else model.order <= order
    assert len(model.components) == (model.order + 1) * (model.order + 2) // 2


def test_four_stars_are_too_few(isolated: StarField) -> None:
    with pytest.raises(BadData, match="4 usable stars"):
        psf.fit(
            field_of(isolated),
            isolated.x[:4],
            isolated.y[:4],
            np.full(4, SKY_VARIANCE),
            psf.nobody(4),
            4.5,
            HALF,
        )


def test_a_star_that_is_not_there_is_not_measured(fitted: Psf) -> None:
    field = Field(np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), 0)
    fits = psf.measure(field, fitted, np.array([500.0]), np.array([500.0]), np.array([SKY_VARIANCE]), 10)
    assert np.isnan(fits.flux[0])


def test_a_masked_pixel_does_not_bias_a_star(isolated: StarField, fitted: Psf) -> None:
    image, mask = isolated.observed.image - isolated.sky, isolated.observed.mask.copy()
    x, y = isolated.x[60:61], isolated.y[60:61]
    before = psf.measure(Field(image, mask, int(Mask.BAD)), fitted, x, y, np.array([SKY_VARIANCE]), 10)
    row, column = round(y[0]) + 1, round(x[0])
    mask[row, column], image[row, column] = Mask.BAD, np.nan
    after = psf.measure(Field(image, mask, int(Mask.BAD)), fitted, x, y, np.array([SKY_VARIANCE]), 10)
    assert after.flux[0] == pytest.approx(before.flux[0], abs=2 * before.flux_err[0])


@pytest.mark.parametrize("fwhm", [3.2, 4.7, 6.0])
def test_the_width_of_a_kernel_is_that_of_its_half_maximum(fwhm: float) -> None:
    # Fine sampling of a point, so that the pixel does not widen it.
    offset = np.arange(-HALF, HALF + 1.0)
    square = offset[:, None] ** 2 + offset**2
    kernel: Image = np.exp(-0.5 * square / (fwhm / 2.354820045) ** 2).astype(np.float32)
    assert psf.fwhm(kernel) == pytest.approx(fwhm, rel=0.01)
