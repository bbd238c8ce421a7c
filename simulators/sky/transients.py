"""Supernova-like transients in and near galaxies, born in blocks of time so that any date can be asked for.

There are 2600 deg^-2 yr^-1, fifty times the supernovae that LSST expects to find (ten million in ten years:
LSST Science Book, version 2.0, chapter 11), so that every CCD of every visit has about twenty in sight, from
S/N 5 to 100: numbers to measure completeness with, not rates. The light curve is that of Bazin et al. (2009,
A&A 499, 653) with a start; the colours are those of a black body that cools from 15,000 to 5,000 K.
"""

from functools import lru_cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import Table
from simulators.sky.cells import CACHED_CELLS, CELL_SQDEG, generator, shifted
from simulators.sky.galaxies import galaxies_of
from simulators.sky.sources import Floats, Kind, nanojansky, point_sources, source_ids

TRANSIENT_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("host", "i8"), ("peak_mjd", "f8")]
    + [(name, "f4") for name in ("rise", "fall", "peak_flux")]
)
"""deg ICRS; host: the galaxy's id; time of the peak in r, MJD TAI; time scales, days; peak in r, nJy."""

BLOCK_DAYS = 100.0
LIFE_DAYS = 200.0
"""How long after the explosion a transient is shown: by then it has lost all but 1e-3 of its peak."""

_PER_SQDEG_DAY = 7.2
_PEAK_R_MAG = (20.5, 24.2)
_RISE_DAYS, _FALL_DAYS = (2.0, 5.0), (10.0, 28.0)
_RISES_BEFORE_PEAK = 5.0
_WAVELENGTH_UM = np.array([0.367, 0.483, 0.622, 0.755, 0.869, 0.971])
_HC_OVER_K = 14387.77  # um K


def blocks_in_sight(mjd_tai: float) -> range:
    """Blocks of explosion times of all that is still shown at a time."""
    return range(max(0, int((mjd_tai - LIFE_DAYS) // BLOCK_DAYS)), int(mjd_tai // BLOCK_DAYS) + 1)


@lru_cache(maxsize=4 * CACHED_CELLS)
def transients_of(seed: int, cell: int, block: int) -> Table:
    """The transients of a cell (TRANSIENT_DTYPE) that explode in a block of 100 days since MJD 0."""
    rng = generator(seed, Kind.TRANSIENT, cell, block)
    hosts = galaxies_of(seed, cell)
    count = rng.poisson(_PER_SQDEG_DAY * BLOCK_DAYS * CELL_SQDEG) if len(hosts) else 0
    new = np.zeros(count, TRANSIENT_DTYPE)
    new["id"] = source_ids(Kind.TRANSIENT, count, cell, block)
    new["rise"], new["fall"] = rng.uniform(*_RISE_DAYS, count), rng.uniform(*_FALL_DAYS, count)
    exploded = (block + rng.random(count)) * BLOCK_DAYS
    new["peak_mjd"] = exploded + _RISES_BEFORE_PEAK * new["rise"]
    new["peak_flux"] = nanojansky(rng.uniform(*_PEAK_R_MAG, count))
    _place(rng, new, hosts)
    return new


def _place(rng: np.random.Generator, new: Table, hosts: Table) -> None:
    """At galaxies, about a half-light radius from their centres."""
    host = hosts[rng.integers(0, len(hosts), len(new))]
    east, north = rng.normal(0.0, 0.8, (2, len(new))) * host["radius"]
    new["host"] = host["id"]
    new["ra"], new["dec"] = shifted(host["ra"], host["dec"], east, north)


def flux_at(transients: Table, band: str, mjd_tai: float) -> Floats:
    """Flux (nJy) in a band at a time; 0 before the explosion and after the life."""
    rise, fall = (transients[name].astype(np.float64) for name in ("rise", "fall"))
    since = mjd_tai - transients["peak_mjd"] + _RISES_BEFORE_PEAK * rise
    bright = (since > 0.0) & (since < LIFE_DAYS)
    age = np.where(bright, since, LIFE_DAYS)
    from_peak = age - _RISES_BEFORE_PEAK * rise
    shift = rise * np.log(fall / rise - 1.0)  # of the peak from Bazin's t0; fall > 2 rise keeps it positive
    flux = transients["peak_flux"] * _bazin(from_peak + shift, rise, fall) / _bazin(shift, rise, fall)
    return np.where(bright, flux * _colour(band, age), 0.0)


def _bazin(t: Floats, rise: Floats, fall: Floats) -> Floats:
    """Rise and fall about t = 0, days."""
    curve: Floats = np.exp(-t / fall) / (1.0 + np.exp(-t / rise))
    return curve


def _colour(band: str, age: Floats) -> Floats:
    """Flux per frequency in a band over that in r, of a black body `age` days after the explosion."""
    x = _HC_OVER_K / (5000.0 + 10000.0 * np.exp(-age / 20.0))
    wavelength, r_wavelength = _WAVELENGTH_UM[BANDS.index(band)], _WAVELENGTH_UM[BANDS.index("r")]
    ratio: Floats = (r_wavelength / wavelength) ** 3 * np.expm1(x / r_wavelength) / np.expm1(x / wavelength)
    return ratio


def observe_transients(transients: Table, band: str, mjd_tai: float) -> Table:
    """Those that shine, as sources (SKY_SOURCE_DTYPE) in a band at a time."""
    flux = flux_at(transients, band, mjd_tai)
    return point_sources(Kind.TRANSIENT, transients[flux > 0.0], flux[flux > 0.0], 0.0)
