"""The sky in cells, each with random numbers of its own, so that any part of it can be made at any time.

Cells are the pixels of a nested HEALPix grid (Gorski et al. 2005, ApJ 622, 759). The numbers of a cell come
from Philox, a counter-based generator (Salmon et al. 2011, SC'11), seeded with the sky's seed, the kind of
source, the cell and a block of time: they depend on nothing else, neither on the pointing nor on what was
made before.
"""

import hpgeom
import numpy as np
from numpy.typing import NDArray

from schemas.tables import Table
from schemas.wcs import separation_arcsec
from simulators.sky.sources import Floats, Kind

NSIDE = 256
CELL_SQDEG = 41252.96125 / (12 * NSIDE**2)
"""Area of every cell, 0.0525 deg^2: about that of an LSST CCD (0.0518)."""

CACHED_CELLS = 320
"""Enough for a field of view of 1.75 deg radius and the cells that it touches."""

_FINE_BITS = 2 * (29 - 8)  # from the cells (order 8) down to the finest pixels (order 29, 0.4 mas)
# ICRS (ESA 1997, The Hipparcos and Tycho Catalogues, vol. 1, section 1.5.3).
_NORTH_GALACTIC_POLE = np.radians([192.85948, 27.12825])


def cells_within(ra: float, dec: float, radius_deg: float) -> list[int]:
    """Cells that a circle (deg) touches, perhaps a few more, in order."""
    cells: NDArray[np.int64] = hpgeom.query_circle(NSIDE, ra, dec, radius_deg, inclusive=True, nest=True)
    return sorted(int(cell) for cell in cells)


def generator(seed: int, kind: Kind, cell: int = 0, block: int = 0) -> np.random.Generator:
    """The random numbers of a kind of source in a cell and block of time."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, kind, cell, block])))


def uniform_positions(rng: np.random.Generator, cell: int, count: int) -> tuple[Floats, Floats]:
    """RA, dec (deg), uniform over a cell: centres of the finest pixels, which all have the same area."""
    pixels = (cell << _FINE_BITS) + rng.integers(0, 1 << _FINE_BITS, count)
    ra, dec = hpgeom.pixel_to_angle(1 << 29, pixels, nest=True)
    return ra, dec


def sin_galactic_latitude(cell: int) -> float:
    """|sin b| of a cell's centre."""
    ra, dec = np.radians(hpgeom.pixel_to_angle(NSIDE, cell, nest=True))
    ra_pole, dec_pole = _NORTH_GALACTIC_POLE
    return float(abs(np.sin(dec) * np.sin(dec_pole) + np.cos(dec) * np.cos(dec_pole) * np.cos(ra - ra_pole)))


def within(table: Table, ra: float, dec: float, radius_deg: float) -> Table:
    """Rows whose `ra`, `dec` lie in a circle (deg)."""
    return table[separation_arcsec(table["ra"], table["dec"], ra, dec) <= radius_deg * 3600.0]


def shifted(ra: Floats, dec: Floats, east: Floats, north: Floats) -> tuple[Floats, Floats]:
    """Positions (deg) moved along their local east and north (arcsec, small), right at the poles too."""
    a, d = np.radians(ra), np.radians(dec)
    e, n = np.radians(east / 3600.0), np.radians(north / 3600.0)
    along = np.cos(d) - n * np.sin(d)  # towards the meridian point of the equator
    moved_ra = np.degrees(a + np.arctan2(e, along))
    return np.mod(moved_ra, 360.0), np.degrees(np.arctan2(np.sin(d) + n * np.cos(d), np.hypot(along, e)))


def magnitudes_of_counts(rng: np.random.Generator, knots: Floats, thinning: float) -> Floats:
    """A cell's magnitudes, drawn from cumulative counts.

    `knots`: (n, 2) of magnitude and log10 of the number per deg^2 brighter than it, linear in between;
    `thinning` multiplies the numbers. Nothing is brighter than the first knot.
    """
    brightest, faintest = thinning * CELL_SQDEG * 10.0 ** knots[[0, -1], 1]
    rank = rng.uniform(brightest, faintest, rng.poisson(faintest - brightest))
    magnitudes: Floats = np.interp(np.log10(rank / (thinning * CELL_SQDEG)), knots[:, 1], knots[:, 0])
    return magnitudes
