import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.alert_production import near_stars
from payloads.alert_production.near_stars import temper
from schemas.image import Image, Mask
from tests.payloads.planes import generators, shapes

SHAPE = (900, 900)
NOTHING = np.zeros(SHAPE, np.uint16)


def sky_of(peaks: float, apart: int = 60) -> tuple[Image, NDArray[np.int64], NDArray[np.int64]]:
    """Light of single bright pixels on a grid, and where they are."""
    y, x = (axis.ravel() for axis in np.mgrid[30 : SHAPE[0] - 20 : apart, 30 : SHAPE[1] - 20 : apart])
    light = np.zeros(SHAPE, np.float32)
    light[y, x] = peaks
    return light, x, y


def rings_about(shape: tuple[int, int], x: int, y: int) -> NDArray[np.int64]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.floor(np.hypot(columns - x, rows - y) + 0.5).astype(np.int64)


def test_what_is_left_of_stars_is_brought_to_width_one_and_all_else_is_left_alone() -> None:
    rng = np.random.default_rng(3)
    light, xs, ys = sky_of(100.0)
    score = rng.normal(size=SHAPE).astype(np.float32)
    nearest = np.min([rings_about(SHAPE, x, y) for x, y in zip(xs, ys, strict=True)], axis=0)
    wide = np.where(nearest <= 3, np.float32(6.0), np.float32(1.0))
    made = score * wide
    temper(made, light, np.ones(SHAPE, np.float32), NOTHING, 1.5)
    assert made[nearest <= 3].std() == pytest.approx(1.0, rel=0.05)
    np.testing.assert_array_equal(made[nearest > 3], score[nearest > 3])


def test_a_few_stars_that_changed_stay_what_they_are() -> None:
    rng = np.random.default_rng(4)
    light, xs, ys = sky_of(100.0)
    score = rng.normal(size=SHAPE).astype(np.float32)
    changed = np.min([rings_about(SHAPE, x, y) for x, y in zip(xs[:5], ys[:5], strict=True)], axis=0) <= 4
    score[changed] += 30.0
    before = score.copy()
    temper(score, light, np.ones(SHAPE, np.float32), NOTHING, 1.5)
    np.testing.assert_array_equal(score, before)


def test_too_few_stars_tell_nothing() -> None:
    light, _, _ = sky_of(100.0, apart=200)
    score = np.full(SHAPE, 9.0, np.float32)
    temper(score, light, np.ones(SHAPE, np.float32), NOTHING, 1.5)
    assert (score == 9.0).all()


def test_a_saturated_stars_halo_is_brought_to_width_one_by_its_own_rings() -> None:
    rng = np.random.default_rng(5)
    score, mask = rng.normal(size=SHAPE).astype(np.float32), NOTHING.copy()
    ring = rings_about(SHAPE, 300, 400)
    mask[ring <= 8] = Mask.SAT
    halo = (ring > 25) & (ring < 60)
    made = np.where(ring <= 25, np.float32(0.0), score * np.where(halo, np.float32(4.0), np.float32(1.0)))
    temper(made, np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32), mask, 1.5)
    inner = (ring > 27) & (ring < 57)  # its outermost rings are partly beyond it
    assert made[inner].std() == pytest.approx(1.0, rel=0.1)
    assert (made[ring <= 25] == 0.0).all()
    np.testing.assert_array_equal(made[ring > 125], score[ring > 125])


def test_the_brightest_classes_are_taken_together_until_they_hold_enough_stars() -> None:
    counts = np.zeros((4, 1, near_stars._BINS), np.int64)
    counts[:, 0, 200], counts[1, 0, 100] = (0, 0, 120, 10), 500
    widths = near_stars._widths(counts, np.array([30, 400, 120, 10]))[:, 0]
    np.testing.assert_allclose(widths, [1.0, 100.5 / 20.0 / 0.6745, 200.5 / 20.0 / 0.6745, 200.5 / 20.0 / 0.6745])


@given(shape=shapes(), stars=st.integers(0, 4), rings=st.integers(1, 6), step=st.integers(1, 3), rng=generators())
@settings(max_examples=40, deadline=None)
def test_sizes_are_counted_and_widths_laid_out_by_class_and_ring_up_to_every_edge(
    shape: tuple[int, int], stars: int, rings: int, step: int, rng: np.random.Generator
) -> None:
    score = rng.normal(scale=5.0, size=shape).astype(np.float32)
    score[rng.uniform(size=shape) < 0.2] = 0.0
    score[rng.uniform(size=shape) < 0.05] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    xs, ys = rng.integers(0, shape[1], stars), rng.integers(0, shape[0], stars)
    classes, widths = rng.integers(0, 2, stars), rng.uniform(1.0, 3.0, (2, rings))
    counts, made, expected = np.zeros((2, rings, near_stars._BINS), np.int64), np.ones_like(score), np.ones_like(score)
    reference, table = np.zeros_like(counts), near_stars._rings(rings, step)
    near_stars._count(score, xs, ys, classes, table, counts)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for x, y, k in zip(xs, ys, classes, strict=True):
        ring = np.floor(np.hypot(columns - x, rows - y) / step + 0.5).astype(np.int64)
        square = (np.abs(columns - x) <= (rings - 1) * step) & (np.abs(rows - y) <= (rings - 1) * step)
        near = (ring < rings) & square
        seen = near & (np.abs(score) > 0.0)
        bins = np.minimum(np.abs(score[seen]).astype(np.float64) * 20.0, near_stars._BINS - 1).astype(int)
        np.add.at(reference, (k, ring[seen], bins), 1)
        expected[near] = np.maximum(expected[near], widths[k, ring[near]].astype(np.float32))
    np.testing.assert_array_equal(counts, reference)
    near_stars._widen(made, xs, ys, classes, table, widths)
    np.testing.assert_array_equal(made, expected)


def test_between_two_stars_the_larger_width_counts_once() -> None:
    rng = np.random.default_rng(6)
    light, _, _ = sky_of(100.0, apart=10)
    score = (rng.normal(size=SHAPE) * 2.0).astype(np.float32)
    temper(score, light, np.ones(SHAPE, np.float32), NOTHING, 1.5)
    assert score[40:-40, 40:-40].std() == pytest.approx(1.0, rel=0.05)
