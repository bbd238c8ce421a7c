"""The snaps of a visit made one image, cosmic rays taken out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from payloads.imaging import background, cosmic_rays, mask_ops
from payloads.imaging.cosmic_rays import Others, Sky
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, Observation

Hits = NDArray[np.uint8]
Pixels = NDArray[np.int32]
Floats = NDArray[np.float64]

EXPECTED_FWHM = 4.0
"""Pixels; before the PSF is known."""

_CELL, _ROW_STEP = 256, 8
_MOST_SNAPS = 8
_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.UNMASKED_NAN)


def combine_snaps(snaps: Sequence[MaskedImage], psf_fwhm_px: float) -> MaskedImage:
    """The sum of 1 to 8 snaps in electrons, of one shape (ny, nx), with their sky; masks joined.

    A pixel that a cosmic ray struck in some snaps is the others' signal scaled up (their sky kept apart),
    with the variance that this has; one struck in all, or bad, is interpolated. Struck pixels get CR|INTRP,
    bad ones INTRP. `psf_fwhm_px`: FWHM to expect (pixels), for images with too few stars to tell. Raises
    BadData for no or too many snaps, shapes that differ, or what is no image of the sky.
    """
    _check(snaps)
    skies = [Sky(background.mesh(s.image, s.mask, _UNUSABLE, _CELL, _ROW_STEP)[0]) for s in snaps]
    image, variance = _sum([s.image for s in snaps]), _sum([s.variance for s in snaps])
    mask = snaps[0].mask.copy()
    for snap in snaps[1:]:
        np.bitwise_or(mask, snap.mask, out=mask)
    others = Others(image, variance, len(snaps)) if len(snaps) > 1 else None
    hits = np.zeros(image.shape, np.uint8)
    struck = []
    for k, (snap, sky) in enumerate(zip(snaps, skies, strict=True)):
        fwhm = cosmic_rays.coarse_fwhm(snap.image, snap.variance, sky, psf_fwhm_px)
        pixels = cosmic_rays.find(snap.image, snap.variance, snap.mask, _UNUSABLE, sky, fwhm, hits, 1 << k, others)
        struck.append(pixels)
    y, x = np.unique(np.concatenate(struck), axis=0).T
    _replace(snaps, skies, hits, y, x, MaskedImage(image, mask, variance))
    mask_ops.interpolate(image, variance, mask, Mask.BAD | _STRUCK_IN_ALL, Mask.SAT | Mask.NO_DATA, Mask.INTRP)
    mask[y, x] &= np.uint16(~_STRUCK_IN_ALL & 0xFFFF)
    return MaskedImage(image, mask, variance)


def midpoint(observations: Sequence[Observation]) -> float:
    """Middle (TAI s) of the visit: from the first snap's opening to the last one's closing."""
    return (observations[0].started + observations[-1].started + observations[-1].exposure_time) / 2.0


def exposure_time(observations: Sequence[Observation]) -> float:
    """Seconds that the shutter was open, over all snaps."""
    return sum(observation.exposure_time for observation in observations)


_STRUCK_IN_ALL = int(Mask.STREAK)
"""A bit that no snap has yet, lent to mark what must be interpolated."""


def _check(snaps: Sequence[MaskedImage]) -> None:
    if not 1 <= len(snaps) <= _MOST_SNAPS:
        raise BadData(f"{len(snaps)} snaps: a visit has 1 to {_MOST_SNAPS}")
    shapes = {snap.shape for snap in snaps}
    if len(shapes) > 1:
        raise BadData(f"snaps of one visit differ in shape: {sorted(shapes)}")


def _sum(images: Sequence[Image]) -> Image:
    total = images[0].copy() if len(images) == 1 else images[0] + images[1]
    for image in images[2:]:
        total += image
    return total


def _replace(
    snaps: Sequence[MaskedImage], skies: Sequence[Sky], hits: Hits, y: Pixels, x: Pixels, result: MaskedImage
) -> None:
    """Give struck pixels of `result`, in place, what the snaps that were not struck there say."""
    struck = (hits[y, x][:, None] >> np.arange(len(snaps), dtype=np.uint8)) & 1 == 1
    values = np.stack([snap.image[y, x] for snap in snaps], axis=1).astype(np.float64)
    variances = np.stack([snap.variance[y, x] for snap in snaps], axis=1).astype(np.float64)
    levels = [background.at(s.level, result.shape, x.astype(np.float64), y.astype(np.float64)) for s in skies]
    level = np.stack(levels, axis=1)
    clear = len(snaps) - struck.sum(axis=1)
    scale = len(snaps) / np.maximum(clear, 1)
    signal = np.where(struck, 0.0, values - level).sum(axis=1)
    result.image[y, x] = level.sum(axis=1) + scale * signal
    known = scale**2 * np.where(struck, 0.0, variances).sum(axis=1)
    result.variance[y, x] = np.where(clear > 0, known, variances.sum(axis=1))
    result.mask[y, x] |= np.where(clear > 0, np.uint16(Mask.CR | Mask.INTRP), np.uint16(Mask.CR | _STRUCK_IN_ALL))
