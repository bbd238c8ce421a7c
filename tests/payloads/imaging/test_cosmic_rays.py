import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.imaging import background, cosmic_rays
from payloads.imaging.cosmic_rays import Others, Sky
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.imaging.star_field import StarField, star_field

Bools = NDArray[np.bool_]
BLIND = int(Mask.SAT | Mask.BAD)


@pytest.fixture(scope="module")
def stars() -> StarField:
    return star_field(11, stars=250, log_flux=(3.0, 6.0))


def rays(shape: tuple[int, int], seed: int, count: int = 60) -> Image:
    """Straight tracks one pixel wide, of 200 to 10,000 electrons a pixel."""
    rng = np.random.default_rng(seed)
    hit = np.zeros(shape, np.float32)
    for _ in range(count):
        along, angle = np.arange(rng.integers(1, 20)), rng.uniform(0, np.pi)
        x, y = rng.uniform(30, shape[1] - 30), rng.uniform(30, shape[0] - 30)
        hit[(y + along * np.sin(angle)).astype(int), (x + along * np.cos(angle)).astype(int)] = 10 ** rng.uniform(
            2.3, 4
        )
    return hit


def find(image: MaskedImage, fwhm: float, others: Others | None = None) -> Bools:
    sky = Sky(background.mesh(image.image, image.mask, 0, 256)[0])
    hits = np.zeros(image.shape, np.uint8)
    pixels = cosmic_rays.find(image.image, image.variance, image.mask, BLIND, sky, fwhm, hits, 2, others)
    assert np.array_equal(np.argwhere(hits == 2), np.unique(pixels, axis=0))
    found: Bools = hits == 2
    return found


def struck(image: MaskedImage, hit: Image) -> MaskedImage:
    return MaskedImage(image.image + hit, image.mask, image.variance + hit)


def reference_seeds(image: Image, variance: Image, sky: float, fwhm: float) -> Bools:
    """The test of one pixel, written on whole arrays; four shifts for the four directions."""
    d = image.astype(np.float64) - sky
    axis = np.exp(-0.5 * (2.354820045 / fwhm) ** 2)
    limit = 0.6 * (d - 2.5 * np.sqrt(variance))
    steep = np.zeros(image.shape, bool)
    for dy, dx, ratio in ((0, 1, axis), (1, 0, axis), (1, 1, axis**2), (1, -1, axis**2)):
        a, b = np.roll(d, (dy, dx), (0, 1)), np.roll(d, (-dy, -dx), (0, 1))
        va, vb = np.roll(variance, (dy, dx), (0, 1)), np.roll(variance, (-dy, -dx), (0, 1))
        steep |= 0.5 * (a + b) + 2.5 * 0.5 * np.sqrt(va + vb) < ratio * limit
    steep &= d > 6 * np.sqrt(variance)
    steep[[0, -1]], steep[:, [0, -1]] = False, False
    return steep


def test_first_pixels_are_those_too_steep_for_the_psf(stars: StarField) -> None:
    image = struck(stars.observed, rays(stars.clean.shape, 1))
    level, fwhm, hits = np.full((1, 1), 900.0, np.float32), 4.0, np.zeros(image.shape, np.uint8)
    axis = np.exp(-0.5 * (2.354820045 / fwhm) ** 2)
    ratios = np.array([axis, axis, axis**2, axis**2], np.float32)
    pixels = np.empty((10_000, 2), np.int32)
    count = cosmic_rays._seeds(
        image.image,
        image.variance,
        level,
        image.image,
        image.variance,
        1,
        ratios,
        image.mask,
        0,
        hits,
        1,
        pixels,
    )
    expected = reference_seeds(image.image, image.variance, 900.0, fwhm)
    assert count == expected.sum() > 100
    assert np.array_equal(hits == 1, expected)


def test_rays_are_found_and_stars_are_not(stars: StarField) -> None:
    hit = rays(stars.clean.shape, 2)
    found = find(struck(stars.observed, hit), 4.0)
    assert found[hit > 0].mean() > 0.98
    assert np.count_nonzero(found & (hit == 0)) < 0.05 * np.count_nonzero(hit)


@pytest.mark.parametrize("assumed", [2.6, 4.0, 4.6])
def test_no_star_is_taken_for_a_ray_if_the_psf_is_a_bit_off(stars: StarField, assumed: float) -> None:
    found = find(stars.observed, assumed)
    cores = found[np.rint(stars.y).astype(int), np.rint(stars.x).astype(int)]
    assert not cores.any()


def test_two_snaps_find_blunt_rays_too(stars: StarField) -> None:
    blunt = np.zeros(stars.clean.shape, np.float32)
    for x, y in np.random.default_rng(4).integers(30, 990, (40, 2)):
        blunt[y : y + 3, x : x + 3] += 600.0
    first, second = struck(stars.observed, blunt), star_field(11, stars=250, log_flux=(3.0, 6.0)).observed
    others = Others(first.image + second.image, first.variance + second.variance, 2)
    alone, together = find(first, 4.0), find(first, 4.0, others)
    assert together[blunt > 0].mean() > 0.9 > alone[blunt > 0].mean()


def test_pixels_by_a_saturated_one_are_not_judged(stars: StarField) -> None:
    image = struck(stars.observed, np.zeros(stars.clean.shape, np.float32))
    image.image[500, 500] += 5000.0
    mask = image.mask.copy()
    mask[501, 501] = Mask.SAT
    assert not find(MaskedImage(image.image, mask, image.variance), 4.0)[500, 500]


@pytest.mark.parametrize("fwhm", [3.0, 4.0, 6.0])
def test_the_width_of_the_psf_is_guessed_from_the_stars(fwhm: float) -> None:
    field = star_field(12, stars=200, fwhm=fwhm, log_flux=(4.0, 5.5))
    image = struck(field.observed, rays(field.clean.shape, 3))
    sky = Sky(background.mesh(image.image, image.mask, 0, 256)[0])
    assert cosmic_rays.coarse_fwhm(image.image, image.variance, sky, 99.0) == pytest.approx(fwhm, rel=0.15)


def test_without_stars_the_expected_width_stands() -> None:
    field = star_field(13, stars=3)
    sky = Sky(np.full((2, 2), 900.0, np.float32))
    assert cosmic_rays.coarse_fwhm(field.observed.image, field.observed.variance, sky, 5.5) == 5.5


def test_an_image_of_nothing_but_spikes_is_refused() -> None:
    image = np.full((2100, 2100), 100.0, np.float32)
    image[::2, ::2] = 1e5
    broken = MaskedImage(image, np.zeros(image.shape, np.uint16), image)
    hits = np.zeros(image.shape, np.uint8)
    with pytest.raises(BadData, match="not an image of the sky"):
        cosmic_rays.find(
            broken.image,
            broken.variance,
            broken.mask,
            0,
            Sky(np.full((1, 1), 100.0, np.float32)),
            4.0,
            hits,
            1,
        )
