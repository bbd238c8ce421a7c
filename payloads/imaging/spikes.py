"""Diffraction spikes: found by what is seen of them, followed to where they fade, painted into a mask.

The aperture's pattern is the same about every star and, as the power of any aperture's transform, symmetric about it;
so directions are pooled over the brightest stars and over opposite arms.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, MaskedImage, MaskPlane

Floats = NDArray[np.float64]

_CORE, _FLANKS = 1.0 / 3.0, (1.6, 2.1)
"""Where a ray is looked at: on it and to either side, and where it is held to have none, in FWHM."""
_PEDESTAL = 0.1
"""Part of the flanks' light by which a ray must exceed them: smooth halos, of elongated PSFs too, have less."""
_CLIP = 2.0
"""Sigmas that one place counts for at the most: a star on a ray is no ray."""

_BRIGHTEST = 8
"""Stars that the directions are made of."""
_DIRECTIONS = 240
"""Of half a circle."""
_PARTS, _SAMPLES = 4, 16
"""Parts of a ray that each have a vote, and places of each."""
_SEARCHED, _LARGEST = (0.8, 2.0), 80.0
"""Radii of a halo between which directions are looked for, and the largest halo (pixels) this is true of."""
_LEAST_VOTES = 6
_LEAST = 1.6
"""Sigmas of a place, times the root of the votes, that two thirds of the votes for a spike exceed; noise has 0.2."""
_WIDEST = 20
"""Directions, 15 degrees, to either side that may be one spike's."""
_MOST_PAIRS = 8

_FADED = 0.4
"""Sigmas of a pixel, the mean of those across, below which a ray has faded."""
_SURE = 8.0
"""Sum of what exceeds that, or lacks to it, pixel by pixel, that tells that there is a ray, or no more of it."""
_NEAREST, _SHORTEST = 4.0, 8.0
"""FWHM from the star within which nothing is told, and over which it is at the least."""


class Rays(NamedTuple):
    """Straight rays about stars at (`x`, `y`), along `angle` (rad, from +x to +y), each (n,).

    `begin`, `end`: distances from the star; `half_width`: across; pixels.
    """

    x: Floats
    y: Floats
    angle: Floats
    begin: Floats
    end: Floats
    half_width: Floats


def find_spikes(
    pixels: MaskedImage, spoilt: int, x: Floats, y: Floats, radius: Floats, fwhm: float, longest: float
) -> Rays:
    """The diffraction spikes that reach beyond the halos of bright stars.

    `pixels`: less their sky; those with one of the mask bits `spoilt`, or not finite, tell nothing. `x`, `y`, `radius`:
    centres and radii (pixels) of the halos, each (n,). A spike exceeds the light on either side of it, on the same
    circle, by a tenth and by what tells it from noise, in two thirds of the parts of the rays of the eight largest
    halos. About each star it is followed from its halo, at most to `longest`, to where it has 0.4 sigma of a pixel. No
    spikes, no rays.
    """
    angles = directions(pixels, spoilt, x, y, radius, fwhm)
    arms = np.concatenate([angles, angles + np.pi])
    begin = np.maximum(radius, _NEAREST * fwhm)
    end = _follow(pixels.image, pixels.variance, pixels.mask, spoilt, x, y, begin, arms, fwhm, longest)
    star, arm = np.nonzero(end > 0.0)
    return Rays(x[star], y[star], arms[arm], begin[star], end[star, arm], np.full(len(star), fwhm + 2.0))


def directions(pixels: MaskedImage, spoilt: int, x: Floats, y: Floats, radius: Floats, fwhm: float) -> Floats:
    """Angles (rad, from 0 to pi) of the lines that the spikes of an image lie on; see `find_spikes`."""
    largest = np.argsort(-radius, kind="stable")[:_BRIGHTEST]
    if not len(largest):
        return np.empty(0)
    votes = _votes(
        pixels.image, pixels.variance, pixels.mask, spoilt, x[largest], y[largest],
        np.minimum(radius[largest], _LARGEST), fwhm,
    )  # fmt: skip
    return _peaks(_strength(votes))


def paint_rays(mask: MaskPlane, bit: int, rays: Rays) -> None:
    """Set `bit` in place on the pixels no farther than its half-width from the line of each ray."""
    _paint(mask, bit, *rays)


def _strength(votes: Floats) -> Floats:
    """(directions,): what two thirds of the votes (voters, directions) cast exceed, times their root; 0 of few."""
    count = np.isfinite(votes).sum(axis=0)
    rank = np.maximum(count - 1, 0) // 3
    third = np.take_along_axis(np.sort(votes, axis=0), rank[None], axis=0)[0]
    result: Floats = np.where(count >= _LEAST_VOTES, third * np.sqrt(count), 0.0)
    return result


def _peaks(strength: Floats) -> Floats:
    """Angles at which the strength of directions stands out, the strongest first."""
    left = strength.copy()
    found: list[float] = []
    while len(found) < _MOST_PAIRS and left[top := int(np.argmax(left))] > _LEAST:
        near = np.arange(top - _slope(left, top, -1), top + _slope(left, top, 1) + 1)
        weight = np.maximum(left[near % _DIRECTIONS] - left[top] / 2.0, 0.0)
        found.append(float((weight * near).sum() / weight.sum()) * np.pi / _DIRECTIONS)
        left[near % _DIRECTIONS] = 0.0
    result: Floats = np.mod(np.array(found), np.pi)
    return result


