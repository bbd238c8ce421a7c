import numpy as np
import pytest
from scipy import ndimage

from payloads.imaging import mask_ops
from schemas.image import Mask, MaskPlane

SAT, BAD, CR, INTRP = int(Mask.SAT), int(Mask.BAD), int(Mask.CR), int(Mask.INTRP)


def speckled(seed: int, part: float = 0.02) -> MaskPlane:
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((80, 100)) < part, SAT, 0).astype(np.uint16)
    mask[rng.random(mask.shape) < 0.1] |= BAD
    return mask


def test_growing_is_dilation_by_a_box() -> None:
    mask = speckled(1)
    expected = ndimage.binary_dilation(mask & SAT != 0, np.ones((5, 3)))
    others = mask & BAD
    mask_ops.grow(mask, SAT, 2, 1)
    assert np.array_equal(mask & SAT != 0, expected)
    assert np.array_equal(mask & BAD, others)


def test_discs_cover_what_is_nearer_than_their_radius() -> None:
    mask = np.zeros((50, 60), np.uint16)
    x, y, radius = np.array([5.3, 58.0]), np.array([40.0, 1.2]), np.array([7.5, 12.0])
    mask_ops.paint_discs(mask, CR, x, y, radius)
    rows, columns = np.mgrid[:50, :60]
    near = [np.hypot(columns - a, rows - b) <= r for a, b, r in zip(x, y, radius, strict=True)]
    assert np.array_equal(mask == CR, near[0] | near[1])


@pytest.mark.parametrize("part", [0.02, 0.3, 0.55])
def test_footprints_are_connected_components(part: float) -> None:
    mask = speckled(2, part)
    labels, count = ndimage.label(mask & SAT)
    found = mask_ops.footprints(mask, SAT)
    assert len(found.area) == count
    assert sorted(found.area) == sorted(np.bincount(labels.ravel())[1:])


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
