"""Signal to noise of a point source at every pixel of a difference: the PSF as a filter, in one pass over the rows."""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.near_stars import temper
from payloads.alert_production.subtract import Subtraction, effective_sigma, typical_variance
from payloads.imaging.convolve import FAST, blocks_of, separable
from payloads.imaging.morphology import grown
from payloads.imaging.psf_field import kernels_at
from schemas.errors import BadData
from schemas.image import Image, Mask, Psf

Flags = NDArray[np.bool_]

_BLOCK = 512
_UNSEARCHED = np.uint16(Mask.HALO)
_HALO = 6e-3
_HALO_BIN = 8
_HALO_RADIUS = 3
_HOLES = Mask.BAD | Mask.VIGNETTED | Mask.UNMASKED_NAN
_GROW_HOLES = 2
_MOST_SCALE = 5.0
_SAMPLED, _FEWEST = 7, 100
"""Every so many rows and columns the noise is looked at; and how many pixels tell it."""
_LITTLE = np.float32(0.1)
"""Part of the noise that light may add where it is looked at."""
_AT_ONCE = 5
"""Rows that one pass over a line takes up: it is bound by the line's loads and stores."""


def score_image(subtraction: Subtraction) -> tuple[Image, float]:
    """Signal to noise of a point source at every pixel, float32 (ny, nx), and by how much the noise was scaled.

    The filter is the nearest outer product to the difference's PSF: it costs a tenth of the whole and loses
    less than 1 % of signal to noise for a PSF no more elongated than 10 %, and its noise is known exactly.

    The noise has, beside the pixels', terms for what the matched template's light does where it is misplaced or
    mis-scaled as stars are (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27), and for the halos of bright stars, which a
    kernel does not match: 0.6 % of the mean brightness within 30 pixels. It is scaled so that the robust width of the
    score is 1 where there is little light: variances tell of single pixels, and a resampled template's covary. Near
    stars the score is tempered by what is left of their like. It is 0 where no source can be trusted to be one: as near
    a saturated pixel as `reach`, and by holes.

    Raises BadData if the scale is 5 or more, or as much too small.
    """
    pixels, light = subtraction.difference.pixels, subtraction.matched
    columns, rows = separable(_filters(subtraction.difference.psf, pixels.shape))
    whole = (0,) * columns.shape[2]
    padded = np.pad(columns, ((0, 0), (0, 0), (0, -columns.shape[2] % _AT_ONCE)))
    dark = _dark(subtraction)
    blocked = dark | grown(pixels.mask, _HOLES, _GROW_HOLES) | ((pixels.mask & _UNSEARCHED) != 0)
    score, free = np.zeros(pixels.shape, np.float32), np.zeros([-(-n // _SAMPLED) for n in pixels.shape], np.float32)
    off = subtraction.systematics
    _filter(
        pixels.image, pixels.variance, light, _halo_noise(light), dark, blocked, np.float32(typical_variance(pixels)),
        np.float32((0.5 * off.astrometric) ** 2), np.float32(off.photometric**2),
        padded, rows, padded**2, rows**2, whole, score, free,
    )  # fmt: skip
    scale = robust_width(free)
    if np.count_nonzero(free) < _FEWEST:
        return score, 1.0
    if not 1.0 / _MOST_SCALE < scale < _MOST_SCALE:
        why = "the images share their noise" if scale < 1.0 else "these are in another unit"
        raise BadData(f"the difference's noise is {scale:.2g} times what the variances say: {why}")
    score /= np.float32(scale)
    temper(score, light, pixels.variance, pixels.mask, effective_sigma(subtraction.difference.psf))
    return score, scale


def robust_width(score: Image) -> float:
    """Of what is not 0; 0 if nothing is."""
    free = score[score != 0.0]
    return float(1.4826 * np.median(np.abs(free))) if free.size else 0.0


def _dark(subtraction: Subtraction) -> Flags:
    """Where what is saturated, missing or beyond the border reaches; missing data's own reach is EDGE already."""
    mask = subtraction.difference.pixels.mask
    dark = grown(mask, Mask.SAT | Mask.SAT_TEMPLATE, subtraction.reach)
    dark |= (mask & np.uint16(Mask.EDGE | Mask.NO_DATA)) != 0
    return dark


def _filters(psf: Psf, shape: tuple[int, int]) -> Image:
    """(rows, columns, k, k) PSFs of the blocks, turned about: a correlation written as a convolution."""
    x, y = blocks_of(shape, _BLOCK)
    kernels = kernels_at(psf, x.ravel(), y.ravel())
    flipped: Image = kernels[:, ::-1, ::-1].reshape(*x.shape, *kernels.shape[1:])
    return flipped


def _halo_noise(light: Image) -> Image:
    """Noise (nJy a pixel) from unmatched halos in bins of 8 x 8 pixels: a part of the light round about."""
    bins = np.zeros([-(-n // _HALO_BIN) for n in light.shape])
    _sum_positive(light, bins)
    size = 2 * _HALO_RADIUS + 1
    padded = np.pad(bins / _HALO_BIN**2, _HALO_RADIUS)
    for axis in (0, 1):
        padded = np.lib.stride_tricks.sliding_window_view(padded, size, axis=axis).mean(-1)
    result: Image = (_HALO * padded).astype(np.float32)
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _sum_positive(light: Image, bins: NDArray[np.float64]) -> None:
    line = np.empty(light.shape[1], np.float32)
    for j in range(bins.shape[0]):
        line[:] = 0.0
        for y in range(j * _HALO_BIN, min((j + 1) * _HALO_BIN, light.shape[0])):
            for x in range(line.size):
                line[x] += max(light[y, x], np.float32(0.0))
        for x in range(line.size):
            bins[j, x // _HALO_BIN] += line[x]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _filter(
    image: Image,
    variance: Image,
    light: Image,
    glow: Image,
    dark: Flags,
    blocked: Flags,
    typical: np.float32,
    per_slope: np.float32,
    per_light: np.float32,
    columns: Image,
    rows: Image,
    columns_squared: Image,
    rows_squared: Image,
    whole: tuple[int, ...],
    score: Image,
    free: Image,
) -> None:
    """Into `score`, zeros: image, variance and light filtered row by row, then signal over noise.

    Into `free`, zeros: a sample of it where light adds little, over the pixels' own noise.

    Only as many rows as the filter is high are held, the dark pixels in them without signal. `whole` has the filter's
    length, which the compiled code so knows.
    """
    ny, nx = image.shape
    half = len(whole) // 2
    signal_in, noise_in = np.zeros((len(whole), nx), np.float32), np.zeros((len(whole), nx), np.float32)
    signal, noise, lights = np.zeros(nx, np.float32), np.zeros(nx, np.float32), np.zeros((3, nx), np.float32)
    glare = np.empty(nx, np.float32)
    for ahead in range(ny):
        _take_in(image[ahead], variance[ahead], dark[ahead], typical, signal_in, noise_in, ahead % len(whole))
        y = ahead - half
        if half <= y + 1 < ny - half:
            _filter_row(light, y + 1, (y + 1) // _BLOCK, columns, rows, whole, lights[(y + 1) % 3])
        elif y + 1 >= ny - half:
            lights[(y + 1) % 3] = 0.0
        if half <= y < ny - half:
            _filter_row(signal_in, y, y // _BLOCK, columns, rows, whole, signal)
            _filter_row(noise_in, y, y // _BLOCK, columns_squared, rows_squared, whole, noise)
            if y == half or y % _HALO_BIN == 0:
                for x in range(nx):
                    glare[x] = glow[y // _HALO_BIN, x // _HALO_BIN] ** 2
            _normalize(signal, noise, lights, y, glare, blocked[y], per_slope, per_light, score[y])
            if y % _SAMPLED == 0:
                _sample(signal, noise, score[y], free[y // _SAMPLED])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sample(signal: Image, noise: Image, score: Image, free: Image) -> None:
    for k in range(free.size):
        alone, value = signal[k * _SAMPLED] / np.sqrt(noise[k * _SAMPLED]), score[k * _SAMPLED]
        if abs(value) > (np.float32(1.0) - _LITTLE / 2) * abs(alone):
            free[k] = alone


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take_in(
    image: Image, variance: Image, dark: Flags, typical: np.float32, signal: Image, noise: Image, at: int
) -> None:
    for x in range(image.size):
        signal[at, x] = np.float32(0.0) if dark[x] else image[x]
        noise[at, x] = typical if dark[x] else variance[x]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _filter_row(image: Image, y: int, j: int, columns: Image, rows: Image, whole: tuple[int, ...], out: Image) -> None:
    """Row `y` of `image`, whose rows are counted round and round, by row `j` of the filters in blocks."""
    half, nx = len(whole) // 2, out.size
    line = np.empty(_BLOCK + 2 * half, np.float32)
    for i in range(columns.shape[1]):
        x0, x1 = max(i * _BLOCK, half), min((i + 1) * _BLOCK, nx - half)
        if x0 >= x1:
            continue
        _down_columns(image, y + half, x0 - half, x1 + half, columns[j, i], line)
        taps, to = rows[j, i], out[x0:x1]
        for x in range(to.size):
            total = np.float32(0.0)
            for c in range(len(whole)):
                total += taps[c] * line[x + len(whole) - 1 - c]
            to[x] = total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _down_columns(image: Image, last: int, x0: int, x1: int, taps: Image, line: Image) -> None:
    """Into `line`: columns x0 to x1 summed by `taps` from row `last` upwards."""
    line[: x1 - x0] = 0.0
    for r in range(0, taps.size, _AT_ONCE):
        a, b, c, d, e = taps[r], taps[r + 1], taps[r + 2], taps[r + 3], taps[r + 4]
        first = image[(last - r) % image.shape[0], x0:x1]
        second = image[(last - r - 1) % image.shape[0], x0:x1]
        third = image[(last - r - 2) % image.shape[0], x0:x1]
        fourth = image[(last - r - 3) % image.shape[0], x0:x1]
        fifth = image[(last - r - 4) % image.shape[0], x0:x1]
        for x in range(first.size):
            line[x] += (a * first[x] + b * second[x]) + (c * third[x] + d * fourth[x]) + e * fifth[x]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _normalize(
    signal: Image,
    noise: Image,
    lights: Image,
    y: int,
    glare: Image,
    blocked: Flags,
    per_slope: np.float32,
    per_light: np.float32,
    score: Image,
) -> None:
    """Row `y` of the score; `lights` holds the filtered light of this row and its neighbours, counted round."""
    above, here, below = lights[(y + 1) % 3], lights[y % 3], lights[(y - 1) % 3]
    for x in range(1, score.size - 1):
        dx, dy = here[x + 1] - here[x - 1], above[x] - below[x]
        extra = per_slope * (dx * dx + dy * dy) + per_light * here[x] * here[x]
        value = signal[x] / np.sqrt(noise[x] + extra + glare[x])
        score[x] = np.float32(0.0) if blocked[x] else value
