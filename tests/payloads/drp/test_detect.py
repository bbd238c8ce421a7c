import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, maximum_filter
from scipy.signal import correlate2d
from scipy.stats import norm

from payloads.drp.detect import find_peaks, joint_ratio, signal_to_noise, sky_variance
from payloads.imaging.psf_field import fit_psf
from schemas.image import Image, Mask, MaskedImage, Psf
from tests.payloads.drp.object_sky import kernel

Floats = NDArray[np.float64]

NY, NX = 300, 340


def noise(seed: int, sigma: float = 3.0, shape: tuple[int, int] = (NY, NX)) -> MaskedImage:
    image = np.random.default_rng(seed).normal(0.0, sigma, shape).astype(np.float32)
    return MaskedImage(image, np.zeros(shape, np.uint16), np.full(shape, sigma**2, np.float32))


def psf(fwhm: float = 4.0, shape: tuple[int, int] = (NY, NX)) -> Psf:
    return Psf(kernel(fwhm)[None].astype(np.float32), 0, shape)


def hills(*tops: tuple[int, int, float, float]) -> Image:
    """Gaussians: x, y, height, sigma."""
    v, u = np.mgrid[:NY, :NX]
    total = sum(h * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2.0 * s * s)) for x, y, h, s in tops)
    return np.asarray(total, np.float32)


NO_MASK = np.zeros((NY, NX), np.uint16)
QUIET = np.ones((NY, NX), np.float32)


def test_the_ratio_is_a_weighted_fit_of_the_psf_at_every_pixel() -> None:
    rng = np.random.default_rng(1)
    given = noise(2)
    variance = given.variance * rng.uniform(0.5, 2.0, (NY, NX)).astype(np.float32)
    mask = np.where(rng.random((NY, NX)) < 0.02, np.uint16(Mask.BAD), np.uint16(0))
    ratio, scale = signal_to_noise(MaskedImage(given.image, mask, variance), psf())
    core = kernel(4.0)[10:31, 10:31]  # what the filter uses: 4 sigma, and a pixel
    half = (core.shape[0] - 1) // 2
    weight = np.where(mask == 0, 1.0 / variance, 0.0)
    wanted = correlate2d(given.image * weight, core, "same") / np.sqrt(correlate2d(weight, core**2, "same")) / scale
    inner = np.s_[half + 4 : -half - 4, half + 4 : -half - 4]
    np.testing.assert_allclose(ratio[inner], wanted[inner], atol=1e-4)


@pytest.mark.parametrize("width", [3.6, 3.8, 4.0, 4.2, 4.4])
def test_a_psf_that_varies_has_a_ratio_everywhere(width: float) -> None:
    y = np.repeat([0.0, NY - 1.0], 2)
    kernels = np.stack([kernel(width * (1.0 + at / NY)) for at in y]).astype(np.float32)
    varying = fit_psf(kernels, np.tile([0.0, NX - 1.0], 2), y, 1, (NY, NX))
    ratio, scale = signal_to_noise(noise(2), varying)
    assert (ratio[20:-20, 20:-20] != 0.0).all()
    assert abs(scale - 1.0) < 0.15


def test_noise_that_neighbouring_pixels_share_is_measured() -> None:
    shape = (1200, 1200)
    plain, scale = signal_to_noise(noise(3, shape=shape), psf(shape=shape))
    assert abs(scale - 1.0) < 0.06
    assert abs(plain.std() - 1.0) < 0.06
    soft = noise(3, shape=shape)
    image: Image = np.sum([np.roll(soft.image, step, axis) for step in (0, 1) for axis in (0, 1)], axis=0) / 2.0
    smooth, scale = signal_to_noise(MaskedImage(image, soft.mask, soft.variance), psf(shape=shape))
    assert scale > 1.4
    assert abs(smooth.std() - 1.0) < 0.08


