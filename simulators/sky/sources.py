"""What the sky shows: one row a source, and the ids that name them."""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.tables import Table

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


class Kind(IntEnum):
    """What a source is; the top byte of its id."""

    STAR = 0
    GALAXY = 1
    VARIABLE = 2
    TRANSIENT = 3
    ASTEROID = 4


SKY_SOURCE_DTYPE = np.dtype(
    [("id", "i8"), ("kind", "u1"), ("ra", "f8"), ("dec", "f8")]
    + [(name, "f4") for name in ("flux", "template_flux", "radius", "axis_ratio", "angle", "rate_ra", "rate_dec")]
)
"""A source at one time in one band.

ra, dec: deg ICRS at that time, astrometric (no aberration, no refraction). flux: nJy. template_flux: nJy,
what a deep template shows of it: the mean flux of a variable, 0 for transients and asteroids, `flux` for what
is constant. radius: half-light radius along the major axis, arcsec, 0 for a point source; axis_ratio: minor
over major; angle: of the major axis, deg, north through east. rate_ra, rate_dec: arcsec/s on the sky (rate_ra
with cos dec).
"""

_NUMBER_BITS, _BLOCK_BITS, _CELL_BITS = 16, 20, 20


def source_ids(kind: Kind, count: int, cell: int = 0, block: int = 0) -> Ids:
    """Ids of the `count` sources of a kind in a cell and block of time: kind | cell | block | number.

    What has no cell (a minor planet) may have more than 2**16 numbers: they run on through the block's bits.
    """
    first = (((kind << _CELL_BITS) | cell) << _BLOCK_BITS | block) << _NUMBER_BITS
    return first + np.arange(count, dtype=np.int64)


def kind_of(source_id: int) -> Kind:
    """The kind that an id names."""
    return Kind(source_id >> (_NUMBER_BITS + _BLOCK_BITS + _CELL_BITS))


def nanojansky(mag: ArrayLike) -> Floats:
    """Flux (nJy) of AB magnitudes."""
    flux: Floats = 10.0 ** ((31.4 - np.asarray(mag, dtype=np.float64)) / 2.5)
    return flux


def ab_magnitude(flux: ArrayLike) -> Floats:
    """AB magnitudes of fluxes (nJy, positive)."""
    return 31.4 - 2.5 * np.log10(np.asarray(flux, dtype=np.float64))


def point_sources(kind: Kind, table: Table, flux: ArrayLike, template_flux: ArrayLike) -> Table:
    """Rows of sources that are points at rest, at the `id`, `ra`, `dec` of a table."""
    rows = np.zeros(len(table), SKY_SOURCE_DTYPE)
    for name in ("id", "ra", "dec"):
        rows[name] = table[name]
    rows["kind"], rows["axis_ratio"] = kind, 1.0
    rows["flux"], rows["template_flux"] = flux, template_flux
    return rows
