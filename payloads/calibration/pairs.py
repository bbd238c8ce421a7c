"""What a pair of flats under the same light tells of each amplifier: its level, its noise, its neighbours' likeness."""

from dataclasses import dataclass

import numba
import numpy as np

from payloads.calibration.frames import AMPLIFIERS, Floats, part_of
from schemas.image import Image
from schemas.instrument import Detector

BLOCKS = (8, 2)
"""Of an amplifier, along its columns and rows: the light changes across it, by vignetting."""
_LIKE = 0.35
"""A pixel's part of the block's level by which it may differ: bad columns differ by more, vignetting by less."""
_CLIP = 5.0
_SAMPLE_PIXELS = 2000


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Of each amplifier's blocks, (16, 16), ADU.

    level: mean of both frames. variance: of one frame, half of the variance of the difference, in which whatever
    differs from pixel to pixel cancels. highest: of the pixels' levels. along, across: correlations of the
    differences of neighbours in a row and in a column. pixels: how many counted, of `size`.
    """

    level: Floats
    variance: Floats
    highest: Floats
    along: Floats
    across: Floats
    pixels: Floats
    size: int


def pair_moments(one: Image, other: Image, detector: Detector) -> PairMoments:
    """Of two assembled frames (ny, nx), ADU above bias."""
    height, width = detector.format.amp_height // BLOCKS[0], detector.format.amp_width // BLOCKS[1]
    told = np.empty((AMPLIFIERS, BLOCKS[0] * BLOCKS[1], 6))
    for amplifier in detector.amplifiers:
        parts = [part_of(image, amplifier, detector) for image in (one, other)]
        for block in range(told.shape[1]):
            row, column = divmod(block, BLOCKS[1])
            box = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
            told[amplifier.index, block] = _of_block(parts[0][box], parts[1][box])
    pixels, level, highest, variance, along, across = np.moveaxis(told, 2, 0)
    return PairMoments(level, variance, highest, along, across, pixels, height * width)


def _of_block(one: Image, other: Image) -> Floats:
    step = max(1, int(np.sqrt(one.size / _SAMPLE_PIXELS)))
    sample = np.s_[::step, ::step]
    first, second = (float(np.median(image[sample])) for image in (one, other))
    level = 0.5 * (first + second)
    if level <= 0.0:
        return np.zeros(6)
    weights = second / level, first / level  # of a lamp that changed a little in between
    difference = weights[0] * one[sample] - weights[1] * other[sample]
    middle = float(np.median(difference))
    sigma = 1.4826 * float(np.median(np.abs(difference - middle)))
    return _moments(one, other, *weights, middle, level, _LIKE * level, max(_CLIP * sigma, 2.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moments(
    one: Image, other: Image, first: float, second: float, middle: float, level: float, like: float, reach: float
) -> Floats:
    """(6,): pixels kept, their mean and highest level, variance, correlations along the row and the column."""
    ny, nx = one.shape
    n, total, highest, difference, differences = 0, 0.0, 0.0, 0.0, 0.0
    along, n_along, across, n_across = 0.0, 0, 0.0, 0
    above, kept_above = np.zeros(nx), np.zeros(nx, np.bool_)
    for y in range(ny):
        left, kept_left = 0.0, False
        for x in range(nx):
            mean = 0.5 * (one[y, x] + other[y, x]) - level
            d = first * one[y, x] - second * other[y, x] - middle
            kept = abs(mean) <= like and abs(d) <= reach
            if kept:
                n += 1
                total += mean
                highest = max(highest, mean)
                difference += d
                differences += d * d
                if kept_left:
                    along += d * left
                    n_along += 1
                if kept_above[x]:
                    across += d * above[x]
                    n_across += 1
            left, kept_left = d, kept
            above[x], kept_above[x] = d, kept
    told = np.zeros(6)
    if n > 1:
        variance = differences / n - (difference / n) ** 2
        told[0], told[1], told[2] = n, level + total / n, level + highest
        told[3] = 0.5 * variance * n / (n - 1)
        told[4] = along / (max(n_along, 1) * variance)
        told[5] = across / (max(n_across, 1) * variance)
    return told
