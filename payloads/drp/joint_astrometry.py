"""Where all frames of a tract lie, by their common stars and a reference catalogue together.

After SCAMP (Bertin 2006, ASPC 351, 112), gbdes (Bernstein et al. 2017, PASP 129, 074503) and jointcal: a polynomial for
each frame and a place for each star, fitted at once. What positions are off beyond their photons' noise, and the
catalogue beyond its own, is taken from the residuals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.drp.distortion import DEGREE, Maps, lasting
from payloads.drp.joint_fit import WHISPER, Left, Links, Prior, excess, left, solve
from payloads.drp.star_links import Stars
from payloads.drp.tan_sip import ORDER, POWERS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FEWEST = 10
_STARS_OF_ORDER = ((40, 3), (20, 2), (FEWEST, 1))
"""Fewest stars for a polynomial's order."""

_PRIOR_MAS = np.array([10_000.0, 10_000.0, 400.0, 100.0])[DEGREE]
"""A priori size of a term by its degree, at the frame's edge: enough for any that a preliminary map may have missed."""

_FIXED_MAS = 1e-4
_ROUNDS, _ROUNDS_BEFORE_LASTING = 6, 2
_CLIP = 5.0
_BRIGHT_SNR = 100.0
_FIRST_FLOOR_MAS, _FIRST_REFERENCE_MAS, _LEAST_MAS = 5.0, 5.0, 0.3
_ENOUGH = 20
"""Residuals that tell how wide they are."""


@dataclass(frozen=True, eq=False)
class Astrometry:
    """A fit of all frames.

    `coefficients`: (n_frames, 10, 2) mas to be added on the plane, of `POWERS`; `order`, `n_stars`: (n_frames,), 0 for
    those let alone. `used`: (n,) which sightings, `anchored`: (n_stars,) which stars' references were. `floor_mas`,
    `reference_mas`: what positions of bright stars and of references are off, an axis.
    """

    coefficients: Floats
    order: Ints
    n_stars: Ints
    used: Bools
    anchored: Bools
    floor_mas: float
    reference_mas: float


@dataclass(frozen=True, eq=False)
class _Data:
    """mas: `measured` (n, 2) and `error` (n,) of sightings, `anchor` (n_stars, 2) of references. `bright`: (n,)."""

    links: Links
    measured: Floats
    error: Floats
    bright: Bools
    anchor: Floats
    known: Bools
    order: Ints


def fit_astrometry(stars: Stars, references: Floats, maps: Maps, free: Bools) -> Astrometry:
    """Fit all frames. `references`: (m, 2), arcsec on the plane; `free`: (n_frames,), the others are let alone."""
    data = _data(stars, references, free)
    used, anchored = free[data.links.frame], data.known
    floor, reference = _FIRST_FLOOR_MAS, _FIRST_REFERENCE_MAS
    coefficients = np.zeros((len(free), len(POWERS), 2))
    beforehand = _nothing(data.order)
    for done in range(_ROUNDS):
        if done == _ROUNDS_BEFORE_LASTING:  # once: what it has been told itself would seem ever surer
            beforehand = _of_detectors(beforehand, *lasting(maps, coefficients, data.order == ORDER), free)
        weight = free[data.links.frame] * np.where(used, 1.0, WHISPER) / (data.error**2 + floor**2)
        prior = Prior(*beforehand, data.anchor, data.known * np.where(anchored, 1.0, WHISPER) / reference**2)
        solution = solve(data.links, data.measured, weight, prior, coefficients)
        coefficients = solution.frames
        residual = left(data.links, data.measured, weight, prior, solution)
        floor, reference = _widths(data, residual, used, anchored, floor, reference)
        used = free[data.links.frame] & _within(residual.seen, np.hypot(data.error, floor))
        anchored = data.known & _within(residual.known, reference)
    counts = np.bincount(data.links.frame, used, len(free)).astype(np.int64)
    return Astrometry(coefficients, data.order, counts, used, anchored, floor, reference)


def terms(uv: Floats) -> Floats:
    """(n, 10): the polynomials' terms at positions on a frame."""
    return np.stack([uv[:, 0] ** p * uv[:, 1] ** q for p, q in POWERS], axis=1)


def _data(stars: Stars, references: Floats, free: Bools) -> _Data:
    seen = stars.sightings
    links = Links(seen.frame, stars.star, terms(seen.uv), len(free), len(stars.reference))
    counts = np.bincount(stars.star, minlength=len(stars.reference))
    means = np.stack([np.bincount(stars.star, axis) / counts for axis in seen.plane.T], axis=1)
    known = stars.reference >= 0
    anchor = np.zeros_like(means)
    anchor[known] = 1000.0 * (means[known] - references[stars.reference[known]])
    measured = 1000.0 * (means[stars.star] - seen.plane)
    bright = seen.flux > _BRIGHT_SNR * seen.flux_err
    order = np.where(free, _orders(np.bincount(seen.frame, minlength=len(free))), 0)
    return _Data(links, measured, 1000.0 * seen.position_err, bright, anchor, known, order)


def _orders(counts: Ints) -> Ints:
    return np.select([counts >= fewest for fewest, _ in _STARS_OF_ORDER], [order for _, order in _STARS_OF_ORDER], 0)


def _nothing(order: Ints) -> tuple[Floats, Floats]:
    """Weight and target of no change, tight where a frame's order does not reach; of frames let alone of any term."""
    reached = (order[:, None] >= DEGREE) & (order[:, None] > 0)
    weight = np.where(reached, _PRIOR_MAS, _FIXED_MAS) ** -2.0
    return weight, np.zeros((*weight.shape, 2))


def _of_detectors(
    beforehand: tuple[Floats, Floats], added: Floats, width: Floats, free: Bools
) -> tuple[Floats, Floats]:
    """Weight and target of bending as the detector does, where that is known."""
    weight, target = beforehand
    known = free[:, None] & (DEGREE > 1) & np.isfinite(added[:, :, 0])
    return np.where(known, width**-2.0, weight), np.where(known[:, :, None], added, target)


def _widths(
    data: _Data, residual: Left, used: Bools, anchored: Bools, floor: float, reference: float
) -> tuple[float, float]:
    """What is found of the errors, where there is enough to find it."""
    seen = used & data.bright & np.isfinite(residual.seen[:, 0])
    if seen.sum() >= _ENOUGH:
        floor = excess(residual.seen[seen], data.error[seen], _LEAST_MAS)
    known = anchored & np.isfinite(residual.known[:, 0])
    if known.sum() >= _ENOUGH:
        reference = excess(residual.known[known], np.zeros(known.sum()), _LEAST_MAS)
    return floor, reference


def _within(residual: Floats, error: Floats | float) -> Bools:
    """Which residuals (n, 2) are no outliers; what had nothing to be held against is none."""
    result: Bools = ~(np.abs(residual).max(axis=1) > _CLIP * error)
    return result
