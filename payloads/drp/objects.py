"""The objects of a patch, found and measured on the coadds of all its bands: rows of the official Object table.

Found on all bands together (`detect`), drawn as points and galaxies whose light is shared in one fit a band (`scene`),
and measured each on its own light: the coadd less all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from payloads.drp import detect
from payloads.drp.blends import Field
from payloads.drp.object_columns import put_band, put_shape
from payloads.drp.scene import Scene, model_scene
from payloads.drp.warps import MARGIN
from payloads.imaging import background
from payloads.imaging.photometry import usable
from payloads.imaging.sphere import sky_jacobians
from schemas.drp_tables import object_dtype
from schemas.errors import BadData
from schemas.identity import object_id, parent_object_id
from schemas.image import Image, Mask, MaskedImage, Psf
from schemas.instrument import BANDS
from schemas.skymap import PATCH_PIXELS, Tract, tract_ids
from schemas.tables import Table, nulls
from schemas.wcs import Wcs

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_SKY_CELL = 128
"""Pixels: a cell of the mesh by which the sky is levelled once more, sources left out."""
_SKY_RATIO = 3.0
_LEAST_LIGHT, _TOLD = 3.0, 0.5
"""Signal to noise that an object has in some band; the part of it that must be on usable pixels to say so."""
_SIDE = PATCH_PIXELS + 2 * MARGIN


class Coadd(Protocol):
    """A patch in one band, as `payloads.drp.coadd.Coadd` has it."""

    @property
    def pixels(self) -> MaskedImage:
        """NJy."""

    @property
    def wcs(self) -> Wcs:
        """The tract's, from the first pixel on."""

    @property
    def psf(self) -> Psf:
        """Of the coadd."""

    @property
    def depth(self) -> NDArray[np.uint16]:
        """How many visits each pixel is the mean of."""


@dataclass(frozen=True, eq=False)
class _Levelled:
    """A coadd less its sky, its variances those of the noise as it is; its signal to that of the sky's noise.

    `noise`: of light and sky in that of the sky alone.
    """

    coadd: Coadd
    field: Field
    ratio: Image
    noise: Image


def measure_objects(coadds: Mapping[str, Coadd], tract: Tract, patch: int) -> Table:
    """Rows of `schemas.drp_tables.object_dtype` of a patch, in the order of y, then x.

    `coadds`: by band, on the patch's box and `MARGIN` pixels about it. What lies in the margin is fitted with the rest
    and left to the next patch. Columns of bands without a coadd are null, their flags set. Raises BadData for no coadd,
    an unknown band, and another grid than the patch's.
    """
    bands = _checked(coadds, tract, patch)
    levelled = [_level(coadds[band]) for band in bands]
    ratios = [band.ratio for band in levelled]
    mask = np.bitwise_or.reduce([band.coadd.pixels.mask for band in levelled])
    noise = np.max([band.noise for band in levelled], axis=0)
    found = detect.find_peaks(detect.joint_ratio(ratios), ratios, mask, noise)
    scene = model_scene([band.field for band in levelled], [band.coadd.psf for band in levelled], found)
    peaks = scene.peaks
    table = _blank(peaks.x.size)
    _put_places(table, scene, levelled[0].coadd.wcs, tract, patch)
    _put_peaks(table, peaks, tract, patch)
    table["refBand"] = np.array(bands)[peaks.band]
    own = put_shape(table, scene, peaks.band)
    for name, band, source in zip(bands, scene.bands, levelled, strict=True):
        put_band(table, name, band, scene, own, source.coadd.pixels.mask, source.coadd.depth, peaks.labels)
    for number, name in enumerate(bands):
        ours = peaks.band == number
        table["refExtendedness"][ours] = table[f"{name}_extendedness"][ours]
    return _inner(table, scene, tract, patch)


def _checked(coadds: Mapping[str, Coadd], tract: Tract, patch: int) -> list[str]:
    unknown = set(coadds) - set(BANDS)
    if unknown or not coadds:
        raise BadData(f"tract {tract.id} patch {patch}: " + (f"no such bands: {unknown}" if unknown else "no coadd"))
    box = tract.patch_box(patch)
    crpix = tract.wcs.shifted(box.x0 - MARGIN, box.y0 - MARGIN).crpix
    for band, coadd in coadds.items():
        same = coadd.wcs.crval == (tract.ra, tract.dec) and np.allclose(coadd.wcs.crpix, crpix)
        if coadd.pixels.shape != (_SIDE, _SIDE) or coadd.depth.shape != (_SIDE, _SIDE) or not same:
            raise BadData(f"the {band} coadd is not on the grid of tract {tract.id} patch {patch} and its margin")
    return [band for band in BANDS if band in coadds]


