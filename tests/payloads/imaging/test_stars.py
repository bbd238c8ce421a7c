import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from payloads.imaging import stars
from payloads.imaging.stars import StarFlag
from schemas.image import Image, Mask
from tests.payloads.imaging.star_field import star_field


def gaussian(x: float, y: float, sigma: float, shape: tuple[int, int] = (64, 64)) -> Image:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    light: Image = (1e4 * np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)).astype(np.float32)
    return light


def test_peaks_are_the_highest_of_their_surroundings() -> None:
    field = star_field(1, stars=80, shape=(512, 512))
    image, variance = field.observed.image - field.sky, field.observed.variance
    inner = np.zeros(image.shape, bool)
    inner[2:-2, 2:-2] = True
    expected = (image == maximum_filter(image, 5)) & (image > 5 * np.sqrt(variance)) & inner
    found = stars.find(image, variance, 5.0)
    assert sorted(zip(found["y"], found["x"], strict=True)) == sorted(map(tuple, np.argwhere(expected)))
    assert np.all(np.diff(found["peak"]) <= 0)


def test_more_peaks_than_foreseen_are_all_found() -> None:
    image = np.zeros((700, 700), np.float32)
    image[5:-5:3, 5:-5:3] = 100.0
    assert len(stars.find(image, np.ones_like(image), 5.0)) == np.count_nonzero(image)


def test_a_clipped_core_is_one_peak() -> None:
    image = np.minimum(gaussian(30.0, 30.0, 3.0), 8000.0)
    assert len(stars.find(image, np.ones_like(image), 5.0)) == 1


@pytest.mark.parametrize("sigma", [1.3, 2.0, 3.1])
def test_a_gaussian_is_centred_and_sized_exactly(sigma: float) -> None:
    image = gaussian(30.3, 31.8, sigma)
    table = stars.find(image, np.ones_like(image), 100.0)
    stars.size_up(image, np.zeros(image.shape, np.uint16), int(Mask.BAD), table)
    assert (table["x"][0], table["y"][0]) == pytest.approx((30.3, 31.8), abs=5e-3)
    assert table["fwhm"][0] == pytest.approx(2.3548 * sigma, rel=0.01)
    assert table["flags"][0] == 0


def test_a_bad_pixel_in_the_core_or_an_edge_flags_a_star() -> None:
    image = gaussian(30.0, 30.0, 2.0) + gaussian(3.0, 50.0, 2.0)
    mask = np.zeros(image.shape, np.uint16)
    mask[31, 32] = Mask.BAD
    table = stars.find(image, np.ones_like(image), 100.0)
    stars.size_up(image, mask, int(Mask.BAD), table)
    assert np.all(table["flags"] & StarFlag.MASKED)


def test_a_centre_that_runs_away_is_flagged() -> None:
    image = gaussian(30.0, 30.0, 4.0)
    image[30, 37] += 3000.0  # a spike on a star's flank is no star
    table = stars.find(image, np.ones_like(image), 100.0)
    stars.size_up(image, np.zeros(image.shape, np.uint16), 0, table)
    spike = table[np.argmin(table["peak"])]
    assert spike["flags"] & StarFlag.UNMEASURED or spike["fwhm"] < 5.0


def test_reach_is_where_the_profile_falls_below_the_level() -> None:
    rows, columns = np.mgrid[:400, :400]
    image = (1e4 / np.maximum(np.hypot(columns - 200, rows - 200), 1.0) ** 2).astype(np.float32)
    radius = stars.reach(image, np.array([200.0]), np.array([200.0]), np.array([4.0]), 150.0)
    assert radius[0] == pytest.approx(50.0, rel=0.13)


def test_reach_ends_at_the_longest() -> None:
    image = np.full((100, 100), 9.0, np.float32)
    radius = stars.reach(image, np.array([50.0]), np.array([50.0]), np.array([1.0]), 20.0)
    assert radius[0] == 20.0
