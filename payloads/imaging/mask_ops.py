"""Mask planes: growing a bit, painting discs, joining pixels into footprints, bridging pixels, reading bits."""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, MaskPlane

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_REACH = 12
"""Pixels to either side in which a good one is looked for."""


class Footprints(NamedTuple):
    """Groups of flagged pixels that touch (4-neighbours): centre (pixels), pixel count, each (n,).

    The centre is that of the widest row, which in a saturated star with bleed trails is the star's.
    """

    x: Floats
    y: Floats
    area: Ints


def grow(mask: MaskPlane, bit: int, along_columns: int, across_columns: int) -> None:
    """Set `bit` in place on every pixel within so many rows and columns of one that has it."""
    _grow(mask, _flagged(mask, bit), bit, along_columns, across_columns)


def paint_discs(mask: MaskPlane, bit: int, x: Floats, y: Floats, radius: Floats) -> None:
    """Set `bit` in place on the pixels within `radius` of each (x, y), all in pixels."""
    _paint(mask, bit, x.astype(np.float64), y.astype(np.float64), radius.astype(np.float64))


def footprints(mask: MaskPlane, bit: int) -> Footprints:
    """The groups of touching pixels that have `bit`, by a union of row runs."""
    runs = _runs(mask, bit)
    if not len(runs):
        return Footprints(np.empty(0), np.empty(0), np.empty(0, np.int64))
    label = np.unique(_join(runs), return_inverse=True)[1]
    width = runs[:, 2] - runs[:, 1]
    by_width = np.lexsort((width, label))
    widest = by_width[np.append(np.flatnonzero(np.diff(label[by_width])), len(runs) - 1)]
    centre = (runs[widest, 1] + runs[widest, 2] - 1) / 2.0
    return Footprints(centre, _middle_row(runs, label, width, widest), np.bincount(label, width).astype(np.int64))


def _middle_row(runs: Ints, label: Ints, width: Ints, widest: Ints) -> Floats:
    """Row about which the nearly widest runs of each group lie."""
    wide = width >= 0.9 * width[widest][label]
    total = np.bincount(label, wide * runs[:, 0].astype(np.float64))
    result: Floats = total / np.bincount(label, wide)
    return result


def interpolate(image: Image, variance: Image, mask: MaskPlane, missing: int, avoided: int, result: int) -> None:
    """Bridge in place, linearly, pixels with a bit of `missing`, from ones without any of `avoided`.

    Along the row or the column, whichever has the shorter gap; from one side alone where the other has none
    within 12 pixels. The bit `result` is set, and the variance is that of the two ends added. Pixels with no
    good one in reach stay as they are.
    """
    pixels = _flagged(mask, missing)
    _bridge(image, variance, mask, pixels, avoided | missing, result)