def _slope(strength: Floats, top: int, side: int) -> int:
    """Directions to one side over which the strength falls from a peak to a tenth of it."""
    values = strength[(top + side * np.arange(1, _WIDEST + 1)) % _DIRECTIONS]
    return int(np.argmax(np.append(values < 0.1 * strength[top], True)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _contrast(
    image: Image,
    variance: Image,
    mask: MaskPlane,
    spoilt: int,
    x: float,
    y: float,
    c: float,
    s: float,
    r: float,
    fwhm: float,
) -> float:
    """Sigmas by which a place on a ray along (c, s) exceeds its flanks on the same circle; NaN if one is no good."""
    ny, nx = image.shape
    core, flanks, own = 0.0, 0.0, 0.0
    for k in range(7):
        across = (k - 1) * _CORE if k < 3 else (_FLANKS[k % 2] if k < 5 else -_FLANKS[k % 2])
        across *= fwhm
        along = r - 0.5 * across * across / r
        i, j = int(np.floor(x + along * c - across * s + 0.5)), int(np.floor(y + along * s + across * c + 0.5))
        if i < 0 or j < 0 or i >= nx or j >= ny or mask[j, i] & spoilt or not np.isfinite(image[j, i]):
            return np.nan
        if k < 3:
            core += image[j, i] / 3.0
        else:
            flanks += image[j, i] / 4.0
        if k == 1:
            own = variance[j, i]
    excess: float = (core - flanks - _PEDESTAL * max(flanks, 0.0)) / np.sqrt(own)
    return min(max(excess, -_CLIP), _CLIP)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _votes(
    image: Image,
    variance: Image,
    mask: MaskPlane,
    spoilt: int,
    xs: Floats,
    ys: Floats,
    radius: Floats,
    fwhm: float,
) -> Floats:
    """(stars * 2 arms * parts, directions): mean contrast of each part of a ray; NaN if half of it is no good."""
    votes = np.full((xs.size * 2 * _PARTS, _DIRECTIONS), np.nan)
    for k in range(xs.size):
        near = max(_SEARCHED[0] * radius[k], _NEAREST * fwhm)
        step = max(_SEARCHED[1] * radius[k] - near, _SHORTEST * fwhm) / (_PARTS * _SAMPLES)
        for arm in range(2 * _DIRECTIONS):
            angle = np.pi * arm / _DIRECTIONS
            c, s = np.cos(angle), np.sin(angle)
            for part in range(_PARTS):
                total, n = 0.0, 0
                for sample in range(_SAMPLES):
                    r = near + (part * _SAMPLES + sample) * step
                    value = _contrast(image, variance, mask, spoilt, xs[k], ys[k], c, s, r, fwhm)
                    if np.isfinite(value):
                        total, n = total + value, n + 1
                if 2 * n > _SAMPLES:
                    votes[(2 * k + arm // _DIRECTIONS) * _PARTS + part, arm % _DIRECTIONS] = total / n
    return votes


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _follow(
    image: Image,
    variance: Image,
    mask: MaskPlane,
    spoilt: int,
    xs: Floats,
    ys: Floats,
    begin: Floats,
    arms: Floats,
    fwhm: float,
    longest: float,
) -> Floats:
    """(stars, arms): how far from the star each ray is seen; 0 if it is not.

    The end of a ray is where the sum of what its contrast has above a level is largest (Page 1954, Biometrika 41, 100).
    """
    ends = np.zeros((xs.size, arms.size))
    for k in range(xs.size):
        for arm in range(arms.size):
            c, s, r = np.cos(arms[arm]), np.sin(arms[arm]), begin[k]
            total, most = 0.0, 0.0
            while r < longest and total > most - _SURE:
                value = _contrast(image, variance, mask, spoilt, xs[k], ys[k], c, s, r, fwhm)
                total += (value if np.isfinite(value) else 0.0) - _FADED
                r += 1.0
                if total > max(most, _SURE):
                    ends[k, arm] = r
                most = max(most, total)
    return ends


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _paint(
    mask: MaskPlane, bit: int, xs: Floats, ys: Floats, angles: Floats, begins: Floats, ends: Floats, half_widths: Floats
) -> None:
    ny, nx = mask.shape
    for k in range(xs.size):
        c, s, near, far, half = np.cos(angles[k]), np.sin(angles[k]), begins[k], ends[k], half_widths[k]
        low, high = min(near * s, far * s) - half * abs(c), max(near * s, far * s) + half * abs(c)
        for y in range(max(int(np.ceil(ys[k] + low)), 0), min(int(np.floor(ys[k] + high)) + 1, ny)):
            dy, first, last = y - ys[k], 0.0, nx - 1.0
            # Along the ray from its begin to its end, across it the half-width to either side: two strips of the row.
            for slope, offset, least, most in ((c, s * dy, near, far), (-s, c * dy, -half, half)):
                if abs(slope) < 1e-9:
                    last = last if least <= offset <= most else -1.0
                    continue
                one, other = xs[k] + (least - offset) / slope, xs[k] + (most - offset) / slope
                first, last = max(first, min(one, other)), min(last, max(one, other))
            for x in range(int(np.ceil(first)), int(np.floor(last)) + 1):
                mask[y, x] |= bit
