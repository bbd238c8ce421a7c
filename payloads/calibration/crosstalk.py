"""Crosstalk: what each amplifier hears of the fifteen that are read at the same moment.

Of exposures of bright spots, lit in one amplifier at a time: each dark amplifier's pixels are a sum of the lit ones'
pixels, times the coefficients, and of stray light, which is smooth. Solved by least squares for each amplifier,
after outliers (cosmic rays, light of its own) were clipped about a first solution of medians, for each exposure;
exposures are then averaged by their errors. (LSST's pipelines take clipped means of ratios instead, Plazas Malagon
et al. 2024, arXiv:2404.14516; least squares also holds where two amplifiers are lit at once.)
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from payloads.calibration.bias import Bias
from payloads.calibration.frames import (
    AMPLIFIERS,
    Floats,
    Rejected,
    blank_with,
    each_of,
    name_of,
    part_of,
    reduced,
    told_apart,
)
from schemas.errors import BadData
from schemas.image import Calibration, Image, Raw
from schemas.instrument import Detector

BRIGHT = 5000.0
"""ADU: a pixel that others may hear; 10 sigma of a coefficient of 1e-2."""
LEAST_LIT = 30
"""Pixels of an amplifier that are bright while another is dark, for a coefficient."""
_CLIP = 4.5
_HALO = 4
"""Pixels from a spot in which it still may shine."""
_COLUMN, _COLUMN_ADU = 6.0, 1.0
"""Errors of a column's mean, and ADU, that a good column may be off."""
_STRAY_ORDER, _STRAY_PIXELS, _STRAY_LEAST = 3, 100_000, 20_000
"""Of the polynomial, pixels that are enough for it, and pixels below which there is a constant only."""
_SAMPLED = 4
_TERMS = AMPLIFIERS + 1


@dataclass(frozen=True, eq=False)
class Crosstalk:
    """matrix, error: float64 (16, 16): the part of j's ADU that appears in i's at [i, j], diagonal 0.

    `agreement`: rms of the exposures' differences from their mean in units of the errors of least squares, which do
    not know that the pixels of a row share their overscan's error; NaN of one exposure alone. `error` is scaled by it.
    """

    detector: int
    matrix: Floats
    error: Floats
    agreement: float
    used: tuple[int, ...]
    rejected: tuple[Rejected, ...]


def measure_crosstalk(raws: Iterable[Raw | Rejected], detector: Detector, bias: Bias) -> Crosstalk:
    """The crosstalk of a detector, of one exposure or several. Raises BadData if none is good."""
    calibration = blank_with(detector, bias=bias.pixels.image)
    each = each_of(raws, lambda raw: (raw.observation.exposure, _of_one(raw, detector, calibration)))
    found, rejected = told_apart(each)
    if not found:
        why = "; ".join(left.why for left in rejected) or "no exposures came"
        raise BadData(f"crosstalk of detector {detector.id}: no exposure is left: {why}")
    return _mean(detector, dict(found), rejected)


def _mean(detector: Detector, found: dict[int, tuple[Floats, Floats]], rejected: tuple[Rejected, ...]) -> Crosstalk:
    each, errors = (np.array(values) for values in zip(*found.values(), strict=True))
    weights = 1.0 / errors**2
    matrix = (weights * each).sum(axis=0) / weights.sum(axis=0)
    off = ~np.eye(AMPLIFIERS, dtype=bool)
    pulls = ((each - matrix) / errors)[:, off]
    free = len(found) - 1
    agreement = float(np.sqrt(np.square(pulls).sum() / (free * off.sum()))) if free else float("nan")
    matrix[~off] = 0.0
    error = np.where(off, weights.sum(axis=0) ** -0.5, 0.0) * max(1.0, agreement if free else 1.0)
    return Crosstalk(detector.id, matrix, error, agreement, tuple(found), rejected)


def _of_one(raw: Raw, detector: Detector, calibration: Calibration) -> tuple[Floats, Floats]:
    """Coefficients and errors of one exposure."""
    image = reduced(raw, detector, calibration, "spot").image
    segments = np.stack([part_of(image, amplifier, detector) for amplifier in detector.amplifiers])
    _, base, sigma = _first_solution(segments, detector, name_of(raw))
    _flatten(segments, _far_from_light(segments, base + _CLIP * sigma))
    start, base, sigma = _first_solution(segments, detector, name_of(raw))
    normal, right = np.zeros((AMPLIFIERS, _TERMS, _TERMS)), np.zeros((AMPLIFIERS, _TERMS))
    squares, number = np.zeros(AMPLIFIERS), np.zeros(AMPLIFIERS)
    far = _far_from_light(segments, base + _CLIP * sigma)
    _leave_out_columns(segments, far, base, sigma)
    _gather(segments, BRIGHT, far, start, base, _CLIP * sigma, normal, right, squares, number)
    own = np.arange(AMPLIFIERS)
    normal[own, own + 1, own + 1] = 1.0  # an amplifier does not hear itself
    inverse = np.linalg.inv(normal)
    solved = np.einsum("iab,ib->ia", inverse, right)
    variance = squares / np.maximum(number - _TERMS, 1.0)
    errors = np.sqrt(np.einsum("iaa->ia", inverse) * variance[:, None])
    return start + solved[:, 1:], errors[:, 1:]


