"""Gains and curves of all amplifiers from the levels and variances of a ladder of flats, in one least squares.

What is solved for: the logarithms of the light on each block of pixels, of each amplifier's gain and of each pair's
lamp, and the coefficients of each amplifier's curve. Each level, made linear, is light x time x lamp; each variance,
made linear, is the charge over the gain. The lamp is known to be near its usual level.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from payloads.calibration.frames import AMPLIFIERS, Floats
from schemas.image import LINEARITY_TERMS

UNIT = 65536.0
"""ADU: curves are polynomials of a level in this unit."""
LAMP_DRIFT = 0.01
"""Relative, of a pair's light from what its time says."""
_LEVEL_FLOOR, _LEVEL_FLOOR_ADU = 3e-5, 0.05
"""Relative, and absolute: what levels may be wrong by beside their noise (overscan, crosstalk, bias)."""
_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class Ladder:
    """n pairs of 16 amplifiers of b blocks: level, variance without read noise (ADU), pixels: (n, 16, b).

    fits: which count. seconds: (n,).
    """

    seconds: Floats
    level: Floats
    variance: Floats
    pixels: Floats
    fits: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Solution:
    """gain, gain_error (relative), curve_error (relative, of the charge at the highest level): (16,).

    curves: (16, terms), of level / UNIT. lamp: (n,), relative. residuals: (n, 16), relative, of an amplifier's levels
    from what light and lamp say, the mean over blocks; NaN where none counts.
    """

    gain: Floats
    gain_error: Floats
    curves: Floats
    curve_error: Floats
    lamp: Floats
    residuals: Floats


def solve(ladder: Ladder) -> Solution:
    """The solution by Gauss and Newton: the equations are nearly linear, six rounds are more than enough."""
    at = _Places(*ladder.level.shape)
    values = _start(ladder, at)
    for _ in range(_ROUNDS):
        misfit, jacobian = _equations(values, ladder, at)
        square = jacobian.T @ jacobian
        square[np.diag_indices_from(square)] += np.diag(square) == 0.0  # a block that never counts stays where it is
        values = values - np.linalg.solve(square, jacobian.T @ misfit)
    covariance = np.linalg.inv(square)
    off, _ = _levels_off(values, ladder, at)
    with np.errstate(invalid="ignore"):
        residuals = np.where(ladder.fits, off, 0.0).sum(axis=2) / ladder.fits.sum(axis=2)
    top = np.where(ladder.fits, ladder.level, 0.0).max(axis=(0, 2)) / UNIT
    curve_error = np.empty(AMPLIFIERS)
    for a, places in enumerate(at.curves):
        powers = top[a] ** np.arange(1, LINEARITY_TERMS + 1)
        curve_error[a] = np.sqrt(powers @ covariance[np.ix_(places, places)] @ powers)
    return Solution(
        np.exp(values[at.gain]), np.sqrt(np.diag(covariance)[at.gain]), values[at.curves], curve_error,
        np.expm1(values[at.lamp]), residuals,
    )  # fmt: skip


class _Places:
    """Where in the vector of unknowns each lies."""

    def __init__(self, n: int, amplifiers: int, blocks: int) -> None:
        counts = (amplifiers * blocks, amplifiers, amplifiers * LINEARITY_TERMS, n)
        ends = np.cumsum((0, *counts))
        each = [np.arange(start, end) for start, end in pairwise(ends)]
        self.light = each[0].reshape(amplifiers, blocks)
        self.gain = each[1]
        self.curves = each[2].reshape(amplifiers, LINEARITY_TERMS)
        self.lamp = each[3]
        self.size = int(ends[-1])


def _start(ladder: Ladder, at: _Places) -> Floats:
    values = np.zeros(at.size)
    n = len(ladder.seconds) // 2 + 1
    rough = ladder.level[:n] / np.maximum(ladder.variance[:n], 1e-3)
    values[at.gain] = np.log(np.median(rough, axis=(0, 2)))
    light = np.median(ladder.level / ladder.seconds[:, None, None], axis=0)
    values[at.light] = np.log(np.maximum(light, 1e-3))
    return values


def _levels_off(values: Floats, ladder: Ladder, at: _Places) -> tuple[Floats, Floats]:
    """(n, 16, b): how far levels, made linear, are above what light and lamp say, relative; the powers (.., terms)."""
    powers = (ladder.level / UNIT)[..., None] ** np.arange(1, LINEARITY_TERMS + 1)
    ratio = 1.0 + (powers * values[at.curves][:, None, :]).sum(axis=3)
    lamp = np.log(ladder.seconds) + values[at.lamp]
    level = np.maximum(ladder.level, 1e-3)
    return np.log(level * ratio) - values[at.light] - lamp[:, None, None], powers


def _equations(values: Floats, ladder: Ladder, at: _Places) -> tuple[Floats, Floats]:
    """Misfits in units of their errors, and their derivatives by the unknowns."""
    off, powers = _levels_off(values, ladder, at)
    pair, amplifier, block = np.nonzero(ladder.fits)
    level, variance, pixels = (each[ladder.fits] for each in (ladder.level, ladder.variance, ladder.pixels))
    powers, curves = powers[ladder.fits], values[at.curves][amplifier]
    steps = np.arange(2, LINEARITY_TERMS + 2)
    ratio, slope = 1.0 + (powers * curves).sum(axis=1), 1.0 + (steps * powers * curves).sum(axis=1)
    rows, n = np.arange(len(level)), len(ladder.seconds)
    by_level, by_shot, by_lamp = (np.zeros((size, at.size)) for size in (len(level), len(level), n))
    by_level[rows, at.light[amplifier, block]] = -1.0
    by_level[rows, at.lamp[pair]] = -1.0
    by_level[rows[:, None], at.curves[amplifier]] = powers / ratio[:, None]
    by_shot[rows, at.gain[amplifier]] = 1.0
    by_shot[rows[:, None], at.curves[amplifier]] = powers * (2.0 * steps / slope[:, None] - 1.0 / ratio[:, None])
    by_lamp[np.arange(n), at.lamp] = 1.0
    # The logarithm of a variance of n numbers is 1 / n low in the mean.
    shot = np.log(variance * slope**2 / (level * ratio)) + 1.0 / pixels + values[at.gain][amplifier]
    noise = 0.5 * variance / (pixels * level**2) + _LEVEL_FLOOR**2 + (_LEVEL_FLOOR_ADU / level) ** 2
    weights = np.concatenate([noise**-0.5, np.sqrt(0.5 * pixels), np.full(n, 1.0 / LAMP_DRIFT)])
    misfit = np.concatenate([off[ladder.fits], shot, values[at.lamp]])
    return misfit * weights, np.concatenate([by_level, by_shot, by_lamp]) * weights[:, None]
