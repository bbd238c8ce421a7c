import numpy as np
import pytest

from payloads.imaging.snaps import combine_snaps
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.imaging.star_field import StarField, observe, star_field

STRUCK = Mask.CR | Mask.INTRP


@pytest.fixture(scope="module")
def field() -> StarField:
    return star_field(21, stars=200)


def snaps_of(field: StarField, count: int) -> list[MaskedImage]:
    return [observe(field.clean / np.float32(count), 30 + k) for k in range(count)]


def tracks(shape: tuple[int, int], seed: int, count: int = 50) -> Image:
    rng = np.random.default_rng(seed)
    hit = np.zeros(shape, np.float32)
    for _ in range(count):
        x, y, length = *rng.integers(30, 980, 2), rng.integers(2, 15)
        hit[y, x : x + length] = rng.uniform(500, 5000)
    return hit


def struck(image: MaskedImage, hit: Image) -> MaskedImage:
    return MaskedImage(image.image + hit, image.mask, image.variance + hit)


def test_two_snaps_without_rays_are_their_sum(field: StarField) -> None:
    snaps = snaps_of(field, 2)
    both = combine_snaps(snaps, 4.0)
    untouched = both.mask == 0
    assert untouched.mean() > 0.9999
    assert np.array_equal(both.image[untouched], (snaps[0].image + snaps[1].image)[untouched])
    assert np.array_equal(both.variance[untouched], (snaps[0].variance + snaps[1].variance)[untouched])


@pytest.mark.parametrize("count", [2, 3])
def test_a_struck_pixel_is_what_the_other_snaps_saw(field: StarField, count: int) -> None:
    snaps, hit = snaps_of(field, count), tracks(field.clean.shape, 1)
    snaps[0] = struck(snaps[0], hit)
    both = combine_snaps(snaps, 4.0)
    marked = both.mask & STRUCK == STRUCK
    assert marked[hit > 0].mean() > 0.98
    pull = ((both.image - field.clean) / np.sqrt(both.variance))[marked]
    assert abs(pull.mean()) < 0.2
    assert pull.std() == pytest.approx(1.0, abs=0.2)
    expected = np.sum([s.variance for s in snaps[1:]], axis=0) * (count / (count - 1)) ** 2
    np.testing.assert_allclose(both.variance[marked & (hit > 0)], expected[marked & (hit > 0)], rtol=1e-4)


def test_a_single_snap_is_bridged(field: StarField) -> None:
    snap, hit = snaps_of(field, 1)[0], tracks(field.clean.shape, 2)
    mended = combine_snaps([struck(snap, hit)], 4.0)
    marked = mended.mask & STRUCK == STRUCK
    assert marked[hit > 0].mean() > 0.97
    left = (mended.image - field.clean)[marked & (hit > 0)]
    assert np.median(np.abs(left)) < 40
    assert np.all(mended.variance[marked] > 1.2 * np.median(snap.variance))


def test_a_pixel_struck_in_both_snaps_is_bridged(field: StarField) -> None:
    hit = np.zeros(field.clean.shape, np.float32)
    hit[600, 100:103] = 3000.0
    both = combine_snaps([struck(s, hit) for s in snaps_of(field, 2)], 4.0)
    assert np.all(both.mask[600, 100:103] & STRUCK == STRUCK)
    assert np.all(np.abs(both.image - field.clean)[600, 100:103] < 250)
    assert not np.any(both.mask & Mask.STREAK)


def test_no_star_loses_its_core(field: StarField) -> None:
    for count in (1, 2):
        both = combine_snaps(snaps_of(field, count), 4.0)
        x, y = np.rint(field.x).astype(int), np.rint(field.y).astype(int)
        assert not np.any(both.mask[y, x])


def test_bad_pixels_are_bridged_and_saturated_ones_kept(field: StarField) -> None:
    snaps = snaps_of(field, 2)
    for snap in snaps:
        snap.mask[:, 300], snap.image[:, 300] = Mask.BAD, 0.0
        snap.mask[50, 60], snap.image[50, 60] = Mask.SAT, 1e5
    both = combine_snaps(snaps, 4.0)
    assert np.all(both.mask[:, 300] & Mask.INTRP)
    assert np.all(both.mask[:, 300] & Mask.BAD)
    assert np.all(both.image[:, 300] > 500)
    assert both.image[50, 60] == 2e5
    assert both.mask[50, 60] == Mask.SAT


def test_snaps_are_not_written_to(field: StarField) -> None:
    snaps = [struck(s, tracks(field.clean.shape, k)) for k, s in enumerate(snaps_of(field, 2))]
    for snap in snaps:
        for plane in (snap.image, snap.mask, snap.variance):
            plane.setflags(write=False)
    for count in (1, 2):
        assert combine_snaps(snaps[:count], 4.0).shape == field.clean.shape


def test_snaps_of_two_shapes_or_none_are_refused(field: StarField) -> None:
    snap = snaps_of(field, 1)[0]
    short = MaskedImage(snap.image[:-1], snap.mask[:-1], snap.variance[:-1])
    with pytest.raises(BadData, match="differ in shape"):
        combine_snaps([snap, short], 4.0)
    with pytest.raises(BadData, match="0 snaps"):
        combine_snaps([], 4.0)
