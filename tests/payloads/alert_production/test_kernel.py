from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import convolve2d, fftconvolve

from payloads.alert_production import kernel
from payloads.alert_production.kernel import choose_stamps, fit_kernel
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.planes import generators, lanczos_moved, noise, shapes

Floats = NDArray[np.float64]


def stars(n: int = 400, count: int = 40, sigma: float = 1.6, seed: int = 3) -> Floats:
    rng = np.random.default_rng(seed)
    t, image = np.arange(-24, 25), np.zeros((n, n))
    for sx, sy, flux in zip(*rng.uniform(40, n - 40, (2, count)), rng.uniform(2e3, 2e4, count), strict=True):
        ix, iy = round(sx), round(sy)
        along, down = (np.exp(-((t + i - s) ** 2) / (2 * sigma**2)) for i, s in ((ix, sx), (iy, sy)))
        image[iy - 24 : iy + 25, ix - 24 : ix + 25] += flux / (2 * np.pi * sigma**2) * np.outer(down, along)
    return image


def masked(image: Floats, noise: float = 1.0, seed: int = 0) -> MaskedImage:
    noisy = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    return MaskedImage(
        noisy.astype(np.float32), np.zeros(image.shape, np.uint16), np.full(image.shape, noise**2, np.float32)
    )


