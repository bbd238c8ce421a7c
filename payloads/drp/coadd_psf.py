"""The PSF of a coadd: the mean of its visits', each with the weight that it has there."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from payloads.drp.warps import CELL
from payloads.imaging.convolve import blocks_of
from payloads.imaging.psf_field import fit_psf, kernels_at, sample_points
from schemas.errors import BadData
from schemas.image import INPUT_BLOCK, Image, Psf

Floats = NDArray[np.float64]

BLOCK = INPUT_BLOCK
"""Pixels a side of the squares in which the PSF is told: less than visits' weights take to fall to their edges."""

_ORDER = 2


def blocks_in(shape: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the blocks that cover a grid."""
    return -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)


class PsfSum:
    """Of a grid (ny, nx): the visits' PSFs added up block by block, and how much weight there is."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._weight: Floats = np.zeros(blocks_in(shape))
        self._kernels: Image = np.zeros((*self._weight.shape, 1, 1), np.float32)

    def add(self, kernels: Image, weight: Floats) -> None:
        """A visit's kernels in its cells (rows, columns, k, k), NaN where there is none; its weights in the blocks."""
        size = max(kernels.shape[-1], self._kernels.shape[-1])
        self._kernels = padded(self._kernels, size)
        told = weight > 0.0
        if told.any():
            visit = padded(_on_blocks(kernels, self._shape), size)
            self._kernels[told] += visit[told] * weight[told, None, None].astype(np.float32)
            self._weight += weight

    def means(self) -> Image:
        """(rows, columns, k, k). A block without weight has its nearest neighbour's: nothing is extrapolated.

        Raises BadData if none has weight.
        """
        if not (self._weight > 0.0).any():
            raise BadData("no good pixel in any visit")
        nearest = tuple(distance_transform_edt(self._weight == 0.0, return_distances=False, return_indices=True))
        result: Image = self._kernels[nearest] / self._weight[nearest][:, :, None, None].astype(np.float32)
        return result


def psf_of(means: Image, shape: tuple[int, int], every: int = 1) -> Psf:
    """The smooth PSF over a grid nearest to those of its blocks, or of one row and column of `every` so many."""
    x, y = (middles[::every, ::every] for middles in blocks_of(shape, BLOCK))
    order = min(_ORDER, min(x.shape) - 1)
    return fit_psf(means.reshape(-1, *means.shape[2:]), x.ravel(), y.ravel(), order, shape)


def psf_within(psf: Psf, margin: int) -> Psf:
    """The same PSF over its image less a margin (pixels) on each side."""
    ny, nx = psf.shape[0] - 2 * margin, psf.shape[1] - 2 * margin
    x, y = sample_points((ny, nx))
    return fit_psf(kernels_at(psf, x + margin, y + margin), x, y, psf.order, (ny, nx))


def padded(kernels: Image, size: int) -> Image:
    """Kernels (..., k, k) in the middle of zeros (..., size, size); k and size are odd, size not the smaller."""
    edge = (size - kernels.shape[-1]) // 2
    return np.pad(kernels, [(0, 0)] * (kernels.ndim - 2) + [(edge, edge)] * 2)


def _on_blocks(kernels: Image, shape: tuple[int, int]) -> Image:
    """Those of cells (rows, columns, k, k) at the middles of a grid's blocks, linearly between the cells' middles."""
    unknown = ~np.isfinite(kernels[:, :, 0, 0])
    known = kernels[tuple(distance_transform_edt(unknown, return_distances=False, return_indices=True))]
    along, across = (_between(n, of) for n, of in zip(shape, kernels.shape[:2], strict=True))
    result: Image = np.einsum("ia,jb,abkl->ijkl", along, across, known, optimize=True)
    return result


def _between(pixels: int, cells: int) -> Image:
    """(blocks, cells): what each cell along an axis contributes to each block."""
    place = ((np.arange(-(-pixels // BLOCK)) + 0.5) * BLOCK - 0.5 * CELL) / CELL
    parts = 1.0 - np.abs(np.clip(place, 0.0, cells - 1.0)[:, None] - np.arange(cells))
    result: Image = np.maximum(parts, 0.0).astype(np.float32)
    return result
