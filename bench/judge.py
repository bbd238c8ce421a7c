"""Differences held against the truth of their pair, all by the same code, whoever made them.

A difference is filtered with the PSF of a point in it: at each pixel the flux of a point there and its error. What
stands out by five times the robust width of flux / error is a detection, so that who tells too small a noise gains
nothing by it; how wrong it was is told beside.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from schemas.image import Psf
from simulators.pairs import Pair, View

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]
Bools = NDArray[np.bool_]

BINS = (5.0, 6.0, 8.0, np.inf)
FOUND_PX, FALSE_PX = 2.5, 3.5
THRESHOLD = 5.0
BRIGHT_MAG, NEAR_BRIGHT_PX = 16.5, 20.0
_HALF_WIDTH = 20
_LEAST_COVERED = 0.5
_GOOD_SNR = 8.0
_EIGHT = np.ones((3, 3))
_THINNED = 16
"""Of the pixels, enough for a width."""


@dataclass(frozen=True)
class Shape:
    """Of a simulated PSF. `fwhm`: pixels, of a round one of the same area; `beta`: index of the Moffat profile.

    `ellipticity`: (a^2 - b^2) / (a^2 + b^2) of its axes, and the direction of the longer, degrees from x.
    """

    fwhm: float
    beta: float = 3.0
    ellipticity: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Filtered:
    """Flux of a point at each pixel and its error, electrons of the science image; where they mean anything.

    `corner`: x, y of its first pixel on the science image.
    """

    flux: Pixels
    error: Pixels
    usable: Bools
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Verdict:
    """Of one difference. `found`: (found, there) by bin of S/N; `far`: false and not near a bright star.

    `width`: robust, of flux / error. `bias` (%) and `pull` (robust width): of true transients of S/N over 8, at their
    true places, found or not.
    """

    found: list[tuple[int, int]]
    false: float
    far: float
    width: float
    bias: float
    pull: float
    usable: float


def shape_of(view: View, pixel_arcsec: float) -> Shape:
    """The PSF that a view is drawn with; diffraction spikes, which only bright stars have, are not in it."""
    return Shape(view.fwhm_arcsec / pixel_arcsec, view.beta, view.ellipticity)


def moffat(shape: Shape, half: int = _HALF_WIDTH) -> Floats:
    """(2 half + 1) square: the simulated PSF, of unit flux in all, of which the wings lie beyond the stamp."""
    core = shape.fwhm / 2.0 / np.sqrt(2.0 ** (1.0 / shape.beta) - 1.0)
    e, turn = shape.ellipticity[0], np.radians(shape.ellipticity[1])
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    axes = np.sqrt((1.0 + e) / (1.0 - e))
    squared = (along**2 / axes + across**2 * axes) / core**2
    result: Floats = (shape.beta - 1.0) / np.pi / core**2 * (1.0 + squared) ** -shape.beta
    return result


def robust_width(values: Floats) -> float:
    """The standard deviation, by the median absolute one."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def at_centre(psf: Psf) -> Floats:
    """A PSF's kernel in the middle of its image."""
    ny, nx = psf.shape
    return psf.at((nx - 1) / 2.0, (ny - 1) / 2.0).astype(np.float64)


def filtered(
    difference: Pixels, variance: Pixels, usable: Bools, psf: Floats, corner: tuple[int, int] = (0, 0)
) -> Filtered:
    """A difference (electrons of the science image) filtered with its PSF, its noise taken as white."""
    covered = np.maximum(_seen_through(psf**2, usable), 1e-30)
    flux = _seen_through(psf, np.where(usable, difference, 0.0)) / covered
    known = usable & (covered > _LEAST_COVERED * (psf**2).sum())
    noise = np.maximum(_seen_through(psf**2, np.where(usable, variance, 0.0)), 1e-30)
    return Filtered(flux, np.sqrt(noise) / covered, known, corner)


def _seen_through(kernel: Floats, image: NDArray[np.generic]) -> Pixels:
    result: Pixels = signal.oaconvolve(image.astype(np.float32), kernel[::-1, ::-1].astype(np.float32), mode="same")
    return result


def bright_stars(pair: Pair) -> Floats:
    """(n, 2): x, y on the science image of what rises as high as a star of magnitude 16.5."""
    view = pair.recipe.science
    peak = 10.0 ** (0.4 * (view.zero_point - BRIGHT_MAG)) * moffat(shape_of(view, pair.recipe.pixel_arcsec), 0)
    regions, n = ndimage.label(pair.science * view.gain - view.sky > float(peak[0, 0]), _EIGHT)
    centres = np.array(ndimage.center_of_mass(np.ones_like(regions), regions, np.arange(1, n + 1)))
    return centres.reshape(-1, 2)[:, ::-1]


