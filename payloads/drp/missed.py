"""Objects that hid in others' light: peaks of what a first scene leaves of the coadds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from payloads.drp.blends import Field
from payloads.drp.detect import Labels, Peaks, find_peaks, joint_ratio, signal_to_noise
from schemas.image import Image, Mask, MaskedImage, Psf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_POINT_ERROR, _DISC_ERROR = 0.02, 0.1
"""By what part of itself a model may be wrong: of points, and of galaxies, which are no perfect discs."""
_CLOSEST = 2.2
"""Pixels from an object within which what is left of it is its own."""
_REACH = 10


def find_missed(
    fields: Sequence[Field], residuals: Sequence[Image], psfs: Sequence[Psf], peaks: Peaks, galaxy: Flags, at: Floats
) -> Peaks:
    """Peaks 5 sigma above what models may leave, in one band or all; none within 2.2 pixels of the places `at` (n, 2).

    `galaxy`: (n,), which objects are drawn as discs. Labels of the result are those of `peaks`, and beyond these the
    new ones' own, which take from their hosts the pixels nearer to them.
    """
    part = np.where(np.append(galaxy, False)[peaks.labels], np.float32(_DISC_ERROR), np.float32(_POINT_ERROR))
    ratios = [_ratio(*given, part) for given in zip(fields, residuals, psfs, strict=True)]
    found = find_peaks(joint_ratio(ratios), ratios, np.zeros(part.shape, np.uint16), np.ones_like(part))
    apart, _ = (
        cKDTree(at).query(np.stack([found.x, found.y], axis=1)) if at.size else (np.full(found.x.size, np.inf), 0)
    )
    return _joined(peaks, found, np.flatnonzero(apart > _CLOSEST))


def _ratio(field: Field, residual: Image, psf: Psf, part: Image) -> Image:
    """Signal to noise of what is left, what a model may be wrong by counting as noise that the PSF's pixels share."""
    core = psf.at((psf.shape[1] - 1) / 2.0, (psf.shape[0] - 1) / 2.0)
    model = np.where(field.usable, field.image - residual, np.float32(0.0))
    variance = field.variance + (part * model) ** 2 / np.float32(np.sum(core**2))
    mask = np.where(field.usable, np.uint16(0), np.uint16(Mask.NO_DATA))
    return signal_to_noise(MaskedImage(residual, mask, variance), psf)[0]


def _joined(peaks: Peaks, found: Peaks, new: Ints) -> Peaks:
    """`peaks` and after them the `new` ones of `found`."""
    labels, first = peaks.labels.copy(), peaks.x.size
    x, y, host = found.x[new], found.y[new], peaks.labels[found.y[new], found.x[new]]
    for number in range(new.size):
        _label(labels, peaks, int(x[number]), int(y[number]), int(host[number]), first + number)
    area = np.bincount(labels[labels >= 0], minlength=first + new.size)
    own = np.arange(new.size) + (peaks.footprint.max() + 1 if first else 0)
    footprint = np.where(host >= 0, np.append(peaks.footprint, 0)[host], own)
    return Peaks(
        np.append(peaks.x, x),
        np.append(peaks.y, y),
        np.append(peaks.value, found.value[new]),
        np.append(peaks.footprint, footprint),
        np.maximum(area, 1),
        np.append(peaks.band, found.band[new]),
        labels,
    )


def _label(labels: Labels, peaks: Peaks, x: int, y: int, host: int, number: int) -> None:
    """Give pixels of the host, or of none, about (x, y) to the new one, in place."""
    rows, columns = slice(max(y - _REACH, 0), y + _REACH + 1), slice(max(x - _REACH, 0), x + _REACH + 1)
    part = labels[rows, columns]
    v, u = np.mgrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]]
    mine = np.hypot(u - x, v - y)
    nearer = mine < (2.0 if host < 0 else np.hypot(u - peaks.x[host], v - peaks.y[host]))
    part[(part == host) & nearer] = number
