import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.calibration.frames import Frame, Rejected
from payloads.calibration.stack import Limits, _add, _finish, _median, _residuals, stacked
from schemas.errors import BadData
from schemas.image import Image, Mask
from tests.payloads.calibration.small_ccd import SMALL
from tests.payloads.planes import generators

SHAPE = (SMALL.format.height, SMALL.format.width)
NOISE = np.linspace(4.0, 8.0, 16)
LIMITS = Limits(of_noise=0.5, of_level=0.02, photons=True)


def noise_plane() -> Image:
    plane = np.empty(SHAPE, np.float32)
    form = SMALL.format
    for a in SMALL.amplifiers:
        plane[a.y0 : a.y0 + form.amp_height, a.x0 : a.x0 + form.amp_width] = NOISE[a.index]
    return plane


def frames(n: int, seed: int = 1) -> tuple[Image, list[Frame]]:
    """Frames of one picture at levels of their own, each with rays of its own."""
    rng = np.random.default_rng(seed)
    picture = rng.uniform(5.0, 15.0, SHAPE).astype(np.float32)
    made = []
    for number in range(n):
        level = float(rng.uniform(50.0, 100.0))
        image = rng.normal(level * picture, np.sqrt(level * picture + noise_plane() ** 2)).astype(np.float32)
        image[rng.random(SHAPE) < 0.003] += np.float32(3000.0)
        made.append(Frame(number, image, level, NOISE))
    return picture, made


def test_the_mean_has_the_noise_that_its_variance_tells_and_no_rays() -> None:
    picture, made = frames(8)
    told = stacked(iter(made), SMALL, LIMITS, "flat")
    pull = (told.image - picture) / np.sqrt(told.variance)
    assert told.used == tuple(range(8))
    assert told.rejected == ()
    assert 0.98 < np.std(pull) < 1.03
    assert abs(np.mean(pull)) < 0.02
    assert np.abs(pull).max() < 6.5
    assert not told.mask.any()


def test_brighter_frames_count_more() -> None:
    picture, made = frames(6)
    ones = [Frame(f.exposure, f.image / np.float32(f.level), 1.0, f.noise / f.level) for f in made]
    plain = np.mean([f.image for f in ones], axis=0)
    told = stacked(iter(made), SMALL, LIMITS, "flat")
    clean = np.ones(SHAPE, bool)
    for frame in made:
        clean &= np.abs(frame.image - frame.level * picture) < 1000.0
    assert np.std((told.image - picture)[clean]) < np.std((plain - picture)[clean])


@pytest.mark.parametrize("bad", [0, 2, 6])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: Frame(f.exposure, f.image + np.float32(30.0), f.level, f.noise), "off the first frames' level"),
        (lambda f: Frame(f.exposure, f.image, f.level, 2.0 * f.noise), "times the noise"),
        (lambda f: Frame(f.exposure, np.zeros_like(f.image), f.level, f.noise), "differ from the first frames'"),
    ],
    ids=["light leak", "interference", "empty"],
)
def test_one_frame_unlike_the_others_is_left_out_and_named(bad: int, spoil: object, said: str) -> None:
    picture, made = frames(7)
    made[bad] = spoil(made[bad])  # type: ignore[operator]
    told = stacked(iter(made), SMALL, LIMITS, "flat")
    assert told.used == tuple(number for number in range(7) if number != bad)
    (left,) = told.rejected
    assert left.exposure == bad
    assert f"exposure {bad} detector 94" in left.why
    assert said in left.why
    assert np.std((told.image - picture) / np.sqrt(told.variance)) < 1.03


def test_too_few_frames_are_refused_with_what_is_wrong_with_each() -> None:
    _, made = frames(2)
    with pytest.raises(BadData, match=r"bias of detector 94: 2 frames are left, 3 are the least: no more came"):
        stacked(iter(made), SMALL, LIMITS, "bias")
    with pytest.raises(BadData, match=r"2 frames are left.*exposure 9: no light"):
        stacked([*made, Rejected(9, "exposure 9: no light")], SMALL, LIMITS, "bias")


def test_a_pixel_hit_in_most_frames_is_bad() -> None:
    _, made = frames(6)
    for frame in made[1:5]:
        frame.image[10, 20] = 1e5 * frame.exposure
    told = stacked(iter(made), SMALL, LIMITS, "flat")
    assert told.mask[10, 20] == Mask.BAD
    assert np.isfinite(told.image).all()
    assert np.isfinite(told.variance).all()
    assert np.sum(told.mask) == Mask.BAD


