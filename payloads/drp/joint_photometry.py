"""How much brighter or fainter each frame of a tract is than the others and than a reference catalogue.

The joint solution of Padmanabhan et al. (2008, ApJ 674, 1217) and of FGCM (Burke et al. 2018, AJ 155, 41), without
models of air or instrument: a level and a slope for each frame, a flux for each star. Fluxes are compared, not their
logarithms, so that faint stars' noise biases nothing. There are no colour terms: the catalogue has the camera's bands.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.drp.joint_fit import WHISPER, Left, Links, Prior, excess, left, level_errors, solve
from payloads.drp.star_links import Stars
from schemas.tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FEWEST = 5
_FOR_SLOPE = 30
"""Fewest stars for a slope over a frame."""

_PRIOR = np.array([1.0, 0.03, 0.03])
"""A priori size of level and slopes, as a part: a frame without references is as its own zero point says."""

_FIXED = 1e-7
_LEAST_SNR, _BRIGHT_SNR = 30.0, 100.0
_ROUNDS = 6
_CLIP = 4.5
_FIRST_FLOOR, _LEAST_FLOOR = 0.005, 0.0005
_REFERENCE_FLOOR = 0.001
_VARIABLE = 5.0
"""A star varies if its chi2 is so many standard deviations too large."""

_ENOUGH = 20
_PASSES = 3


@dataclass(frozen=True, eq=False)
class Photometry:
    """A fit of all frames.

    `coefficients`: (n_frames, 3), logarithms by which fluxes are multiplied: level, and slopes along the frame's u and
    v; `error`: (n_frames,) of the level. `n_stars`: (n_frames,). `used`: (n,) which sightings, `anchored`: (n_stars,)
    which stars' references were. `floor`: what bright stars' fluxes are off, as a part.
    """

    coefficients: Floats
    error: Floats
    n_stars: Ints
    used: Bools
    anchored: Bools
    floor: float


@dataclass(frozen=True, eq=False)
class _Data:
    """nJy: `flux`, `error` (n,) of sightings, `known`, `known_error` (n_stars,) of references, NaN for none.

    `prior`: (n_frames, 3) weights.
    """

    links: Links
    flux: Floats
    error: Floats
    known: Floats
    known_error: Floats
    candidate: Bools
    prior: Floats


@dataclass(frozen=True, eq=False)
class _State:
    """Between rounds: see `Photometry`; `flux` (n_stars,) nJy; `steady`: (n_stars,)."""

    coefficients: Floats
    flux: Floats
    used: Bools
    anchored: Bools
    steady: Bools
    floor: float


@dataclass(frozen=True, eq=False)
class _Compared:
    """Sightings over their stars' fluxes: `measured` (n, 1) what they lack of 1, `error` and `weight` (n,)."""

    measured: Floats
    error: Floats
    weight: Floats
    usable: Bools
    prior: Prior


def slopes(uv: Floats) -> Floats:
    """(n, 3): level and slopes at positions on a frame."""
    return np.column_stack([np.ones(len(uv)), uv])


def bright_enough(stars: Stars) -> Bools:
    """Which sightings photometry may use."""
    result: Bools = stars.sightings.flux > _LEAST_SNR * stars.sightings.flux_err
    return result


def fit_photometry(stars: Stars, refcat: Table, band: str, free: Bools) -> Photometry:
    """Fit all frames. `refcat`: what the stars' `reference` are rows of; `free`: (n_frames,), the others are let alone.

    Stars that the catalogue calls variable are left out, and those that are found to be.
    """
    data = _data(stars, refcat, band, free)
    state = _start(data)
    for _ in range(_ROUNDS):
        state = _round(data, state)
    last = _compared(data, state)
    error = level_errors(data.links, last.weight, last.prior)
    used = state.used & last.usable & state.steady[stars.star]
    counts = np.bincount(data.links.frame, used, len(free)).astype(np.int64)
    return Photometry(state.coefficients, error, counts, used, state.anchored & state.steady, state.floor)


def _data(stars: Stars, refcat: Table, band: str, free: Bools) -> _Data:
    seen, matched = stars.sightings, stars.reference >= 0
    rows = refcat[stars.reference[matched]]
    known, error = np.full((2, len(matched)), np.nan)
    known[matched] = rows[f"{band}_flux"]
    error[matched] = np.hypot(rows[f"{band}_fluxErr"], _REFERENCE_FLOOR * known[matched])
    variable = np.zeros(len(matched), bool)
    variable[matched] = rows["variable"]
    good = (known > 0) & (error > 0) & ~variable
    known[~good], error[~good] = np.nan, np.nan
    links = Links(seen.frame, stars.star, slopes(seen.uv), len(free), len(matched))
    candidate = free[seen.frame] & bright_enough(stars) & ~variable[stars.star]
    sloped = free & (np.bincount(seen.frame, candidate, len(free)) >= _FOR_SLOPE)
    size = np.where(np.column_stack([free, sloped, sloped]), _PRIOR, _FIXED)
    return _Data(links, seen.flux, seen.flux_err, known, error, candidate, size**-2.0)


