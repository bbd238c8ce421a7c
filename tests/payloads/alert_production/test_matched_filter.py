from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.signal import correlate2d

from payloads.alert_production.matched_filter import score_image
from payloads.alert_production.subtract import Subtraction
from payloads.alert_production.systematics import Systematics
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Psf
from tests.payloads.planes import generators, masked_images, noise, shapes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BITS = (Mask.SAT, Mask.NO_DATA, Mask.BAD, Mask.VIGNETTED, Mask.CR)


def test_the_score_is_a_matched_filter(subtraction: Subtraction) -> None:
    difference, matched = subtraction.difference, np.zeros_like(subtraction.matched)
    box = np.s_[500:580, 300:380]
    score, _ = score_image(replace(subtraction, matched=matched))
    psf = difference.psf.at(255.5, 511.5).astype(float)
    image, variance = (
        plane[488:592, 288:392].astype(float) for plane in (difference.pixels.image, difference.pixels.variance)
    )
    expected = correlate2d(image, psf, mode="valid") / np.sqrt(correlate2d(variance, psf**2, mode="valid"))
    free = score[box] != 0
    # The filter is the outer product nearest the PSF.
    assert np.corrcoef(score[box][free], expected[free])[0, 1] > 0.998


def widened(mask: MaskPlane, bits: int, reach: int) -> Bools:
    result: Bools = binary_dilation(mask & bits != 0, np.ones((2 * reach + 1, 2 * reach + 1)))
    return result


