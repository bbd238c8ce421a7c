import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import convolve2d

from payloads.imaging.convolve import blocks_of, convolve_blocks, separable
from schemas.errors import BadData
from schemas.image import Image
from tests.payloads.planes import generators, noise, shapes

Floats = NDArray[np.float64]


RNG = np.random.default_rng(7)


def reference(image: Image, kernels: Image, block: int) -> Floats:
    """Block by block with SciPy, float64, the border 0."""
    half, whole = kernels.shape[2] // 2, np.zeros(image.shape)
    for (j, i), _ in np.ndenumerate(kernels[:, :, 0, 0]):
        box = np.s_[j * block : (j + 1) * block, i * block : (i + 1) * block]
        whole[box] = convolve2d(image.astype(float), kernels[j, i].astype(float), mode="same")[box]
    out, inner = np.zeros(image.shape), tuple(slice(half, max(n - half, half)) for n in image.shape)
    out[inner] = whole[inner]
    return out


@pytest.mark.parametrize("width", [7, 25])
def test_convolution_in_blocks_is_what_scipy_makes_of_each_block(width: int) -> None:
    image = RNG.normal(size=(130, 101)).astype(np.float32)
    kernels = RNG.normal(size=(3, 2, width, width)).astype(np.float32)
    expected = reference(image, kernels, 51)
    np.testing.assert_allclose(convolve_blocks(image, kernels, 51), expected, atol=2e-4)


@given(data=st.data(), shape=shapes(), width=st.sampled_from([1, 3, 7]), block=st.integers(2, 30), rng=generators())
@settings(max_examples=60, deadline=None)
def test_any_shape_is_convolved_in_any_blocks_and_nan_and_infinity_stay_what_they_are(
    data: st.DataObject, shape: tuple[int, int], width: int, block: int, rng: np.random.Generator
) -> None:
    image = data.draw(noise(shape))
    kernels = rng.normal(size=(*(-(-n // block) for n in shape), width, width)).astype(np.float32)
    expected = reference(image, kernels, block)
    np.testing.assert_allclose(convolve_blocks(image, kernels, block), expected, rtol=1e-4, atol=1e-4)


def test_the_nearest_outer_product_of_a_gaussian_is_the_gaussian() -> None:
    t = np.arange(-8, 9)
    gaussian = np.exp(-(t[:, None] ** 2) / 8 - t**2 / 18)
    columns, rows = separable(gaussian[None])
    np.testing.assert_allclose(columns[0][:, None] * rows[0], gaussian, atol=1e-6)
    assert columns.sum() > 0


def test_nan_stays_where_a_kernel_reaches_it_and_nowhere_else() -> None:
    image = np.ones((60, 60), np.float32)
    image[30, 30] = np.nan
    out = convolve_blocks(image, np.ones((1, 1, 7, 7), np.float32), 60)
    assert np.isnan(out[27:34, 27:34]).all()
    assert np.isfinite(out).sum() == 60 * 60 - 49


def test_a_read_only_image_is_convolved() -> None:
    image = np.ones((40, 40), np.float32)
    image.flags.writeable = False
    out = convolve_blocks(image, np.full((1, 1, 7, 7), 1 / 49, np.float32), 40)
    assert out[20, 20] == pytest.approx(1.0)


def test_blocks_that_do_not_cover_the_image_are_refused() -> None:
    with pytest.raises(BadData, match=r"\(1, 1\) kernels of 50 pixels do not cover .*: \(2, 3\) do"):
        convolve_blocks(np.zeros((90, 140), np.float32), np.zeros((1, 1, 7, 7), np.float32), 50)


def test_block_centres_lie_in_the_middle_of_their_pixels() -> None:
    x, y = blocks_of((100, 60), 50)
    np.testing.assert_allclose(x, [[24.5, 74.5], [24.5, 74.5]])
    np.testing.assert_allclose(y[:, 0], [24.5, 74.5])