def bits_about(mask: MaskPlane, x: Floats, y: Floats, reach: int) -> MaskPlane:
    """Mask bits within `reach` rows and columns of the pixels nearest to x, y (n,)."""
    ny, nx = mask.shape
    offset = np.arange(-reach, reach + 1)
    rows = np.floor(y + 0.5).astype(np.int64)[:, None, None] + offset[:, None]
    columns = np.floor(x + 0.5).astype(np.int64)[:, None, None] + offset
    on = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    bits = np.where(on, mask[np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)], np.uint16(0))
    result: MaskPlane = np.bitwise_or.reduce(bits, axis=(1, 2))
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _flagged(mask: MaskPlane, bit: int) -> Ints:
    """(n, 2): row and column of the pixels with one of the bits."""
    count, bits = 0, np.uint16(bit)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            count += (mask[y, x] & bits) != 0
    pixels = np.empty((count, 2), np.int64)
    n = 0
    for y in range(mask.shape[0]):
        any_in_row = False
        for x in range(mask.shape[1]):
            any_in_row |= (mask[y, x] & bits) != 0
        if any_in_row:
            for x in range(mask.shape[1]):
                if mask[y, x] & bits:
                    pixels[n, 0], pixels[n, 1] = y, x
                    n += 1
    return pixels


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(mask: MaskPlane, pixels: Ints, bit: int, along: int, across: int) -> None:
    ny, nx = mask.shape
    for k in range(pixels.shape[0]):
        for y in range(max(pixels[k, 0] - along, 0), min(pixels[k, 0] + along + 1, ny)):
            for x in range(max(pixels[k, 1] - across, 0), min(pixels[k, 1] + across + 1, nx)):
                mask[y, x] |= bit


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _paint(mask: MaskPlane, bit: int, xs: Floats, ys: Floats, radii: Floats) -> None:
    ny, nx = mask.shape
    for k in range(xs.size):
        r = radii[k]
        for y in range(max(int(np.ceil(ys[k] - r)), 0), min(int(np.floor(ys[k] + r)) + 1, ny)):
            half = np.sqrt(max(r * r - (y - ys[k]) ** 2, 0.0))
            for x in range(max(int(np.ceil(xs[k] - half)), 0), min(int(np.floor(xs[k] + half)) + 1, nx)):
                mask[y, x] |= bit


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _runs(mask: MaskPlane, bit: int) -> Ints:
    """(n, 3): row, first column, column after the last, of each run of flagged pixels."""
    pixels = _flagged(mask, bit)
    runs = np.empty((pixels.shape[0], 3), np.int64)
    n = 0
    for k in range(pixels.shape[0]):
        y, x = pixels[k, 0], pixels[k, 1]
        if n > 0 and runs[n - 1, 0] == y and runs[n - 1, 2] == x:
            runs[n - 1, 2] = x + 1
        else:
            runs[n, 0], runs[n, 1], runs[n, 2] = y, x, x + 1
            n += 1
    return runs[:n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _join(runs: Ints) -> Ints:
    """The representative of each run's group: union-find over runs that overlap in neighbouring rows."""
    parent = np.arange(runs.shape[0])
    above = 0
    for k in range(runs.shape[0]):
        while runs[above, 0] < runs[k, 0] - 1 or (runs[above, 0] == runs[k, 0] - 1 and runs[above, 2] <= runs[k, 1]):
            above += 1
        other = above
        while other < k and runs[other, 0] == runs[k, 0] - 1 and runs[other, 1] < runs[k, 2]:
            a, b = root(parent, k), root(parent, other)
            parent[max(a, b)] = min(a, b)
            other += 1
    for k in range(runs.shape[0]):
        parent[k] = root(parent, k)
    return parent


@numba.njit(cache=True, nogil=True, error_model="numpy")
def root(parent: Ints, k: int) -> int:
    """The representative of the group that `k` is in, in a union of `parent` (n,), whose paths are halved."""
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reach(mask: MaskPlane, y: int, x: int, dy: int, dx: int, avoided: int) -> int:
    """Steps to the nearest good pixel in a direction; 0 where there is none in reach."""
    ny, nx = mask.shape
    for step in range(1, _REACH + 1):
        j, i = y + step * dy, x + step * dx
        if j < 0 or j >= ny or i < 0 or i >= nx:
            return 0
        if mask[j, i] & avoided == 0:
            return step
    return 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bridge(image: Image, variance: Image, mask: MaskPlane, pixels: Ints, avoided: int, result: int) -> None:
    none = 4 * _REACH
    for k in range(pixels.shape[0]):
        y, x = pixels[k, 0], pixels[k, 1]
        best, by, bx, back, ahead = 2 * none, 0, 0, 0, 0
        for direction in range(2):
            dy, dx = direction, 1 - direction
            a, b = _reach(mask, y, x, -dy, -dx, avoided), _reach(mask, y, x, dy, dx, avoided)
            gap = (a or none) + (b or none)
            if gap < best:
                best, by, bx, back, ahead = gap, dy, dx, a, b
        if best == 2 * none:
            continue
        # One end alone stands in for both.
        back, ahead = back or -ahead, ahead or -back
        before, after = image[y - back * by, x - back * bx], image[y + ahead * by, x + ahead * bx]
        share = 0.5 if back + ahead == 0 else back / (back + ahead)
        image[y, x] = before * (1.0 - share) + after * share
        variance[y, x] = variance[y - back * by, x - back * bx] + variance[y + ahead * by, x + ahead * bx]
        mask[y, x] |= result
