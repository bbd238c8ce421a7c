"""Resampling of a template onto an image's pixels."""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging.convolve import FAST
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Template
from schemas.wcs import Wcs

_LOBES = 4
_TAPS = 2 * _LOBES
_STEPS = 1024
_GRID = 64
_NO_DATA = np.uint16(Mask.NO_DATA)


def warp(template: Template, wcs: Wcs, shape: tuple[int, int]) -> MaskedImage:
    """The template's pixels on the grid of `wcs` (ny, nx): Lanczos interpolation of order 4 (Duchon 1979).

    Positions come from both WCSs on a grid of 64 pixels, bilinear between: 0.1 mas for a camera's distortion.
    Variance and mask are the nearest pixel's: the variance is what a PSF-sized sum needs (interpolation makes
    neighbours covary, and takes as much from each pixel's own variance). What lies outside the template, or
    has a NaN within reach, is NaN with infinite variance and NO_DATA, never 0.
    """
    grid_x, grid_y = _source_grid(template.wcs, wcs, shape)
    image, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    mask = np.empty(shape, np.uint16)
    source = template.pixels
    _resample(source.image, source.variance, source.mask, grid_x, grid_y, lanczos_table(), image, variance, mask)
    return MaskedImage(image, mask, variance)


def lanczos_table() -> Image:
    """(1025, 8) weights, sum 1, for 0..1 pixel in 1024 steps; tap 3 is the pixel at or before."""
    fraction = np.linspace(0.0, 1.0, _STEPS + 1)[:, None]
    distance = np.arange(_TAPS) - _LOBES + 1 - fraction
    weights = np.sinc(distance) * np.sinc(distance / _LOBES) * (np.abs(distance) < _LOBES)
    result: Image = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return result


def _source_grid(source: Wcs, target: Wcs, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the target's pixels 0, 64, 128.. lie in the source, each (rows, columns)."""
    x, y = np.meshgrid(*(np.arange(0, n + _GRID, _GRID, dtype=np.float64) for n in shape[::-1]))
    return source.sky_to_pixel(*target.pixel_to_sky(x, y))


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _resample(
    source: Image,
    source_variance: Image,
    source_mask: MaskPlane,
    grid_x: NDArray[np.float64],
    grid_y: NDArray[np.float64],
    table: Image,
    image: Image,
    variance: Image,
    mask: MaskPlane,
) -> None:
    ny, nx = image.shape
    rows, columns = source.shape
    for y in range(ny):
        j, f = y // _GRID, (y % _GRID) / _GRID
        for i in range((nx + _GRID - 1) // _GRID):
            left_x = grid_x[j, i] * (1 - f) + grid_x[j + 1, i] * f
            left_y = grid_y[j, i] * (1 - f) + grid_y[j + 1, i] * f
            step_x = (grid_x[j, i + 1] * (1 - f) + grid_x[j + 1, i + 1] * f - left_x) / _GRID
            step_y = (grid_y[j, i + 1] * (1 - f) + grid_y[j + 1, i + 1] * f - left_y) / _GRID
            start = i * _GRID
            for x in range(start, min(start + _GRID, nx)):
                sx, sy = left_x + step_x * (x - start), left_y + step_y * (x - start)
                inside = _LOBES - 1 <= sx < columns - _LOBES and _LOBES - 1 <= sy < rows - _LOBES
                value = np.float32(np.nan)
                if inside:
                    ix, iy = int(sx), int(sy)
                    along = table[int((sx - ix) * _STEPS + 0.5)]
                    down = table[int((sy - iy) * _STEPS + 0.5)]
                    value = np.float32(0.0)
                    for r in range(_TAPS):
                        pixels = source[iy - _LOBES + 1 + r, ix - _LOBES + 1 : ix + _LOBES + 1]
                        s = np.float32(0.0)
                        for c in range(_TAPS):
                            s += along[c] * pixels[c]
                        value += down[r] * s
                image[y, x] = value
                if np.isnan(value):
                    variance[y, x], mask[y, x] = np.inf, _NO_DATA
                else:
                    variance[y, x] = source_variance[int(sy + 0.5), int(sx + 0.5)]
                    mask[y, x] = source_mask[int(sy + 0.5), int(sx + 0.5)]
