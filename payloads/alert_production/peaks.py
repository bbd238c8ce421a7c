"""Maxima of a score image: how high they are between the pixels, and from what height noise seldom makes them."""

import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, Psf

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

THRESHOLD = 5.0
"""Sigmas, at the least: see `least_score`."""

_NOISE_ALONE = 2.0 / 4096**2
"""Maxima per pixel, of both signs, that noise alone may give."""
_FFT = 128


def least_score(psf: Psf) -> float:
    """The score of the faintest detections: 5, or more where noise alone would give over 2 in 4096 x 4096 pixels.

    A score image is a Gaussian random field, the narrower its PSF the more independent places it has: its maxima over u
    are 2 d u exp(-u**2 / 2) / (2 pi)**1.5 per pixel, of both signs, with d the variance of its slope along one axis
    (Adler 1981, The Geometry of Random Fields; Bond & Efstathiou 1987, MNRAS 226, 655).
    """
    power, frequency = _power(psf)
    along = [(power * frequency**2).sum(), (power * frequency[:, None] ** 2).sum()]
    slope = np.sqrt(along[0] * along[1]) / power.sum()
    u = THRESHOLD
    for _ in range(10):
        u = max(THRESHOLD, np.sqrt(2.0 * max(np.log(2.0 * slope * u / (2.0 * np.pi) ** 1.5 / _NOISE_ALONE), 0.0)))
    return float(u)


def least_seen(psf: Psf) -> float:
    """The part of a source's score that the nearest pixel shows, where the source lies on a corner of four."""
    power, frequency = _power(psf)
    half = np.cos(frequency / 2.0)
    return float((power * half * half[:, None]).sum() / power.sum())


def _power(psf: Psf) -> tuple[Floats, Floats]:
    """Power spectrum of the PSF at the centre, and the frequencies of either axis, radians per pixel."""
    ny, nx = psf.shape
    kernel = psf.at((nx - 1) / 2, (ny - 1) / 2).astype(np.float64)
    power: Floats = np.abs(np.fft.fft2(kernel, (_FFT, _FFT))) ** 2
    frequency = np.asarray(2.0 * np.pi * np.fft.fftfreq(_FFT), np.float64)
    return power, frequency


def refined(score: Image, peaks: Indices, most: float) -> Image:
    """Heights (n,) of the maxima at flat pixels `peaks` (n,), by parabolas through their neighbours in row and column.

    At the most `most` times the pixel's own, which stays where a neighbour is not on the image or has no score.
    """
    y, x = np.divmod(peaks, score.shape[1])
    height = score[y, x].astype(np.float64)
    gain = np.zeros(len(peaks))
    for dy, dx in ((0, 1), (1, 0)):
        inside = (y >= dy) & (x >= dx) & (y < score.shape[0] - dy) & (x < score.shape[1] - dx)
        before, after = (score[np.where(inside, y + s * dy, y), np.where(inside, x + s * dx, x)] for s in (-1, 1))
        bend = 2.0 * height - before - after
        known = inside & (before != 0.0) & (after != 0.0) & (bend * height > 0.0)
        gain += np.where(known, (after - before) ** 2 / (8.0 * np.where(known, bend, 1.0)), 0.0)
    limit = (most - 1.0) * np.abs(height)
    result: Image = (height + np.clip(gain, -limit, limit)).astype(np.float32)
    return result
