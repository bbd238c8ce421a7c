from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from payloads.alert_production import detect as module
from payloads.alert_production.detect import Detections, detect, score_image
from payloads.alert_production.subtract import Subtraction
from schemas.errors import BadData
from schemas.image import Image, Mask
from tests.payloads.alert_production.pairs import Pair
from tests.payloads.planes import generators, noise, shapes

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def distances(detections: Detections, pair: Pair) -> Floats:
    return np.hypot(detections.x[:, None] - pair.x, detections.y[:, None] - pair.y)


def test_what_was_put_in_is_found_and_hardly_anything_else(pair: Pair, detections: Detections) -> None:
    distance = distances(detections, pair)
    assert (distance.min(0) < 3).mean() > 0.93  # some fall on masked stars, or on one another
    assert (distance.min(1) > 6).sum() <= 3


def test_faded_sources_are_found_as_negative(pair: Pair, detections: Detections) -> None:
    nearest = distances(detections, pair).argmin(0)
    found = distances(detections, pair).min(0) < 3
    np.testing.assert_array_equal(np.sign(detections.score[nearest])[found], np.sign(pair.flux)[found])


def test_the_score_of_the_sky_is_of_unit_width(detections: Detections) -> None:
    assert detections.width == pytest.approx(1.0, abs=0.03)


def test_no_score_where_stars_are_saturated_or_data_are_missing(subtraction: Subtraction) -> None:
    mask = subtraction.difference.pixels.mask
    score, _ = score_image(subtraction)
    assert (score[(mask & (Mask.SAT | Mask.SAT_TEMPLATE | Mask.NO_DATA | Mask.EDGE)) != 0] == 0).all()
    assert np.isfinite(score).all()


def test_the_mask_says_what_was_detected(detections: Detections) -> None:
    negative = detections.score < 0
    at = detections.mask[detections.y, detections.x]
    assert ((at[negative] & Mask.DETECTED_NEGATIVE) != 0).all()
    assert ((at[~negative] & Mask.DETECTED) != 0).all()


def reference_owners(score: Image, threshold: float) -> tuple[Indices, int]:
    """Which footprint of either sign each pixel belongs to, from 0 in the order of their first pixels; -1: none."""
    (positive, n), (negative, m) = (label(score * sign > threshold, np.ones((3, 3))) for sign in (1, -1))
    labels = np.where(negative > 0, negative + n, positive)
    _, first, owner = np.unique(labels, return_index=True, return_inverse=True)
    at = np.where(np.unique(labels) == 0, -1, first)
    rank = np.argsort(np.argsort(at)) - int((labels == 0).any())
    return rank[owner].reshape(score.shape), n + m


@given(data=st.data(), shape=shapes(1, 40), threshold=st.sampled_from([0.3, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_footprints_are_what_scipy_labels_in_the_order_of_their_first_pixels(
    data: st.DataObject, shape: tuple[int, int], threshold: float
) -> None:
    score = data.draw(noise(shape))  # in which NaN is of no footprint
    peaks, first, pixels = module._footprints(score, np.float32(threshold), 10_000)
    owner, count = reference_owners(score, threshold)
    assert (peaks.size, first.size, pixels.size) == (count, count + 1, np.count_nonzero(owner >= 0))
    for k in range(count):
        members = pixels[first[k] : first[k + 1]]
        assert set(members) == set(np.flatnonzero(owner == k))
        assert owner.flat[peaks[k]] == k
        assert abs(score.flat[peaks[k]]) == np.abs(score.flat[members]).max()


def test_footprints_beyond_counting_end_in_an_error(subtraction: Subtraction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 500)
    pixels = subtraction.difference.pixels
    image = pixels.image.copy()
    image[::30, ::30] += 40 * np.sqrt(np.nanmedian(pixels.variance))
    noisy = replace(subtraction.difference, pixels=replace(pixels, image=image))
    with pytest.raises(BadData, match="no difference"):
        detect(replace(subtraction, difference=noisy))


def two_of_opposite_sign(subtraction: Subtraction, apart: float) -> Detections:
    """About (206, 600): the positive one, to the left, is the stronger."""
    y, x = np.mgrid[:1024, :1024]
    spot = [np.exp(-((x - cx) ** 2 + (y - 600) ** 2) / 9.0) for cx in (206 - apart / 2, 206 + apart / 2)]
    image = subtraction.difference.pixels.image + (400 * spot[0] - 330 * spot[1]).astype(np.float32)
    pixels = replace(subtraction.difference.pixels, image=image)
    return detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels)))


@pytest.mark.parametrize(("apart", "other"), [(3, 209), (6, 209), (8, 210)])
def test_a_lobe_of_either_sign_side_by_side_is_one_detection(subtraction: Subtraction, apart: int, other: int) -> None:
    """Lobes that overlap peak further out than they lie."""
    found = two_of_opposite_sign(subtraction, apart)
    near = np.flatnonzero(np.hypot(found.x - 206, found.y - 600) < 8)
    assert near.size == 1
    assert found.score[near[0]] > 5
    assert found.opposite[near[0]] < -5
    assert abs(found.opposite_x[near[0]] - other) <= 1


