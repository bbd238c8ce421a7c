"""A template's stars as a reference catalogue: an image is laid upon its template where there is no better one."""

import numpy as np

from payloads.alert_production.calibrate import UNFIT
from payloads.alert_production.characterize import Characterized
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs


def references_of(template: Characterized, wcs: Wcs, band: str) -> Table:
    """Rows of `REFCAT_DTYPE`, with which `calibrate` brings an image to its template's sky and scale.

    Fluxes are in the template's unit; places are those of its epoch, without proper motions.
    """
    stars = template.stars[(template.stars["flags"] & UNFIT == 0) & (template.stars["flux"] > 0)]
    table = np.zeros(len(stars), REFCAT_DTYPE)
    table["id"] = np.arange(len(stars))
    table["ra"], table["dec"] = wcs.pixel_to_sky(stars["x"], stars["y"])
    table[f"{band}_flux"], table[f"{band}_fluxErr"] = stars["flux"], stars["flux_err"]
    return table
