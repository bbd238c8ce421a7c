"""Variable stars: flux = mean * (1 + amplitude(band) * shape(phase)), a shape's mean being 0 over its period.

There are 500 per deg^2: as many as two in a hundred point sources at middle latitudes, the part that varies
by 0.05 mag (Sesar et al. 2007, AJ 134, 2236), but by much more than most of those do, so that every CCD of
every visit has about twenty that differ from their mean by more than 5 sigma: numbers to do statistics with,
not a model of the Galaxy.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import Table
from simulators.sky.cells import CACHED_CELLS, CELL_SQDEG, generator, uniform_positions
from simulators.sky.sources import Floats, Kind, nanojansky, point_sources, source_ids
from simulators.sky.stars import STAR_DTYPE, magnitudes_on_locus, moved


class Shape(IntEnum):
    """How the light varies with phase."""

    SAWTOOTH = 0
    """RR Lyrae-like: up in a seventh of the period, down in the rest."""
    SINE = 1
    ECLIPSING = 2
    """Two dips, half a period apart."""


VARIABLE_DTYPE = np.dtype(
    [
        *STAR_DTYPE.descr,
        ("shape", "u1"),
        ("period", "f8"),
        ("phase", "f8"),
        ("amplitude", "f4", (len(BANDS),)),
    ]
)
"""As STAR_DTYPE, mean fluxes; period: days; phase: at MJD 0 (TAI), 0..1; amplitude: part of the mean."""

_PER_SQDEG = 500.0
_R_MAG = (16.5, 23.0)
# By shape, in the order of Shape. Uniform between two numbers, save the colours: mean and width of g - i.
_SHARE = (0.4, 0.4, 0.2)
_PERIODS = ((0.3, 0.9), (0.05, 300.0), (0.2, 20.0))  # days, uniform in the logarithm
_COLOURS = ((0.35, 0.1), (1.2, 0.5), (1.0, 0.4))
_AMPLITUDES = ((0.25, 0.6), (0.03, 0.4), (0.1, 0.6))  # in g

# Amplitudes relative to g in u..y: RR Lyrae after Sesar et al. (2010, ApJ 708, 717, table 3: g 1, r 0.71, i
# 0.56, z 0.50), the others invented.
_RELATIVE = np.array(
    [
        [0.95, 1.0, 0.71, 0.56, 0.50, 0.48],
        [1.00, 1.0, 0.80, 0.65, 0.60, 0.55],
        [1.00, 1.0, 0.97, 0.95, 0.93, 0.92],
    ]
)
_RISE = 1.0 / 7.0
_ECLIPSE_HALF_WIDTH, _SECONDARY = 0.08, 0.4
_PROPER_MOTION = 4.0


@lru_cache(maxsize=CACHED_CELLS)
def variables_of(seed: int, cell: int) -> Table:
    """The variable stars of a cell (VARIABLE_DTYPE)."""
    rng = generator(seed, Kind.VARIABLE, cell)
    stars = np.zeros(rng.poisson(_PER_SQDEG * CELL_SQDEG), VARIABLE_DTYPE)
    stars["id"] = source_ids(Kind.VARIABLE, len(stars), cell)
    stars["ra"], stars["dec"] = uniform_positions(rng, cell, len(stars))
    stars["pm_ra"], stars["pm_dec"] = rng.normal(0.0, _PROPER_MOTION, (2, len(stars)))
    stars["phase"] = rng.random(len(stars))
    shape = stars["shape"] = rng.choice(len(Shape), len(stars), p=_SHARE)
    stars["period"] = np.exp(rng.uniform(*np.log(_PERIODS)[shape].T))
    stars["amplitude"] = rng.uniform(*np.array(_AMPLITUDES)[shape].T)[:, None] * _RELATIVE[shape]
    r_mag, g_minus_i = rng.uniform(*_R_MAG, len(stars)), rng.normal(*np.array(_COLOURS)[shape].T)
    stars["flux"] = nanojansky(magnitudes_on_locus(rng, r_mag, g_minus_i))
    return stars


def shape_at(shape: Shape, phase: Floats) -> Floats:
    """Relative flux change at phases (0..1), mean 0 over a period, at most 1 in size."""
    if shape is Shape.SINE:
        return np.sin(2.0 * np.pi * phase)
    if shape is Shape.SAWTOOTH:
        return np.interp(phase, [0.0, _RISE, 1.0], [-1.0, 1.0, -1.0])
    mean = _ECLIPSE_HALF_WIDTH * (1.0 + _SECONDARY)
    return mean - _dip(phase, 0.5) - _SECONDARY * _dip(phase, 0.0)


def _dip(phase: Floats, center: float) -> Floats:
    """A raised cosine of depth 1 about a phase; its mean over the period is its half width."""
    distance = np.abs(np.mod(phase - center + 0.5, 1.0) - 0.5) / _ECLIPSE_HALF_WIDTH
    return np.where(distance < 1.0, 0.5 + 0.5 * np.cos(np.pi * distance), 0.0)


def flux_at(variables: Table, band: str, mjd_tai: float) -> Floats:
    """Flux (nJy) of variables in a band at a time."""
    index = BANDS.index(band)
    phase = np.mod(variables["phase"] + mjd_tai / variables["period"], 1.0)
    change = np.zeros(len(variables))
    for shape in Shape:
        chosen = variables["shape"] == shape
        change[chosen] = shape_at(shape, phase[chosen])
    flux: Floats = variables["flux"][:, index] * (1.0 + variables["amplitude"][:, index] * change)
    return flux


def observe_variables(variables: Table, band: str, mjd_tai: float) -> Table:
    """The variables as sources (SKY_SOURCE_DTYPE) in a band at a time."""
    mean = variables["flux"][:, BANDS.index(band)]
    return point_sources(Kind.VARIABLE, moved(variables, mjd_tai), flux_at(variables, band, mjd_tai), mean)
