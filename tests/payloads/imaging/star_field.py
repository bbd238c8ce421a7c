"""Skies of Moffat stars whose width and ellipticity vary over the image, with what is true of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, MaskedImage

Floats = NDArray[np.float64]

READ_NOISE = 6.0


@dataclass(frozen=True)
class Profile:
    """A Moffat PSF: FWHM (pixels) at the centre, index, and how much it changes over an image of `shape`."""

    shape: tuple[int, int]
    fwhm: float = 4.0
    beta: float = 3.0
    variation: float = 1.0

    def at(self, x: float, y: float, half: int, oversampling: int = 5) -> tuple[int, int, Floats]:
        """Nearest pixel (column, row) and the light in (2 half + 1)**2 pixels about it, of a flux of 1."""
        ix, iy = round(x), round(y)
        fwhm, e1, e2 = self._shape_at(x, y)
        sub = (np.arange(oversampling) - (oversampling - 1) / 2) / oversampling
        offset = (np.arange(-half, half + 1)[:, None] + sub).ravel()
        dx, dy = offset[None, :] + ix - x, offset[:, None] + iy - y
        core = fwhm / 2 / np.sqrt(2 ** (1 / self.beta) - 1)
        square = ((1 - e1) * dx**2 + (1 + e1) * dy**2 - 2 * e2 * dx * dy) / np.sqrt(1 - e1**2 - e2**2)
        light = (self.beta - 1) / (np.pi * core**2) * (1 + square / core**2) ** -self.beta
        n = 2 * half + 1
        return ix, iy, light.reshape(n, oversampling, n, oversampling).sum((1, 3)) / oversampling**2

    def enclosed(self, x: Floats, y: Floats, half: int) -> Floats:
        """Part of the light in (2 half + 1)**2 pixels, at each position."""
        return np.array([self.at(round(a), round(b), half)[2].sum() for a, b in zip(x, y, strict=True)])

    def _shape_at(self, x: float, y: float) -> tuple[float, float, float]:
        u, v = 2 * x / self.shape[1] - 1, 2 * y / self.shape[0] - 1
        k = self.variation
        fwhm = self.fwhm * (1 + k * (0.03 * u - 0.02 * v + 0.03 * u * v + 0.02 * u * u))
        return fwhm, k * (0.04 * u + 0.03 * v * v), k * (0.03 * v - 0.02 * u * v)


@dataclass(frozen=True, eq=False)
class StarField:
    """An observed image (electrons, its sky in it), the noiseless one, its sky, and the stars in it."""

    observed: MaskedImage
    clean: Image
    sky: Image
    profile: Profile
    x: Floats
    y: Floats
    flux: Floats


def sky_of(shape: tuple[int, int], level: float = 900.0) -> Image:
    """A sky with a slope of 5 % and a bend."""
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    sky: Image = (level * (1 + 0.05 * (x - 0.5) + 0.025 * (y - 0.5) ** 2)).astype(np.float32)
    return sky


def draw(image: Image, profile: Profile, x: Floats, y: Floats, flux: Floats, half: int = 24) -> None:
    """Add stars in place."""
    for a, b, f in zip(x, y, flux, strict=True):
        ix, iy, light = profile.at(a, b, half)
        y0, y1 = max(iy - half, 0), min(iy + half + 1, image.shape[0])
        x0, x1 = max(ix - half, 0), min(ix + half + 1, image.shape[1])
        window = light[y0 - iy + half : y1 - iy + half, x0 - ix + half : x1 - ix + half]
        image[y0:y1, x0:x1] += (f * window).astype(np.float32)


def observe(clean: Image, seed: int) -> MaskedImage:
    """Poisson and read noise over a noiseless image."""
    rng = np.random.default_rng(seed)
    image = (rng.poisson(clean) + rng.normal(0.0, READ_NOISE, clean.shape)).astype(np.float32)
    variance = np.maximum(image, 0.0) + np.float32(READ_NOISE**2)
    return MaskedImage(image, np.zeros(clean.shape, np.uint16), variance)


def star_field(
    seed: int,
    stars: int = 250,
    shape: tuple[int, int] = (1024, 1024),
    fwhm: float = 4.0,
    log_flux: tuple[float, float] = (3.0, 5.7),
) -> StarField:
    """Stars at random, their fluxes (electrons) even in the logarithm."""
    rng = np.random.default_rng(seed)
    profile = Profile(shape, fwhm)
    x, y = rng.uniform(20, shape[1] - 20, stars), rng.uniform(20, shape[0] - 20, stars)
    flux = 10 ** rng.uniform(*log_flux, stars)
    sky = sky_of(shape)
    clean = sky.copy()
    draw(clean, profile, x, y, flux)
    return StarField(observe(clean, seed + 1), clean, sky, profile, x, y, flux)