@pytest.mark.parametrize(("sigma", "width"), [(1.7, 25), (2.6, 25), (3.0, 35), (4.5, 45)])
def test_a_known_kernel_is_found_and_its_sum_is_the_ratio_of_the_fluxes(sigma: float, width: int) -> None:
    """As wide as the blur that it makes up for asks; of sums, four in five."""
    t = np.arange(-22, 23)
    true = np.exp(-(t[:, None] ** 2) / (1.7 * sigma**2) - t**2 / (2.4 * sigma**2))
    true /= true.sum() / 0.8
    sharp = stars()
    wide = fftconvolve(sharp, true, mode="same") + 7.0
    found = fit_kernel(masked(sharp, 0.01), masked(wide, 1.0, seed=1), sigma)
    here = found.at(np.array(200.0), np.array(200.0))
    assert here.shape == (width, width)
    here = np.pad(here, (45 - width) // 2)
    assert here.sum() == pytest.approx(0.8, abs=2e-3)
    # What is finer than the stars are sharp is not determined: compare what becomes of a star.
    star = np.exp(-(t[:, None] ** 2 + t**2) / (2 * 1.6**2))
    difference = convolve2d(star, here - true, mode="same")
    assert np.abs(difference).max() < 0.005 * convolve2d(star, true, mode="same").max()
    assert found.background(np.array(200.0), np.array(200.0)) == pytest.approx(7.0, abs=0.1)
    assert found.chi2 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("sigma", [1.75, 2.0])
def test_noise_that_interpolation_has_smoothed_makes_no_kernel_of_noise(sigma: float) -> None:
    """In any corner its power, by which noise grows, is that of the Gaussian that is right there, within a factor."""
    sharp, wide = stars(600, 160), stars(600, 160, sigma)
    smoothed = lanczos_moved(np.random.default_rng(5).normal(0, 6, sharp.shape), 0.5, 0.5)
    source = replace(masked(sharp, 6.0), image=(sharp + smoothed).astype(np.float32))
    blur = np.sqrt(sigma**2 - 1.6**2)
    found = fit_kernel(source, masked(wide, 6.0, seed=9), blur)
    assert found.order == 2
    here = found.at(*np.meshgrid(np.linspace(0.0, 599.0, 5), np.linspace(0.0, 599.0, 5)))
    assert (here**2).sum((2, 3)).max() < 2.5 / (4 * np.pi * blur**2)
    assert here.sum((2, 3)) == pytest.approx(np.ones((5, 5)), abs=0.04)


def test_a_star_that_varied_is_dropped_from_the_fit() -> None:
    sharp = stars()
    wide = stars(sigma=2.4)
    spoilt = masked(wide, 1.0, seed=1)
    x, y = choose_stamps(masked(sharp, 0.01), spoilt, 12)
    box = np.s_[y[3] - 15 : y[3] + 16, x[3] - 15 : x[3] + 16]
    spoilt.image[box] *= 1.3
    found = fit_kernel(masked(sharp, 0.01), spoilt, 1.8)
    assert found.x.size < x.size
    assert found.at(np.array(200.0), np.array(200.0)).sum() == pytest.approx(1.0, abs=3e-3)


def test_stamps_avoid_saturated_stars_and_holes_and_what_is_nan_in_the_source() -> None:
    image, template = masked(stars()), masked(stars())
    x, y = choose_stamps(image, template, 12)
    image.mask[y[0], x[0]] = Mask.SAT
    template.mask[y[1] + 20, x[1]] = Mask.NO_DATA
    image.image[y[2], x[2] - 28] = np.nan
    image.image[y[3] + 29, x[3]] = np.inf  # out of reach
    fewer = set(zip(*choose_stamps(image, template, 12), strict=True))
    for k, kept in enumerate((False, False, False, True)):
        assert ((x[k], y[k]) in fewer) == kept


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_pixel_whose_variance_is_unknown_has_no_weight(side: str, value: float) -> None:
    source, target = masked(stars(), 0.01), masked(stars(sigma=2.4), seed=1)
    x, y = choose_stamps(source, target, 12)
    spoilt = source if side == "source" else target
    spoilt.variance[y[:5] + 3, x[:5]] = value
    found = fit_kernel(source, target, 1.8)
    assert found.chi2 == pytest.approx(1.0, abs=0.1)
    assert found.at(np.array(200.0), np.array(200.0)).sum() == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize("half", [12, 17, 22])
def test_stamps_lie_as_far_from_the_edge_as_the_kernel_asks(half: int) -> None:
    image = masked(stars(count=120))
    x, y = choose_stamps(image, image, half)
    assert min(x.min(), y.min(), 399 - x.max(), 399 - y.max()) >= 2 * half + 4


def test_an_empty_field_is_refused_with_the_number_of_its_stars() -> None:
    empty = masked(np.zeros((300, 300)))
    with pytest.raises(BadData, match="0 clean stars"):
        fit_kernel(empty, empty, 1.0)


@given(
    data=st.data(), half=st.sampled_from([12, 17, 22]), more=shapes(0, 15), sigma=st.floats(0.7, 4.5), rng=generators()
)
@settings(max_examples=25, deadline=None)
def test_the_stamps_vectors_are_convolutions_with_the_basis_up_to_the_images_edge(
    data: st.DataObject, half: int, more: tuple[int, int], sigma: float, rng: np.random.Generator
) -> None:
    reach, side = 2 * half + 3, 2 * half + 7
    shape = 2 * reach + 1 + more[0], 2 * reach + 1 + more[1]
    source = data.draw(noise(shape, 10.0, spoilt=(np.nan,)))
    ys, xs = (np.array([reach, n - 1 - reach, rng.integers(reach, n - reach)]) for n in shape)
    first, second, lines = kernel._basis_lines(sigma, half)
    vectors = np.empty((3, first.size + 2, side, side), np.float32)
    kernel._stamp_vectors(source, xs, ys, lines, first, second, vectors)
    assert (vectors[:, first.size] == 1).all()
    for q, i in zip(range(3), rng.integers(0, first.size, 3), strict=True):
        basis = np.outer(lines[second[i]], lines[first[i]]).astype(float)
        cut = source[ys[q] - reach : ys[q] + reach + 1, xs[q] - reach : xs[q] + reach + 1].astype(float)
        np.testing.assert_allclose(vectors[q, i], convolve2d(cut, basis, mode="valid"), atol=1e-4 * np.abs(cut).max())


@given(data=st.data(), stamps=st.integers(0, 3), terms=st.integers(1, 6), pixels=st.integers(1, 60), rng=generators())
@settings(max_examples=60, deadline=None)
def test_gram_matrices_are_weighted_products(
    data: st.DataObject, stamps: int, terms: int, pixels: int, rng: np.random.Generator
) -> None:
    vectors = data.draw(noise((stamps * terms, pixels))).reshape(stamps, terms, pixels)
    weight = (rng.uniform(0, 2, (stamps, pixels)) * (rng.random((stamps, pixels)) < 0.8)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = (vectors[:, :, None] * weight[:, None, None] * vectors[:, None]).astype(float).sum(-1)
    np.testing.assert_allclose(kernel._gram_matrices(vectors, weight), expected, atol=1e-4)


def reference_solution(matrices: Floats, diluted: Floats, terms: Floats) -> Floats:
    """Normal equations of all stamps; in the axes in which their matrix is 1, noise is taken away, 0.3 at the most."""
    m = matrices.shape[1] - 1
    outer = [np.outer(t, t) for t in terms]
    power = sum(np.kron(matrix[:m, :m], o) for matrix, o in zip(matrices, outer, strict=True))
    noise = sum(np.kron(d[:m, :m], o) for d, o in zip(diluted, outer, strict=True))
    right = sum(np.kron(matrix[:m, m], t) for matrix, t in zip(matrices, terms, strict=True))
    power = power + 1e-8 * np.diag(np.diag(power))
    root = np.linalg.inv(np.linalg.cholesky(power))
    part, axes = np.linalg.eigh(root @ noise @ root.T)
    less = axes @ np.diag(1.0 / (1.0 - np.clip(part, 0.0, 0.3))) @ axes.T
    return np.asarray(root.T @ less @ root @ right).reshape(m, -1)


def equations(rng: np.random.Generator, stamps: int, m: int, noisy: float) -> tuple[Floats, Floats]:
    """Products (stamps, m + 1, m + 1) of random vectors, and a part of them that is noise; the last row is data."""
    vectors = rng.normal(size=(stamps, m + 1, 40)) * np.geomspace(1.0, 30.0, m + 1)[:, None]
    spread = rng.normal(size=(stamps, m, 5)) * np.geomspace(1.0, 30.0, m + 1)[:m, None]
    diluted = np.zeros((stamps, m + 1, m + 1))
    diluted[:, :m, :m] = noisy * spread @ spread.transpose(0, 2, 1)
    return vectors @ vectors.transpose(0, 2, 1), diluted


@given(stamps=st.integers(6, 12), m=st.integers(1, 6), noisy=st.floats(0.0, 20.0), rng=generators())
@settings(max_examples=60, deadline=None)
def test_noise_is_taken_from_the_vectors_products_up_to_a_part(
    stamps: int, m: int, noisy: float, rng: np.random.Generator
) -> None:
    matrices, diluted = equations(rng, stamps, m, noisy)
    terms = rng.uniform(-1, 1, (stamps, 3)) + np.array([1.0, 0.0, 0.0])
    expected = reference_solution(matrices, diluted, terms)
    found = kernel._least_squares(matrices, diluted, terms)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_little_noise_is_taken_away_whole_and_none_leaves_plain_least_squares() -> None:
    matrices, diluted = equations(np.random.default_rng(1), 8, 5, 0.05)
    terms, power, noise = np.ones((8, 1)), matrices.sum(0), diluted.sum(0)
    for part in (0.0, 1.0):
        expected = np.linalg.solve(power[:5, :5] - part * noise[:5, :5], power[:5, 5])
        found = kernel._least_squares(matrices, part * diluted, terms)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


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
