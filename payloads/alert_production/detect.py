"""Sources in a difference image: footprints of both signs, streaks, and lobes that may be one dipole."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.matched_filter import robust_width, score_image
from payloads.alert_production.subtract import Subtraction, effective_sigma
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane, Psf

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

THRESHOLD = 5.0
"""Sigmas, at the least: see `least_score`."""

_NOISE_ALONE = 2.0 / 4096**2
"""Footprints per pixel, of both signs, that noise alone may give."""

_PAIR_DISTANCE, _APART = 3, 4.0
"""Pixels between the footprints, and sigmas of the PSF between the peaks, of what may be one dipole, at the most."""
LONGEST_TRAIL = 70.0
"""Pixels: 10 deg/day in 30 s, and the PSF. What is longer, and narrow, is a satellite's streak."""

_NARROW = 5.0
_STREAK_MARGIN = 6.0
_STREAK = np.uint16(Mask.STREAK)
_MOST = 20_000


@dataclass(frozen=True, eq=False)
class Detections:
    """Footprints above `threshold`, in the order of their peaks (row, then column).

    `x`, `y`: peak pixel; `score`: signed signal to noise there; `opposite_x`, `opposite_y`, `opposite`: peak
    pixel and score of the touching footprint of the other sign, merged as the weaker lobe of a possible
    dipole, score 0 if none. `first`: (n + 1,) where each footprint begins in `pixels`, flat indices into the
    image. `mask`: the difference's, with DETECTED, DETECTED_NEGATIVE and STREAK. `noise_scale`: by what the noise of
    its pixels is larger than their variances say; `width`: robust standard deviation of the score image, scaled so.
    `threshold`: of `least_score`.
    """

    x: Indices
    y: Indices
    score: Image
    opposite_x: Indices
    opposite_y: Indices
    opposite: Image
    first: Indices
    pixels: Indices
    mask: MaskPlane
    noise_scale: float
    width: float
    threshold: float


def least_score(psf: Psf) -> float:
    """The score of the faintest detections: 5, or more where noise alone would give over 2 in 4096 x 4096 pixels.

    A score image is a Gaussian random field, the narrower its PSF the more independent places it has: its maxima over u
    are 2 d u exp(-u**2 / 2) / (2 pi)**1.5 per pixel, of both signs, with d the variance of its slope along one axis
    (Adler 1981, The Geometry of Random Fields; Bond & Efstathiou 1987, MNRAS 226, 655).
    """
    ny, nx = psf.shape
    kernel = psf.at((nx - 1) / 2, (ny - 1) / 2).astype(np.float64)
    slopes = [np.diff(kernel, axis=axis, prepend=0.0, append=0.0) for axis in (0, 1)]
    variance = np.sqrt(np.prod([(slope**2).sum() for slope in slopes])) / (kernel**2).sum()
    u = THRESHOLD
    for _ in range(10):
        u = max(THRESHOLD, np.sqrt(2.0 * max(np.log(2.0 * variance * u / (2.0 * np.pi) ** 1.5 / _NOISE_ALONE), 0.0)))
    return float(u)


def detect(subtraction: Subtraction) -> Detections:
    """Footprints of both signs outside the cores of what is saturated or missing.

    Raises BadData if there are 20,000 or more.
    """
    pixels = subtraction.difference.pixels
    score, scale = score_image(subtraction)
    threshold = least_score(subtraction.difference.psf)
    found = _footprints(score, np.float32(threshold), _MOST)
    if found[0].size >= _MOST:
        raise BadData(f"{_MOST} footprints or more: the difference image is no difference")
    mask = pixels.mask.copy()
    np.bitwise_or(mask, np.uint16(Mask.HALO), out=mask, where=score == 0.0)  # nothing is looked for: let it be seen
    _mark(mask, score, *found)
    _mark_streaks(mask, *found[1:])
    return _merged(
        score, mask, *found, apart=_APART * effective_sigma(subtraction.difference.psf),
        width=robust_width(score[::7, ::7]), noise_scale=scale, threshold=threshold,
    )  # fmt: skip


def _mark(mask: MaskPlane, score: Image, peaks: Indices, first: Indices, pixels: Indices) -> None:
    negative = np.repeat(score.ravel()[peaks] < 0, np.diff(first))
    flat = mask.reshape(-1)
    flat[pixels] |= np.where(negative, np.uint16(Mask.DETECTED_NEGATIVE), np.uint16(Mask.DETECTED))


def _mark_streaks(mask: MaskPlane, first: Indices, pixels: Indices) -> None:
    """STREAK along the whole line of each footprint that is longer than a trail may be, and narrow."""
    middle, spread = footprint_moments(first, pixels, mask.shape[1])
    for (x, y), matrix in zip(middle, spread, strict=True):
        (narrow, wide), axes = np.linalg.eigh(12.0 * matrix)
        if wide > LONGEST_TRAIL**2 and wide > _NARROW**2 * narrow:
            _paint_line(mask, x, y, axes[0, 1], axes[1, 1], np.sqrt(narrow) / 2.0 + _STREAK_MARGIN)


