import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from payloads.imaging import mask_ops
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.planes import generators, masked_images, masks, shapes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAT, BAD, CR, INTRP = int(Mask.SAT), int(Mask.BAD), int(Mask.CR), int(Mask.INTRP)


@given(data=st.data(), shape=shapes(), along=st.integers(0, 30), across=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_growing_is_dilation_by_a_box_and_leaves_other_bits(
    data: st.DataObject, shape: tuple[int, int], along: int, across: int
) -> None:
    mask = data.draw(masks(shape, (SAT, BAD)))
    expected = ndimage.binary_dilation(mask & SAT != 0, np.ones((2 * along + 1, 2 * across + 1)))
    others = mask & BAD
    mask_ops.grow(mask, SAT, along, across)
    assert np.array_equal(mask & SAT != 0, expected)
    assert np.array_equal(mask & BAD, others)


@given(shape=shapes(), rng=generators(), count=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_discs_cover_what_is_no_farther_than_their_radius_on_the_image_and_off_it(
    shape: tuple[int, int], rng: np.random.Generator, count: int
) -> None:
    # Quarters of a pixel: distances that equal a radius do so without rounding.
    x, y, radius = rng.integers(-40, 140, count) / 4, rng.integers(-40, 140, count) / 4, rng.integers(0, 90, count) / 4
    mask, expected = np.full(shape, BAD, np.uint16), np.zeros(shape, bool)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for a, b, r in zip(x, y, radius, strict=True):
        expected |= (columns - a) ** 2 + (rows - b) ** 2 <= r**2
    mask_ops.paint_discs(mask, CR, x, y, radius)
    assert np.array_equal(mask, np.where(expected, BAD | CR, BAD))


def runs(row: Bools) -> list[tuple[int, int]]:
    """First column of each run of a row, and the one after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def reference_footprint(member: Bools) -> tuple[set[float], float, int]:
    """Middles of the widest runs, middle row of those nearly as wide, pixels."""
    found = [(y, (a + b - 1) / 2, b - a) for y, row in enumerate(member) for a, b in runs(row)]
    widest = max(width for _, _, width in found)
    rows = [y for y, _, width in found if width >= 0.9 * widest]
    return {middle for _, middle, width in found if width == widest}, float(np.mean(rows)), int(member.sum())


@given(data=st.data(), shape=shapes())
@settings(max_examples=60, deadline=None)
def test_footprints_are_connected_components_centred_on_their_widest_rows(
    data: st.DataObject, shape: tuple[int, int]
) -> None:
    mask = data.draw(masks(shape, (SAT, BAD)))
    labels, count = ndimage.label(mask & SAT)
    found = mask_ops.footprints(mask, SAT)
    assert len(found.area) == count
    for k, (x, y, area) in enumerate(zip(*found, strict=True), start=1):
        middles, row, pixels = reference_footprint(labels == k)
        assert x in middles
        assert (y, area) == (pytest.approx(row), pixels)


def test_no_flagged_pixel_is_no_footprint() -> None:
    assert len(mask_ops.footprints(np.zeros((8, 8), np.uint16), SAT).x) == 0


def test_a_bleeding_star_is_centred_on_its_core() -> None:
    mask = np.zeros((200, 100), np.uint16)
    mask_ops.paint_discs(mask, SAT, np.array([40.0]), np.array([60.0]), np.array([8.0]))
    mask[20:190, 39:42] |= SAT
    star = mask_ops.footprints(mask, SAT)
    assert len(star.x) == 1
    assert (star.x[0], star.y[0]) == pytest.approx((40.0, 60.0), abs=0.5)


def test_a_gap_in_a_ramp_is_bridged_exactly_with_raised_variance() -> None:
    image = (np.mgrid[:20, :30][1] * 2.0 + 5.0).astype(np.float32)
    variance, mask = np.full((20, 30), 3.0, np.float32), np.zeros((20, 30), np.uint16)
    mask[:, 10:13] = BAD
    truth = image.copy()
    image[:, 10:13] = np.nan
    mask_ops.interpolate(image, variance, mask, BAD, SAT, INTRP)
    assert image == pytest.approx(truth)
    assert variance[5, 11] == pytest.approx(6.0)
    assert np.all(mask[:, 10:13] == BAD | INTRP)


def test_a_bad_row_is_bridged_along_columns() -> None:
    image = (np.mgrid[:20, :30][0] * 2.0).astype(np.float32)
    truth = image.copy()
    variance, mask = np.ones((20, 30), np.float32), np.zeros((20, 30), np.uint16)
    mask[8] = BAD
    image[8] = 1e6
    mask_ops.interpolate(image, variance, mask, BAD, SAT, INTRP)
    assert image == pytest.approx(truth)


def test_at_an_edge_one_side_stands_for_both() -> None:
    image, variance = np.full((5, 8), 7.0, np.float32), np.ones((5, 8), np.float32)
    mask = np.zeros((5, 8), np.uint16)
    mask[:, :2], image[:, :2] = BAD, 0.0
    mask_ops.interpolate(image, variance, mask, BAD, SAT, INTRP)
    assert image == pytest.approx(7.0)


def test_a_hole_too_wide_to_bridge_stays() -> None:
    image, variance = np.zeros((60, 60), np.float32), np.ones((60, 60), np.float32)
    mask = np.zeros((60, 60), np.uint16)
    mask[10:50, 10:50], image[30, 30] = BAD, -4.0
    mask_ops.interpolate(image, variance, mask, BAD, SAT, INTRP)
    assert image[30, 30] == -4.0
    assert mask[30, 30] == BAD


def ends(good: Bools, at: int) -> list[int]:
    """The nearest good pixels of a line before and after one, within 12 pixels; one, two or none."""
    near = np.flatnonzero(good)
    return [*near[(near < at) & (near >= at - 12)][-1:], *near[(near > at) & (near <= at + 12)][:1]]


def reference_bridge(pixels: MaskedImage, missing: int, avoided: int) -> tuple[Image, Image, Bools]:
    """Image and variance with each missing pixel on a straight line between two ends, and which were bridged."""
    image, variance, bridged = pixels.image.copy(), pixels.variance.copy(), np.zeros(pixels.shape, bool)
    good = pixels.mask & (missing | avoided) == 0
    for y, x in np.argwhere(pixels.mask & missing):
        ways = [
            (ends(good[y], x), x, pixels.image[y], pixels.variance[y]),
            (ends(good[:, x], y), y, pixels.image[:, x], pixels.variance[:, x]),
        ]
        found, at, values, noise = min(ways, key=lambda way: (-len(way[0]), sum(abs(e - way[1]) for e in way[0])))
        if found:
            image[y, x] = np.interp(at, found, values[found])
            variance[y, x] = noise[found[0]] + noise[found[-1]]
            bridged[y, x] = True
    return image, variance, bridged


@given(data=st.data(), shape=shapes(1, 30), broad=st.booleans())
@settings(max_examples=80, deadline=None)
def test_bridges_are_straight_lines_between_the_nearest_good_pixels(
    data: st.DataObject, shape: tuple[int, int], broad: bool
) -> None:
    pixels = data.draw(masked_images(shape, (BAD, SAT), spoilt=(np.nan,)))
    if broad:
        mask_ops.grow(pixels.mask, BAD, 2, 5)
    image, variance, bridged = reference_bridge(pixels, BAD, SAT)
    expected = np.where(bridged, pixels.mask | INTRP, pixels.mask)
    mask_ops.interpolate(pixels.image, pixels.variance, pixels.mask, BAD, SAT, INTRP)
    np.testing.assert_allclose(pixels.image, image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pixels.variance, variance, rtol=1e-6)
    np.testing.assert_array_equal(pixels.mask, expected)