def test_two_sources_further_apart_than_the_psf_is_wide_are_two_though_they_touch(subtraction: Subtraction) -> None:
    found = two_of_opposite_sign(subtraction, 11)
    near = np.flatnonzero(np.hypot(found.x - 206, found.y - 600) < 9)
    assert sorted(np.sign(found.score[near])) == [-1, 1]
    assert (found.opposite[near] == 0).all()
    one, other = (found.pixels[found.first[k] : found.first[k + 1]] % 1024 for k in near)
    assert min(abs(other.min() - one.max()), abs(one.min() - other.max())) <= 3


def test_an_image_with_nothing_in_it_has_no_detections(subtraction: Subtraction) -> None:
    pixels = replace(subtraction.difference.pixels, image=np.zeros_like(subtraction.matched))
    found = detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels)))
    assert found.x.size == found.pixels.size == 0
    assert list(found.first) == [0]


def reference_partner(owner: Indices, values: Image, k: int, distance: int) -> int:
    near = binary_dilation(owner == k, np.ones((2 * distance + 1, 2 * distance + 1)))
    others = [o for o in np.unique(owner[near]) if o >= 0 and values[o] * values[k] < 0]
    return max(others, key=lambda o: abs(values[o]), default=-1)


@given(data=st.data(), shape=shapes(1, 30), distance=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_strongest_neighbour_of_the_other_sign_is_the_partner(
    data: st.DataObject, shape: tuple[int, int], distance: int
) -> None:
    score = data.draw(noise(shape, spoilt=()))
    owner, count = reference_owners(score, 1.3)
    members = [np.flatnonzero(owner == k) for k in range(count)]
    values = np.array([score.flat[m[np.argmax(np.abs(score.flat[m]))]] for m in members], np.float32)
    first, pixels = np.cumsum([0, *(m.size for m in members)]), np.concatenate([*members, np.empty(0, np.int64)])
    best = module._strongest_neighbours(owner.astype(np.int32), values, first, pixels.astype(np.int64), distance)
    assert list(best) == [reference_partner(owner, values, k, distance) for k in range(count)]


@given(shape=shapes(1, 40), rng=generators(), angle=st.floats(0.0, 3.2), half=st.floats(0.0, 9.0))
@settings(max_examples=60, deadline=None)
def test_a_line_is_painted_on_what_is_near_it(
    shape: tuple[int, int], rng: np.random.Generator, angle: float, half: float
) -> None:
    x, y = (rng.uniform(-10, n + 10) for n in shape[::-1])
    direction = np.array([np.cos(angle), np.sin(angle)])
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    offset = np.stack([columns - x, rows - y], axis=-1)
    across = np.linalg.norm(offset - (offset @ direction)[..., None] * direction, axis=-1)
    mask = np.full(shape, Mask.BAD, np.uint16)
    module._paint_line(mask, x, y, *direction, half)
    clear = np.abs(across - half) > 1e-9
    np.testing.assert_array_equal((mask == Mask.BAD | Mask.STREAK)[clear], (across <= half)[clear])
    assert (mask & Mask.BAD).all()


def test_a_satellites_streak_is_marked_along_its_whole_line(subtraction: Subtraction) -> None:
    y, x = np.mgrid[:1024, :1024]
    across = (x - 500) * np.sin(0.5) - (y - 500) * np.cos(0.5)
    image = np.nan_to_num(subtraction.difference.pixels.image)
    image += (120 * np.exp(-(across**2) / 9.0) * (x > 300)).astype(np.float32)
    pixels = replace(subtraction.difference.pixels, image=image)
    mask = detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels))).mask
    streak = (mask & Mask.STREAK) != 0
    assert streak[np.abs(across) < 4].all()
    assert not streak[np.abs(across) > 40].any()


def test_a_short_trail_is_no_streak(subtraction: Subtraction) -> None:
    y, x = np.mgrid[:1024, :1024]
    image = np.nan_to_num(subtraction.difference.pixels.image)
    image += (200 * np.exp(-((y - 600) ** 2) / 9.0) * (np.abs(x - 205) < 20)).astype(np.float32)
    pixels = replace(subtraction.difference.pixels, image=image)
    found = detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels)))
    assert (found.score[np.hypot(found.x - 205, found.y - 600) < 25] > 5).any()
    assert not (found.mask & Mask.STREAK).any()


def test_moments_of_footprints_are_numpys() -> None:
    groups = [np.array([[3, 4], [3, 5], [4, 6], [9, 9]]), np.array([[1, 1]])]
    pixels = np.concatenate([g[:, 0] * 50 + g[:, 1] for g in groups])
    middle, spread = module.footprint_moments(np.array([0, 4, 5]), pixels, 50)
    np.testing.assert_allclose(middle[0], groups[0][:, ::-1].mean(0))
    np.testing.assert_allclose(spread[0], np.cov(groups[0][:, ::-1].T, bias=True))
    np.testing.assert_allclose(spread[1], 0.0)
