"""Objects measured on the images of visits: PSF fluxes forced at their places, rows of the official ForcedSource table.

Objects that a visit shows are fitted together, so that neighbours share their light; the others, which would only add
each other's noise, are each fitted to what those leave.
"""

import numpy as np
from numpy.typing import NDArray

from payloads.drp.blends import Field, Shares, point_fluxes, share
from payloads.drp.optics import Optics, Shapes, draw
from payloads.imaging.mask_ops import bits_about
from payloads.imaging.photometry import usable
from payloads.imaging.psf_field import kernel_sigma
from payloads.imaging.stars import FWHM_OF_SIGMA
from schemas.clock import mjd_from_tai
from schemas.drp_tables import forced_source_dtype
from schemas.errors import BadData
from schemas.image import Mask, VisitImage
from schemas.tables import Table, nulls

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_SHOWN = 3.0
"""Signal to noise that an object's mean flux would have in the visit, from which it is fitted with its neighbours."""
_FLARED = 5.0
"""Signal to noise of what the others leave, from which an object that should not be seen is one of them."""
_LEAST_SEEN = 0.5
_NEEDED = ("objectId", "parentObjectId", "tract", "patch", "coord_ra", "coord_dec")
_FLAGS = {
    "bad": Mask.BAD, "cr": Mask.CR, "edge": Mask.EDGE, "interpolated": Mask.INTRP, "nodata": Mask.NO_DATA,
    "saturated": Mask.SAT, "suspect": Mask.SUSPECT,
}  # fmt: skip
_CENTER_FLAGS = ("cr", "interpolated", "saturated", "suspect")


def forced_sources(image: VisitImage, objects: Table, *, visit: int, detector: int, tract: int, patch: int) -> Table:
    """Rows of `schemas.drp_tables.forced_source_dtype` of the objects that are on the image, in their order.

    `image`: calibrated, nJy; `objects`: rows of a patch's Object table. psfFlux is NaN, its flag set, where less than
    half of the PSF is on usable pixels. Raises BadData for objects of another patch, for a column that lacks, and for
    an image without a band of theirs.
    """
    _check(image, objects, visit, detector, tract, patch)
    x, y = image.wcs.sky_to_pixel(objects["coord_ra"], objects["coord_dec"])
    ny, nx = image.pixels.shape
    on = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    rows = nulls(forced_source_dtype(), int(on.sum()))
    for name in _NEEDED:
        rows[name] = objects[name][on]
    rows["visit"], rows["detector"], rows["band"] = visit, detector, image.band
    rows["expMidptMJD"] = mjd_from_tai(image.midpoint)
    _put_fluxes(rows, image, x[on], y[on], objects[f"{image.band}_psfFlux"][on].astype(np.float64))
    _put_flags(rows, image, x[on], y[on])
    return rows


def _check(image: VisitImage, objects: Table, visit: int, detector: int, tract: int, patch: int) -> None:
    here = f"visit {visit} detector {detector}"
    missing = {*_NEEDED, f"{image.band}_psfFlux"} - set(objects.dtype.names or ())
    if missing:
        raise BadData(f"{here}: the objects of tract {tract} patch {patch} lack {', '.join(sorted(missing))}")
    if np.any((objects["tract"] != tract) | (objects["patch"] != patch)):
        raise BadData(f"{here}: objects of another patch than tract {tract} patch {patch}")
    if not np.isfinite(objects["coord_ra"] + objects["coord_dec"]).all():
        raise BadData(f"{here}: an object of tract {tract} patch {patch} has no place")


def _put_fluxes(rows: Table, image: VisitImage, x: Floats, y: Floats, mean: Floats) -> None:
    pixels = image.pixels
    field = Field(pixels.image, pixels.variance, usable(pixels))
    flux, error, seen = _fluxes(field, Optics.at(image.psf, x, y), x, y, mean)
    lost = ~(seen >= _LEAST_SEEN)
    rows["psfFlux"], rows["psfFluxErr"] = np.where(lost, np.nan, flux), np.where(lost, np.nan, error)
    half = image.psf.components.shape[1] // 2
    ny, nx = pixels.shape
    cut_off = (x < half - 0.5) | (y < half - 0.5) | (x > nx - half - 0.5) | (y > ny - half - 0.5)
    rows["psfFlux_flag"] = lost | cut_off
    rows["invalidPsfFlag"] = False


def _fluxes(field: Field, optics: Optics, x: Floats, y: Floats, mean: Floats) -> tuple[Floats, Floats, Floats]:
    """Fluxes, errors and the part of the PSF seen, (n,): of what is shown together, of the others one by one."""
    half = np.full(x.size, optics.excess.shape[1] // 2)
    points = draw(Shapes.points(x, y), optics, half)
    _, error, _ = point_fluxes(field, Shares.none(field, x.size), points, points)
    shown, left = np.zeros(x.size, np.bool_), mean
    for limit in (_SHOWN, _FLARED):
        with np.errstate(invalid="ignore"):
            shown |= left > limit * error
        together = share(field, points.of(np.flatnonzero(shown)))
        left, alone_error, seen = point_fluxes(field, Shares.none(field, x.size, together.residual), points, points)
    flux, error = left, alone_error
    flux[shown], error[shown] = together.flux, together.flux_err
    return flux, error, seen


def _put_flags(rows: Table, image: VisitImage, x: Floats, y: Floats) -> None:
    """Of pixels within the PSF's core, and of the 3 x 3 at the centre."""
    core = kernel_sigma(image.psf.at(image.psf.shape[1] / 2.0, image.psf.shape[0] / 2.0)) * FWHM_OF_SIGMA
    near, center = bits_about(image.pixels.mask, x, y, round(core)), bits_about(image.pixels.mask, x, y, 1)
    for name, bit in _FLAGS.items():
        rows[f"pixelFlags_{name}"] = (near & np.uint16(bit)) != 0
    for name in _CENTER_FLAGS:
        rows[f"pixelFlags_{name}Center"] = (center & np.uint16(_FLAGS[name])) != 0
