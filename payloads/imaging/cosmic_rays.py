"""Cosmic rays: pixels that rise over their neighbours more steeply than the PSF can.

The test is that of the SDSS Photo pipeline (Lupton et al. 2001, ASP Conf. 238, 269): along a row, a column or
a diagonal the mean of a pixel's two neighbours is, for any light that came through the telescope, at least
the PSF's share of the pixel.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging import stars
from schemas.errors import BadData
from schemas.image import Image, MaskPlane

Ints = NDArray[np.int64]
Hits = NDArray[np.uint8]

_SEED, _GROWTH = 6.0, 3.0
"""Standard deviations over the sky of a first pixel of a ray, and of one beside it."""

_CAUTION = (2.5, 1.0)
"""Standard deviations by which the neighbours' mean may be off: for a first pixel, for one beside a ray."""

_STEEPER = 0.6
"""Part of the PSF's own ratio below which a pixel is too steep: stars are never that sharp, whatever their
centring."""

_EXCESS, _STEEPER_THAN_PSF = 5.0, 0.9
"""Standard deviations over the other snaps of a first pixel that is less steep than that, but than this."""

_MOST = 1 << 20
_PASSES = 8
_BLOCK = 64

_COARSE_ROWS, _COARSE_THRESHOLD, _COARSE_FEWEST = 1024, 40.0, 20
_STELLAR_RATIO = (0.55, 0.98)
"""Mean of the four neighbours over the peak: of stars with an FWHM of 2.2 to 12 pixels."""


@dataclass(frozen=True, eq=False)
class Others:
    """The other snaps of the visit: sums of all snaps (this one as well), and how many there are in all."""

    total: Image
    total_variance: Image
    snaps: int


@dataclass(frozen=True, eq=False)
class Sky:
    """The sky's level as a mesh of cells, float32 (rows, columns); each is taken as flat."""

    level: Image


