"""Galaxies: nature's counts to i = 21.5, thinned beyond, so that a CCD can be painted quickly."""

from functools import lru_cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import Table
from simulators.sky.cells import CACHED_CELLS, generator, magnitudes_of_counts, uniform_positions
from simulators.sky.sources import Floats, Kind, nanojansky, point_sources, source_ids

GALAXY_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("flux", "f4", (len(BANDS),))]
    + [(name, "f4") for name in ("radius", "axis_ratio", "angle")]
)
"""deg ICRS, nJy in u..y; shape as in SKY_SOURCE_DTYPE."""

# i magnitude, log10 of the galaxies per deg^2 brighter than it: 46 * 10**(0.31 (i - 25)) per arcmin^2 (LSST
# Science Book, version 2.0, chapter 3) to i = 21.5; from there to 24.5, where nature has 116,000, a flat
# 10,000 a magnitude.
_COUNTS = np.array([[15.0, 2.12], [21.5, 4.134], [22.5, 4.37], [23.5, 4.53], [24.5, 4.64]])

# u-g, g-r, r-i, i-z, z-y of red and blue galaxies: invented, near the medians at redshifts 0.3 to 0.6.
_RED = np.array([1.7, 1.1, 0.55, 0.30, 0.15])
_BLUE = np.array([0.8, 0.5, 0.25, 0.15, 0.08])
_COLOUR_WIDTH = 0.12


@lru_cache(maxsize=CACHED_CELLS)
def galaxies_of(seed: int, cell: int) -> Table:
    """The galaxies of a cell (GALAXY_DTYPE)."""
    rng = generator(seed, Kind.GALAXY, cell)
    i_mag = magnitudes_of_counts(rng, _COUNTS, 1.0)
    galaxies = np.zeros(len(i_mag), GALAXY_DTYPE)
    galaxies["id"] = source_ids(Kind.GALAXY, len(galaxies), cell)
    galaxies["ra"], galaxies["dec"] = uniform_positions(rng, cell, len(galaxies))
    galaxies["flux"] = nanojansky(_magnitudes(rng, i_mag))
    galaxies["radius"] = _radii(rng, i_mag)
    galaxies["axis_ratio"] = 1.0 - 0.8 * rng.beta(2.0, 3.0, len(galaxies))
    galaxies["angle"] = rng.uniform(0.0, 180.0, len(galaxies))
    return galaxies


def _magnitudes(rng: np.random.Generator, i_mag: Floats) -> Floats:
    """AB magnitudes (n, 6): half of the bright galaxies are red, a fifth of the faint."""
    red = rng.random(len(i_mag)) < np.clip(0.5 - 0.05 * (i_mag - 18.0), 0.2, 0.5)
    colours = np.where(red[:, None], _RED, _BLUE) + rng.normal(0.0, _COLOUR_WIDTH, (len(i_mag), 5))
    ug, gr, ri, iz, zy = colours.T
    r_mag = i_mag + ri
    return np.stack([r_mag + gr + ug, r_mag + gr, r_mag, i_mag, i_mag - iz, i_mag - iz - zy], axis=1)


def _radii(rng: np.random.Generator, i_mag: Floats) -> Floats:
    """Half-light radii, arcsec: log-normal, 0.4 at i = 23 (near Leauthaud et al. 2007, ApJS 172, 219)."""
    median = 0.40 * 10.0 ** (-0.13 * (i_mag - 23.0))
    radii: Floats = np.clip(median * 10.0 ** rng.normal(0.0, 0.18, len(i_mag)), 0.1, 6.0)
    return radii


def observe_galaxies(galaxies: Table, band: str) -> Table:
    """The galaxies as sources (SKY_SOURCE_DTYPE) in a band."""
    flux = galaxies["flux"][:, BANDS.index(band)]
    rows = point_sources(Kind.GALAXY, galaxies, flux, flux)
    for name in ("radius", "axis_ratio", "angle"):
        rows[name] = galaxies[name]
    return rows
