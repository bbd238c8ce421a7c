"""The PSF of a coadd: the mean of its visits', each with the weight that it has there."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from payloads.drp.warps import CELL
from payloads.imaging.psf_field import fit_psf, kernels_at, sample_points
from schemas.image import Image, Psf

Floats = NDArray[np.float64]

_ORDER = 2


class PsfSum:
    """Kernels added up cell by cell, and how much weight there is."""

    def __init__(self) -> None:
        self._kernels: Floats = np.zeros((0, 0, 1, 1))
        self._weight: Floats = np.zeros((0, 0))

    def add(self, kernels: Image, weight: Floats) -> None:
        """A visit's kernels (rows, columns, k, k), NaN where there is none, with weights (rows, columns)."""
        if not self._weight.size:
            self._kernels, self._weight = np.zeros((*weight.shape, 1, 1)), np.zeros(weight.shape)
        size = max(kernels.shape[-1], self._kernels.shape[-1])
        known = np.isfinite(kernels[:, :, 0, 0])
        weight = np.where(known, weight, 0.0)
        visit = np.where(known[:, :, None, None], kernels, 0.0)
        self._kernels = _padded(self._kernels, size) + _padded(visit, size) * weight[:, :, None, None]
        self._weight += weight

    def psf(self, shape: tuple[int, int]) -> Psf:
        """Over a grid (ny, nx). A cell without weight has its nearest neighbour's: nothing is extrapolated."""
        nearest = distance_transform_edt(self._weight == 0.0, return_distances=False, return_indices=True)
        means = self._kernels[tuple(nearest)] / self._weight[tuple(nearest)][:, :, None, None]
        rows, columns = self._weight.shape
        x, y = np.meshgrid(_middles(shape[1], columns), _middles(shape[0], rows))
        order = min(_ORDER, min(rows, columns) - 1)
        kernels = means.reshape(-1, *means.shape[2:]).astype(np.float32)
        return fit_psf(kernels, x.ravel(), y.ravel(), order, shape)


def psf_within(psf: Psf, margin: int) -> Psf:
    """The same PSF over its image less a margin (pixels) on each side."""
    ny, nx = psf.shape[0] - 2 * margin, psf.shape[1] - 2 * margin
    x, y = sample_points((ny, nx))
    return fit_psf(kernels_at(psf, x + margin, y + margin), x, y, psf.order, (ny, nx))


def _middles(n: int, cells: int) -> Floats:
    edges = np.minimum(np.arange(cells + 1) * CELL, n)
    result: Floats = (edges[1:] + edges[:-1] - 1) / 2.0
    return result


def _padded(kernels: Floats, size: int) -> Floats:
    edge = (size - kernels.shape[-1]) // 2
    return np.pad(kernels, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
