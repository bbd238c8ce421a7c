"""One PSF for all templates of a tract in a band, and coadds brought to it.

Which visits make a patch's template, and where each of them ends, differs from place to place; so would its PSF, in
jumps that a kernel which varies smoothly over a detector (`payloads.alert_production.kernel`) cannot follow. Visits
can be brought to one PSF before they are added; here their mean is, once: it lacks little, and nothing has to be
restored that only a sharper visit had.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from payloads.drp.coadd_psf import BLOCK, at_cells, fitted, padded
from payloads.drp.psf_fourier import Transform, gaussian_transform, inverse, transform
from payloads.drp.single_frame import FrameSummary
from payloads.drp.warps import turned
from payloads.imaging import mask_ops
from payloads.imaging.convolve import convolve_blocks
from payloads.imaging.psf_field import kernel_sigma
from payloads.imaging.stars import FWHM_OF_SIGMA
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, Psf
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

_SHARPEST_PART, FEWEST = 1.0 / 3.0, 8
"""Of the visits, how many make a template, and how many at the least."""
_WIDER = 1.03
"""The common PSF's FWHM in the visits' mean: where the sharper visits are missing little has to be restored."""
_WIDER_BY = 4
"""Pixels a side by which its stamp is larger."""
_REACH, _SIGMAS = 12, (1.0, 2.0, 4.0)
"""Pixels that a kernel to another PSF reaches, and of the Gaussians that it is made of."""
_NOISES, _MOST_NOISE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), 1.5
"""Powers of a PSF, that of its sum being 1, below which a frequency is not restored: the first that leaves the variance
of a PSF-sized sum below so many times what it was. Much wider PSFs stay wider."""
_SPREAD = 2
"""Pixels about what is saturated or bad that have something of it then."""
_HIGHEST = 30
"""Of 96ths of a wave a pixel: those from it on are not looked at."""


@dataclass(frozen=True, eq=False)
class TemplatePsf:
    """What templates of a tract in a band are brought to: `kernel` (k, k), sum 1, on the tract's pixels.

    It is somewhat wider than the mean of those of `visits`.
    """

    kernel: Image
    visits: tuple[int, ...]


class _Seen(NamedTuple):
    """Of a visit-detector: its width, its weight in a coadd, its PSF (k, k) at its middle."""

    fwhm_px: float
    weight: float
    kernel: Image


def how_many(visits: int) -> int:
    """Of so many visits, how many of the sharpest make a template."""
    return max(FEWEST, round(_SHARPEST_PART * visits))


def template_psf(frames: Iterable[FrameSummary], wcs: Wcs) -> TemplatePsf:
    """Of the sharpest visits among some visit-detectors, on the pixels of a tract's `wcs`. Raises BadData for none.

    Each is taken once, and of each its PSF at its middle is kept.
    """
    seen: defaultdict[int, list[_Seen]] = defaultdict(list)
    for frame in frames:
        seen[frame.visit].append(_Seen(frame.fwhm_px, _weight(frame), _at_middle(frame, wcs)))
    if not seen:
        raise BadData("a PSF for templates of no visits")
    width = {visit: float(np.mean([each.fwhm_px for each in seen[visit]])) for visit in sorted(seen)}
    chosen = sorted(sorted(width, key=lambda visit: width[visit])[: how_many(len(width))])
    used = [each for visit in chosen for each in seen[visit]]
    size, total = max(len(each.kernel) for each in used), sum(each.weight for each in used)
    mean = sum(padded(each.kernel, size) * np.float32(each.weight / total) for each in used)
    return TemplatePsf(_widened(np.asarray(mean, np.float32)), tuple(chosen))


def brought(pixels: MaskedImage, psfs: Image, target: Image) -> tuple[MaskedImage, Psf]:
    """A coadd (ny, nx) with the PSF `target` (k, k), as far as it can have it; and the PSF that it has then.

    `psfs`: (rows, columns, k, k), those of its blocks of 32 pixels. Where they are so much wider that noise would grow,
    they stay wider. The variance stays that of a PSF-sized sum. What is not finite stays, and is no light; the border
    of 12 pixels stays too. What is saturated or bad grows by 2 pixels.
    """
    kernels, noise = _toward(psfs, target)
    image, seen = pixels.image, np.isfinite(pixels.image)
    result = convolve_blocks(np.where(seen, image, np.float32(0.0)), kernels, BLOCK)
    result[~seen] = image[~seen]
    for border in (np.s_[:_REACH], np.s_[-_REACH:], np.s_[:, :_REACH], np.s_[:, -_REACH:]):
        result[border] = image[border]
    ny, nx = image.shape
    variance = pixels.variance * noise.repeat(BLOCK, 0).repeat(BLOCK, 1)[:ny, :nx]
    mask = pixels.mask.copy()
    for bit in (Mask.SAT, Mask.BAD):
        mask_ops.grow(mask, bit, _SPREAD, _SPREAD)
    mask[~seen] = pixels.mask[~seen]
    return MaskedImage(result, mask, variance), _made(psfs, kernels, (ny, nx))


def _at_middle(frame: FrameSummary, wcs: Wcs) -> Image:
    x, y = (np.array([(n - 1) / 2.0]) for n in (frame.nx, frame.ny))
    kernel: Image = turned(frame.psf, frame.wcs, wcs, *wcs.sky_to_pixel(*frame.wcs.pixel_to_sky(x, y)))[0]
    return kernel


def _weight(frame: FrameSummary) -> float:
    """That of a visit in a coadd: the inverse of its sky's variance, nJy**-2."""
    return 1.0 / (frame.sky_e * frame.zero_point**2)