def test_no_more_than_five_frames_are_held_at_once() -> None:
    born: list[weakref.ref[Image]] = []
    held: list[int] = []

    def counted() -> Iterator[Frame]:
        for frame in frames(9)[1]:
            image = frame.image.copy()
            born.append(weakref.ref(image))
            held.append(sum(each() is not None for each in born))
            one = Frame(frame.exposure, image, frame.level, frame.noise)
            del image
            yield one
            del one

    stacked(counted(), SMALL, LIMITS, "flat")
    assert max(held) <= 5
    assert max(held[5:]) == 2  # the one that is made, and the one before it


@given(rng=generators(), n=st.sampled_from([1, 3, 5]))
@settings(max_examples=25, deadline=None)
def test_the_median_is_numpys(rng: np.random.Generator, n: int) -> None:
    images = rng.normal(size=(n, 7, 16)).astype(np.float32)
    levels, out = rng.uniform(0.5, 2.0, n).astype(np.float32), np.empty((7, 16), np.float32)
    _median(tuple(images), levels, out)
    np.testing.assert_allclose(out, np.median(images / levels[:, None, None], axis=0), rtol=1e-6)


@given(rng=generators(), photons=st.booleans(), rows=st.integers(1, 5), width=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_sums_and_residuals_are_those_of_plain_numpy(
    rng: np.random.Generator, photons: bool, rows: int, width: int
) -> None:
    shape = (2 * rows, 8 * width)
    reference = rng.normal(3.0, 4.0, shape).astype(np.float32)
    level, square = np.float32(1.5), rng.uniform(1.0, 4.0, (2, 8)).astype(np.float32)
    image = (level * reference + rng.normal(0.0, 5.0, shape)).astype(np.float32)
    each = square.repeat(rows, 0).repeat(width, 1)
    above = image - level * reference
    noise = each + (np.maximum(level * reference, 0.0) if photons else 0.0)
    kept = above**2 <= 4.0 * noise
    total, weight = np.ones(shape, np.float32), np.ones(shape, np.float32)
    _add(image, level, reference, square, photons, 2.0, total, weight)
    np.testing.assert_allclose(total, 1.0 + np.where(kept, image, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight, 1.0 + np.where(kept, level, 0.0), rtol=1e-6)
    offset, mean, clipped = _residuals(image, level, reference, square, photons, 2.0)

    def by_amplifier(plane: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(plane.reshape(2, rows, 8, width).sum(axis=(1, 3), dtype=np.float64))

    number = by_amplifier(np.ones(shape))
    np.testing.assert_allclose(clipped, by_amplifier(~kept) / number)
    np.testing.assert_allclose(mean, by_amplifier(level * reference) / number, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        offset, by_amplifier(np.where(kept, above, 0.0)) / np.maximum(by_amplifier(kept), 1), rtol=1e-4, atol=1e-4
    )


@given(rng=generators(), photons=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_last_step_is_that_of_plain_numpy(rng: np.random.Generator, photons: bool) -> None:
    shape, n, levels = (4, 16), 5, np.float32(10.0)
    weight = (2.0 * rng.integers(0, 6, shape)).astype(np.float32)
    total = (weight * rng.normal(2.0, 2.0, shape)).astype(np.float32)
    reference, square = rng.normal(size=shape).astype(np.float32), rng.uniform(1.0, 4.0, (2, 8)).astype(np.float32)
    lost = weight < 0.5 * levels
    kept = np.where(lost, 2.0, weight)
    image = np.where(lost, reference, total / np.maximum(weight, 1.0))
    light = np.maximum(image, 0.0) / kept if photons else 0.0
    expected = (kept / 2.0) * square.repeat(2, 0).repeat(2, 1) / kept**2 + light
    variance, mask = np.empty(shape, np.float32), np.zeros(shape, np.uint16)
    _finish(total, weight, reference, square, photons, levels, n, variance, mask)
    np.testing.assert_allclose(total, image, rtol=1e-5)
    np.testing.assert_allclose(variance, expected, rtol=1e-5)
    np.testing.assert_array_equal(mask != 0, lost)
