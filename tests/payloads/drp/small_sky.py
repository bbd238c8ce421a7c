"""A small sky of point sources, as images of visits and as warps, whose truth is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from payloads.drp.warps import Warp, cells_of
from schemas.image import Image, Mask, MaskedImage, Psf, VisitImage
from schemas.skymap import Tract
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

TRACT = Tract(7, 150.0, -30.0)
PATCH = 210
SIDE = 544
"""Pixels of a small grid: two cells."""
HALF = 12
SCALE = 0.2 / 3600.0


def gaussian(fwhm: float, dx: float = 0.0, dy: float = 0.0, half: int = HALF) -> Floats:
    """(2 half + 1) square, sum 1 of a plane's integral, its centre moved by dx, dy."""
    sigma = fwhm / 2.3548
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    result: Floats = np.exp(-((u - dx) ** 2 + (v - dy) ** 2) / (2.0 * sigma**2)) / (2.0 * np.pi * sigma**2)
    return result


def add_star(image: Image, x: float, y: float, flux: float, fwhm: float) -> None:
    """Add a star, wherever its stamp lies on the image."""
    cx, cy = round(x), round(y)
    stamp = flux * gaussian(fwhm, x - cx, y - cy)
    y0, x0 = cy - HALF, cx - HALF
    rows, columns = slice(max(y0, 0), y0 + 2 * HALF + 1), slice(max(x0, 0), x0 + 2 * HALF + 1)
    part = image[rows, columns]
    part += stamp[rows.start - y0 :, columns.start - x0 :][: part.shape[0], : part.shape[1]]


@dataclass(frozen=True)
class Stars:
    """Pixels of the small grid, nJy."""

    x: Floats = field(default_factory=lambda: np.empty(0))
    y: Floats = field(default_factory=lambda: np.empty(0))
    flux: Floats = field(default_factory=lambda: np.empty(0))


def some_stars(n: int = 60, seed: int = 2, brightest: float = 1e5) -> Stars:
    """Spread over the small grid, away from its edges and from one another, fluxes uniform in the logarithm."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(100)[:n]
    x, y = 50.0 + 45.0 * (cells % 10), 50.0 + 45.0 * (cells // 10)
    jitter = rng.uniform(-8.0, 8.0, (2, n))
    return Stars(x + jitter[0], y + jitter[1], np.exp(rng.uniform(np.log(2e3), np.log(brightest), n)))


def a_warp(
    visit: int, stars: Stars, *, fwhm: float = 4.0, noise: float = 20.0, sky: float = 0.0, seed: int | None = None
) -> Warp:
    """A visit on the small grid: stars, white noise, an error of the sky (nJy a pixel)."""
    rng = np.random.default_rng(1000 + visit if seed is None else seed)
    image = (sky + noise * rng.normal(size=(SIDE, SIDE))).astype(np.float32)
    for x, y, flux in zip(stars.x, stars.y, stars.flux, strict=True):
        add_star(image, x, y, flux, fwhm)
    pixels = MaskedImage(image, np.zeros(image.shape, np.uint16), np.full(image.shape, noise**2, np.float32))
    kernel = (gaussian(fwhm) / gaussian(fwhm).sum()).astype(np.float32)
    kernels = np.broadcast_to(kernel, (*cells_of(image.shape), *kernel.shape)).copy()
    wcs = TRACT.wcs.shifted(1000.0, 2000.0)
    return Warp(visit, (1,), "r", 5e9, 30.0, image.shape, wcs, 0, 0, pixels, kernels, noise**2, fwhm)


def an_image(
    ra: Floats, dec: Floats, flux: Floats, middle: tuple[float, float], *, angle: float = 0.0, side: int = 700,
    fwhm: float = 4.0, noise: float = 0.0, seed: int = 0, sip: float = 0.0,
) -> VisitImage:  # fmt: skip
    """A detector's image of stars (deg), centred on a place, turned by an angle (rad), distorted by `sip` pixels."""
    c, s = np.cos(angle), np.sin(angle)
    distortion = np.zeros((2, 4, 4))
    distortion[:, 2, 0] = distortion[:, 0, 2] = sip / (side / 2.0) ** 2
    wcs = Wcs(middle, ((side - 1) / 2.0, (side - 1) / 2.0), SCALE * np.array([[-c, s], [s, c]]), distortion)
    rng = np.random.default_rng(seed)
    image = (noise * rng.normal(size=(side, side))).astype(np.float32)
    for x, y, f in zip(*wcs.sky_to_pixel(ra, dec), flux, strict=True):
        if -HALF < x < side + HALF and -HALF < y < side + HALF:
            add_star(image, float(x), float(y), float(f), fwhm)
    pixels = MaskedImage(
        image, np.zeros(image.shape, np.uint16), np.full(image.shape, max(noise, 1.0) ** 2, np.float32)
    )
    kernel = gaussian(fwhm)
    psf = Psf((kernel / kernel.sum())[None].astype(np.float32), 0, image.shape)
    return VisitImage(pixels, wcs, psf, 1.0, "r", 5e9, 30.0)


def loaders(warps: Sequence[Warp]) -> list[Callable[[], Warp]]:
    """What `make_coadd` takes."""
    return [partial(_itself, warp) for warp in warps]


def _itself(warp: Warp) -> Warp:
    return warp


def with_bits(warp: Warp, bits: Mask, rows: slice, columns: slice) -> Warp:
    """Set mask bits in place; the warp."""
    warp.pixels.mask[rows, columns] |= np.uint16(bits)
    return warp
