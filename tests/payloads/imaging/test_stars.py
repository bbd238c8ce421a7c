import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from payloads.imaging import stars
from payloads.imaging.stars import STAR_DTYPE, StarFlag
from schemas.image import Image, Mask, MaskPlane
from schemas.tables import Table
from tests.payloads.imaging.star_field import star_field
from tests.payloads.planes import generators, masked_images, masks, noise, shapes

Floats = NDArray[np.float64]

BAD = int(Mask.BAD)


def gaussian(x: float, y: float, sigma: float, shape: tuple[int, int] = (64, 64)) -> Image:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    light: Image = (1e4 * np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)).astype(np.float32)
    return light


def reference_peaks(image: Image, variance: Image, threshold: float) -> set[tuple[int, int]]:
    """Rows and columns of the pixels over the threshold that are the first of the highest of their 5 x 5."""
    if min(image.shape) < 5:
        return set()
    windows = sliding_window_view(image, (5, 5)).reshape(-1, 25).astype(float)
    first = np.argmax(np.where(np.isnan(windows), -np.inf, windows), axis=1)
    middle = (image.astype(float) > threshold * np.sqrt(variance.astype(float)))[2:-2, 2:-2]
    at = np.argwhere(middle & (first == 12).reshape(middle.shape)) + 2
    return {(int(y), int(x)) for y, x in at}


@given(data=st.data(), shape=shapes(1, 30), threshold=st.sampled_from([0.5, 1.5, 5.0]), rounded=st.booleans())
@settings(max_examples=80, deadline=None)
def test_peaks_are_the_first_of_the_highest_of_their_surroundings(
    data: st.DataObject, shape: tuple[int, int], threshold: float, rounded: bool
) -> None:
    pixels = data.draw(masked_images(shape, (), sigma=2.0))
    image = np.rint(pixels.image) if rounded else pixels.image  # few levels: many equal pixels
    variance = np.where(np.abs(data.draw(noise(shape))) < 2.5, pixels.variance, np.float32(np.nan))
    found = stars.find(image, variance, threshold)
    at = list(zip(found["y"].astype(int), found["x"].astype(int), strict=True))
    assert set(at) == reference_peaks(image, variance, threshold)
    assert len(at) == len(set(at))
    assert found["peak"].tolist() == sorted((image[y, x] for y, x in at), reverse=True)


def test_the_peaks_of_a_star_field_are_all_found() -> None:
    field = star_field(1, stars=80, shape=(512, 512))
    image, variance = field.observed.image - field.sky, field.observed.variance
    found = stars.find(image, variance, 5.0)
    assert set(zip(found["y"], found["x"], strict=True)) == reference_peaks(image, variance, 5.0)


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


def reference_step(image: Image, x: float, y: float, sigma: float) -> tuple[float, float, float]:
    """Twice the centroid's offset and the matching width, under a Gaussian cut off just beyond 3 sigma."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    half = int(3 * sigma) + 1
    near = (np.abs(rows - np.rint(y)) <= half) & (np.abs(columns - np.rint(x)) <= half)
    dx, dy = columns[near] - x, rows[near] - y
    light = np.exp(-0.5 * (dx**2 + dy**2) / sigma**2) * image[near].astype(float)
    with np.errstate(invalid="ignore"):
        total = light.sum()
        square = (light * (dx**2 + dy**2)).sum() / total if total > 0 else np.nan
        return 2 * (light * dx).sum() / total, 2 * (light * dy).sum() / total, float(np.sqrt(max(square, 0.0)))


def reference_match(image: Image, x: float, y: float) -> tuple[float, float, float] | None:
    """Centre and FWHM of the Gaussian that matches a star; None where it runs away or sees nothing."""
    here, sigma, moved = np.array([x, y]), 2.0, np.inf
    for _ in range(12):
        dx, dy, width = reference_step(image, *here, sigma)
        here += (dx, dy)
        moved, sigma = abs(dx) + abs(dy) + abs(width - sigma), min(max(width, 0.5), 6.0)
        if not (np.isfinite(here).all() and np.abs(here - [x, y]).max() < 2.0):
            return None
        if moved <= 0.01:
            break
    return here[0], here[1], sigma * 2.354820045


def reference_masked(mask: MaskPlane, x: int, y: int) -> bool:
    edge = min(x, y, mask.shape[1] - 1 - x, mask.shape[0] - 1 - y) < 6
    return edge or bool((mask[y - 2 : y + 3, x - 2 : x + 3] & BAD).any())


def placed(shape: tuple[int, int], count: int, rng: np.random.Generator) -> Table:
    table = np.zeros(count, STAR_DTYPE)
    table["y"], table["x"] = (rng.integers(0, n, count) for n in shape)
    return table


@given(data=st.data(), shape=shapes(1, 40), rng=generators())
@settings(max_examples=60, deadline=None)
def test_stars_are_matched_with_gaussians_at_edges_and_by_spoilt_pixels_too(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    table = placed(shape, 5, rng)
    image = data.draw(noise(shape, 20.0)) + sum(
        gaussian(s["x"] + rng.normal(0, 0.3), s["y"] + rng.normal(0, 0.3), rng.uniform(1, 3), shape) for s in table
    )
    mask = data.draw(masks(shape, (BAD, int(Mask.CR))))
    found = table.copy()
    stars.size_up(image, mask, BAD, found)
    for before, after in zip(table, found, strict=True):
        expected = reference_match(image, before["x"], before["y"])
        assert bool(after["flags"] & StarFlag.UNMEASURED) == (expected is None)
        measured = expected or (before["x"], before["y"], 0.0)
        assert (after["x"], after["y"], after["fwhm"]) == pytest.approx(measured, rel=1e-5, abs=1e-5)
        masked = reference_masked(mask, int(before["x"]), int(before["y"]))
        assert bool(after["flags"] & StarFlag.MASKED) == masked


def reference_reach(image: Image, x: float, y: float, level: float, longest: float) -> float:
    """Circles of 64 points that grow by an eighth from 4 pixels on, at least 16 of them finite pixels."""
    angle, radius = 2 * np.pi * (np.arange(64) + 0.5) / 64, 4.0
    while radius < longest:
        columns, rows = (np.rint(c + radius * f(angle)).astype(int) for c, f in ((x, np.cos), (y, np.sin)))
        on = (columns >= 0) & (rows >= 0) & (columns < image.shape[1]) & (rows < image.shape[0])
        values = image[rows[on], columns[on]]
        values = values[np.isfinite(values)]
        if values.size >= 16 and np.median(values) < level:
            break
        radius *= 1.125
    return min(radius, longest)


@given(shape=shapes(1, 60), rng=generators(), longest=st.floats(1.0, 50.0))
@settings(max_examples=60, deadline=None)
def test_reach_is_that_of_the_circles_drawn_one_by_one(
    shape: tuple[int, int], rng: np.random.Generator, longest: float
) -> None:
    x, y = (rng.uniform(-5, n + 5, 4) for n in shape[::-1])
    image = gaussian(x[0], y[0], 8.0, shape) + rng.normal(0, 10, shape).astype(np.float32)
    image[rng.random(shape) < rng.choice([0.0, 0.3, 0.8])] = rng.choice([np.nan, np.inf, -np.inf])
    level = 10 ** rng.uniform(0, 4, 4)
    expected = [reference_reach(image, *at, longest) for at in zip(x, y, level, strict=True)]
    assert stars.reach(image, x, y, level, longest) == pytest.approx(expected)
