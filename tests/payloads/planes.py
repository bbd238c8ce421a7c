"""Planes of pixels for tests over any shape: noise, spoilt pixels, mask bits, from one pixel on.

Hypothesis draws the shape, the seed and how much is spoilt; NumPy fills the planes, so that examples are cheap.
"""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.image import Image, MaskedImage, MaskPlane

NOT_FINITE = (np.nan, np.inf, -np.inf)
PARTS = st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0])
"""Parts of the pixels that have a bit: none, few, so many that they touch, all."""


def generators() -> st.SearchStrategy[np.random.Generator]:
    """Random generators that can be told again from their seed."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def shapes(least: int = 1, most: int = 24) -> st.SearchStrategy[tuple[int, int]]:
    """Rows and columns, seldom as many of the one as of the other."""
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int], bits: Sequence[int]) -> MaskPlane:
    """A mask whose every bit is set on a part of the pixels of its own."""
    rng, mask = draw(generators()), np.zeros(shape, np.uint16)
    for bit in bits:
        mask[rng.random(shape) < draw(PARTS)] |= np.uint16(bit)
    return mask


@st.composite
def noise(draw: st.DrawFn, shape: tuple[int, int], sigma: float = 1.0, spoilt: Sequence[float] = NOT_FINITE) -> Image:
    """Gaussian noise; in half of the cases some pixels hold one of the values `spoilt` instead."""
    rng = draw(generators())
    image: Image = rng.normal(0.0, sigma, shape).astype(np.float32)
    if spoilt and draw(st.booleans()):
        where = rng.random(shape) < 0.05
        image[where] = rng.choice(np.array(spoilt, np.float32), np.count_nonzero(where))
    return image


@st.composite
def masked_images(
    draw: st.DrawFn,
    shape: tuple[int, int],
    bits: Sequence[int],
    sigma: float = 1.0,
    spoilt: Sequence[float] = NOT_FINITE,
) -> MaskedImage:
    """Noise with uneven variances about sigma**2, and a mask of which few pixels have each of the bits."""
    rng, mask = draw(generators()), np.zeros(shape, np.uint16)
    for bit in bits:
        mask[rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.1]))] |= np.uint16(bit)
    variance = (sigma**2 * rng.uniform(0.5, 2.0, shape)).astype(np.float32)
    return MaskedImage(draw(noise(shape, sigma, spoilt)), mask, variance)


def lanczos_moved(stamp: NDArray[np.float64], dx: float, dy: float) -> NDArray[np.float64]:
    """A stamp moved by (dx, dy) pixels by Lanczos interpolation of order 4, 0 beyond it, by its definition."""
    ny, nx = stamp.shape

    def weights(n: int, offset: float) -> NDArray[np.float64]:
        distance = np.arange(n)[:, None] - offset - np.arange(n)  # of each output pixel from each input pixel
        taps = np.sinc(distance) * np.sinc(distance / 4.0) * (np.abs(distance) < 4.0)
        whole = np.floor(-offset) + np.arange(-3, 5) + offset
        total = np.sum(np.sinc(whole) * np.sinc(whole / 4.0) * (np.abs(whole) < 4.0))
        return np.asarray(taps / total)

    return np.asarray(weights(ny, dy) @ stamp @ weights(nx, dx).T)
