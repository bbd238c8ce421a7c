"""A visit on a patch's pixels: its detectors resampled onto the sky's grid and put side by side.

A direct warp: pixels are interpolated and nothing more, so that it has the visit's own PSF, which is kept at the
middle of every cell of the grid. Coadds are made of such (Rubin's DMTN-080).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from payloads.imaging import mask_ops
from payloads.imaging.psf_field import turned_kernels, with_corners
from payloads.imaging.stars import FWHM_OF_SIGMA
from payloads.imaging.warp import warp
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, Psf, VisitImage
from schemas.skymap import Box, Tract
from schemas.wcs import Wcs

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MARGIN = 64
"""Pixels about a patch that warps and coadds have beside its own: what lies on its edge is seen whole."""
CELL = 272
"""Pixels a side of the cells in which a PSF is known: 8 x 8 cover a patch and its margin."""

SPOILT = np.uint16(
    Mask.BAD | Mask.SAT | Mask.CR | Mask.NO_DATA | Mask.UNMASKED_NAN | Mask.STREAK | Mask.EDGE | Mask.VIGNETTED
)
"""Pixels of a visit with any of these bits tell nothing of the sky."""

_THINNED = 4
"""Every so many rows and columns are enough for a median."""

_SMALL = (Mask.BAD, Mask.CR, Mask.STREAK, Mask.UNMASKED_NAN)
"""Bits that single pixels have: they are carried a pixel farther, as interpolation carries what they hold."""


class NothingThere(BadData):
    """No pixel of a visit lies on a patch, though its regions touch."""


@dataclass(frozen=True, eq=False)
class Warp:
    """One visit on a patch's grid of `shape` (ny, nx), which has a margin of `MARGIN` pixels; `wcs`: of the grid.

    `pixels`: nJy, of the part of the grid that has any, whose first pixel is (`x0`, `y0`), both even; NaN with infinite
    variance and NO_DATA where there are none. The variance is a PSF-sized sum's (see `payloads.imaging.warp`).
    `kernels`: (rows, columns, k, k), the PSF at each cell of `CELL` pixels, sum 1, NaN in cells without a pixel.
    `sky_variance`: nJy**2, the median; `fwhm`: pixels, of the Gaussian with the PSF's noise area; `midpoint`: TAI s.
    """

    visit: int
    detectors: tuple[int, ...]
    band: str
    midpoint: float
    exposure_time: float
    shape: tuple[int, int]
    wcs: Wcs
    x0: int
    y0: int
    pixels: MaskedImage
    kernels: Image
    sky_variance: float
    fwhm: float

    @property
    def covered(self) -> Bools:
        """(rows, columns): cells with a pixel."""
        result: Bools = np.isfinite(self.kernels[:, :, 0, 0])
        return result

    @property
    def place(self) -> tuple[slice, slice]:
        """Where `pixels` lies in the grid."""
        ny, nx = self.pixels.shape
        return slice(self.y0, self.y0 + ny), slice(self.x0, self.x0 + nx)


@dataclass(frozen=True, eq=False)
class _Part:
    """A detector's pixels in the grid, before they are put with the others'."""

    image: VisitImage
    box: Box
    pixels: MaskedImage


def grid_of(tract: Tract, patch: int) -> tuple[Wcs, tuple[int, int]]:
    """WCS and (ny, nx) of the grid of a patch's warps and coadds."""
    box = _with_margin(tract, patch)
    return tract.wcs.shifted(box.x0, box.y0), box.shape


def make_warp(images: Sequence[tuple[int, VisitImage]], tract: Tract, patch: int, visit: int) -> Warp:
    """The detectors (number, image) of a visit on the grid of a patch, each source with its flux.

    Where two detectors claim a pixel, the first has it. Raises BadData if they are of several bands,
    NothingThere if none has a pixel there.
    """
    name = f"visit {visit} on patch {patch} of tract {tract.id}"
    bands = {image.band for _, image in images}
    if len(bands) > 1:
        raise BadData(f"{name}: detectors in several bands, {sorted(bands)}")
    wcs, shape = grid_of(tract, patch)
    found = [(number, _part(image, tract, patch, wcs)) for number, image in images]
    parts = [(number, part) for number, part in found if part is not None]
    if not parts:
        raise NothingThere(f"{name}: no detector of {[number for number, _ in images]} has a pixel there")
    return _joined(visit, parts, wcs, shape)


def turned(psf: Psf, source: Wcs, grid: Wcs, x: Floats, y: Floats) -> Image:
    """(n, k, k): an image's PSF at pixels x, y (n,) of a grid, of sum 1 in a stamp of the size that it has there.

    Fluxes are those within that stamp, and a turned square holds as much: so it must have its corners.
    """
    kernels = turned_kernels(with_corners(psf), source, grid, x, y)
    edge = (kernels.shape[1] - psf.components.shape[1]) // 2
    stamps = kernels[:, edge:-edge, edge:-edge]
    result: Image = stamps / stamps.sum((1, 2), keepdims=True)
    return result