def far_from(bright: Floats, places: Floats) -> int:
    """How many places (n, 2) are near none of the bright stars."""
    return int((distances(places, bright).min(axis=1, initial=np.inf) > NEAR_BRIGHT_PX).sum())


def judged(made: Filtered, pair: Pair, bright: Floats) -> Verdict:
    """Hold it against the truth; `bright`: of `bright_stars`."""
    x, y, snr, flux = _truth_within(made, pair)
    usable = made.usable[np.rint(y).astype(int), np.rint(x).astype(int)]
    score = np.where(made.usable, made.flux / made.error, 0.0)
    width = robust_width(score[made.usable][::_THINNED])
    found, false = _detected(score / width, x, y, snr)
    good = usable & (np.abs(snr) > _GOOD_SNR)
    measured, error = (_at(plane, x[good], y[good]) for plane in (made.flux, made.error))
    return Verdict(
        found=[(int((found & chosen).sum()), int(chosen.sum())) for chosen in binned(snr, usable)],
        false=len(false), far=far_from(bright, false + made.corner), width=width,
        bias=100.0 * float(np.median(measured / flux[good] - 1.0)) if good.any() else np.nan,
        pull=robust_width((measured - flux[good]) / error) if good.any() else np.nan,
        usable=float(made.usable.mean()),
    )  # fmt: skip


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several pairs: what was found in all of them, medians of the rest."""
    totals = np.sum([each.found for each in verdicts], axis=0)
    names = ("false", "far", "width", "bias", "pull", "usable")
    middle = (float(np.median([getattr(each, name) for each in verdicts])) for name in names)
    return Verdict([(int(n), int(there)) for n, there in totals], *middle)


def binned(snr: Floats, usable: Bools) -> Iterator[Bools]:
    """Which are in each bin of S/N, on usable pixels."""
    return (usable & (np.abs(snr) >= low) & (np.abs(snr) < high) for low, high in pairwise(BINS))


def distances(one: Floats, other: Floats) -> Floats:
    """(n, m) pixels between points (n, 2) and (m, 2)."""
    result: Floats = np.hypot(one[:, None, 0] - other[None, :, 0], one[:, None, 1] - other[None, :, 1])
    return result


def _truth_within(made: Filtered, pair: Pair) -> tuple[Floats, Floats, Floats, Floats]:
    """x, y in the difference's own pixels, S/N, flux of the transients in it."""
    x, y, snr, flux = (np.asarray(pair.truth[name], np.float64) for name in ("x", "y", "snr", "flux"))
    x, y = x - made.corner[0], y - made.corner[1]
    ny, nx = made.flux.shape
    inside = (x > 0) & (y > 0) & (x < nx - 1) & (y < ny - 1)
    return x[inside], y[inside], snr[inside], flux[inside]


def _detected(score: Pixels, x: Floats, y: Floats, snr: Floats) -> tuple[Bools, Floats]:
    """Which transients the peak of a footprint of their own sign is at; the peaks (n, 2) that are at none."""
    truth, found, false = np.stack([x, y], axis=1), np.zeros(len(x), bool), []
    for sign in (1.0, -1.0):
        peaks = _peaks(sign * score)
        apart = distances(peaks, truth)
        found |= (apart.min(axis=0, initial=np.inf) < FOUND_PX) & (sign * snr > 0)
        false.append(peaks[apart.min(axis=1, initial=np.inf) > FALSE_PX])
    return found, np.concatenate(false)


def _peaks(score: Pixels) -> Floats:
    """(n, 2): x, y of the highest pixel of each connected region above the threshold."""
    regions, _ = ndimage.label(score > THRESHOLD, _EIGHT)
    y, x = np.nonzero(regions)
    order = np.lexsort([-score[y, x], regions[y, x]])
    _, first = np.unique(regions[y, x][order], return_index=True)
    highest = order[first]
    return np.stack([x[highest], y[highest]], axis=1).astype(np.float64)


def _at(plane: Pixels, x: Floats, y: Floats) -> Floats:
    """A filtered plane, which is smooth on the PSF's scale, between its pixels, by cubic splines."""
    stamps = [_stamp(plane, round(a), round(b)) for a, b in zip(x, y, strict=True)]
    result: Floats = np.array(
        [
            ndimage.map_coordinates(stamp, [[b - y0], [a - x0]], order=3, mode="nearest")[0]
            for (stamp, x0, y0), a, b in zip(stamps, x, y, strict=True)
        ]
    )
    return result


def _stamp(plane: Pixels, x: int, y: int) -> tuple[Pixels, int, int]:
    x0, y0 = max(0, x - 10), max(0, y - 10)
    return plane[y0 : y + 11, x0 : x + 11], x0, y0


def saturation(view: View) -> float:
    """The level (ADU) from which an image of this view is not to be believed."""
    return 0.999 * view.saturation / view.gain
