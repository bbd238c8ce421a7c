"""The three cutouts that travel with an alert."""

import numpy as np

from payloads.imaging.psf_field import kernels_at
from schemas.image import Difference, Mask, MaskedImage, Stamp, Template, VisitImage
from schemas.tables import Table

SMALLEST, LARGEST = 30, 102
"""Pixels; a stamp is as large as its source's `bboxSize`, within these."""


def make_stamps(sources: Table, science: VisitImage, warped: Template, difference: Difference) -> tuple[Stamp, ...]:
    """One stamp a source, in order, about its pixel, cut from three images on one grid.

    `warped`: the template on the science image's grid. Beyond the image: NaN, infinite variance, NO_DATA. In
    a stamp of even size k the source is in pixel (k / 2, k / 2).
    """
    x, y = (sources[name].astype(np.float64) for name in ("x", "y"))
    sizes = np.clip(sources["bboxSize"], SMALLEST, LARGEST)
    psfs = [kernels_at(psf, x, y) for psf in (science.psf, warped.psf, difference.psf)]
    stamps = []
    for k, size in enumerate(int(s) for s in sizes):
        x0, y0 = round(x[k]) - size // 2, round(y[k]) - size // 2
        new, old, change = (cutout(image.pixels, x0, y0, size) for image in (science, warped, difference))
        wcs = difference.wcs.shifted(x0, y0)
        stamps.append(Stamp(new, old, change, wcs, psfs[0][k], psfs[1][k], psfs[2][k]))
    return tuple(stamps)


def cutout(pixels: MaskedImage, x0: int, y0: int, size: int) -> MaskedImage:
    """A copy of the `size` x `size` pixels from (x0, y0) on; NaN and NO_DATA where the image has none."""
    ny, nx = pixels.shape
    image = np.full((size, size), np.nan, np.float32)
    variance = np.full((size, size), np.inf, np.float32)
    mask = np.full((size, size), Mask.NO_DATA, np.uint16)
    left, right, low, high = max(x0, 0), min(x0 + size, nx), max(y0, 0), min(y0 + size, ny)
    if left < right and low < high:
        here, there = np.s_[low - y0 : high - y0, left - x0 : right - x0], np.s_[low:high, left:right]
        image[here], variance[here] = pixels.image[there], pixels.variance[there]
        mask[here] = pixels.mask[there]
    return MaskedImage(image, mask, variance)
