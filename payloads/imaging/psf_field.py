"""A PSF over an image: evaluated at many places, fitted to kernels, taken to another grid of pixels."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from schemas.image import Image, Psf
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

_GRID = 6


def kernels_at(psf: Psf, x: Floats, y: Floats) -> Image:
    """`psf.at` for arrays: (n, k, k), each of sum 1."""
    kernels = np.tensordot(_terms(x, y, psf.order, psf.shape), psf.components.astype(np.float64), 1)
    result: Image = (kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)
    return result


def kernel_sigma(kernel: Image) -> float:
    """Sigma (pixels) of the Gaussian with the noise area, 1 / sum p**2, of a kernel (k, k) of sum 1."""
    return float(np.sqrt(1.0 / (4.0 * np.pi * (kernel.astype(np.float64) ** 2).sum())))


def fit_psf(kernels: Image, x: Floats, y: Floats, order: int, shape: tuple[int, int]) -> Psf:
    """The PSF of that order over `shape` (ny, nx) nearest to `kernels` (n, k, k) at pixels x, y (n,)."""
    n, k, _ = kernels.shape
    terms = _terms(x, y, order, shape)
    components = np.linalg.lstsq(terms, kernels.reshape(n, -1).astype(np.float64), rcond=None)[0]
    return Psf(components.reshape(-1, k, k).astype(np.float32), order, shape)


def sample_points(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """x, y (36,) of a grid over `shape` (ny, nx), dense enough to fit a PSF of order up to 4."""
    x, y = np.meshgrid(np.linspace(0.0, shape[1] - 1.0, _GRID), np.linspace(0.0, shape[0] - 1.0, _GRID))
    return x.ravel(), y.ravel()


def warp_psf(psf: Psf, source: Wcs, target: Wcs, shape: tuple[int, int]) -> Psf:
    """A PSF known on the grid of `source` as it is on that of `target` (ny, nx), turned and stretched."""
    x, y = sample_points(shape)
    return fit_psf(turned_kernels(psf, source, target, x, y), x, y, max(psf.order, 1), shape)


def turned_kernels(psf: Psf, source: Wcs, target: Wcs, x: Floats, y: Floats) -> Image:
    """(n, k, k): a PSF known on the grid of `source` as it is at pixels x, y (n,) of `target`'s, each of sum 1.

    0 where it is not known: the corners of a turned stamp, see `with_corners`.
    """
    places = np.stack(source.sky_to_pixel(*target.pixel_to_sky(x, y)), axis=1)
    jacobians = _jacobians(source, target, x, y)
    return np.stack([_turned(psf.at(*place), j) for place, j in zip(places, jacobians, strict=True)])


def with_corners(psf: Psf) -> Psf:
    """The same PSF on a stamp that has no fewer pixels than it however it is turned.

    Beyond its own square it is what the pixels as far from the middle have in the mean: those of its corners.
    """
    half = psf.components.shape[1] // 2
    wide = int(np.ceil(np.sqrt(2.0) * half)) + 1
    offset = np.arange(-wide, wide + 1.0)
    radius, own = np.hypot(offset[:, None], offset), slice(wide - half, wide + half + 1)
    ring = radius[own, own].round().astype(np.int64).ravel()
    count = np.bincount(ring)
    rings = np.stack([np.bincount(ring, part.ravel()) / count for part in psf.components])
    at = np.bincount(ring, radius[own, own].ravel()) / count
    result: Image = np.stack([np.interp(radius, at, values) for values in rings]).astype(np.float32)
    result[:, own, own] = psf.components
    return Psf(result, psf.order, psf.shape)


def _terms(x: Floats, y: Floats, order: int, shape: tuple[int, int]) -> Floats:
    u, v = 2.0 * x / max(shape[1] - 1, 1) - 1.0, 2.0 * y / max(shape[0] - 1, 1) - 1.0
    return np.stack([u**i * v**j for i in range(order + 1) for j in range(order + 1 - i)], axis=-1)


def _jacobians(source: Wcs, target: Wcs, x: Floats, y: Floats) -> Floats:
    """(n, 2, 2): d(x, y of the source) / d(x, y of the target)."""
    columns = []
    for dx, dy in ((1.0, 0.0), (0.0, 1.0)):
        ahead = np.stack(source.sky_to_pixel(*target.pixel_to_sky(x + dx, y + dy)))
        behind = np.stack(source.sky_to_pixel(*target.pixel_to_sky(x - dx, y - dy)))
        columns.append((ahead - behind).T / 2.0)
    return np.stack(columns, axis=-1)


def _turned(kernel: Image, jacobian: Floats) -> Image:
    half = kernel.shape[0] // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    sx, sy = np.tensordot(jacobian, np.stack([u, v]), 1)
    turned = map_coordinates(kernel.astype(np.float64), [sy + half, sx + half], order=5, mode="constant")
    result: Image = (turned / turned.sum()).astype(np.float32)
    return result