def _start(data: _Data) -> _State:
    """Levels by medians: of frames with references first, of others by the stars that they share with these."""
    links = data.links
    levels, flux = np.full(links.n_frames, np.nan), data.known.copy()
    for _ in range(_PASSES):
        levels = _levels(data, flux)
        flux = np.where(np.isfinite(data.known), data.known, _mean_flux(data, levels))
    coefficients = np.zeros((links.n_frames, 3))
    coefficients[:, 0] = np.nan_to_num(levels)
    flux = np.where(np.isfinite(flux), flux, _mean_flux(data, coefficients[:, 0]))
    steady = np.ones(links.n_stars, bool)
    anchored = np.isfinite(data.known)
    return _State(coefficients, flux, data.candidate, anchored, steady, _FIRST_FLOOR)


def _levels(data: _Data, flux: Floats) -> Floats:
    """(n_frames,): the median logarithm by which a frame's fluxes are less than the stars', NaN of too few."""
    links, levels = data.links, np.full(data.links.n_frames, np.nan)
    ratio = np.log(flux[links.star] / data.flux)
    usable = data.candidate & np.isfinite(ratio)
    for frame, (first, last) in enumerate(zip(links.starts, links.starts[1:], strict=False)):
        values = ratio[first:last][usable[first:last]]
        levels[frame] = np.median(values) if len(values) >= FEWEST else np.nan
    return levels


def _mean_flux(data: _Data, levels: Floats) -> Floats:
    """(n_stars,): mean of the sightings whose frames have a level; NaN for none."""
    links = data.links
    flux = data.flux * np.exp(levels[links.frame])
    usable = data.candidate & np.isfinite(flux)
    total = np.bincount(links.star, np.where(usable, flux, 0.0), links.n_stars)
    count = np.bincount(links.star, usable, links.n_stars)
    result: Floats = np.divide(total, count, out=np.full(links.n_stars, np.nan), where=count > 0)
    return result


def _round(data: _Data, state: _State) -> _State:
    """One step of Gauss and Newton, then who is an outlier."""
    links, now = data.links, _compared(data, state)
    solution = solve(links, now.measured, now.weight, now.prior, np.zeros((links.n_frames, 3, 1)))
    residual = left(links, now.measured, now.weight, now.prior, solution)
    floor = _floor(residual, now, state)
    pull = np.abs(residual.seen[:, 0]) / np.hypot(now.error, floor)
    return _State(
        state.coefficients + solution.frames[:, :, 0],
        state.flux * np.exp(-solution.stars[:, 0]),
        data.candidate & ~(pull > _CLIP),
        np.isfinite(data.known) & ~(np.abs(residual.known[:, 0]) * state.flux > _CLIP * data.known_error),
        _steady(links, np.where(now.usable, pull, np.nan)),
        floor,
    )


def _compared(data: _Data, state: _State) -> _Compared:
    links, flux = data.links, state.flux[data.links.star]
    scale = np.exp(np.sum(links.basis * state.coefficients[links.frame], axis=1))
    # The star's flux, not the sighting's, says whether it is bright enough: noise selects none.
    usable = data.candidate & (flux > _LEAST_SNR * scale * data.error)
    error = np.where(usable, scale * data.error / flux, 1.0)
    measured = np.where(usable, 1.0 - scale * data.flux / flux, 0.0)[:, None]
    voice = np.where(state.steady, 1.0, WHISPER)
    weight = voice[links.star] * usable * np.where(state.used, 1.0, WHISPER) / (error**2 + state.floor**2)
    return _Compared(measured, error, weight, usable, _prior(data, state, voice))


def _prior(data: _Data, state: _State, voice: Floats) -> Prior:
    """Levels and slopes of none, fluxes as the catalogue has them, all seen from where the state is."""
    known = state.anchored & np.isfinite(state.flux)
    anchor = np.where(known, 1.0 - data.known / state.flux, 0.0)
    weight = np.where(known, voice * (data.known_error / state.flux) ** -2.0, 0.0)
    target = np.where(data.prior < _FIXED**-2.0, -state.coefficients, 0.0)
    return Prior(data.prior, target[:, :, None], anchor[:, None], weight)


def _floor(residual: Left, now: _Compared, state: _State) -> float:
    """What bright steady stars are off, where there are enough to tell."""
    chosen = (now.weight > WHISPER / state.floor**2) & (now.error < 1.0 / _BRIGHT_SNR)
    chosen &= np.isfinite(residual.seen[:, 0])
    if chosen.sum() < _ENOUGH:
        return state.floor
    return excess(residual.seen[chosen], now.error[chosen], _LEAST_FLOOR)


def _steady(links: Links, pull: Floats) -> Bools:
    """Stars whose sightings scatter as errors have it, no one counted for more than an outlier."""
    told = np.isfinite(pull)
    count = np.bincount(links.star, told, links.n_stars)
    square = np.bincount(links.star, np.where(told, np.minimum(pull, _CLIP) ** 2, 0.0), links.n_stars)
    freedom = np.maximum(count - 1.0, 0.0)
    chi2 = square * freedom / np.maximum(count, 1.0)
    result: Bools = chi2 <= freedom + _VARIABLE * np.sqrt(2.0 * freedom)
    return result
