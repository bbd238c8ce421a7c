from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.signal import correlate2d

from payloads.alert_production import detect as module
from payloads.alert_production.detect import Detections, detect, score_image
from payloads.alert_production.subtract import Subtraction
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.alert_production.pairs import Pair

Floats = NDArray[np.float64]


RNG = np.random.default_rng(8)


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


def test_the_score_is_a_matched_filter(subtraction: Subtraction) -> None:
    difference, matched = subtraction.difference, np.zeros_like(subtraction.matched)
    box = np.s_[500:580, 300:380]
    score = score_image(replace(subtraction, matched=matched))
    psf = difference.psf.at(255.5, 511.5).astype(float)
    image, variance = (
        plane[488:592, 288:392].astype(float) for plane in (difference.pixels.image, difference.pixels.variance)
    )
    expected = correlate2d(image, psf, mode="valid") / np.sqrt(correlate2d(variance, psf**2, mode="valid"))
    free = score[box] != 0
    # The filter is the outer product nearest the PSF.
    assert np.corrcoef(score[box][free], expected[free])[0, 1] > 0.998


def test_no_score_where_stars_are_saturated_or_data_are_missing(subtraction: Subtraction) -> None:
    mask = subtraction.difference.pixels.mask
    score = score_image(subtraction)
    assert (score[(mask & (Mask.SAT | Mask.SAT_TEMPLATE | Mask.NO_DATA | Mask.EDGE)) != 0] == 0).all()
    assert np.isfinite(score).all()


def test_the_mask_says_what_was_detected(detections: Detections) -> None:
    negative = detections.score < 0
    at = detections.mask[detections.y, detections.x]
    assert ((at[negative] & Mask.DETECTED_NEGATIVE) != 0).all()
    assert ((at[~negative] & Mask.DETECTED) != 0).all()


def test_footprints_are_what_scipy_labels() -> None:
    score = RNG.normal(0, 1, (120, 110)).astype(np.float32)
    score[40:44, 50:56] += 9
    peaks, first, pixels = module._footprints(score, np.float32(2.0), 10_000)
    for sign in (1, -1):
        labels, count = label(score * sign > 2.0, np.ones((3, 3)))
        mine = [k for k in range(peaks.size) if score.flat[peaks[k]] * sign > 0]
        assert len(mine) == count
        for k in mine:
            members = pixels[first[k] : first[k + 1]]
            assert set(members) == set(np.flatnonzero(labels.ravel() == labels.flat[peaks[k]]))
            assert abs(score.flat[peaks[k]]) == np.abs(score.flat[members]).max()


def test_footprints_beyond_counting_end_in_an_error(subtraction: Subtraction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 500)
    noisy = replace(
        subtraction.difference,
        pixels=MaskedImage(
            RNG.normal(0, 40, subtraction.matched.shape).astype(np.float32),
            subtraction.difference.pixels.mask,
            subtraction.difference.pixels.variance,
        ),
    )
    with pytest.raises(BadData, match="no difference"):
        detect(replace(subtraction, difference=noisy))


def reference_normalize(score: Image, noise: Image, light: Image, glow: Image) -> Floats:
    dy, dx = (np.diff(np.pad(light.astype(float), 1, mode="edge"), n=1, axis=a) for a in (0, 1))
    central_y, central_x = (dy[1:] + dy[:-1])[:, 1:-1], (dx[:, 1:] + dx[:, :-1])[1:-1]
    bins = np.kron(glow, np.ones((8, 8)))[: score.shape[0], : score.shape[1]]
    extra = 0.25 * 0.03**2 * (central_x**2 + central_y**2) + 0.005**2 * light.astype(float) ** 2 + bins**2
    return score / np.sqrt(noise + extra)


def test_the_noise_has_its_astrometric_photometric_and_halo_terms() -> None:
    shape = (33, 41)
    score, light = (RNG.normal(0, s, shape).astype(np.float32) for s in (5, 500))
    noise, glow = RNG.uniform(1, 2, shape).astype(np.float32), RNG.uniform(0, 3, (5, 6)).astype(np.float32)
    expected, blocked = reference_normalize(score, noise, light, glow), np.zeros(shape, bool)
    blocked[3, 4] = True
    module._normalize(score, noise, light, glow, blocked)
    expected[3, 4] = 0.0
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_a_lobe_of_either_sign_side_by_side_is_one_detection(subtraction: Subtraction) -> None:
    image = subtraction.difference.pixels.image.copy()
    y, x = np.mgrid[:1024, :1024]
    spot = [np.exp(-((x - cx) ** 2 + (y - 600) ** 2) / 9.0) for cx in (203, 209)]
    image += (400 * spot[0] - 330 * spot[1]).astype(np.float32)
    pixels = replace(subtraction.difference.pixels, image=image)
    found = detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels)))
    near = np.flatnonzero(np.hypot(found.x - 206, found.y - 600) < 8)
    assert near.size == 1
    assert found.score[near[0]] > 5
    assert found.opposite[near[0]] < -5
    assert abs(found.opposite_x[near[0]] - 209) <= 1


def test_an_image_with_nothing_in_it_has_no_detections(subtraction: Subtraction) -> None:
    pixels = replace(subtraction.difference.pixels, image=np.zeros_like(subtraction.matched))
    found = detect(replace(subtraction, difference=replace(subtraction.difference, pixels=pixels)))
    assert found.x.size == found.pixels.size == 0
    assert list(found.first) == [0]


def test_the_strongest_neighbour_of_the_other_sign_is_the_partner() -> None:
    owner = np.full((20, 30), -1, np.int32)
    groups = [[(10, 10), (10, 11)], [(10, 14)], [(12, 9)], [(2, 2)]]
    first, pixels = [0], []
    for k, group in enumerate(groups):
        for at in group:
            owner[at] = k
            pixels.append(at[0] * 30 + at[1])
        first.append(len(pixels))
    values = np.array([9.0, -6.0, -7.0, -8.0], np.float32)
    best = module._strongest_neighbours(owner, values, np.array(first), np.array(pixels), 3)
    assert list(best) == [2, 0, 0, -1]


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
