"""Pixels not to be trusted, from the bias, the dark and a flat.

Hot pixels, which gather charge in the dark; dead and bright ones, which differ from the flat around them; noisy or lost
ones, of which too little was kept; and columns of which much is bad: the whole run between its worst ends, for
what hurts a column (a trap, a blocked channel) hurts what is read through it (kinds of defects: Plazas Malagon et
al. 2024, arXiv:2404.14516).
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.calibration.bias import Bias
from payloads.calibration.dark import Dark
from payloads.calibration.flat import Flat
from payloads.calibration.frames import part_of
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane
from schemas.instrument import Detector

HOT = 2.0
"""Electrons/s above the amplifier's median: 60 in a visit of 30 s, over twice the sky's noise."""
DEAD, BRIGHT = 0.8, 1.2
"""Of the median of the flat about a pixel."""
OFF_BIAS = 50.0
"""ADU from the bias' median in the amplifier."""
VIGNETTED = 0.7
"""Of the light on the axis."""
_SIGNIFICANT = 6.0
_TILE = 16
"""Pixels: across it even the corner's vignetting is under 5 %."""
_RUN = 20
"""Bad pixels of an amplifier's column from which on it is a bad column."""


@dataclass(frozen=True, eq=False)
class Defects:
    """`plane`: (ny, nx) of BAD and VIGNETTED. The counts are of pixels, before columns were closed."""

    detector: int
    plane: MaskPlane
    hot: int
    dead: int
    columns: int


def find_defects(detector: Detector, bias: Bias, dark: Dark, flat: Flat, axis_rate: float) -> Defects:
    """The defects of a detector. `axis_rate`: `Flat.rate` of a detector on the axis under the same lamp, electrons/s.

    Raises BadData if the parts are of other detectors.
    """
    for part in (bias, dark, flat):
        if part.detector != detector.id:
            raise BadData(f"defects of detector {detector.id}: a {type(part).__name__} of detector {part.detector}")
    odd, hot = np.zeros(flat.pixels.image.shape, bool), np.zeros(flat.pixels.image.shape, bool)
    for amplifier in detector.amplifiers:
        off = _above_median(part_of(bias.pixels.image, amplifier, detector))
        part_of(odd, amplifier, detector)[:] = np.abs(off) > OFF_BIAS
        rate = _above_median(part_of(dark.pixels.image, amplifier, detector))
        error = np.sqrt(part_of(dark.pixels.variance, amplifier, detector))
        part_of(hot, amplifier, detector)[:] = rate > np.maximum(HOT, _SIGNIFICANT * error)
    around = local_median(flat.pixels.image)
    dead = (flat.pixels.image < DEAD * around) | (flat.pixels.image > BRIGHT * around)
    lost = (bias.pixels.mask | dark.pixels.mask | flat.pixels.mask) != 0
    bad = odd | hot | dead | lost
    columns = sum(int(_close_columns(part_of(bad, amplifier, detector), _RUN)) for amplifier in detector.amplifiers)
    plane = np.where(bad, np.uint16(Mask.BAD), np.uint16(0))
    plane[around * flat.rate < VIGNETTED * axis_rate] |= np.uint16(Mask.VIGNETTED)
    return Defects(detector.id, plane, int(hot.sum()), int(dead.sum()), columns)


def _above_median(part: Image) -> Image:
    return part - np.median(part[::4, ::4])


def local_median(image: Image) -> Image:
    """(ny, nx): the median of the square of 16 pixels (fewer at the ends) that a pixel lies in."""
    ny, nx = image.shape
    around = np.empty_like(image)
    for y in range(0, ny, _TILE):
        rows = image[y : y + _TILE]
        whole = nx // _TILE * _TILE
        if whole:
            tiles = rows[:, :whole].reshape(len(rows), -1, _TILE).swapaxes(0, 1).reshape(whole // _TILE, -1)
            around[y : y + _TILE, :whole] = np.median(tiles, axis=1).repeat(_TILE)
        if whole < nx:
            around[y : y + _TILE, whole:] = np.median(rows[:, whole:])
    return around


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _close_columns(bad: NDArray[np.bool_], least: int) -> int:
    """Fill the columns that have so many bad pixels, from the first to the last of them, in place; how many."""
    ny, nx = bad.shape
    found = 0
    for x in range(nx):
        count, first, last = 0, ny, -1
        for y in range(ny):
            if bad[y, x]:
                count += 1
                first = min(first, y)
                last = y
        if count >= least:
            found += 1
            for y in range(first, last + 1):
                bad[y, x] = True
    return found
