"""What stars leave in a difference beyond the matching kernel, alike for all of them: their far wings."""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging import stars
from payloads.imaging.photometry import is_usable
from schemas.image import Image, MaskPlane

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BRIGHT = 30.0
"""Peaks of the light, in the noise of a pixel, from which a star tells, or is seen to."""
_MOST, _FEWEST = 300, 20
"""Stars that the profile is made of."""
_CORE = 3
"""Half-width of the square whose light a star's wings are measured by: all of it has one seeing."""
_FROM, _TO = 0.5, 2.2
"""Half-widths of the kernel between which the profile is taken away."""
_SIGNIFICANT = 2.0
_FAINTEST = 0.015
"""Of a pixel's noise: wings below this are left."""


def remove_far_wings(image: Image, light: Image, variance: Image, mask: MaskPlane, reach: int) -> None:
    """Take the far wings of its stars from a difference `image`, in place.

    `light`: what was subtracted, in which the stars are found; `variance`, `mask`: the difference's; all (ny, nx).
    `reach`: half-width of the matching kernel (pixels), which cannot make the wings beyond it of the other image's
    shape. They are a star's light times one profile for all, round, the median over the brightest stars, weighted with
    their light, of the mean in each ring of a pixel: what varies, or has a neighbour, does not rule it.
    """
    found = stars.find(light, variance, _BRIGHT)
    x, y = found["x"].astype(np.int64), found["y"].astype(np.int64)
    core = _cores(light, mask, x, y)
    x, y, core = x[core > 0.0], y[core > 0.0], core[core > 0.0]
    first, last = int(_FROM * reach), int(_TO * reach)
    if core.size < _FEWEST:
        return
    brightest = np.argsort(-core)[:_MOST]
    means, errors = _ring_means(image, variance, mask, x[brightest], y[brightest], first, last)
    profile = _profile(means, errors, core[brightest])
    noise = np.sqrt(variance[y, x])
    seen = core * np.abs(profile).max(initial=0.0) > _FAINTEST * noise
    _take(image, x[seen], y[seen], core[seen], profile, first)


def _profile(means: Floats, errors: Floats, core: Floats) -> Floats:
    """(rings,): the weighted median of the stars' (n, rings), as part of their `core`; 0 where it is none for sure."""
    known = np.isfinite(means)
    weight = np.where(known, core[:, None], 0.0)
    part = np.where(known, means, 0.0) / core[:, None]
    order = np.argsort(part, axis=0)
    summed = np.cumsum(np.take_along_axis(weight, order, 0), axis=0)
    middle = (summed < 0.5 * summed[-1]).sum(axis=0)
    median = np.take_along_axis(part, np.take_along_axis(order, middle[None], 0), 0)[0]
    error = 1.25 * np.sqrt(np.where(known, errors**2, 0.0).sum(axis=0)) / np.maximum(summed[-1], 1e-30)
    enough = known.sum(axis=0) >= _FEWEST
    result: Floats = np.where(enough & (np.abs(median) > _SIGNIFICANT * error), median, 0.0)
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cores(light: Image, mask: MaskPlane, xs: Indices, ys: Indices) -> Floats:
    """(n,): light in the square about each star; 0 where a pixel of it is not usable."""
    result = np.zeros(xs.size)
    for k in range(xs.size):
        total, whole = 0.0, True
        for y in range(ys[k] - _CORE, ys[k] + _CORE + 1):
            for x in range(xs[k] - _CORE, xs[k] + _CORE + 1):
                if is_usable(light, mask, y, x):
                    total += light[y, x]
                else:
                    whole = False
        if whole:
            result[k] = total
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _ring_means(
    image: Image, variance: Image, mask: MaskPlane, xs: Indices, ys: Indices, first: int, last: int
) -> tuple[Floats, Floats]:
    """(n, last - first): mean of the usable pixels in each ring of a pixel's width, and its error; NaN of none."""
    rings = last - first
    total, noise, count = np.zeros((xs.size, rings)), np.zeros((xs.size, rings)), np.zeros((xs.size, rings))
    for k in range(xs.size):
        for y in range(ys[k] - last, ys[k] + last + 1):
            for x in range(xs[k] - last, xs[k] + last + 1):
                ring = int(np.sqrt(float((x - xs[k]) ** 2 + (y - ys[k]) ** 2)) + 0.5) - first
                if 0 <= ring < rings and is_usable(image, mask, y, x):
                    total[k, ring] += image[y, x]
                    noise[k, ring] += variance[y, x]
                    count[k, ring] += 1.0
    return total / count, np.sqrt(noise) / count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take(image: Image, xs: Indices, ys: Indices, core: Floats, profile: Floats, first: int) -> None:
    """From the image each star's profile, straight from ring to ring."""
    ny, nx = image.shape
    last = first + profile.size - 1
    for k in range(xs.size):
        for y in range(max(ys[k] - last, 0), min(ys[k] + last + 1, ny)):
            for x in range(max(xs[k] - last, 0), min(xs[k] + last + 1, nx)):
                radius = np.sqrt(float((x - xs[k]) ** 2 + (y - ys[k]) ** 2)) - first
                if 0.0 <= radius < last - first:
                    ring = int(radius)
                    part = radius - ring
                    image[y, x] -= core[k] * ((1.0 - part) * profile[ring] + part * profile[ring + 1])
