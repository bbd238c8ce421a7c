"""Warps brought to one PSF, so that they can be compared pixel by pixel: at half the resolution, for that is enough.

The common PSF is wider than every visit's, so that each is convolved and none deconvolved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.drp.psf_fourier import gaussian_transform, inverse, transform
from payloads.drp.warps import CELL, SPOILT, Warp
from payloads.imaging.convolve import convolve_blocks
from payloads.imaging.morphology import grown
from schemas.image import Image, Mask, MaskedImage, MaskPlane

Floats = NDArray[np.float64]

_NO_DATA, _BAD = np.uint16(Mask.NO_DATA), np.uint16(Mask.BAD)

BIN = 2
"""Pixels of a warp, a side, that are one here."""

_MUCH_WORSE = 1.3
"""FWHM, in the visits' median, beyond which one does not widen the common PSF."""
_WIDER = 1.12
"""Common PSF's FWHM in the widest one's: the kernels then fall off smoothly."""
_HALF = 8
"""Binned pixels that a kernel reaches: 16 of the warp's, where all but a few thousandths of a difference are."""
_NOISE = 1e-4
"""Power of a PSF, that of its sum being 1, below which a frequency is not restored."""
_UNSEEN, _SPILT = 4, 1
"""Binned pixels to which what is not there, what is spoilt, spoils its neighbours."""


@dataclass(frozen=True, eq=False)
class Binned:
    """A warp at half the resolution, on the whole grid.

    `image`: (ny / 2, nx / 2) nJy a pixel of the warp's, 0 where there is nothing; `flags`: NO_DATA there, BAD on what
    is spoilt. `kernels`: the warp's, in every cell.
    """

    image: Image
    flags: MaskPlane
    kernels: Image
    fwhm: float


@dataclass(frozen=True, eq=False)
class Target:
    """A PSF to bring warps to: its transform, its FWHM (pixels)."""

    transform: Floats
    fwhm: float


def halved(pixels: MaskedImage) -> tuple[Image, MaskPlane]:
    """Pixels (ny, nx), both even, at half the resolution: means of four, and flags as in `Binned`."""
    ny, nx = pixels.shape
    image, flags = np.empty((ny // BIN, nx // BIN), np.float32), np.empty((ny // BIN, nx // BIN), np.uint16)
    _bin(pixels.image, pixels.mask, SPOILT, image, flags)
    return image, flags


def binned(warp: Warp) -> Binned:
    """What is compared of a warp."""
    ny, nx = warp.shape[0] // BIN, warp.shape[1] // BIN
    image, flags = np.zeros((ny, nx), np.float32), np.full((ny, nx), _NO_DATA, np.uint16)
    place = tuple(slice(part.start // BIN, part.stop // BIN) for part in warp.place)
    image[place], flags[place] = halved(warp.pixels)
    mean = warp.kernels[warp.covered].mean(0)
    kernels = np.where(warp.covered[:, :, None, None], warp.kernels, mean).astype(np.float32)
    return Binned(image, flags, kernels, warp.fwhm)


def targets(warps: Sequence[Binned]) -> list[Target]:
    """To what each is brought: one PSF, wider by a tenth than the widest's of those up to 1.3 times the median's width.

    A visit wider than that has a target of its own, as much wider than its PSF is.
    """
    widths = np.array([warp.fwhm for warp in warps])
    usual = widths <= _MUCH_WORSE * np.median(widths)
    common = _target(warps[int(np.argmax(np.where(usual, widths, 0.0)))])
    return [common if one else _target(warp) for one, warp in zip(usual, warps, strict=True)]


def matched(warp: Binned, target: Target) -> Image:
    """(ny / 2, nx / 2) nJy a pixel of the warp's, with the PSF of the target; NaN where not good.

    Not good is what has a spoilt pixel in it or beside it, or has an edge within 8 pixels.
    """
    rows = warp.kernels.shape[:2]
    kernels = _matching(warp.kernels.reshape(-1, *warp.kernels.shape[2:]), target.transform)
    result = convolve_blocks(warp.image, kernels.reshape(*rows, *kernels.shape[1:]), CELL // BIN)
    lost = grown(warp.flags, int(_NO_DATA), _UNSEEN) | grown(warp.flags, int(_BAD), _SPILT)
    lost[:_HALF], lost[-_HALF:], lost[:, :_HALF], lost[:, -_HALF:] = True, True, True, True
    result[lost] = np.nan
    return result


def _target(warp: Binned) -> Target:
    mean = warp.kernels.mean((0, 1))
    added = warp.fwhm * np.sqrt(_WIDER**2 - 1.0)
    return Target(np.abs(transform(mean)) * gaussian_transform(added), warp.fwhm * _WIDER)


def _matching(psfs: Image, target: Floats) -> Image:
    """(n, 17, 17): kernels on binned pixels, sum 1, that take PSFs (n, k, k) to the target."""
    psf = transform(psfs)
    taps = inverse(target * psf.conj() / (np.abs(psf) ** 2 + _NOISE), 2 * BIN * _HALF + 1)[:, ::BIN, ::BIN]
    result: Image = (taps / taps.sum((1, 2), keepdims=True)).astype(np.float32)
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bin(image: Image, mask: MaskPlane, spoilt: np.uint16, binned: Image, flags: MaskPlane) -> None:
    """Means of 2 x 2 pixels; NO_DATA where one is not finite, else BAD where one is spoilt. What is not finite is 0."""
    for y in range(binned.shape[0]):
        for x in range(binned.shape[1]):
            total, seen = np.float32(0.0), np.uint16(0)
            missing = False
            for r in range(2 * y, 2 * y + 2):
                for c in range(2 * x, 2 * x + 2):
                    seen |= mask[r, c]
                    if np.isfinite(image[r, c]):
                        total += image[r, c]
                    else:
                        missing = True
            binned[y, x] = np.float32(0.25) * total
            flags[y, x] = _NO_DATA if missing else (_BAD if seen & spoilt else np.uint16(0))
