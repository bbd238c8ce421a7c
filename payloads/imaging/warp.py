"""Resampling of an image onto other pixels: of a template onto a visit's, of a visit onto the sky's."""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from payloads.imaging.convolve import FAST
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Template, VisitImage
from schemas.wcs import Wcs

_LOBES = 4
_TAPS = 2 * _LOBES
_STEPS = 1024
_GRID = 64
_PICKED = np.float32(0.65)
"""Of a pixel's area in the source's, what its noise grows by where it is larger: measured, for areas up to 5."""
_NO_DATA = np.uint16(Mask.NO_DATA)


def warp(image_of: Template | VisitImage, wcs: Wcs, shape: tuple[int, int]) -> MaskedImage:
    """Its pixels on the grid of `wcs` (ny, nx): Lanczos interpolation of order 4 (Duchon 1979).

    Positions come from both WCSs on a grid of 64 pixels, bilinear between: 0.1 mas for a camera's distortion.
    Values are scaled by the area of a pixel, so that a source keeps its flux. Variance and mask are the nearest
    pixel's: the variance is what a PSF-sized sum needs (interpolation makes neighbours covary, and takes as much
    from each pixel's own variance). What lies outside of it, or has a NaN within reach, is NaN with
    infinite variance and NO_DATA, never 0.
    """
    grid_x, grid_y = _source_grid(image_of.wcs, wcs, shape)
    image, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    mask = np.empty(shape, np.uint16)
    source = image_of.pixels
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


_LANES = ir.VectorType(ir.FloatType(), _TAPS)
_NONE = ir.Constant(_LANES, ir.Undefined)


def _weighted(typing: Any, pixels: Any, at: Any, stride: Any, table: Any, down: Any, along: Any) -> Any:  # noqa: ANN401, ARG001 (numba's own calling convention)
    """Sum of 8 x 8 `pixels` (flat, from `at`, rows a `stride` apart) by row `down` and row `along` of a flat table.

    Eight lanes by hand: the compiler unrolls so short a loop before it looks for vectors, and takes 1.5 times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        image, index, step, weights, row, column = values
        image = context.make_array(signature.args[0])(context, builder, image).data
        weights = context.make_array(signature.args[3])(context, builder, weights).data
        eight = ir.Constant(row.type, _TAPS)
        by_row = _eight(builder, weights, builder.mul(row, eight))
        total = ir.Constant(_LANES, [0.0] * _TAPS)
        for r in range(_TAPS):
            weight = builder.shuffle_vector(by_row, _NONE, _lanes([r] * _TAPS))
            product = builder.fmul(weight, _eight(builder, image, index), flags=("contract",))
            total = builder.fadd(total, product, flags=("contract",))
            index = builder.add(index, step)
        total = builder.fmul(total, _eight(builder, weights, builder.mul(column, eight)))
        for n in (4, 2, 1):
            turned = builder.shuffle_vector(total, _NONE, _lanes([(k + n) % _TAPS for k in range(_TAPS)]))
            total = builder.fadd(total, turned)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return numba.float32(pixels, at, stride, table, down, along), generate


_weighted_sum: Any = intrinsic(_weighted)


def _lanes(numbers: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), _TAPS), numbers)


def _eight(builder: ir.IRBuilder, data: ir.Value, index: ir.Value) -> ir.Value:
    """Eight floats from an index on, wherever they are aligned."""
    loaded = builder.load(builder.bitcast(builder.gep(data, [index]), _LANES.as_pointer()))
    loaded.align = 4
    return loaded


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
    """In tiles of the grid: under any rotation their source stays in cache."""
    flat, weights = source.ravel(), table.ravel()
    for j in range(grid_x.shape[0] - 1):
        for i in range(grid_x.shape[1] - 1):
            corners_x, corners_y = grid_x[j : j + 2, i : i + 2], grid_y[j : j + 2, i : i + 2]
            tile = slice(j * _GRID, (j + 1) * _GRID), slice(i * _GRID, (i + 1) * _GRID)
            _resample_tile(
                flat, source_variance, source_mask, corners_x, corners_y, weights,
                image[tile], variance[tile], mask[tile],
            )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _resample_tile(
    source: Image,
    source_variance: Image,
    source_mask: MaskPlane,
    corners_x: NDArray[np.float64],
    corners_y: NDArray[np.float64],
    weights: Image,
    image: Image,
    variance: Image,
    mask: MaskPlane,
) -> None:
    rows, columns = source_mask.shape
    area = np.float32(_area(corners_x, corners_y))
    # Smaller pixels covary: a sum over a PSF keeps the source's noise. Much larger ones are picked, not averaged.
    spread = area * max(_PICKED * area, np.float32(1.0))
    for y in range(image.shape[0]):
        f = y / _GRID
        left_x = corners_x[0, 0] * (1 - f) + corners_x[1, 0] * f
        left_y = corners_y[0, 0] * (1 - f) + corners_y[1, 0] * f
        step_x = (corners_x[0, 1] * (1 - f) + corners_x[1, 1] * f - left_x) / _GRID
        step_y = (corners_y[0, 1] * (1 - f) + corners_y[1, 1] * f - left_y) / _GRID
        for x in range(image.shape[1]):
            sx, sy = left_x + step_x * x, left_y + step_y * x
            value = np.float32(np.nan)
            if _LOBES - 1 <= sx < columns - _LOBES and _LOBES - 1 <= sy < rows - _LOBES:
                ix, iy = int(sx), int(sy)
                first = (iy - _LOBES + 1) * columns + ix - _LOBES + 1
                along, down = int((sx - ix) * _STEPS + 0.5), int((sy - iy) * _STEPS + 0.5)
                value = area * _weighted_sum(source, first, columns, weights, down, along)
            image[y, x] = value
            if np.isnan(value):
                variance[y, x], mask[y, x] = np.inf, _NO_DATA
            else:
                variance[y, x] = spread * source_variance[int(sy + 0.5), int(sx + 0.5)]
                mask[y, x] = source_mask[int(sy + 0.5), int(sx + 0.5)]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _area(corners_x: NDArray[np.float64], corners_y: NDArray[np.float64]) -> float:
    """Of a target's pixel, in the source's pixels."""
    ax, ay = corners_x[0, 1] - corners_x[0, 0], corners_y[0, 1] - corners_y[0, 0]
    bx, by = corners_x[1, 0] - corners_x[0, 0], corners_y[1, 0] - corners_y[0, 0]
    return float(abs(ax * by - ay * bx)) / (_GRID * _GRID)
