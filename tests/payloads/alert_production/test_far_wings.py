import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.alert_production import far_wings
from payloads.alert_production.far_wings import remove_far_wings
from payloads.imaging.photometry import UNUSABLE
from schemas.image import Image, Mask
from tests.payloads.planes import generators, masks, noise, shapes

Floats = NDArray[np.float64]
SHAPE, REACH = (800, 800), 12
BITS = (int(Mask.SAT), int(Mask.CR), int(Mask.DETECTED))


def wing(radius: Floats) -> Floats:
    """What is left of a star, as part of the light of its core."""
    result: Floats = -2e-4 * np.exp(-((radius - 15.0) ** 2) / 20.0)
    return result


def distances(shape: tuple[int, int], x: int, y: int) -> Floats:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    result: Floats = np.hypot(columns - x, rows - y)
    return result


def field(rng: np.random.Generator, apart: int = 75) -> tuple[Image, Image, Floats, list[tuple[int, int]]]:
    """Light of stars of which each is in one pixel, a difference with their wings and noise, the wings alone."""
    light, left, places = np.zeros(SHAPE, np.float32), np.zeros(SHAPE), []
    for y in range(40, SHAPE[0] - 30, apart):
        for x in range(40, SHAPE[1] - 30, apart):
            light[y, x] = 10.0 ** rng.uniform(3.5, 4.5)
            left += light[y, x] * wing(distances(SHAPE, x, y))
            places.append((x, y))
    image = (rng.normal(0.0, 1.0, SHAPE) + left).astype(np.float32)
    return light, image, left, places


def test_the_wings_that_stars_leave_are_taken_away_and_the_noise_is_left() -> None:
    light, image, left, _ = field(np.random.default_rng(1))
    before = image.copy()
    remove_far_wings(image, light, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), REACH)
    assert np.abs(left).max() > 3.0
    assert (image - (before - left)).std() < 0.1 * left.std()


def test_neither_changed_stars_nor_transients_become_wings_of_all() -> None:
    rng = np.random.default_rng(2)
    light, image, left, places = field(rng)
    for x, y in places[::9]:
        image[y - 15 : y - 10, x - 3 : x + 3] += 300.0
    before = image.copy()
    remove_far_wings(image, light, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), REACH)
    assert (image - (before - left)).std() < 0.15 * left.std()


@pytest.mark.parametrize("why", ["few", "saturated", "faint"])
def test_without_stars_that_tell_nothing_is_taken(why: str) -> None:
    light, image, _, _ = field(np.random.default_rng(3), apart=200 if why == "few" else 75)
    mask = np.where(light > 0, np.uint16(Mask.SAT if why == "saturated" else 0), np.uint16(0))
    if why == "faint":
        light *= np.float32(1e-3)
    before = image.copy()
    remove_far_wings(image, light, np.ones(SHAPE, np.float32), mask, REACH)
    np.testing.assert_array_equal(image, before)


def test_of_noise_alone_hardly_anything_is_taken() -> None:
    rng = np.random.default_rng(4)
    light, _, _, _ = field(rng)
    image = rng.normal(0.0, 1.0, SHAPE).astype(np.float32)
    before = image.copy()
    remove_far_wings(image, light, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), REACH)
    assert (image - before).std() < 0.05


@given(data=st.data(), shape=shapes(1, 30), rng=generators(), stars=st.integers(0, 4), first=st.integers(0, 5))
@settings(deadline=None)
def test_cores_ring_means_and_what_is_taken_are_the_references(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator, stars: int, first: int
) -> None:
    image, mask = data.draw(noise(shape)), data.draw(masks(shape, BITS))
    variance = rng.uniform(0.5, 2.0, shape).astype(np.float32)
    xs, ys = rng.integers(0, shape[1], stars), rng.integers(0, shape[0], stars)
    last = first + data.draw(st.integers(2, 9))
    good = np.isfinite(image) & (mask & UNUSABLE == 0)
    profile, core = rng.normal(size=last - first), rng.uniform(0.5, 2.0, stars)
    means, errors = far_wings._ring_means(image, variance, mask, xs, ys, first, last)
    cores, taken = far_wings._cores(image, mask, xs, ys), image.copy()
    far_wings._take(taken, xs, ys, core, profile, first)
    expected = image.astype(np.float64)
    for k in range(stars):
        radius = distances(shape, xs[k], ys[k])
        box = np.maximum(*np.abs(np.mgrid[: shape[0], : shape[1]] - np.array([ys[k], xs[k]])[:, None, None])) <= 3
        whole = box.sum() == 49 and good[box].all()
        assert cores[k] == pytest.approx(image[box].sum(dtype=np.float64) if whole else 0.0, rel=1e-5, abs=1e-5)
        for ring in range(last - first):
            inside = good & (np.floor(radius + 0.5) == first + ring)
            n = inside.sum()
            assert means[k, ring] == pytest.approx(image[inside].mean() if n else np.nan, abs=1e-4, nan_ok=True)
            error = np.sqrt(variance[inside].sum()) / n if n else np.nan
            assert errors[k, ring] == pytest.approx(error, rel=1e-4, nan_ok=True)
        at = np.interp(radius, first + np.arange(last - first), profile)
        expected -= core[k] * np.where((radius >= first) & (radius < last - 1), at, 0.0)
    np.testing.assert_allclose(taken, expected, atol=1e-4)
