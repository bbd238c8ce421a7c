"""Photometry forced at given places: DIAObjects that were not detected, limits before a discovery."""

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.forced import forced_fluxes
from schemas.clock import mjd_from_tai
from schemas.identity import dia_forced_source_id
from schemas.image import DiaProducts, Difference, VisitImage
from schemas.tables import Table, empty

Floats = NDArray[np.float64]

_FLUXES = ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr")
FORCED_DTYPE = np.dtype([("x", "f8"), ("y", "f8"), *((name, "f4") for name in _FLUXES), ("usable", "?")])
"""Pixels (0-based); nJy, on the difference and on the science image. `usable`: both were measured."""


def forced_sources(products: DiaProducts, objects: Table, *, visit: int, detector: int, processed: float) -> Table:
    """`DiaForcedSource` rows of DIAObjects in a visit-detector, by `diaObjectId`, where there are usable pixels.

    `objects`: rows with `diaObjectId`, `ra`, `dec` (deg, ICRS). `processed`: TAI s. Ids count from 0.
    """
    places = objects[np.argsort(objects["diaObjectId"])]
    measured = forced_photometry(products.difference, products.science, places["ra"], places["dec"])
    places, measured = places[measured["usable"]], measured[measured["usable"]]
    rows = empty("DiaForcedSource", len(places))
    rows["diaForcedSourceId"] = [dia_forced_source_id(visit, detector, number) for number in range(len(places))]
    for name in ("diaObjectId", "ra", "dec"):
        rows[name] = places[name]
    for name in _FLUXES:
        rows[name] = measured[name]
    rows["visit"], rows["detector"], rows["band"] = visit, detector, products.difference.band
    rows["midpointMjdTai"] = mjd_from_tai(products.difference.midpoint)
    rows["timeProcessedMjdTai"] = mjd_from_tai(processed)
    return rows


def forced_photometry(difference: Difference, science: VisitImage, ra: Floats, dec: Floats) -> Table:
    """PSF fluxes at ra, dec (deg, ICRS, (n,)), one row each; NaN, not usable, off the image or on holes."""
    x, y = difference.wcs.sky_to_pixel(np.asarray(ra, np.float64), np.asarray(dec, np.float64))
    table = np.zeros(x.size, FORCED_DTYPE)
    table["x"], table["y"] = x, y
    for name, pixels, psf in (
        ("psf", difference.pixels, difference.psf),
        ("science", science.pixels, science.psf),
    ):
        table[f"{name}Flux"], table[f"{name}FluxErr"] = forced_fluxes(pixels, psf, x, y)
    table["usable"] = np.isfinite(table["psfFlux"]) & np.isfinite(table["scienceFlux"])
    return table