def _level(coadd: Coadd) -> _Levelled:
    """Sky is what is left where no object stands out; without any usable pixel there is nothing to level."""
    pixels = coadd.pixels
    good = usable(pixels)
    image, dark = np.where(good, pixels.image, np.float32(0.0)), detect.sky_variance(pixels)
    if good.any():
        first, _ = detect.signal_to_noise(MaskedImage(image, pixels.mask, dark), coadd.psf)
        spoilt = np.where(good & (first < _SKY_RATIO), np.uint16(0), np.uint16(Mask.DETECTED))
        image = np.where(good, image - _sky(image, spoilt), np.float32(0.0))
    ratio, scale = detect.signal_to_noise(MaskedImage(image, pixels.mask, dark), coadd.psf)
    noise = np.sqrt(np.divide(pixels.variance, dark, where=good, out=np.ones_like(dark)))
    return _Levelled(coadd, Field(image, pixels.variance * np.float32(scale**2), good), ratio, noise)


def _sky(image: Image, spoilt: NDArray[np.uint16]) -> Image:
    try:
        level, _ = background.mesh(image, spoilt, Mask.DETECTED, _SKY_CELL)
    except BadData:  # covered all over, or hardly seen: what there is counts as light
        return np.zeros_like(image)
    return background.render(level, image.shape)


def _blank(rows: int) -> Table:
    table = nulls(object_dtype(), rows)
    for name in table.dtype.names or ():
        if name.endswith("_flag"):
            table[name] = True
    return table


def _put_places(table: Table, scene: Scene, wcs: Wcs, tract: Tract, patch: int) -> None:
    """Centres on the sky, and whether this tract is the one in whose inner area they lie."""
    x, y = scene.shapes.x, scene.shapes.y
    ra, dec = wcs.pixel_to_sky(x, y)
    covariance = np.where(scene.galaxy[:, None, None], scene.discs.covariance, scene.points.covariance)
    to_sky = sky_jacobians(wcs, x, y)
    covariance = to_sky @ covariance @ to_sky.transpose(0, 2, 1)
    for start in ("coord", "exponential"):
        table[f"{start}_ra"], table[f"{start}_dec"] = ra, dec
        table[f"{start}_raErr"], table[f"{start}_decErr"] = np.sqrt(covariance[:, 0, 0]), np.sqrt(covariance[:, 1, 1])
        table[f"{start}_ra_dec_Cov"] = covariance[:, 0, 1]
    table["coord_flag"] = np.where(scene.galaxy, scene.discs.failed, scene.points.failed)
    table["tract"], table["patch"] = tract.id, patch
    table["detect_isTractInner"] = tract_ids(ra, dec) == tract.id


def _put_peaks(table: Table, peaks: detect.Peaks, tract: Tract, patch: int) -> None:
    together = np.bincount(peaks.footprint, minlength=1)[peaks.footprint]
    parents = np.array([parent_object_id(tract.id, patch, int(f)) for f in peaks.footprint], np.int64)
    table["parentObjectId"] = np.where(together > 1, parents, 0)
    table["deblend_parentNPeaks"] = table["deblend_parentNChild"] = together
    table["detect_fromBlend"], table["detect_isIsolated"] = together > 1, together == 1
    box = tract.patch_box(patch)
    table["deblend_peak_center_x"] = peaks.x + box.x0 - MARGIN
    table["deblend_peak_center_y"] = peaks.y + box.y0 - MARGIN
    table["footprintArea"] = peaks.area


def _inner(table: Table, scene: Scene, tract: Tract, patch: int) -> Table:
    """The rows of objects in the patch itself that hold light of their own, in the order of y, then x, with ids."""
    x, y = (np.floor(c + 0.5) - MARGIN for c in (scene.shapes.x, scene.shapes.y))
    inside = (x >= 0) & (y >= 0) & (x < PATCH_PIXELS) & (y < PATCH_PIXELS)
    inside &= _is_something(scene)
    order = np.lexsort((scene.shapes.x, scene.shapes.y))
    rows: Table = table[order[inside[order]]]
    rows["detect_isPatchInner"] = True
    rows["detect_isPrimary"] = rows["detect_isTractInner"]
    rows["objectId"] = [object_id(tract.id, patch, number) for number in range(len(rows))]
    return rows


def _is_something(scene: Scene) -> Flags:
    """What has light in a band, or whose light cannot be told: a peak that others' light made has none."""
    light = np.zeros(scene.galaxy.size, np.bool_)
    for number, band in enumerate(scene.bands):
        light |= band.shares.flux > _LEAST_LIGHT * band.shares.flux_err
        light |= (scene.peaks.band == number) & (band.shares.seen < _TOLD)
    return light
