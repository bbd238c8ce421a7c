"""Masks made larger."""

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import MaskPlane

Flags = NDArray[np.bool_]


def grown(mask: MaskPlane, bits: int, radius: int) -> Flags:
    """Where a pixel with any of `bits` lies within `radius` rows and columns: bool (ny, nx)."""
    out = np.zeros(mask.shape, np.bool_)
    _grow(mask, np.uint16(bits), radius, out)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(mask: MaskPlane, bits: np.uint16, radius: int, out: Flags) -> None:
    """Along each row, then down and up every column, counting the rows that a flag still reaches."""
    ny, nx = mask.shape
    wide = np.zeros((ny, nx), np.bool_)
    for y in range(ny):
        until = -1
        for x in range(nx):
            if mask[y, x] & bits:
                for c in range(max(x - radius, until, 0), min(x + radius + 1, nx)):
                    wide[y, c] = True
                until = min(x + radius + 1, nx)
    left = np.zeros(nx, np.int32)
    for y in range(ny):
        for x in range(nx):
            left[x] = radius + 1 if wide[y, x] else max(left[x] - 1, 0)
            out[y, x] = left[x] > 0
    left[:] = 0
    for y in range(ny - 1, -1, -1):
        for x in range(nx):
            left[x] = radius + 1 if wide[y, x] else max(left[x] - 1, 0)
            out[y, x] |= left[x] > 0