def filtered(plane: Floats, psf: Psf, power: int) -> Floats:
    """Correlated with the PSF of each block of 512 pixels, or its square; 0 where it does not fit in whole."""
    out, half = np.zeros(plane.shape), psf.components.shape[1] // 2
    inner = tuple(slice(half, max(n - half, half)) for n in plane.shape)
    for j, i in np.ndindex(*(-(-n // 512) for n in plane.shape)):
        kernel = psf.at(i * 512 + 255.5, j * 512 + 255.5).astype(float) ** power
        box = np.s_[j * 512 : (j + 1) * 512, i * 512 : (i + 1) * 512]
        whole = np.zeros(plane.shape)
        whole[inner] = correlate2d(plane, kernel, mode="same")[inner]
        out[box] = whole[box]
    return out


def reference_halo(light: Image) -> Floats:
    """0.6 % of the mean of 7 x 7 bins of 8 x 8 pixels, of what is positive; beyond the image there is nothing."""
    ny, nx = (-(-n // 8) for n in light.shape)
    padded = np.zeros((8 * (ny + 6), 8 * (nx + 6)))
    padded[24 : 24 + light.shape[0], 24 : 24 + light.shape[1]] = np.maximum(light, 0)
    bins = np.array([[padded[8 * j : 8 * j + 56, 8 * i : 8 * i + 56].mean() for i in range(nx)] for j in range(ny)])
    return np.asarray(6e-3 * np.kron(bins, np.ones((8, 8)))[: light.shape[0], : light.shape[1]])


def reference_score(pixels: MaskedImage, light: Image, psf: Psf, reach: int, off: Systematics) -> tuple[Floats, Floats]:
    """Signal over noise, with and without what light adds to the noise; 0 where nothing is looked for."""
    dark = widened(pixels.mask, Mask.SAT | Mask.SAT_TEMPLATE, reach) | widened(pixels.mask, Mask.EDGE | Mask.NO_DATA, 0)
    blocked = dark | widened(pixels.mask, Mask.BAD | Mask.VIGNETTED | Mask.UNMASKED_NAN, 2)
    sample = pixels.variance[::16, ::16]
    typical = np.median(sample[np.isfinite(sample)])
    signal = np.where(blocked, 0.0, filtered(np.where(dark, 0.0, pixels.image), psf, 1))
    variance = np.where(blocked, 1.0, filtered(np.where(dark, typical, pixels.variance), psf, 2))
    here = filtered(light.astype(float), psf, 1)
    beside = np.pad(here, 1)
    slopes = (beside[1:-1, 2:] - beside[1:-1, :-2]) ** 2 + (beside[2:, 1:-1] - beside[:-2, 1:-1]) ** 2
    extra = 0.25 * off.astrometric**2 * slopes + off.photometric**2 * here**2 + reference_halo(light) ** 2
    return signal / np.sqrt(variance + extra), signal / np.sqrt(variance)


def reference_scale(score: Floats, alone: Floats) -> float:
    """Robust width of one score in 49, of those to whose noise light adds little; 1 for fewer than 100."""
    sample, free = score[::7, ::7], alone[::7, ::7]
    free = free[(np.abs(sample) > 0.95 * np.abs(free)) & (free != 0)]
    return float(1.4826 * np.median(np.abs(free))) if free.size >= 100 else 1.0


def separable_psf(shape: tuple[int, int], rng: np.random.Generator) -> Psf:
    """An outer product of 7 taps each way, the one along the longer side tilting from end to end."""
    lines = np.exp(-0.5 * (np.arange(-3, 4) / rng.uniform(0.8, 2, 2)[:, None]) ** 2) * rng.uniform(0.8, 1, (2, 7))
    tilted, components, along = lines.copy(), np.zeros((3, 7, 7)), int(shape[1] >= shape[0])
    tilted[along] *= np.arange(-3, 4)
    components[0], components[1 + along] = np.outer(*lines), 0.1 * np.outer(*tilted)
    return Psf((components / lines.sum(1).prod()).astype(np.float32), 1, shape)


def with_edge(pixels: MaskedImage, width: int) -> MaskedImage:
    inside = np.zeros(pixels.shape, bool)
    inside[width:-width, width:-width] = True
    return replace(pixels, mask=pixels.mask | np.where(inside, 0, Mask.EDGE).astype(np.uint16))


@given(data=st.data(), shape=shapes(1, 40), reach=st.integers(3, 9), rng=generators())
@settings(max_examples=50, deadline=None)
def test_each_score_is_the_signal_over_the_noise_there(
    subtraction: Subtraction, data: st.DataObject, shape: tuple[int, int], reach: int, rng: np.random.Generator
) -> None:
    pixels = with_edge(data.draw(masked_images(shape, BITS, spoilt=())), 3)
    pixels.image[pixels.mask & Mask.NO_DATA != 0] = np.nan
    pixels.variance[pixels.mask & Mask.NO_DATA != 0] = np.inf
    pixels.variance[0, 0] = 1.0
    assert_scores(subtraction, pixels, 3 * data.draw(noise(shape, spoilt=())), reach, rng)


@pytest.mark.parametrize("shape", [(20, 530), (530, 20), (9, 1100)])
def test_each_block_has_its_own_filter(subtraction: Subtraction, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image, light = (rng.normal(0, s, shape).astype(np.float32) for s in (1, 3))
    pixels = MaskedImage(image, np.zeros(shape, np.uint16), rng.uniform(0.5, 2, shape).astype(np.float32))
    assert_scores(subtraction, with_edge(pixels, 3), light, 5, rng)


def with_noise(subtraction: Subtraction, factor: float) -> Subtraction:
    """The same pixels without light, their noise said to be smaller by a factor."""
    pixels = subtraction.difference.pixels
    pixels = replace(pixels, variance=pixels.variance / np.float32(factor**2))
    difference = replace(subtraction.difference, pixels=pixels)
    return replace(subtraction, difference=difference, matched=np.zeros_like(subtraction.matched))


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_noise_that_is_told_wrong_is_set_right(subtraction: Subtraction, factor: float) -> None:
    right, scale = score_image(with_noise(subtraction, 1.0))
    score, found = score_image(with_noise(subtraction, factor))
    assert found == pytest.approx(factor * scale, rel=1e-4)
    np.testing.assert_allclose(score, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.15, 6.0, 1e4])
def test_noise_that_is_told_in_another_unit_is_refused_with_the_factor(subtraction: Subtraction, factor: float) -> None:
    with pytest.raises(BadData, match=r"noise is [\d.e+]+ times what the variances say") as told:
        score_image(with_noise(subtraction, factor))
    assert float(str(told.value).split(" is ")[1].split()[0]) == pytest.approx(factor, rel=0.1)


def assert_scores(
    subtraction: Subtraction, pixels: MaskedImage, light: Image, reach: int, rng: np.random.Generator
) -> None:
    psf, off = separable_psf(pixels.shape, rng), Systematics(*rng.uniform(0.005, 0.1, 2))
    difference = replace(subtraction.difference, pixels=pixels, psf=psf)
    made = replace(subtraction, difference=difference, matched=light, reach=reach, systematics=off)
    score, scale = score_image(made)
    expected, alone = reference_score(pixels, light, psf, reach, off)
    assert scale == pytest.approx(reference_scale(expected, alone), rel=1e-3)
    np.testing.assert_allclose(score * np.float32(scale), expected, rtol=1e-4, atol=1e-4)
