"""The reference catalogue of a sky: its brighter stars as an earlier survey has measured them."""

from functools import lru_cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import REFCAT_DTYPE, Table
from simulators.sky.cells import CACHED_CELLS, generator, shifted
from simulators.sky.sources import Floats, Kind, nanojansky
from simulators.sky.stars import stars_of
from simulators.sky.variables import variables_of

R_MAG = (14.0, 22.5)
"""Range of true r magnitudes of the stars that it holds."""

_POSITION_MAS = (1.0, 4.0)  # to r = 18, and at 22: invented, between Gaia's and a deep survey's
_PROPER_MOTION_ERROR = 0.5  # mas/yr
_FLUX_ERROR = (0.003, 30.0)  # of the flux, and nJy beside it
_BLOCK = 1  # of the cell's random numbers of stars: block 0 is the stars themselves


@lru_cache(maxsize=CACHED_CELLS)
def refcat_of(seed: int, cell: int) -> Table:
    """The reference stars of a cell (REFCAT_DTYPE); a star's id is that of the sky's source."""
    stars, variables = (_in_range(table) for table in (stars_of(seed, cell), variables_of(seed, cell)))
    rng = generator(seed, Kind.STAR, cell, _BLOCK)
    rows = np.concatenate([_measured(rng, stars), _measured(rng, variables)])
    rows["variable"][len(stars) :] = True
    return rows


def _in_range(stars: Table) -> Table:
    faintest, brightest = nanojansky(R_MAG[1]), nanojansky(R_MAG[0])
    flux = stars["flux"][:, BANDS.index("r")]
    return stars[(flux >= faintest) & (flux <= brightest)]


def _measured(rng: np.random.Generator, stars: Table) -> Table:
    rows = np.zeros(len(stars), REFCAT_DTYPE)
    rows["id"] = stars["id"]
    east, north = rng.normal(0.0, 1.0, (2, len(stars))) * _position_error(stars) / 1000.0
    rows["ra"], rows["dec"] = shifted(stars["ra"], stars["dec"], east, north)
    for name in ("pm_ra", "pm_dec"):
        rows[name] = stars[name] + rng.normal(0.0, _PROPER_MOTION_ERROR, len(stars))
    for index, band in enumerate(BANDS):
        true = stars["flux"][:, index].astype(np.float64)
        error = np.hypot(_FLUX_ERROR[0] * true, _FLUX_ERROR[1])
        rows[f"{band}_flux"], rows[f"{band}_fluxErr"] = rng.normal(true, error), error
    return rows


def _position_error(stars: Table) -> Floats:
    """Error of one axis, mas: a power of the flux for stars fainter than r = 18."""
    faintness = np.maximum(nanojansky(18.0) / stars["flux"][:, BANDS.index("r")], 1.0)
    exponent = np.log(_POSITION_MAS[1] / _POSITION_MAS[0]) / np.log(nanojansky(18.0) / nanojansky(22.0))
    error: Floats = _POSITION_MAS[0] * faintness**exponent
    return error
