"""A template's stars as a reference catalogue: an image is laid upon its template where there is no better one."""

import numpy as np

from payloads.imaging.calibrate import UNFIT
from payloads.imaging.characterize import Characterized
from payloads.imaging.wings import light_within
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs


def references_of(template: Characterized, wcs: Wcs, band: str) -> Table:
    """Rows of `REFCAT_DTYPE`, with which `calibrate` brings an image to its template's sky and scale.

    Fluxes are in the template's unit, with what lies beyond its PSF's stamp; places are those of its epoch, without
    proper motions.
    """
    stars = template.stars[(template.stars["flags"] & UNFIT == 0) & (template.stars["flux"] > 0)]
    table = np.zeros(len(stars), REFCAT_DTYPE)
    table["id"] = np.arange(len(stars))
    table["ra"], table["dec"] = wcs.pixel_to_sky(stars["x"], stars["y"])
    whole = 1.0 / light_within(template.psf)
    table[f"{band}_flux"], table[f"{band}_fluxErr"] = whole * stars["flux"], whole * stars["flux_err"]
    return table