def cells_of(shape: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the cells that cover a grid."""
    return -(-shape[0] // CELL), -(-shape[1] // CELL)


def _noise_area_fwhm(kernels: Image) -> float:
    """FWHM (pixels) of the round Gaussian with the mean noise area, 1 / sum p**2, of kernels (n, k, k)."""
    squares = (kernels.astype(np.float64) ** 2).sum((-2, -1))
    return float(FWHM_OF_SIGMA / np.sqrt(4.0 * np.pi * squares.mean()))


def _joined(visit: int, parts: Sequence[tuple[int, _Part]], wcs: Wcs, shape: tuple[int, int]) -> Warp:
    boxes = [part.box for _, part in parts]
    whole = Box(*(min(getattr(b, n) for b in boxes) for n in ("x0", "y0")),
                *(max(getattr(b, n) for b in boxes) for n in ("x1", "y1")))  # fmt: skip
    pixels = _empty(whole.shape)
    kernels, first = _no_kernels([part for _, part in parts], shape), parts[0][1].image
    most = np.zeros(kernels.shape[:2], np.int64)
    for _, part in parts:
        _paste(pixels, part, whole)
        _put_kernels(kernels, most, part, wcs, shape)
    sample = np.s_[::_THINNED, ::_THINNED]
    variance = pixels.variance[sample]
    good = variance[((pixels.mask[sample] & SPOILT) == 0) & np.isfinite(variance) & (variance > 0.0)]
    known = kernels[np.isfinite(kernels[:, :, 0, 0])]
    return Warp(
        visit=visit, detectors=tuple(number for number, _ in parts), band=first.band, midpoint=first.midpoint,
        exposure_time=first.exposure_time, shape=shape, wcs=wcs, x0=whole.x0, y0=whole.y0, pixels=pixels,
        kernels=kernels, sky_variance=float(np.median(good)) if good.size else np.inf, fwhm=_noise_area_fwhm(known),
    )  # fmt: skip


def _with_margin(tract: Tract, patch: int) -> Box:
    box = tract.patch_box(patch)
    return Box(box.x0 - MARGIN, box.y0 - MARGIN, box.x1 + MARGIN, box.y1 + MARGIN)


def _part(image: VisitImage, tract: Tract, patch: int, wcs: Wcs) -> _Part | None:
    """An image's part of the grid, from an even pixel to another; None if it has none."""
    grid, seen = _with_margin(tract, patch), tract.box_of(image.wcs, image.pixels.shape, 0)
    x0, y0 = max(seen.x0 - grid.x0, 0) & ~1, max(seen.y0 - grid.y0, 0) & ~1
    x1, y1 = min(seen.x1, grid.x1) - grid.x0 + 1 & ~1, min(seen.y1, grid.y1) - grid.y0 + 1 & ~1
    if x0 >= x1 or y0 >= y1:
        return None
    mask = image.pixels.mask.copy()
    for bit in _SMALL:
        mask_ops.grow(mask, bit, 1, 1)
    box = Box(x0, y0, x1, y1)
    grown = replace(image, pixels=replace(image.pixels, mask=mask))
    pixels = warp(grown, wcs.shifted(x0, y0), box.shape)
    return None if np.isnan(pixels.image).all() else _Part(image, box, pixels)


def _empty(shape: tuple[int, int]) -> MaskedImage:
    return MaskedImage(
        np.full(shape, np.nan, np.float32), np.full(shape, Mask.NO_DATA, np.uint16), np.full(shape, np.inf, np.float32)
    )


def _paste(pixels: MaskedImage, part: _Part, whole: Box) -> None:
    box = part.box
    here = slice(box.y0 - whole.y0, box.y1 - whole.y0), slice(box.x0 - whole.x0, box.x1 - whole.x0)
    free = np.isnan(pixels.image[here])
    for name in ("image", "mask", "variance"):
        np.copyto(getattr(pixels, name)[here], getattr(part.pixels, name), where=free)


def _no_kernels(parts: Sequence[_Part], shape: tuple[int, int]) -> Image:
    size = max(part.image.psf.components.shape[1] for part in parts)
    return np.full((*cells_of(shape), size, size), np.nan, np.float32)


def _put_kernels(kernels: Image, most: NDArray[np.int64], part: _Part, wcs: Wcs, shape: tuple[int, int]) -> None:
    """A detector's PSF in the cells of which it has more pixels than those before it, at the middle of its pixels."""
    count, x, y = _centroids(part, shape)
    chosen = count > most
    most[chosen] = count[chosen]
    if chosen.any():
        here = turned(part.image.psf, part.image.wcs, wcs, x[chosen], y[chosen])
        edge = (kernels.shape[2] - here.shape[1]) // 2
        kernels[chosen] = np.pad(here, ((0, 0), (edge, edge), (edge, edge)))


def _centroids(part: _Part, shape: tuple[int, int]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """How many pixels a part has in each cell, and the middle of them."""
    box, (rows, columns) = part.box, cells_of(shape)
    count, x, y = np.zeros((rows, columns), np.int64), np.zeros((rows, columns)), np.zeros((rows, columns))
    for j in range(box.y0 // CELL, -(-box.y1 // CELL)):
        for i in range(box.x0 // CELL, -(-box.x1 // CELL)):
            y0, x0 = max(j * CELL, box.y0), max(i * CELL, box.x0)
            cell = part.pixels.image[y0 - box.y0 : (j + 1) * CELL - box.y0, x0 - box.x0 : (i + 1) * CELL - box.x0]
            there = np.isfinite(cell)
            count[j, i] = there.sum()
            if count[j, i]:
                x[j, i] = x0 + (there.sum(0) * np.arange(there.shape[1])).sum() / count[j, i]
                y[j, i] = y0 + (there.sum(1) * np.arange(there.shape[0])).sum() / count[j, i]
    return count, x, y
