"""The sums that a coadd is made of, visit by visit."""

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from payloads.drp.coadd_psf import BLOCK, blocks_in
from payloads.drp.warps import MARGIN, SPOILT, Warp
from schemas.image import INPUT_BITS, Image, Mask, MaskedImage, MaskPlane

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_SAT, _HALO, _BAD, _NO_DATA = (np.uint16(bit) for bit in (Mask.SAT, Mask.HALO, Mask.BAD, Mask.NO_DATA))
_SAT_FROM, _HALO_FROM = np.float32(0.1), np.float32(0.5)
"""Part of all weight, of the good one, with these bits, from which a coadd has them too."""
_GOOD, _SPOILT = 0, 1
_RAMP = MARGIN
"""Pixels over which a visit's weight falls to its edges: no more than what a patch sees of what is beside it."""
_AT_EDGE = 1e-3


class Sums:
    """Of a grid (ny, nx): weights, weighted pixels, weighted variances, of good pixels and of spoilt ones."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._weight, self._image, self._variance = (np.zeros((2, *shape), np.float32) for _ in range(3))
        self._saturated, self._halo = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._depth = np.zeros(shape, np.uint16)
        self._taken: list[MaskPlane] = []
        self._visits = 0

    def add(self, warp: Warp, sky: Image, artefacts: Bools) -> Floats:
        """Add a visit less its `sky` (ny, nx), without its `artefacts` (ny / 2, nx / 2).

        What it weighs in each of the blocks of `payloads.drp.coadd_psf`, (rows, columns): in the mean of what it has of
        their pixels, for stars have their cores from all visits though one is left out beside them; unless that is less
        than half of them.
        """
        used, count = np.zeros(blocks_in(self._depth.shape)), np.zeros(blocks_in(self._depth.shape), np.int64)
        pixels, bit = warp.pixels, self._visits % INPUT_BITS
        if bit == 0:
            self._taken.append(np.zeros((self._depth.shape[0] // 2, self._depth.shape[1] // 2), np.uint16))
        self._visits += 1
        _add(
            pixels.image, pixels.variance, pixels.mask, warp.x0, warp.y0, sky, artefacts,
            ramp(warp) / np.float32(warp.sky_variance), self._weight, self._image, self._variance, self._saturated,
            self._halo, self._depth, self._taken[-1], np.uint16(1 << bit), used, count,
        )  # fmt: skip
        return used / np.maximum(count, BLOCK * BLOCK // 2)

    @property
    def taken(self) -> MaskPlane:
        """Of which visits, as `schemas.image.Inputs` has it."""
        return np.stack(self._taken)

    def result(self) -> tuple[MaskedImage, NDArray[np.uint16]]:
        """The coadd's pixels, and of how many visits each is the mean; once, for it writes over the sums."""
        image, variance = self._image[_GOOD], self._variance[_GOOD]
        mask = np.zeros(image.shape, np.uint16)
        _finish(self._weight, self._image, self._variance, self._saturated, self._halo, image, variance, mask)
        return MaskedImage(image, mask, variance), self._depth


def ramp(warp: Warp) -> Image:
    """(ny / 2, nx / 2): 1, but towards the visit's edges, over `MARGIN` pixels along rows and columns, less and less.

    So that a coadd's PSF changes there by and by, and a star has but one.
    """
    there = np.zeros((warp.shape[0] // 2, warp.shape[1] // 2), bool)
    place = tuple(slice(part.start // 2, part.stop // 2) for part in warp.place)
    there[place] = np.isfinite(warp.pixels.image[::2, ::2])
    if there.all():
        return np.ones(there.shape, np.float32)
    steps = np.sin(np.linspace(0.0, np.pi / 2.0, _RAMP // 2 + 1, dtype=np.float32)) ** 2
    distance = distance_transform_cdt(there, metric="taxicab")
    result: Image = np.maximum(steps, np.float32(_AT_EDGE))[np.minimum(distance, _RAMP // 2)]
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(
    image: Image, variance: Image, mask: MaskPlane, x0: int, y0: int, sky: Image, artefacts: Bools,
    weights_of: Image, weights: Image, images: Image, variances: Image, saturated: Image, halo: Image,
    depth: NDArray[np.uint16], taken: MaskPlane, bit: np.uint16, used: Floats, count: NDArray[np.int64],
) -> None:  # fmt: skip
    for r in range(image.shape[0]):
        y = y0 + r
        for c in range(image.shape[1]):
            x = x0 + c
            value = image[r, c]
            if not (np.isfinite(value) and np.isfinite(variance[r, c])):
                continue
            bits, weight = mask[r, c], weights_of[y // 2, x // 2]
            if bits & _SAT:
                saturated[y, x] += weight
            kind = _SPOILT if bits & SPOILT else _GOOD
            if kind == _GOOD:
                if artefacts[y // 2, x // 2]:
                    continue
                depth[y, x] += 1
                if not y & 1 and not x & 1:
                    taken[y // 2, x // 2] |= bit
                used[y // BLOCK, x // BLOCK] += weight
                count[y // BLOCK, x // BLOCK] += 1
                if bits & _HALO:
                    halo[y, x] += weight
            weights[kind, y, x] += weight
            images[kind, y, x] += weight * (value - sky[y, x])
            variances[kind, y, x] += weight * weight * variance[r, c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _finish(
    weights: Image, images: Image, variances: Image, saturated: Image, halo: Image,
    image: Image, variance: Image, mask: MaskPlane,
) -> None:  # fmt: skip
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            good, every = weights[_GOOD, y, x], weights[_GOOD, y, x] + weights[_SPOILT, y, x]
            kind = _GOOD if good > 0.0 else _SPOILT
            total = weights[kind, y, x]
            if not every > 0.0:
                image[y, x], variance[y, x], mask[y, x] = np.nan, np.inf, _NO_DATA
                continue
            image[y, x] = images[kind, y, x] / total
            variance[y, x] = variances[kind, y, x] / (total * total)
            if kind == _SPOILT:
                mask[y, x] |= _BAD
            if saturated[y, x] >= _SAT_FROM * (good + saturated[y, x]):
                mask[y, x] |= _SAT if saturated[y, x] > 0.0 else np.uint16(0)
            if halo[y, x] > _HALO_FROM * good:
                mask[y, x] |= _HALO
