"""Objects found on the coadds of all bands together.

Each band's coadd is filtered with its own PSF, which gives the signal to noise of a point source at every pixel. The
bands' ratios are joined as the root of the sum of their squares (the chi image of Szalay, Connolly & Szokoly 1999, AJ
117, 68), of positive ones alone; and each stands for itself too, for what is bright in a single band. Peaks are told
from noise on another peak's flank by how far they rise above the saddle between them (the persistence of computational
topology, Edelsbrunner, Letscher & Zomorodian 2002, Discrete Comput. Geom. 28, 511).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import comb
from scipy.stats import chi2, norm

from payloads.imaging.convolve import blocks_of, convolve_blocks
from payloads.imaging.mask_ops import footprints, root
from payloads.imaging.photometry import usable
from payloads.imaging.psf_field import kernel_sigma, kernels_at
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Psf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int32]

THRESHOLD = 5.0
"""Signal to noise above which something is an object."""
_PROMINENCE, _CONTRAST = 3.5, 0.015
"""How far a peak rises above the saddle to a higher one: so many sigma and such a part of the saddle's own height."""
_BLOCK = 272
_CORE_SIGMAS = 4.0
_LEAST_WEIGHT = 0.05
"""Of the usual weight: with less of the PSF on usable pixels there is no ratio."""
_SAMPLED, _FEWEST = 7, 100
"""Every so many pixels the noise is looked at; and how many tell it."""
_BRIGHT, _LIT, _LEAST_SKY = 20.0, 5.0, np.float32(0.5)
"""Light in sigmas of a pixel from which its noise tells that of light, and is freed of it; least part that is sky's."""
_LEAST_CORE, _CORE_REACH, _CORE_EDGE = 3, 1.3, 4.0
"""Of a saturated core: fewest pixels, and how far from its middle it still makes peaks: radii, and pixels."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """Peaks, highest first, each (n,): pixels x, y, the ratio there, the footprint in which it is, from 0.

    `labels`: int32 (ny, nx), the peak to which a pixel above the threshold belongs, -1 elsewhere. `area`: of these
    pixels, each (n,). `band`: in which band, by number, the ratio is highest.
    """

    x: Ints
    y: Ints
    value: Image
    footprint: Ints
    area: Ints
    band: Ints
    labels: Labels


def signal_to_noise(pixels: MaskedImage, psf: Psf) -> tuple[Image, float]:
    """Of a point source at every pixel, float32 (ny, nx), and by how much the variances understate the noise.

    0 where the PSF is hardly on usable pixels. The ratio has a spread of 1 on empty sky, as measured there: noise that
    neighbouring pixels of a coadd share is not in their variances.
    """
    x, y = blocks_of(pixels.shape, _BLOCK)
    cores = _cores(kernels_at(psf, x.ravel(), y.ravel()))
    kernels, good = cores.reshape(*x.shape, *cores.shape[1:]), usable(pixels)
    weight = np.divide(np.float32(1.0), pixels.variance, out=np.zeros(pixels.shape, np.float32), where=good)
    light = np.where(good, pixels.image * weight, np.float32(0.0))
    signal = convolve_blocks(light, kernels[..., ::-1, ::-1], _BLOCK)
    square = convolve_blocks(weight, kernels[..., ::-1, ::-1] ** 2, _BLOCK)
    usual = float(np.median(square[square > 0.0])) if np.any(square > 0.0) else 1.0
    seen = square > _LEAST_WEIGHT * usual
    ratio = np.divide(signal, np.sqrt(square, where=seen, out=signal.copy()), out=np.zeros_like(signal), where=seen)
    scale = _spread(ratio[seen])
    ratio /= np.float32(scale)
    return ratio, scale


def sky_variance(pixels: MaskedImage) -> Image:
    """Variances without what the light of sources adds, float32 (ny, nx): a star's middle then counts as its rim does.

    The noise of light is a straight line of it, of the slope that bright pixels tell.
    """
    image, variance, good = pixels.image, pixels.variance, usable(pixels)
    if not good.any():
        return variance
    usual = np.float32(np.median(variance[good]))
    bright = good & (image > _BRIGHT * usual**0.5)
    if np.count_nonzero(bright) < _FEWEST:
        return variance
    slope = np.float32(max(float(np.median((variance[bright] - usual) / image[bright])), 0.0))
    lit = good & (image > _LIT * usual**0.5)
    sky = variance.copy()
    sky[lit] = np.maximum(variance[lit] - slope * image[lit], np.minimum(variance[lit], _LEAST_SKY * usual))
    return sky


def joint_ratio(ratios: Sequence[Image]) -> Image:
    """One image of the bands' ratios, in sigma of one band's: above 5 is as rare by noise as above 5 in one of them.

    That is so of each of the ways to be above it, of which there are one more than bands.
    """
    best: Image = np.max(np.stack(ratios), axis=0)
    if len(ratios) == 1:
        return best
    total = np.zeros_like(best)
    for ratio in ratios:
        np.add(total, np.square(np.maximum(ratio, 0.0)), out=total)
    together = np.sqrt(total, out=total)
    together *= np.float32(THRESHOLD / _chi_threshold(len(ratios)))
    np.maximum(best, together, out=best)
    return best


def find_peaks(ratio: Image, ratios: Sequence[Image], mask: MaskPlane, noise: Image) -> Peaks:
    """Peaks of the joint `ratio` above 5, told apart; a star that saturates (`SAT` in `mask`) is one peak.

    `noise`: of light and sky in that of the sky alone, >= 1: by so much more must a peak rise.
    """
    flat = ratio.ravel()
    above = np.flatnonzero(flat > THRESHOLD)
    order = above[np.argsort(flat[above], kind="stable")[::-1]]
    labels = np.full(ratio.shape, -1, np.int32)
    at, footprint = _climb(ratio, noise, order, _PROMINENCE, _CONTRAST, labels)
    y, x = np.divmod(at, ratio.shape[1])
    bands = np.argmax(np.stack([r[y, x] for r in ratios]), axis=0)
    owner = _one_a_star(x, y, mask)
    kept, number = np.unique(owner, return_inverse=True)
    labels[labels >= 0] = number[labels[labels >= 0]]
    area = np.bincount(labels[labels >= 0], minlength=kept.size).astype(np.int64)
    _, group = np.unique(footprint[kept], return_inverse=True)
    return Peaks(x[kept], y[kept], flat[at[kept]], group.astype(np.int64), area, bands[kept], labels)


def _one_a_star(x: Ints, y: Ints, mask: MaskPlane) -> Ints:
    """The peak that stands for each: within a saturated star the highest, which is moved, in place, to its middle."""
    owner = np.arange(x.size)
    cores = footprints(mask, Mask.SAT)
    for cx, cy, area in zip(cores.x, cores.y, cores.area, strict=True):
        near = np.flatnonzero(np.hypot(x - cx, y - cy) < _CORE_REACH * np.sqrt(area / np.pi) + _CORE_EDGE)
        if near.size and area >= _LEAST_CORE:
            owner[near] = near[0]
            x[near[0]], y[near[0]] = round(cx), round(cy)
    return owner


def _cores(kernels: Image) -> Image:
    """What the filter uses of PSFs (n, k, k): the wings hold little and cost much."""
    half = kernels.shape[1] // 2
    sigma = kernel_sigma(kernels[kernels.shape[0] // 2])
    core = min(round(_CORE_SIGMAS * sigma) + 1, half)
    return kernels[:, half - core : half + core + 1, half - core : half + core + 1]


def _spread(values: Image) -> float:
    """Standard deviation of the noise among values on sky, from the lowest, where no light is; 1 if there are few."""
    sample = values[::_SAMPLED]
    if sample.size < _FEWEST:
        return 1.0
    lowest, low = np.percentile(sample, [2.275, 15.865])
    return float(low - lowest) or 1.0


@cache
def _chi_threshold(bands: int) -> float:
    """What the root of the sum of the positive squares of so many Gaussians exceeds as rarely as one exceeds 5."""
    counts = np.arange(1, bands + 1)
    weight = comb(bands, counts) / 2.0**bands
    rare = norm.sf(THRESHOLD)
    return float(brentq(lambda t: np.log((weight * chi2.sf(t * t, counts)).sum() / rare), 1.0, 20.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _climb(  # noqa: C901, PLR0912 (one pass, from the highest pixel down)
    ratio: Image, noise: Image, order: Ints, prominence: float, contrast: float, labels: Labels
) -> tuple[Ints, Ints]:
    """Peaks (flat pixels), highest first, and the first peak of the footprint that each is in; `labels` filled.

    Pixels `order` (flat) come from the highest down. One that has no higher neighbour begins a peak; one that joins two
    is their saddle, at which the lower peak ends if it does not rise enough over it.
    """
    ny, nx = ratio.shape
    top = np.empty(order.size, np.int64)
    into, group = np.empty(order.size, np.int64), np.empty(order.size, np.int64)
    count = 0
    for pixel in order:
        y, x = pixel // nx, pixel % nx
        best, height = -1, -np.inf
        for r in range(max(y - 1, 0), min(y + 2, ny)):
            for c in range(max(x - 1, 0), min(x + 2, nx)):
                if labels[r, c] >= 0 and ratio[r, c] > height:
                    best, height = labels[r, c], ratio[r, c]
        if best < 0:
            top[count], into[count], group[count] = pixel, count, count
            labels[y, x] = count
            count += 1
            continue
        labels[y, x] = root(into, best)
        here = ratio[y, x]
        for r in range(max(y - 1, 0), min(y + 2, ny)):
            for c in range(max(x - 1, 0), min(x + 2, nx)):
                if labels[r, c] < 0:
                    continue
                a, b = root(into, labels[y, x]), root(into, labels[r, c])
                high, low = min(a, b), max(a, b)
                if high == low:
                    continue
                one, other = root(group, high), root(group, low)
                group[max(one, other)] = min(one, other)
                if ratio[top[low] // nx, top[low] % nx] - here < prominence * noise[y, x] + contrast * here:
                    into[low] = high
    number = np.full(count, -1)
    kept = 0
    for k in range(count):
        if into[k] == k:
            number[k] = kept
            kept += 1
    peaks, groups = np.empty(kept, np.int64), np.empty(kept, np.int64)
    for k in range(count):
        if into[k] == k:
            peaks[number[k]], groups[number[k]] = top[k], number[root(into, root(group, k))]
    for pixel in order:
        labels[pixel // nx, pixel % nx] = number[root(into, labels[pixel // nx, pixel % nx])]
    return peaks, groups