def test_joint_noise_is_as_rare_above_five_in_many_bands_as_the_ways_to_it_are_many() -> None:
    rng = np.random.default_rng(4)
    n, bands = 4_000_000, 3
    # At 3 sigma in place of 5 there is enough noise to count: heights scale alike.
    ratios = [rng.standard_normal((n // 1000, 1000), np.float32) for _ in range(bands)]
    joint = joint_ratio(ratios)
    assert (joint >= np.max(ratios, axis=0)).all()
    above = np.mean(joint > 4.0)
    assert above < (bands + 1.5) * norm.sf(4.0)
    even = joint_ratio([np.full((2, 2), 4.0, np.float32)] * 3)
    assert (even > 5.5).all()  # of like signal in all bands more is found than in any one
    single = joint_ratio([np.full((2, 2), 5.5, np.float32), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)])
    assert (single == 5.5).all()


def test_a_peak_is_told_from_another_by_how_far_it_rises_over_the_saddle() -> None:
    for apart, peaks in ((20, 2), (13, 2), (3, 1)):
        ratio = hills((100, 100, 50.0, 4.0), (100 + apart, 100, 40.0, 4.0))
        found = find_peaks(ratio, [ratio], NO_MASK, QUIET)
        assert len(found.x) == peaks
        assert abs(int(found.x[0]) - 100) <= 1
    bump = hills((100, 100, 50.0, 8.0)) + hills((110, 100, 1.5, 1.0))
    assert len(find_peaks(bump, [bump], NO_MASK, QUIET).x) == 1


def flooded(ratio: Image) -> set[int]:
    """Flat pixels of peaks, by flooding from each down to where it joins a higher one: its saddle."""
    levels = np.sort(np.append(ratio[ratio > 5.0], 5.0))
    kept = set()
    for pixel in np.flatnonzero((ratio == maximum_filter(ratio, 3)) & (ratio > 5.0)):
        top, low, high = ratio.flat[pixel], 0, levels.size - 1
        while low < high:  # the highest level at which something higher is in the flood
            middle = (low + high + 1) // 2
            flood = label(ratio >= levels[middle], np.ones((3, 3)))[0]
            joined = flood.flat[pixel] > 0 and (ratio[flood == flood.flat[pixel]] > top).any()
            low, high = (middle, high) if joined else (low, middle - 1)
        if low == 0 or top - levels[low] >= 3.5 + 0.015 * levels[low]:
            kept.add(int(pixel))
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_peaks_and_footprints_are_those_of_a_flood(seed: int) -> None:
    shape = 60, 70
    rough: Image = gaussian_filter(np.random.default_rng(seed).normal(size=shape).astype(np.float32), 1.5)
    ratio = rough * np.float32(8.0 / np.std(rough))
    found = find_peaks(ratio, [ratio], np.zeros(shape, np.uint16), np.ones(shape, np.float32))
    assert len(found.x) > 20
    assert set((found.y * shape[1] + found.x).tolist()) == flooded(ratio)
    groups = label(ratio > 5.0, np.ones((3, 3)))[0][found.y, found.x]
    assert len(set(zip(groups.tolist(), found.footprint.tolist(), strict=True))) == len(set(groups.tolist()))
    assert len(set(groups.tolist())) == len(set(found.footprint.tolist())) < len(found.x)


def test_noise_of_light_makes_no_peaks() -> None:
    ratio = hills((100, 100, 50.0, 4.0), (108, 100, 30.0, 2.0))
    assert len(find_peaks(ratio, [ratio], NO_MASK, QUIET).x) == 2
    assert len(find_peaks(ratio, [ratio], NO_MASK, 6.0 * QUIET).x) == 1


def test_the_skys_variance_is_what_light_does_not_add() -> None:
    dark = noise(5).variance * np.linspace(0.7, 1.4, NX, dtype=np.float32)
    light = hills((100, 100, 4e4, 5.0), (200, 50, 3e3, 8.0))
    given = MaskedImage(light + noise(6).image, NO_MASK, dark + np.float32(0.3) * light)
    sky = sky_variance(given)
    assert np.abs(sky / dark - 1.0)[light > 200.0].max() < 0.5
    np.testing.assert_array_equal(sky[light < 1.0], given.variance[light < 1.0])
    ratio, _ = signal_to_noise(MaskedImage(given.image, NO_MASK, sky), psf())
    assert np.argmax(ratio) == 100 * NX + 100


def test_labels_and_areas_are_of_the_pixels_above_the_threshold() -> None:
    ratio = hills((60, 60, 30.0, 3.0), (71, 60, 20.0, 3.0), (200, 200, 9.0, 3.0), (280, 30, 4.9, 3.0))
    found = find_peaks(ratio, [ratio], NO_MASK, QUIET)
    assert found.x.tolist() == [60, 71, 200]
    assert found.y.tolist() == [60, 60, 200]
    assert found.value.tolist() == sorted(found.value.tolist(), reverse=True)
    np.testing.assert_array_equal(found.labels >= 0, ratio > 5.0)
    np.testing.assert_array_equal(found.area, [np.sum(found.labels == k) for k in range(3)])
    assert found.footprint[0] == found.footprint[1] != found.footprint[2]
    assert all(found.labels[y, x] == k for k, (x, y) in enumerate(zip(found.x, found.y, strict=True)))


def test_the_band_is_that_in_which_it_stands_out_most() -> None:
    one, other = hills((60, 60, 30.0, 3.0)), hills((200, 200, 30.0, 3.0))
    found = find_peaks(joint_ratio([one, other]), [one, other], NO_MASK, QUIET)
    assert dict(zip(found.x.tolist(), found.band.tolist(), strict=True)) == {60: 0, 200: 1}


def test_a_saturated_core_is_one_peak_at_its_middle() -> None:
    v, u = np.mgrid[:NY, :NX]
    radius = np.hypot(u - 150, v - 140)
    ring = np.where(
        radius < 9,
        0.0,
        400.0 * np.exp(-(((radius - 10) / 6.0) ** 2)) * (1.0 + 0.3 * np.cos(5 * np.arctan2(v - 140, u - 150))),
    )
    mask = np.where(radius < 9, np.uint16(Mask.SAT), np.uint16(0))
    ratio = ring.astype(np.float32)
    assert len(find_peaks(ratio, [ratio], NO_MASK, QUIET).x) > 1
    found = find_peaks(ratio, [ratio], mask, QUIET)
    assert (found.x.tolist(), found.y.tolist()) == ([150], [140])
    assert found.area.sum() == np.sum(ratio > 5.0)


def test_nothing_above_the_threshold_is_no_peak() -> None:
    ratio = np.zeros((NY, NX), np.float32)
    found = find_peaks(ratio, [ratio], NO_MASK, QUIET)
    assert found.x.size == found.area.size == 0
    assert (found.labels == -1).all()
    blind = MaskedImage(np.full((NY, NX), np.nan, np.float32), np.full((NY, NX), Mask.NO_DATA, np.uint16),
                        np.full((NY, NX), np.inf, np.float32))  # fmt: skip
    assert (signal_to_noise(blind, psf())[0] == 0.0).all()