def coarse_fwhm(image: Image, variance: Image, sky: Sky, default: float) -> float:
    """FWHM (pixels) from bright stars' peaks and their neighbours, in the image's middle rows.

    `default` where fewer than 20 peaks are as sharp as stars may be.
    """
    ny = image.shape[0]
    first = max(0, (ny - _COARSE_ROWS) // 2)
    strip = slice(first, first + _COARSE_ROWS)
    bare = image[strip] - np.float32(np.median(sky.level))
    peaks = stars.find(bare, variance[strip], _COARSE_THRESHOLD)
    y, x = peaks["y"].astype(np.int64), peaks["x"].astype(np.int64)
    ratio = (bare[y, x - 1] + bare[y, x + 1] + bare[y - 1, x] + bare[y + 1, x]) / (4.0 * bare[y, x])
    ratio = ratio[(ratio > _STELLAR_RATIO[0]) & (ratio < _STELLAR_RATIO[1])]
    if ratio.size < _COARSE_FEWEST:
        return default
    # Of a Gaussian; the lower part are the stars, the upper the galaxies.
    return float(stars.FWHM_OF_SIGMA * np.sqrt(-0.5 / np.log(np.quantile(ratio, 0.25))))


def find(
    image: Image,
    variance: Image,
    mask: MaskPlane,
    blind: int,
    sky: Sky,
    fwhm: float,
    hits: Hits,
    bit: int,
    others: Others | None = None,
) -> NDArray[np.int32]:
    """Where cosmic rays struck: rows and columns, (n, 2). `bit` is set there in `hits`, in place.

    `image`: electrons with their sky; `hits`: uint8, (ny, nx). Pixels beside one of a `blind` bit of `mask`
    are not judged. With `others`, less steep pixels that only this snap has count as well. Raises BadData
    above a million pixels: that is no sky image.
    """
    rest = others or Others(image, variance, 1)
    pixels = np.empty((_MOST, 2), np.int32)
    axis = float(np.exp(-0.5 * (stars.FWHM_OF_SIGMA / fwhm) ** 2))
    ratios = np.array([axis, axis, axis * axis, axis * axis], np.float32)
    common = (image, variance, sky.level, rest.total, rest.total_variance, rest.snaps, ratios)
    count = _seeds(*common, mask, blind, hits, bit, pixels)
    count = _grow(*common, mask, blind, hits, bit, pixels, count)
    if count >= _MOST:
        raise BadData(f"over {_MOST} pixels are sharper than a PSF of {fwhm:.1f} pixels FWHM: not an image of the sky")
    return pixels[:count].copy()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _seeds(
    image: Image, variance: Image, level: Image, total: Image, total_variance: Image, snaps: int,
    ratios: Image, mask: MaskPlane, blind: int, hits: Hits, bit: int, pixels: NDArray[np.int32],
) -> int:  # fmt: skip
    ny, nx = image.shape
    count, square = 0, np.float32(_SEED * _SEED)
    for y in range(1, ny - 1):
        row = level[y * level.shape[0] // ny]
        for cell in range(row.size):
            sky = row[cell]
            first, last = (cell * nx + row.size - 1) // row.size, ((cell + 1) * nx + row.size - 1) // row.size
            for start in range(max(first, 1), min(last, nx - 1), _BLOCK):
                stop = min(start + _BLOCK, last, nx - 1)
                if not _any_above(image[y, start:stop], variance[y, start:stop], sky, square):
                    continue
                for x in range(start, stop):
                    d = image[y, x] - sky
                    if (
                        count < pixels.shape[0]
                        and d * abs(d) > square * variance[y, x]
                        and not _blind(mask, y, x, blind)
                        and _starts_ray(image, variance, total, total_variance, snaps, hits, bit, y, x, sky, ratios)
                    ):
                        pixels[count, 0], pixels[count, 1] = y, x
                        count += 1
    for k in range(count):
        hits[pixels[k, 0], pixels[k, 1]] |= bit
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _any_above(image: Image, variance: Image, sky: float, square: np.float32) -> bool:
    # A loop without a branch runs eight times as fast; most blocks end here.
    count = 0
    for x in range(image.size):
        d = image[x] - sky
        count += d * abs(d) > square * variance[x]
    return count > 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _starts_ray(
    image: Image, variance: Image, total: Image, total_variance: Image, snaps: int, hits: Hits, bit: int,
    y: int, x: int, sky: float, ratios: Image,
) -> bool:  # fmt: skip
    if _too_steep(image, variance, hits, bit, y, x, sky, ratios, _STEEPER, _CAUTION[0]):
        return True
    return (
        snaps > 1
        and _only_here(image, variance, total, total_variance, snaps, y, x, sky, _EXCESS)
        and _too_steep(image, variance, hits, bit, y, x, sky, ratios, _STEEPER_THAN_PSF, _CAUTION[1])
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(
    image: Image, variance: Image, level: Image, total: Image, total_variance: Image, snaps: int,
    ratios: Image, mask: MaskPlane, blind: int, hits: Hits, bit: int, pixels: NDArray[np.int32], count: int,
) -> int:  # fmt: skip
    """Judge the neighbours of what was found, then theirs: a ray's own pixels no longer hide it."""
    ny, nx = image.shape
    first = 0
    for _ in range(_PASSES):
        last = count
        for k in range(first, last):
            for step in range(9):
                y, x = pixels[k, 0] + step // 3 - 1, pixels[k, 1] + step % 3 - 1
                if y < 1 or x < 1 or y >= ny - 1 or x >= nx - 1 or hits[y, x] & bit:
                    continue
                sky = level[y * level.shape[0] // ny, x * level.shape[1] // nx]
                if image[y, x] - sky < _GROWTH * np.sqrt(variance[y, x]) or _blind(mask, y, x, blind):
                    continue
                if _too_steep(image, variance, hits, bit, y, x, sky, ratios, _STEEPER, _CAUTION[1]) or (
                    snaps > 1 and _only_here(image, variance, total, total_variance, snaps, y, x, sky, _GROWTH)
                ):
                    if count >= pixels.shape[0]:
                        return count
                    hits[y, x] |= bit
                    pixels[count, 0], pixels[count, 1] = y, x
                    count += 1
        first = last
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _blind(mask: MaskPlane, y: int, x: int, bits: int) -> bool:
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if mask[y + dy, x + dx] & bits:
                return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _too_steep(
    image: Image, variance: Image, hits: Hits, bit: int, y: int, x: int, sky: float, ratios: Image,
    steeper: float, caution: float,
) -> bool:  # fmt: skip
    """Whether along any of four directions the neighbours' mean is too low for what comes through the PSF."""
    limit = steeper * (image[y, x] - sky - caution * np.sqrt(variance[y, x]))
    for direction in range(4):
        dy, dx = (0, 1, 1, 1)[direction], (1, 0, 1, -1)[direction]
        struck_a, struck_b = hits[y - dy, x - dx] & bit, hits[y + dy, x + dx] & bit
        if struck_a and struck_b:
            continue
        a, b = image[y - dy, x - dx] - sky, image[y + dy, x + dx] - sky
        va, vb = variance[y - dy, x - dx], variance[y + dy, x + dx]
        # A struck neighbour says nothing: the one across stands for both.
        if struck_a:
            a, va = b, vb
        elif struck_b:
            b, vb = a, va
        if 0.5 * (a + b) + caution * 0.5 * np.sqrt(va + vb) < ratios[direction] * limit:
            return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _only_here(
    image: Image, variance: Image, total: Image, total_variance: Image, snaps: int,
    y: int, x: int, sky: float, sigmas: float,
) -> bool:  # fmt: skip
    """Whether a pixel stands out of the other snaps' mean, more than noise or seeing make it."""
    here = image[y, x] - sky
    mean = (total[y, x] - image[y, x]) / (snaps - 1)
    noise = np.sqrt(variance[y, x] + (total_variance[y, x] - variance[y, x]) / (snaps - 1) ** 2)
    excess = image[y, x] - mean
    return bool(excess > sigmas * noise and excess > 0.5 * here)
