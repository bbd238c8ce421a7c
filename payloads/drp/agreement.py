"""How well sightings of the same stars agree with one another and with a reference catalogue."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.drp.star_links import Stars

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_BRIGHT_SNR = 100.0
_MMAG = float(2500.0 / np.log(10.0))


@dataclass(frozen=True)
class Agreement:
    """Rms of stars of S/N over 100, those that were clipped left out; NaN where there is nothing to compare.

    `internal_mas` (an axis), `internal_mmag`: of sightings about the mean of their star, as repeatability is defined by
    LPM-17 (Ivezic & the LSST Science Collaboration 2013); `reference_mas`, `reference_mmag`: of those means about the
    reference catalogue, whose own errors are in it.
    """

    internal_mas: float
    reference_mas: float
    internal_mmag: float
    reference_mmag: float


@dataclass(frozen=True, eq=False)
class Known:
    """The reference catalogue: `plane` (m, 2) arcsec, `flux` (m,) nJy."""

    plane: Floats
    flux: Floats


@dataclass(frozen=True, eq=False)
class Judged:
    """What is to agree: which sightings, and which stars' references, of place and of flux."""

    places: Bools
    known_places: Bools
    fluxes: Bools
    known_fluxes: Bools


def agreement(stars: Stars, plane: Floats, logs: Floats, known: Known, judged: Judged) -> Agreement:
    """`plane`: (n, 2) arcsec, `logs`: (n,) natural logarithms of fluxes, of the stars' sightings."""
    bright = stars.sightings.flux > _BRIGHT_SNR * stars.sightings.flux_err
    there = np.flatnonzero(stars.reference >= 0)
    places, fluxes = np.full((len(stars.reference), 2), np.nan), np.full((len(stars.reference), 1), np.nan)
    places[there], fluxes[there, 0] = known.plane[stars.reference[there]], known.flux[stars.reference[there]]
    with np.errstate(invalid="ignore", divide="ignore"):
        fluxes = np.log(fluxes)
    mas = _rms(stars.star, plane, judged.places & bright, places, judged.known_places)
    mag = _rms(stars.star, logs[:, None], judged.fluxes & bright, fluxes, judged.known_fluxes)
    return Agreement(1000.0 * mas[0], 1000.0 * mas[1], _MMAG * mag[0], _MMAG * mag[1])


def _rms(star: Ints, values: Floats, chosen: Bools, known: Floats, trusted: Bools) -> tuple[float, float]:
    """Of the chosen values (n, q) about their stars' means, and of those means about what is known (n_stars, q)."""
    star, values = star[chosen], values[chosen]
    count = np.bincount(star, minlength=len(known))
    with np.errstate(invalid="ignore"):
        means = np.stack([np.bincount(star, column, len(known)) / count for column in values.T], axis=1)
    freedom = int(np.maximum(count - 1, 0).sum())
    internal = np.sum((values - means[star]) ** 2) / values.shape[1] / freedom if freedom else np.nan
    off = (means - known)[(count > 0) & trusted]
    return float(np.sqrt(internal)), float(np.sqrt(np.mean(off**2))) if off.size else float("nan")
