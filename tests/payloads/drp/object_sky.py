"""Patches of Moffat stars and exponential galaxies for tests, drawn pixel by pixel, and what is true of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from schemas.image import MaskedImage, Psf
from schemas.skymap import Tract, tract_at
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

TRACT = tract_at(53.1, -27.8)
PATCH, MARGIN, SIDE = 205, 64, 2048 + 2 * 64
BETA, FINE, HALF = 3.0, 5, 20


@dataclass(frozen=True, eq=False)
class Coadd:
    """What a test gives for a coadd."""

    pixels: MaskedImage
    wcs: Wcs
    psf: Psf
    depth: NDArray[np.uint16]


@dataclass(frozen=True)
class Thing:
    """A star, or with a half-light `radius` (pixels) a disc: pixels of the grid, nJy by band."""

    x: float
    y: float
    flux: Mapping[str, float]
    radius: float = 0.0
    axis_ratio: float = 1.0
    angle: float = 0.0


@dataclass(frozen=True, eq=False)
class Sky:
    """Things, the FWHM (pixels) of each band's PSF, and the noise (nJy) of its pixels."""

    things: Sequence[Thing]
    fwhm: Mapping[str, float] = field(default_factory=lambda: {"r": 4.0})
    noise: float = 5.0
    seed: int = 1


def kernel(fwhm: float, dx: float = 0.0, dy: float = 0.0, half: int = HALF) -> Floats:
    """A Moffat star at (dx, dy) from the middle pixel, its light within the central stamp of HALF being 1."""
    return _moffat(fwhm, dx, dy, half) / _moffat(fwhm, 0.0, 0.0, HALF).sum()


def stamp(thing: Thing, fwhm: float) -> tuple[int, int, Floats]:
    """First pixel (x, y) of a thing's light, and that light, of a flux of 1."""
    ix, iy = round(thing.x), round(thing.y)
    if thing.radius == 0.0:
        return ix - HALF, iy - HALF, kernel(fwhm, thing.x - ix, thing.y - iy)
    half = HALF + int(8 * thing.radius)
    light = fftconvolve(_disc(thing, thing.x - ix, thing.y - iy, half), kernel(fwhm), mode="same")
    return ix - half, iy - half, light


def coadd(sky: Sky, band: str, tract: Tract = TRACT, patch: int = PATCH) -> Coadd:
    """The sky in a band, white noise upon it and the light's own."""
    image = np.zeros((SIDE, SIDE), np.float64)
    for thing in sky.things:
        x0, y0, light = stamp(thing, sky.fwhm[band])
        n = light.shape[0]
        rows, columns = slice(max(y0, 0), min(y0 + n, SIDE)), slice(max(x0, 0), min(x0 + n, SIDE))
        part = light[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
        image[rows, columns] += thing.flux[band] * part
    variance = (sky.noise**2 + 0.02 * sky.noise * np.maximum(image, 0.0)).astype(np.float32)
    rng = np.random.default_rng((sky.seed, sum(map(ord, band))))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.sqrt(variance)
    box = tract.patch_box(patch)
    psf = Psf(kernel(sky.fwhm[band])[None].astype(np.float32), 0, (SIDE, SIDE))
    pixels = MaskedImage(image.astype(np.float32), np.zeros((SIDE, SIDE), np.uint16), variance)
    wcs = tract.wcs.shifted(box.x0 - MARGIN, box.y0 - MARGIN)
    return Coadd(pixels, wcs, psf, np.full((SIDE, SIDE), 10, np.uint16))


def coadds(sky: Sky) -> dict[str, Coadd]:
    """All bands."""
    return {band: coadd(sky, band) for band in sky.fwhm}


def point_error(sky: Sky, band: str) -> float:
    """Error (nJy) of a faint star's flux."""
    return float(sky.noise / np.sqrt(np.sum(kernel(sky.fwhm[band]) ** 2)))


def matched(x: Floats, y: Floats, sky: Sky, within: float = 2.0) -> NDArray[np.int64]:
    """For each thing the nearest of places x, y (n,), -1 beyond `within` pixels."""
    apart = np.hypot(*(np.array([[getattr(t, c)] for t in sky.things]) - places for c, places in (("x", x), ("y", y))))
    nearest = np.argmin(apart, axis=1)
    return np.where(apart[np.arange(len(nearest)), nearest] < within, nearest, -1)


def _moffat(fwhm: float, dx: float, dy: float, half: int) -> Floats:
    core = fwhm / 2.0 / np.sqrt(2.0 ** (1.0 / BETA) - 1.0)
    u, v = _offsets(half)
    square = ((u - dx) ** 2 + (v - dy) ** 2) / core**2
    return _binned((1.0 + square) ** -BETA)


def _disc(thing: Thing, dx: float, dy: float, half: int) -> Floats:
    """An exponential profile of flux 1."""
    u, v = _offsets(half)
    c, s = np.cos(thing.angle), np.sin(thing.angle)
    along, across = c * (u - dx) + s * (v - dy), (c * (v - dy) - s * (u - dx)) / thing.axis_ratio
    light = _binned(np.exp(-1.67834699 * np.hypot(along, across) / thing.radius))
    return light / light.sum()


def _offsets(half: int) -> tuple[Floats, Floats]:
    """X and y of FINE x FINE points in each pixel."""
    n = (2 * half + 1) * FINE
    line = (np.arange(n) + 0.5) / FINE - half - 0.5
    return line[None, :], line[:, None]


def _binned(light: Floats) -> Floats:
    n = light.shape[0] // FINE
    result: Floats = light.reshape(n, FINE, n, FINE).sum((1, 3)) / FINE**2
    return result