def _far_from_light(segments: Image, shining: Floats) -> NDArray[np.bool_]:
    """(rows, columns): where no amplifier has light, not even the faint edge of a spot.

    `shining` (16,), ADU. Groups of pixels above it are spots; one alone is noise.
    """
    lit = np.zeros(segments.shape[1:], bool)
    for segment, least in zip(segments, shining, strict=True):
        lit |= segment > least
    spots = ndimage.binary_opening(lit, np.ones((2, 2), bool))
    return np.asarray(~ndimage.maximum_filter(spots, 2 * _HALO + 1))


def _flatten(segments: Image, far: NDArray[np.bool_]) -> None:
    """Take off each amplifier's stray light, in place: a polynomial of third order through pixels far from spots."""
    height, width = segments.shape[1:]
    y, x = (np.linspace(-1.0, 1.0, n) for n in (height, width))
    order = _STRAY_ORDER if far.sum() > _STRAY_LEAST else 0
    terms = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    step = max(1, int(far.sum()) // _STRAY_PIXELS)
    rows, columns = (places[::step] for places in np.nonzero(far))
    design = np.stack([y[rows] ** i * x[columns] ** j for i, j in terms], axis=1)
    for segment in segments:
        values = segment[rows, columns]
        kept = np.ones((len(values), 1))
        for _ in range(2):
            solved = np.linalg.solve(design.T @ (kept * design), design.T @ (kept[:, 0] * values))
            off = np.abs(values - design @ solved)
            kept = (off <= _CLIP * 1.4826 * np.median(off)).astype(np.float64)[:, None]
        rows_by_terms = np.zeros((height, order + 1))
        for (i, j), value in zip(terms, solved, strict=True):
            rows_by_terms[:, j] += value * y**i
        segment[:] -= (rows_by_terms @ x ** np.arange(order + 1)[:, None]).astype(np.float32)


def _leave_out_columns(segments: Image, far: NDArray[np.bool_], base: Floats, sigma: Floats) -> None:
    """Make NaN the columns whose dark pixels are off the amplifier's, in place: they get less of the stray light."""
    number = np.maximum(far.sum(axis=0), 1)
    for segment, level, spread in zip(segments, base, sigma, strict=True):
        off = np.where(far, np.clip(segment - level, -_CLIP * spread, _CLIP * spread), 0.0).sum(axis=0) / number
        segment[:, np.abs(off) > _COLUMN * spread / np.sqrt(number) + _COLUMN_ADU] = np.nan


def _first_solution(segments: Image, detector: Detector, name: str) -> tuple[Floats, Floats, Floats]:
    """(16, 16) coefficients, (16,) level and scatter (ADU) of dark pixels, all of medians."""
    sample = segments[:, :: max(1, min(_SAMPLED, segments.shape[1] // 200))].reshape(AMPLIFIERS, -1)
    lit = sample > BRIGHT
    dark = ~lit.any(axis=0)
    base = np.median(sample[:, dark], axis=1).astype(np.float64)
    sigma = 1.4826 * np.median(np.abs(sample[:, dark] - base[:, None]), axis=1).astype(np.float64)
    start = np.zeros((AMPLIFIERS, AMPLIFIERS))
    for source in range(AMPLIFIERS):
        heard = sample[:, lit[source] & (lit.sum(axis=0) == 1)]
        if heard.shape[1] < LEAST_LIT:
            raise BadData(f"{name}: {detector.amplifiers[source].name} has {heard.shape[1]} bright pixels of its own")
        start[:, source] = np.median(heard - base[:, None], axis=1) / np.median(heard[source])
    np.fill_diagonal(start, 0.0)
    return start, base, np.maximum(sigma, 1.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gather(  # noqa: C901 - four loops, flat
    segments: Image, bright: float, far: NDArray[np.bool_], start: Floats, base: Floats, reach: Floats, normal: Floats,
    right: Floats, squares: Floats, number: Floats,
) -> None:  # fmt: skip
    """Normal equations (16, 17, 17), (16, 17) of what dark pixels are above the first solution, outliers left out.

    Pixels that nobody lights tell the constant; those at the edge of a spot are left out, whose faint light would
    raise it.
    """
    amps, height, width = segments.shape
    lit = np.empty(amps, np.int64)
    for y in range(height):
        for x in range(width):
            n = 0
            for j in range(amps):
                if segments[j, y, x] > bright:
                    lit[n] = j
                    n += 1
            if n == 0 and not far[y, x]:
                continue
            for i in range(amps):
                above = segments[i, y, x] - base[i]
                for k in range(n):
                    above -= start[i, lit[k]] * segments[lit[k], y, x]
                if not abs(above) <= reach[i]:  # NaN is left out too
                    continue
                number[i] += 1.0
                squares[i] += above * above
                normal[i, 0, 0] += 1.0
                right[i, 0] += above
                for k in range(n):
                    source = segments[lit[k], y, x]
                    normal[i, 0, 1 + lit[k]] += source
                    normal[i, 1 + lit[k], 0] += source
                    right[i, 1 + lit[k]] += source * above
                    for m in range(n):
                        normal[i, 1 + lit[k], 1 + lit[m]] += source * segments[lit[m], y, x]