def _widened(kernel: Image) -> Image:
    added = kernel_sigma(kernel) * FWHM_OF_SIGMA * np.sqrt(_WIDER**2 - 1.0)
    wide = inverse(transform(kernel) * gaussian_transform(added), len(kernel) + 2 * _WIDER_BY)
    result: Image = (wide / wide.sum()).astype(np.float32)
    return result


def _toward(psfs: Image, target: Image) -> tuple[Image, Image]:
    """Kernels (rows, columns, 25, 25), sum 1, that take PSFs (rows, columns, k, k) to another.

    And how many times the variance (rows, columns) that they make of white noise in a sum over it.
    """
    basis = _basis()
    shapes, aim = _seen(transform(basis)), _seen(transform(target))
    products = (shapes.conj()[:, None] * shapes).real
    kernels, noise = np.empty((*psfs.shape[:2], *basis.shape[1:]), np.float32), np.empty(psfs.shape[:2], np.float32)
    for row, each in enumerate(psfs):
        seen, left = _seen(transform(each)), np.arange(len(each))
        for least in _NOISES:
            added = _added(seen[left], aim, shapes, products, least)
            kernels[row, left] = np.tensordot(added, basis, 1)
            noise[row, left] = (np.abs((1.0 + added @ shapes) * aim) ** 2).sum(-1) / (np.abs(aim) ** 2).sum()
            left = left[noise[row, left] > _MOST_NOISE]
            if not left.size:
                break
    kernels[:, :, _REACH, _REACH] += 1.0
    return kernels, noise


def _made(psfs: Image, kernels: Image, shape: tuple[int, int]) -> Psf:
    """What kernels make of the PSFs of a grid's blocks."""
    taken, psf = (transform(at_cells(blocks, shape)) for blocks in (kernels, psfs))
    return fitted(inverse(taken * psf, psfs.shape[-1]).astype(np.float32), shape)


def _added(psf: Transform, aim: Transform, shapes: Transform, products: Floats, noise: float) -> Floats:
    """(n, shapes): of each shape, what a kernel has beside one pixel of 1 to take PSFs nearest to the aim.

    Least squares, with what white noise of power `noise` has in those shapes beside what they leave: where a PSF has
    less power than that, nothing is restored. All are given at the same frequencies, psf (n, frequencies); `products`:
    of each shape with each.
    """
    matrix = np.tensordot(np.abs(psf) ** 2 + noise, products, (1, 2))
    right = ((psf.conj() * (aim - psf)) @ shapes.conj().T).real
    result: Floats = np.asarray(np.linalg.solve(matrix, right[:, :, None])[:, :, 0], np.float64)
    return result


def _basis() -> Floats:
    """(17, 25, 25): Gaussians times polynomials of order 2, as Alard & Lupton's (1998, ApJ 503, 325), each of sum 0."""
    t = np.arange(-_REACH, _REACH + 1.0)
    lines = [[np.exp(-t * t / (2.0 * s * s)) * (t / s) ** n for n in range(3)] for s in _SIGMAS]
    shapes = [np.outer(of[j], of[i]) for of in lines for i in range(3) for j in range(3 - i)]
    wide = shapes.pop(-len(shapes) // len(_SIGMAS))  # the widest Gaussian: it takes their sums away
    of_size_one = [shape / np.abs(shape).sum() for shape in shapes]
    result: Floats = np.array([shape - shape.sum() * wide / wide.sum() for shape in of_size_one])
    return result


def _seen(transforms: Transform) -> Transform:
    """(..., n): their low frequencies, which are all that a PSF shows of the sky."""
    rows = np.r_[0:_HIGHEST, -_HIGHEST + 1 : 0]
    result: Transform = transforms[..., rows, :_HIGHEST].reshape(*transforms.shape[:-2], -1)
    return result
