import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.imaging import background, cosmic_rays
from payloads.imaging.cosmic_rays import Others, Sky
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.imaging.star_field import StarField, star_field
from tests.payloads.planes import generators, masked_images, shapes

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


class Reference:
    """The search in plain NumPy, a pixel at a time: first pixels, then eight rounds of neighbours."""

    def __init__(self, pixels: MaskedImage, sky: Image, fwhm: float, others: Others | None) -> None:
        ny, nx = pixels.shape
        cells = np.arange(ny)[:, None] * sky.shape[0] // ny, np.arange(nx) * sky.shape[1] // nx
        self.sky = sky[cells].astype(float)
        self.image, self.variance = pixels.image.astype(float), pixels.variance.astype(float)
        self.bare = self.image - self.sky
        axis = np.exp(-0.5 * (2.354820045 / fwhm) ** 2)
        self.ways = (((0, 1), axis), ((1, 0), axis), ((1, 1), axis**2), ((1, -1), axis**2))
        self.excess = np.full(pixels.shape, -np.inf)
        if others is not None:
            rest, rest_variance = others.total - pixels.image.astype(float), others.total_variance - self.variance
            noise = np.sqrt(self.variance + rest_variance / (others.snaps - 1) ** 2)
            excess = pixels.image - rest / (others.snaps - 1)
            self.excess = np.where(excess > 0.5 * self.bare, excess / noise, -np.inf)
        blind = np.pad((pixels.mask & BLIND) != 0, 1, constant_values=True)
        windows = np.lib.stride_tricks.sliding_window_view(blind, (3, 3))
        self.judged = ~windows.any((2, 3))
        self.struck = np.zeros(pixels.shape, bool)

    def steep(self, y: int, x: int, steeper: float, caution: float) -> bool:
        limit = steeper * (self.bare[y, x] - caution * np.sqrt(self.variance[y, x]))
        for (dy, dx), ratio in self.ways:
            beside = [at for at in ((y - dy, x - dx), (y + dy, x + dx)) if not self.struck[at]]
            if beside:
                mean = np.mean([self.image[at] for at in beside]) - self.sky[y, x]
                noise = 0.5 * np.sqrt(2.0 * np.mean([self.variance[at] for at in beside]))
                if mean + caution * noise < ratio * limit:
                    return True
        return False

    def seeds(self) -> list[tuple[int, int]]:
        bright = self.judged & (self.bare > 6 * np.sqrt(self.variance))
        return [
            (y, x)
            for y, x in np.argwhere(bright)
            if self.steep(y, x, 0.6, 2.5) or (self.excess[y, x] > 5 and self.steep(y, x, 0.9, 1.0))
        ]

    def search(self) -> Bools:
        found = self.seeds()
        for at in found:
            self.struck[at] = True
        for _ in range(8):
            found = [at for y, x in found for at in self.spread(y, x)]
        return self.struck

    def spread(self, y: int, x: int) -> list[tuple[int, int]]:
        new = []
        for at in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            # The border is never judged; NaN compares false.
            if not self.judged[at] or self.struck[at] or not self.bare[at] >= 3 * np.sqrt(self.variance[at]):
                continue
            if self.steep(*at, 0.6, 1.0) or self.excess[at] > 3:
                self.struck[at] = True
                new.append(at)
        return new


def scene(pixels: MaskedImage, rng: np.random.Generator) -> MaskedImage:
    """Light through a PSF, and rays: single pixels, and steps of a walk."""
    image, (ny, nx) = pixels.image + np.float32(100.0), pixels.shape
    rows, columns = np.mgrid[:ny, :nx]
    y, x = rng.uniform(0, ny), rng.uniform(0, nx)
    image += (rng.uniform(0, 500) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 6.0)).astype(np.float32)
    for _ in range(rng.integers(0, 4)):
        walk = np.cumsum(rng.integers(-1, 2, (rng.integers(1, 12), 2)), axis=0) + rng.integers(0, (ny, nx))
        image[tuple(np.clip(walk, 0, (ny - 1, nx - 1)).T)] += rng.uniform(20, 400, len(walk)).astype(np.float32)
    return MaskedImage(image, pixels.mask, pixels.variance)


@given(data=st.data(), shape=shapes(1, 30), snaps=st.integers(1, 3), fwhm=st.floats(2.0, 8.0), rng=generators())
@settings(max_examples=100, deadline=None)
def test_rays_are_those_that_each_step_in_turn_finds(
    data: st.DataObject, shape: tuple[int, int], snaps: int, fwhm: float, rng: np.random.Generator
) -> None:
    pixels = scene(data.draw(masked_images(shape, (Mask.SAT, Mask.CR), sigma=5.0, spoilt=(np.nan, np.inf))), rng)
    sky = rng.normal(100.0, 2.0, rng.integers(1, 4, 2)).astype(np.float32)
    others = None
    if snaps > 1:
        rest = rng.normal(100.0 * (snaps - 1), 5.0 * (snaps - 1) ** 0.5, shape).astype(np.float32)
        rest += (rng.uniform(0, 1, shape) * (snaps - 1) * (pixels.image - 100.0)).astype(np.float32)  # a part of it all
        others = Others(pixels.image + rest, pixels.variance * np.float32(snaps), snaps)
    hits = rng.choice(np.array([0, 1], np.uint8), shape)  # another snap's
    before = hits.copy()
    found = cosmic_rays.find(pixels.image, pixels.variance, pixels.mask, BLIND, Sky(sky), fwhm, hits, 2, others)
    with np.errstate(invalid="ignore"):
        expected = Reference(pixels, sky, fwhm, others).search()
    np.testing.assert_array_equal(hits, before | np.where(expected, 2, 0))
    assert sorted(map(tuple, found)) == sorted(map(tuple, np.argwhere(expected)))


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
