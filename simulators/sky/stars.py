"""Stars: counts over magnitude and latitude, colours along the stellar locus, small proper motions."""

from functools import lru_cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import Table
from simulators.sky.cells import (
    CACHED_CELLS,
    generator,
    magnitudes_of_counts,
    shifted,
    sin_galactic_latitude,
    uniform_positions,
)
from simulators.sky.sources import Floats, Kind, nanojansky, point_sources, source_ids

J2016_MJD = 57388.5
"""The epoch of a star's `ra`, `dec` (TT; TAI within half a minute)."""

STAR_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8")]
    + [(name, "f4") for name in ("pm_ra", "pm_dec")]
    + [("flux", "f4", (len(BANDS),))]
)
"""deg ICRS at J2016.0, mas/yr (pm_ra with cos dec), nJy in u..y."""

# r magnitude, log10 of the stars per deg^2 brighter than it at |b| = 30 deg. Invented: the slope and order of
# nature's counts to r = 20 (compare Bahcall & Soneira 1980, ApJS 44, 73), beyond it richer by about three, so
# that a CCD (0.05 deg^2) at middle latitudes has the 3000 to 6000 stars of a field nearer to the plane.
_COUNTS = np.array([[11.0, 1.0], [14.0, 2.3], [17.0, 3.2], [20.0, 3.8], [22.5, 4.4], [25.0, 4.93]])
_SCALE_SIN_B = 0.5

# g - i, then u-g, g-r, r-i, i-z, z-y: after Covey et al. (2007, AJ 134, 2398), rounded; y from z by eye.
_LOCUS = np.array(
    [
        [0.2, 0.95, 0.18, 0.02, -0.02, -0.01],
        [0.5, 1.05, 0.39, 0.11, 0.03, 0.01],
        [1.0, 1.75, 0.74, 0.26, 0.12, 0.05],
        [1.5, 2.25, 1.08, 0.42, 0.22, 0.10],
        [2.0, 2.50, 1.34, 0.66, 0.36, 0.17],
        [2.5, 2.60, 1.42, 1.08, 0.59, 0.27],
        [3.0, 2.60, 1.44, 1.56, 0.84, 0.40],
    ]
)
_LOCUS_WIDTH = 0.02
_PROPER_MOTION = 4.0  # mas/yr, one axis: invented, about the median of faint disc stars


@lru_cache(maxsize=CACHED_CELLS)
def stars_of(seed: int, cell: int) -> Table:
    """The constant stars of a cell (STAR_DTYPE)."""
    rng = generator(seed, Kind.STAR, cell)
    r_mag = magnitudes_of_counts(rng, _COUNTS, latitude_factor(cell))
    stars = np.zeros(len(r_mag), STAR_DTYPE)
    stars["id"] = source_ids(Kind.STAR, len(stars), cell)
    stars["ra"], stars["dec"] = uniform_positions(rng, cell, len(stars))
    stars["pm_ra"], stars["pm_dec"] = rng.normal(0.0, _PROPER_MOTION, (2, len(stars)))
    stars["flux"] = nanojansky(magnitudes_on_locus(rng, r_mag, _star_colours(rng, r_mag)))
    return stars


def latitude_factor(cell: int) -> float:
    """How much richer than at |b| = 30 deg: 0.7 at the Galaxy's poles, 2 in its plane (invented, mild)."""
    return float(np.sqrt(_SCALE_SIN_B / max(sin_galactic_latitude(cell), 0.125)))


def _star_colours(rng: np.random.Generator, r_mag: Floats) -> Floats:
    """Colours g - i: peaks at 0.65 (turn-off) and 2.3 (M dwarfs, more among the faint); invented."""
    red = rng.random(len(r_mag)) < np.clip((r_mag - 14.0) / 14.0, 0.1, 0.7)
    return np.where(red, rng.normal(2.3, 0.35, len(r_mag)), rng.normal(0.65, 0.2, len(r_mag)))


def magnitudes_on_locus(rng: np.random.Generator, r_mag: Floats, g_minus_i: Floats) -> Floats:
    """AB magnitudes (n, 6) in u..y of stars of given r and g - i (mag), with the locus' width."""
    ug, gr, ri, iz, zy = (
        np.interp(g_minus_i, _LOCUS[:, 0], colour) + rng.normal(0.0, _LOCUS_WIDTH, len(r_mag))
        for colour in _LOCUS.T[1:]
    )
    from_r = np.stack([gr + ug, gr, np.zeros_like(gr), -ri, -ri - iz, -ri - iz - zy], axis=1)
    magnitudes: Floats = r_mag[:, None] + from_r
    return magnitudes


def moved(stars: Table, mjd_tai: float) -> Table:
    """A copy of stars (any table with proper motions) at their places at a time."""
    years = (mjd_tai - J2016_MJD) / 365.25
    at_time = stars.copy()
    east, north = (stars[name].astype(np.float64) * years / 1000.0 for name in ("pm_ra", "pm_dec"))
    at_time["ra"], at_time["dec"] = shifted(stars["ra"], stars["dec"], east, north)
    return at_time


def observe_stars(stars: Table, band: str, mjd_tai: float) -> Table:
    """The stars as sources (SKY_SOURCE_DTYPE) in a band at a time."""
    flux = stars["flux"][:, BANDS.index(band)]
    return point_sources(Kind.STAR, moved(stars, mjd_tai), flux, flux)
