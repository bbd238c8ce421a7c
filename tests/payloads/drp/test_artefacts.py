"""Comparison of visits, held to plain NumPy. What it does to coadds: test_coadd."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.drp.artefacts import find_artefacts, match_skies, rank
from payloads.drp.trails import extend_trails
from payloads.imaging import background
from schemas.image import Image
from tests.payloads.planes import noise

USUAL = np.zeros(5)


@st.composite
def stacks(draw: st.DrawFn) -> Image:
    """One to seven images, in some of which some pixels are NaN; values that are often equal."""
    n = draw(st.integers(1, 7))
    planes = [np.round(draw(noise((6, 9), 3.0, (np.nan,)))) for _ in range(n)]
    return np.stack(planes).astype(np.float32)


def nanmedian(stack: Image) -> NDArray[np.float64]:
    whole = np.where(np.isnan(stack).all(0), 0.0, stack)
    return np.where(np.isnan(stack).all(0), np.nan, np.nanmedian(whole, axis=0))


@settings(deadline=None, max_examples=60)  # the first one compiles
@given(stacks())
def test_the_median_is_numpys(stack: Image) -> None:
    ranked = rank(stack, np.arange(len(stack)))
    np.testing.assert_allclose(ranked.middle, nanmedian(stack), atol=1e-6)
    np.testing.assert_array_equal(ranked.count, np.isfinite(stack).sum(0))


@settings(deadline=None, max_examples=60)  # the first one compiles
@given(stacks())
def test_the_median_of_the_others_is_numpys(stack: Image) -> None:
    ranked = rank(stack, np.arange(len(stack)))
    for k, image in enumerate(stack):
        others = nanmedian(np.delete(stack, k, axis=0)) if len(stack) > 1 else np.full(image.shape, np.nan)
        np.testing.assert_allclose(ranked.without(image), np.where(np.isnan(image), np.nan, others), atol=1e-6)


def test_only_members_are_ranked() -> None:
    stack = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    assert (rank(stack, np.array([0, 1, 3])).middle == 1.0).all()


def test_skies_are_told_and_taken_away() -> None:
    rng = np.random.default_rng(4)
    stack = rng.normal(size=(5, 256, 256)).astype(np.float32)
    before = stack.copy()
    stack += np.array([3.0, -3.0, 1.0, -1.0, 0.0], np.float32)[:, None, None]
    levels = match_skies(stack, np.ones(5, bool))
    np.testing.assert_allclose(stack, before, atol=0.1)
    for level, sky in zip(levels, (3.0, -3.0, 1.0, -1.0, 0.0), strict=True):
        np.testing.assert_allclose(background.render(level, (256, 256)), sky, atol=0.1)


def test_noise_alone_is_no_artefact_of_any_number_of_visits() -> None:
    rng = np.random.default_rng(4)
    stack = rng.normal(size=(5, 300, 300)).astype(np.float32)
    for n in range(1, 6):
        assert find_artefacts(stack[:n].copy(), USUAL[:n]).mean() < 1e-3


def test_a_line_is_marked_from_edge_to_edge_and_a_blob_is_left_as_it_is() -> None:
    found = np.zeros((200, 300), bool)
    y, x = np.mgrid[:200, :300]
    across = np.abs((y - 0.5 * x - 20.0) / np.hypot(1.0, 0.5))
    found[(across < 2.0) & (x > 50) & (x < 150)] = True
    found[150:170, 20:40] = True
    blob = found.copy()
    extend_trails(found)
    assert found[across < 1.5].all()
    assert not found[(across > 7.0) & ~blob].any()
    before = np.zeros((200, 300), bool)
    before[150:170, 20:40] = True
    after = before.copy()
    extend_trails(after)
    np.testing.assert_array_equal(after, before)


def test_nothing_found_marks_nothing() -> None:
    found = np.zeros((20, 30), bool)
    extend_trails(found)
    assert not found.any()
