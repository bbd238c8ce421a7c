import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import convolve2d

from payloads.alert_production import kernel
from payloads.alert_production.kernel import choose_stamps, fit_kernel
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.planes import generators, noise, shapes

Floats = NDArray[np.float64]


def stars(n: int = 400, count: int = 40, sigma: float = 1.6, seed: int = 3) -> Floats:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    image = np.zeros((n, n))
    for sx, sy, flux in zip(*rng.uniform(40, n - 40, (2, count)), rng.uniform(2e3, 2e4, count), strict=True):
        image += flux * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    return image


def masked(image: Floats, noise: float = 1.0, seed: int = 0) -> MaskedImage:
    noisy = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    return MaskedImage(
        noisy.astype(np.float32), np.zeros(image.shape, np.uint16), np.full(image.shape, noise**2, np.float32)
    )


def test_a_known_kernel_is_found_and_its_sum_is_the_ratio_of_the_fluxes() -> None:
    t = np.arange(-12, 13)
    true = 0.8 * np.exp(-(t[:, None] ** 2) / 5.0 - t**2 / 7.0)
    true /= true.sum() / 0.8
    sharp = stars()
    wide = convolve2d(sharp, true, mode="same") + 7.0
    found = fit_kernel(masked(sharp, 0.01), masked(wide, 1.0, seed=1), 1.7)
    here = found.at(np.array(200.0), np.array(200.0))
    assert here.sum() == pytest.approx(0.8, abs=2e-3)
    # What is finer than the stars are sharp is not determined: compare what becomes of a star.
    star = np.exp(-(t[:, None] ** 2 + t**2) / (2 * 1.6**2))
    difference = convolve2d(star, here - true, mode="same")
    assert np.abs(difference).max() < 0.005 * convolve2d(star, true, mode="same").max()
    assert found.background(np.array(200.0), np.array(200.0)) == pytest.approx(7.0, abs=0.1)
    assert found.chi2 == pytest.approx(1.0, abs=0.1)


def test_a_star_that_varied_is_dropped_from_the_fit() -> None:
    sharp = stars()
    wide = stars(sigma=2.4)
    spoilt = masked(wide, 1.0, seed=1)
    x, y = choose_stamps(masked(sharp, 0.01), spoilt)
    box = np.s_[y[3] - 15 : y[3] + 16, x[3] - 15 : x[3] + 16]
    spoilt.image[box] *= 1.3
    found = fit_kernel(masked(sharp, 0.01), spoilt, 1.8)
    assert found.n_stamps < x.size
    assert found.at(np.array(200.0), np.array(200.0)).sum() == pytest.approx(1.0, abs=3e-3)


def test_stamps_avoid_saturated_stars_and_holes() -> None:
    image, template = masked(stars()), masked(stars())
    x, y = choose_stamps(image, template)
    image.mask[y[0], x[0]] = Mask.SAT
    template.mask[y[1] + 20, x[1]] = Mask.NO_DATA
    fewer = set(zip(*choose_stamps(image, template), strict=True))
    assert (x[0], y[0]) not in fewer
    assert (x[1], y[1]) not in fewer


def test_an_empty_field_is_refused_with_the_number_of_its_stars() -> None:
    empty = masked(np.zeros((300, 300)))
    with pytest.raises(BadData, match="0 clean stars"):
        fit_kernel(empty, empty, 1.0)


@given(data=st.data(), shape=shapes(55, 75), sigma=st.floats(0.7, 3.0), rng=generators())
@settings(max_examples=25, deadline=None)
def test_the_stamps_vectors_are_convolutions_with_the_basis_up_to_the_images_edge(
    data: st.DataObject, shape: tuple[int, int], sigma: float, rng: np.random.Generator
) -> None:
    source = data.draw(noise(shape, 10.0, spoilt=(np.nan,)))
    ys, xs = (np.array([27, n - 28, rng.integers(27, n - 27)]) for n in shape)
    first, second, lines = kernel._basis_lines(sigma)
    vectors = np.empty((3, first.size + 2, 31, 31), np.float32)
    kernel._stamp_vectors(source, xs, ys, lines, first, second, vectors)
    assert (vectors[:, first.size] == 1).all()
    for q, i in zip(range(3), rng.integers(0, first.size, 3), strict=True):
        basis = np.outer(lines[second[i]], lines[first[i]]).astype(float)
        cut = source[ys[q] - 27 : ys[q] + 28, xs[q] - 27 : xs[q] + 28].astype(float)
        np.testing.assert_allclose(vectors[q, i], convolve2d(cut, basis, mode="valid"), atol=1e-4 * 40)


@given(data=st.data(), stamps=st.integers(0, 3), terms=st.integers(1, 6), pixels=st.integers(1, 60), rng=generators())
@settings(max_examples=60, deadline=None)
def test_gram_matrices_are_weighted_products(
    data: st.DataObject, stamps: int, terms: int, pixels: int, rng: np.random.Generator
) -> None:
    vectors = data.draw(noise((stamps * terms, pixels))).reshape(stamps, terms, pixels)
    weight = (rng.uniform(0, 2, (stamps, pixels)) * (rng.random((stamps, pixels)) < 0.8)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = (vectors[:, :, None] * weight[:, None, None] * vectors[:, None]).astype(float).sum(-1)
    np.testing.assert_allclose(kernel._gram_matrices(vectors, weight), expected, rtol=1e-4, atol=1e-4)


def reference_maxima(image: Image, variance: Image, sigmas: float, margin: int) -> set[tuple[int, int]]:
    """Rows and columns of what nothing in its 5 x 5 pixels is above, well over its own noise, off the margin."""
    if min(image.shape) < 5:
        return set()
    around = np.lib.stride_tricks.sliding_window_view(np.where(np.isnan(image), -np.inf, image), (5, 5)).max((2, 3))
    highest = np.zeros(image.shape, bool)
    highest[2:-2, 2:-2] = image[2:-2, 2:-2] == around
    highest &= (image > 0) & (image > sigmas * np.sqrt(variance))
    highest[:margin], highest[-margin:], highest[:, :margin], highest[:, -margin:] = False, False, False, False
    return {(int(y), int(x)) for y, x in np.argwhere(highest)}


@given(data=st.data(), shape=shapes(1, 40), margin=st.integers(2, 8), rounded=st.booleans(), rng=generators())
@settings(max_examples=60, deadline=None)
def test_maxima_are_the_highest_of_their_25_pixels(
    data: st.DataObject, shape: tuple[int, int], margin: int, rounded: bool, rng: np.random.Generator
) -> None:
    image, variance = data.draw(noise(shape, 3.0)), rng.uniform(0.5, 2.0, shape).astype(np.float32)
    image = np.rint(image) if rounded else image  # few levels: many equal pixels, which all count
    y, x, peak = kernel._maxima(image, variance, np.float32(1.7), margin)
    assert set(zip(y, x, strict=True)) == reference_maxima(image, variance, 1.7, margin)
    np.testing.assert_array_equal(peak, image[y, x])
