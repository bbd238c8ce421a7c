"""The PSF of a coadd: the mean of its visits', each with the weight that it has there."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from payloads.drp.warps import CELL, cells_of
from payloads.imaging.psf_field import fit_psf, kernels_at, sample_points
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
        """(rows, columns, k, k), if any has weight. One without has its nearest neighbour's: none is extrapolated."""
        nearest = tuple(distance_transform_edt(self._weight == 0.0, return_distances=False, return_indices=True))
        result: Image = self._kernels[nearest] / self._weight[nearest][:, :, None, None].astype(np.float32)
        return result


def at_cells(blocks: Image, shape: tuple[int, int]) -> Image:
    """Kernels of a grid's blocks (rows, columns, k, k) as they are at the middles of its cells, linearly between."""
    middles = (_middles(n, cells) for n, cells in zip(shape, cells_of(shape), strict=True))
    along, across = (_between(at, BLOCK, n) for at, n in zip(middles, blocks.shape[:2], strict=True))
    return _joined(along, across, blocks)


def fitted(kernels: Image, shape: tuple[int, int]) -> Psf:
    """The smooth PSF over a grid nearest to those of its cells (rows, columns, k, k)."""
    rows, columns = kernels.shape[:2]
    x, y = np.meshgrid(_middles(shape[1], columns), _middles(shape[0], rows))
    order = min(_ORDER, min(rows, columns) - 1)
    return fit_psf(kernels.reshape(-1, *kernels.shape[2:]), x.ravel(), y.ravel(), order, shape)


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
    middles = (np.arange(n, dtype=np.float64) * BLOCK + (BLOCK - 1) / 2.0 for n in blocks_in(shape))
    along, across = (_between(at, CELL, n) for at, n in zip(middles, kernels.shape[:2], strict=True))
    return _joined(along, across, known)


def _middles(pixels: int, cells: int) -> Floats:
    edges = np.minimum(np.arange(cells + 1) * CELL, pixels)
    result: Floats = (edges[1:] + edges[:-1] - 1) / 2.0
    return result


def _between(at: Floats, side: int, n: int) -> Image:
    """(m, n): what each of n squares of a side contributes at places (pixels) along an axis, linearly."""
    place = np.clip((at + 0.5) / side - 0.5, 0.0, n - 1.0)
    result: Image = np.maximum(1.0 - np.abs(place[:, None] - np.arange(n)), 0.0).astype(np.float32)
    return result


def _joined(along: Image, across: Image, kernels: Image) -> Image:
    result: Image = np.einsum("ia,jb,abkl->ijkl", along, across, kernels, optimize=True)
    return result
