"""PSF models moved to another domain: a `Psf`'s u and v run from -1 to 1 over the image it belongs to."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.image import Psf
from schemas.skymap import Box

Floats = NDArray[np.float64]
_SAMPLES = 5


def psf_in_box(psf: Psf, box: Box) -> Psf:
    """The same model over the part of its image in `box`, exactly: one u is linear in the other."""
    x, y = _grid(box, psf.order + 1)
    whole = _terms(x, y, psf.order, psf.shape)
    part = _terms(x - box.x0, y - box.y0, psf.order, box.shape)
    change = np.linalg.lstsq(part, whole, rcond=None)[0]
    return Psf(np.tensordot(change, psf.components, 1).astype(np.float32), psf.order, box.shape)


def psf_of_mosaic(pieces: Sequence[tuple[Box, Psf]], shape: tuple[int, int]) -> Psf:
    """One PSF for a mosaic of `shape` (ny, nx) from those of its pieces, each over a box of its pixels.

    Least squares over a grid of places in each piece, with the highest order that a piece has; kernels of
    different size are padded with zeros to the largest.
    """
    order = max(psf.order for _, psf in pieces)
    size = max(psf.components.shape[1] for _, psf in pieces)
    terms: list[Floats] = []
    kernels: list[NDArray[np.float32]] = []
    for box, psf in pieces:
        x, y = _grid(box, _SAMPLES)
        terms.append(_terms(x, y, order, shape))
        kernels.extend(_padded(psf.at(i - box.x0, j - box.y0), size) for i, j in zip(x, y, strict=True))
    fit = np.linalg.lstsq(np.concatenate(terms), np.stack(kernels).reshape(len(kernels), -1), rcond=None)[0]
    return Psf(fit.reshape(-1, size, size).astype(np.float32), order, shape)


def _grid(box: Box, n: int) -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.linspace(box.x0, box.x1 - 1, n), np.linspace(box.y0, box.y1 - 1, n))
    return x.ravel(), y.ravel()


def _terms(x: Floats, y: Floats, order: int, shape: tuple[int, int]) -> Floats:
    """(places, terms): u**i * v**j in the order of `Psf.components`."""
    u, v = 2.0 * x / max(shape[1] - 1, 1) - 1.0, 2.0 * y / max(shape[0] - 1, 1) - 1.0
    return np.stack([u**i * v**j for i in range(order + 1) for j in range(order + 1 - i)], axis=1)


def _padded(kernel: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return np.pad(kernel, (size - kernel.shape[0]) // 2)