def footprint_moments(first: Indices, pixels: Indices, nx: int) -> tuple[Floats, Floats]:
    """Middle x, y (n, 2) and covariance (n, 2, 2) of the flat `pixels` from each `first` to the next."""
    count = np.diff(first)
    if not count.size:
        return np.empty((0, 2)), np.empty((0, 2, 2))
    position = np.stack(np.divmod(pixels, nx)[::-1], axis=1).astype(np.float64)
    middle = np.add.reduceat(position, first[:-1]) / count[:, None]
    offset = position - np.repeat(middle, count, axis=0)
    products = offset[:, :, None] * offset[:, None, :]
    return middle, np.add.reduceat(products, first[:-1]) / count[:, None, None]


def _merged(
    score: Image,
    mask: MaskPlane,
    peaks: Indices,
    first: Indices,
    pixels: Indices,
    *,
    apart: float,
    width: float,
    noise_scale: float,
    threshold: float,
) -> Detections:
    """Footprints with the weaker lobes of possible dipoles taken into the stronger ones."""
    values = score.ravel()[peaks]
    y, x = np.divmod(peaks, score.shape[1])
    partner = _partners(mask, values, first, pixels)
    partner = np.where(np.hypot(x - x[partner], y - y[partner]) > apart, -1, partner)
    keep = np.flatnonzero((partner < 0) | (np.abs(values) >= np.abs(values[partner])))
    parts = [np.concatenate([pixels[first[k] : first[k + 1]] for k in (i, partner[i]) if k >= 0]) for i in keep]
    other = partner[keep]
    ends = np.cumsum([0, *(part.size for part in parts)])
    merged = np.concatenate(parts) if parts else np.empty(0, np.int64)
    opposite = np.where(other >= 0, values[other], np.float32(0.0)) if keep.size else np.empty(0, np.float32)
    return Detections(
        x[keep],
        y[keep],
        values[keep],
        x[other],
        y[other],
        opposite,
        ends,
        merged,
        mask,
        noise_scale,
        width,
        threshold,
    )


def _partners(mask: MaskPlane, values: Image, first: Indices, pixels: Indices) -> Indices:
    """For each footprint the strongest of the other sign within 3 pixels, if each is the other's; else -1."""
    owner = np.full(mask.shape, -1, np.int16)  # of fewer than _MOST
    owner.reshape(-1)[pixels] = np.repeat(np.arange(values.size), np.diff(first))
    best = _strongest_neighbours(owner, values, first, pixels, _PAIR_DISTANCE)
    mutual = (best >= 0) & (best[best] == np.arange(best.size))
    return np.where(mutual, best, -1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _paint_line(mask: MaskPlane, x: float, y: float, dx: float, dy: float, half: float) -> None:
    """STREAK on the pixels within `half` of the line through (x, y) along the unit vector (dx, dy)."""
    for r in range(mask.shape[0]):
        for c in range(mask.shape[1]):
            if abs((c - x) * dy - (r - y) * dx) <= half:
                mask[r, c] |= _STREAK


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _footprints(score: Image, threshold: np.float32, most: int) -> tuple[Indices, Indices, Indices]:
    """Regions of one sign beyond the threshold, joined over corners: peaks, first pixels, flat pixels."""
    ny, nx = score.shape
    seen = np.zeros((ny, nx), np.bool_)
    peaks, first, pixels = [0], [0], [0]
    for y in range(ny):
        for x in range(nx):
            if not abs(score[y, x]) > threshold or seen[y, x]:
                continue
            if len(peaks) > most:
                break
            sign = np.float32(1.0) if score[y, x] > 0 else np.float32(-1.0)
            begin, peak = len(pixels), y * nx + x
            pixels.append(peak)
            seen[y, x] = True
            at = begin
            while at < len(pixels):
                j, i = pixels[at] // nx, pixels[at] % nx
                if abs(score[j, i]) > abs(score[peak // nx, peak % nx]):
                    peak = j * nx + i
                for r in range(max(j - 1, 0), min(j + 2, ny)):
                    for c in range(max(i - 1, 0), min(i + 2, nx)):
                        if not seen[r, c] and score[r, c] * sign > threshold:
                            seen[r, c] = True
                            pixels.append(r * nx + c)
                at += 1
            peaks.append(peak)
            first.append(len(pixels) - 1)
    return np.array(peaks)[1:], np.array(first), np.array(pixels)[1:]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _strongest_neighbours(
    owner: NDArray[np.int16], values: Image, first: Indices, pixels: Indices, distance: int
) -> Indices:
    ny, nx = owner.shape
    best = np.full(values.size, -1)
    for k in range(values.size):
        for p in range(first[k], first[k + 1]):
            j, i = pixels[p] // nx, pixels[p] % nx
            for r in range(max(j - distance, 0), min(j + distance + 1, ny)):
                for c in range(max(i - distance, 0), min(i + distance + 1, nx)):
                    o = owner[r, c]
                    other = o >= 0 and values[o] * values[k] < 0
                    if other and (best[k] < 0 or abs(values[o]) > abs(values[best[k]])):
                        best[k] = o
    return best
