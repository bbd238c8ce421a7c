"""What is on the pixels but not on the sky's maps: cosmic rays and satellites' streaks."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image
from schemas.instrument import PIXEL_ARCSEC, Detector
from simulators.camera.noise import Purpose, generator

Floats = NDArray[np.float64]

HITS_PER_SECOND = 80.0 / 15.0
"""In one detector."""
_MUON_PART = 0.6
_SILICON_PIXELS = 10.0
"""Thickness, 100 um."""
_ELECTRONS_PER_PIXEL_LENGTH = 800.0
"""80 electrons per um, a minimum ionising particle's most probable loss."""
_DIFFUSION_PIXELS = 0.4
_STREAK_PROBABILITY = 0.2
_LONGEST_STEP = 0.25
"""Pixels between the points that a track is made of."""


@dataclass(frozen=True)
class Streak:
    """A satellite's path over the focal plane in one exposure: the line x cos(a) + y sin(a) = offset.

    `angle` a: radians. `offset`: arcsec. `peak`: electrons/pixel at its middle, `sigma`: pixels across.
    """

    angle: float
    offset: float
    peak: float
    sigma: float

    def in_pixels(self, detector: Detector) -> tuple[float, float, float]:
        """(a, b, c): the line a x + b y = c in a detector's pixels, with a^2 + b^2 = 1."""
        a, b = float(np.cos(self.angle)), float(np.sin(self.angle))
        cx, cy = detector.center_arcsec
        form = detector.format
        c = (self.offset - a * cx - b * cy) / PIXEL_ARCSEC + a * (form.width - 1) / 2.0 + b * (form.height - 1) / 2.0
        return a, b, c


def streak(seed: int, exposure: int) -> Streak | None:
    """The exposure's streak, if it has one."""
    rng = generator(seed, Purpose.STREAKS, exposure)
    if rng.random() >= _STREAK_PROBABILITY:
        return None
    return Streak(
        rng.uniform(0.0, np.pi),
        rng.uniform(-5000.0, 5000.0),
        150.0 * rng.lognormal(0.0, 1.2),
        rng.uniform(2.0, 3.5),
    )


def streak_ends(path: Streak, detector: Detector) -> Floats | None:
    """(2, 2): x, y of where it enters and leaves the detector; None if it does not cross it."""
    a, b, c = np.array(path.in_pixels(detector))
    nx, ny = detector.format.width - 1.0, detector.format.height - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.array([(0.0, c / b), (nx, (c - a * nx) / b), (c / a, 0.0), ((c - b * ny) / a, ny)])
    inside = points[np.all((points >= -1e-6) & (points <= np.array([nx, ny]) + 1e-6), axis=1)]
    if len(inside) < 2:
        return None
    along = inside @ (-b, a)
    return inside[[along.argmin(), along.argmax()]]


def add_streak(charge: Image, response: Image, path: Streak, detector: Detector) -> None:
    """Add its light to the charge (electrons, ny x nx), in place."""
    _add_line(charge, response, *path.in_pixels(detector), path.peak, path.sigma)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_line(charge: Image, response: Image, a: float, b: float, c: float, peak: float, sigma: float) -> None:
    ny, nx = charge.shape
    reach = 4.0 * sigma
    for y in range(ny):
        first, last = 0, nx - 1
        if abs(a) > 1e-9:
            one, two = (c - reach - b * y) / a, (c + reach - b * y) / a
            first, last = max(0.0, np.ceil(min(one, two))), min(nx - 1.0, np.floor(max(one, two)))
        for x in range(int(first), int(last) + 1):
            across = (a * x + b * y - c) / sigma
            charge[y, x] += np.float32(peak * np.exp(-0.5 * across * across) * response[y, x])


def add_cosmic_rays(charge: Image, seed: int, exposure: int, detector: int, seconds: float) -> int:
    """Add the hits of an exposure to the charge (electrons, ny x nx), in place; how many there were."""
    rng = generator(seed, Purpose.COSMIC_RAYS, exposure, detector)
    hits = int(rng.poisson(HITS_PER_SECOND * seconds))
    for _ in range(hits):
        track = _muon(rng) if rng.random() < _MUON_PART else _worm(rng)
        start = rng.uniform(0.0, 1.0, 2) * (charge.shape[1], charge.shape[0])
        _deposit(charge, track + np.append(start, 0.0), _DIFFUSION_PIXELS)
    return hits


def _muon(rng: np.random.Generator) -> Floats:
    """(n, 3): x, y, electrons of a straight track through the silicon, its direction cos^2 about the zenith.

    The camera looks up: the detector's normal is taken as the vertical.
    """
    cos_zenith = rng.uniform(0.02, 1.0) ** (1.0 / 4.0)
    length = min(_SILICON_PIXELS * np.sqrt(1.0 / cos_zenith**2 - 1.0), 200.0)
    n = max(2, int(length / _LONGEST_STEP))
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    along = np.linspace(0.0, length, n)
    path = np.hypot(length, _SILICON_PIXELS)
    loss = rng.gamma(2.0, 0.5, n) * _ELECTRONS_PER_PIXEL_LENGTH * path / n
    return np.stack([along * np.cos(azimuth), along * np.sin(azimuth), loss], 1)


def _worm(rng: np.random.Generator) -> Floats:
    """(n, 3): x, y, electrons of a Compton electron, scattered at every step and losing more as it slows."""
    n = int(rng.integers(8, 160))
    direction = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, 0.25, n))
    x, y = np.cumsum(np.cos(direction)) * _LONGEST_STEP, np.cumsum(np.sin(direction)) * _LONGEST_STEP
    slowing = 1.0 + 2.0 * np.exp(-(n - np.arange(n)) / 8.0)
    loss = rng.gamma(2.0, 0.5, n) * _ELECTRONS_PER_PIXEL_LENGTH * rng.uniform(1.0, 3.0) * _LONGEST_STEP * slowing
    return np.stack([x, y, loss], 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _deposit(charge: Image, track: Floats, sigma: float) -> None:
    """Each point's electrons over the nine nearest pixels, as far as they diffuse."""
    ny, nx = charge.shape
    for k in range(len(track)):
        x, y = int(np.round(track[k, 0])), int(np.round(track[k, 1]))
        if x < 1 or y < 1 or x >= nx - 1 or y >= ny - 1:
            continue
        part = np.empty((3, 3))
        for j in range(3):
            for i in range(3):
                dx, dy = x + i - 1 - track[k, 0], y + j - 1 - track[k, 1]
                part[j, i] = np.exp(-0.5 * (dx * dx + dy * dy) / (sigma * sigma))
        total = part.sum()
        for j in range(3):
            for i in range(3):
                charge[y + j - 1, x + i - 1] += np.float32(track[k, 2] * part[j, i] / total)
