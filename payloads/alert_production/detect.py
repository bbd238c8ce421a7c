"""Sources in a difference image: footprints of both signs, streaks, and lobes that may be one dipole."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.matched_filter import robust_width, score_image
from payloads.alert_production.peaks import least_score, least_seen, refined
from payloads.alert_production.subtract import Subtraction, effective_sigma
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_PAIR_DISTANCE, _APART = 6, 4.0
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

    `x`, `y`: peak pixel; `score`: signed signal to noise of the peak, between pixels; `opposite_x`, `opposite_y`,
    `opposite`: peak pixel and score of a footprint of the other sign that is near, merged as the weaker lobe of a
    possible dipole, score 0 if none. `first`: (n + 1,) where each footprint begins in `pixels`, flat indices into the
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


def detect(subtraction: Subtraction) -> Detections:
    """Footprints of both signs outside the cores of what is saturated or missing.

    Raises BadData if there are 20,000 or more.
    """
    pixels = subtraction.difference.pixels
    score, scale = score_image(subtraction)
    psf = subtraction.difference.psf
    threshold, seen = least_score(psf), least_seen(psf)
    found = _footprints(score, np.float32(threshold * seen), _MOST)
    if found[0].size >= _MOST:
        raise BadData(f"{_MOST} footprints or more: the difference image is no difference")
    height = refined(score, found[0], 1.0 / seen)
    height, peaks, first, members = _chosen(np.abs(height) > threshold, height, *found)
    mask = pixels.mask.copy()
    np.bitwise_or(mask, np.uint16(Mask.HALO), out=mask, where=score == 0.0)  # nothing is looked for: let it be seen
    _mark(mask, height, first, members)
    _mark_streaks(mask, first, members)
    return _merged(
        height, mask, peaks, first, members, apart=_APART * effective_sigma(psf), width=robust_width(score[::7, ::7]),
        noise_scale=scale, threshold=threshold,
    )  # fmt: skip


def _chosen(
    chosen: Flags, height: Image, peaks: Indices, first: Indices, pixels: Indices
) -> tuple[Image, Indices, Indices, Indices]:
    """Of the footprints those chosen."""
    count = np.diff(first)
    return height[chosen], peaks[chosen], np.append(0, np.cumsum(count[chosen])), pixels[np.repeat(chosen, count)]


def _mark(mask: MaskPlane, height: Image, first: Indices, pixels: Indices) -> None:
    negative = np.repeat(height < 0, np.diff(first))
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
    values: Image,
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
    y, x = np.divmod(peaks, mask.shape[1])
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
    """For each footprint the strongest of the other sign within 6 pixels, if each is the other's; else -1."""
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
