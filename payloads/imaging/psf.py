"""The PSF: a pixel grid that varies over the image as a polynomial; and stars fitted with it.

The model is PSFEx's (Bertin 2011, ASP Conf. 442, 435): every pixel of the kernel is a polynomial of the
position. It is refined by residuals as an effective PSF is (Anderson & King 2000, PASP 112, 1360): what the
stars have left over the model, moved to the grid by Lanczos interpolation, corrects it, so that the model and
its use share one interpolation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.imaging import psf_kernels
from schemas.errors import BadData
from schemas.image import Image, MaskPlane, Psf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ITERATIONS = 5
_FIRST_REJECTION = 2
_STARS_OF_ORDER = ((40, 2), (15, 1), (5, 0))
"""Fewest stars for an order."""

_MODEL_ERROR = 0.005
"""Part of the model by which it may be wrong while it is being made: keeps a few very bright stars from
ruling it."""

_VARIATION, _ASYMMETRY = 0.2, 0.5
"""A priori scatter, as part of the kernel's local amplitude: of each polynomial term, and about the radial
profile. In the core the stars outweigh it; in the wings, where they say little, it keeps their noise out."""

_FLOOR = 2e-6


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Discs (pixels) to leave out of stars' stamps; star k's are rows `start[k]` to `start[k + 1]`."""

    start: Ints
    x: Floats
    y: Floats
    radius: Floats


@dataclass(frozen=True, eq=False)
class Fits:
    """Stars fitted with a PSF, each (n,): pixels, unit of the image, chi2 per degree of freedom.

    `flux` is weighted by the PSF alone, so that it is unbiased whatever the noise; NaN where a fit fails.
    """

    x: Floats
    y: Floats
    position_err: Floats
    flux: Floats
    flux_err: Floats
    chi2: Floats


@dataclass(frozen=True, eq=False)
class Field:
    """What stars are measured on: an image without its sky, its mask, the bits that spoil a pixel.

    `image` float32, `mask` uint16: (ny, nx). Fits take as noise the sky's (one value a star) and the model's
    own Poisson part (electrons): the pixels' variances follow their noise, and would bias every fit low.
    """

    image: Image
    mask: MaskPlane
    spoilt: int


def fit(
    field: Field, x: Floats, y: Floats, sky_variance: Floats, neighbours: Neighbours, fwhm: float, half: int
) -> tuple[Psf, Bools]:
    """The PSF from isolated stars at `x`, `y` (pixels), and which of them it was made of.

    Kernel of (2 half + 1) pixels, its sum 1 everywhere. Order 2 from 40 stars, 1 from 15, 0 from 5; stars
    that do not fit are left out. `fwhm` (pixels) starts it off. Raises BadData below 5 stars.
    """
    used = np.ones(len(x), bool)
    order = _order_for(len(x))
    components = _start(fwhm, half, order)
    x, y = x.copy(), y.copy()
    for iteration in range(_ITERATIONS):
        psf = Psf(components.astype(np.float32), order, _shape(field))
        fits = measure(field, psf, x, y, sky_variance, half, neighbours, _MODEL_ERROR)
        if iteration >= _FIRST_REJECTION:
            used = _fitting(fits)
            components, order = _truncated(components, order, _order_for(int(used.sum())))
        used &= np.isfinite(fits.flux)
        x[used], y[used] = fits.x[used], fits.y[used]
        psf = Psf(components.astype(np.float32), order, _shape(field))
        components = _corrected(field, psf, x, y, fits.flux, sky_variance, neighbours, used)
    return Psf(components.astype(np.float32), order, _shape(field)), used


def measure(
    field: Field,
    psf: Psf,
    x: Floats,
    y: Floats,
    sky_variance: Floats,
    half: int,
    neighbours: Neighbours | None = None,
    model_error: float = 0.0,
) -> Fits:
    """Fit stars near `x`, `y` (pixels) with the PSF, in windows of (2 half + 1) pixels."""
    near = neighbours or nobody(len(x))
    half = min(half, psf.components.shape[1] // 2)
    out = psf_kernels.fit_stars(
        field.image, field.mask, field.spoilt, psf.components, psf.order,
        x.astype(np.float64), y.astype(np.float64), sky_variance.astype(np.float64),
        near.start, near.x, near.y, near.radius, half, model_error,
    )  # fmt: skip
    return Fits(*out.T)


def nobody(stars: int) -> Neighbours:
    """No neighbours for so many stars."""
    return Neighbours(np.zeros(stars + 1, np.int64), np.empty(0), np.empty(0), np.empty(0))


def fwhm(kernel: Image) -> float:
    """FWHM (pixels) of a kernel (k, k): of the circle with the area above half the maximum."""
    fine = psf_kernels.magnify(kernel.astype(np.float32), _FINE)
    above = np.count_nonzero(fine > 0.5 * fine.max())
    return float(2.0 * np.sqrt(above / np.pi) / _FINE)


_FINE = 11


def _shape(field: Field) -> tuple[int, int]:
    ny, nx = field.image.shape
    return ny, nx


def _order_for(stars: int) -> int:
    for fewest, order in _STARS_OF_ORDER:
        if stars >= fewest:
            return order
    raise BadData(f"{stars} usable stars for the PSF, at least {_STARS_OF_ORDER[-1][0]} are needed")


def _terms(order: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def _start(fwhm: float, half: int, order: int) -> Floats:
    """A round Moffat profile of index 3, the same everywhere."""
    core = fwhm / 2.0 / np.sqrt(2.0 ** (1.0 / 3.0) - 1.0)
    components = np.zeros((len(_terms(order)), 2 * half + 1, 2 * half + 1))
    components[0] = (1.0 + _radii(half) ** 2 / core**2) ** -3.0
    components[0] /= components[0].sum()
    return components


def _radii(half: int) -> Floats:
    offset = np.arange(-half, half + 1, dtype=np.float64)
    radii: Floats = np.hypot(offset[:, None], offset)
    return radii


def _truncated(components: Floats, order: int, wanted: int) -> tuple[Floats, int]:
    """The components of a lower order, where so many stars were left out that the old one is too high."""
    if wanted >= order:
        return components, order
    kept = [k for k, (i, j) in enumerate(_terms(order)) if i + j <= wanted]
    return components[kept], wanted


def _fitting(fits: Fits) -> Bools:
    """Stars whose chi2 is no outlier among its like."""
    chi2 = np.where(np.isfinite(fits.flux), fits.chi2, np.inf)
    middle = np.median(chi2)
    scatter = 1.4826 * np.median(np.abs(chi2[np.isfinite(chi2)] - middle)) if np.isfinite(middle) else 0.0
    result: Bools = chi2 < middle + max(5.0 * scatter, 0.3 * middle)
    return result


def _corrected(
    field: Field,
    psf: Psf,
    x: Floats,
    y: Floats,
    flux: Floats,
    sky_variance: Floats,
    neighbours: Neighbours,
    used: Bools,
) -> Floats:
    """The components after a weighted least squares of the stars' residuals, pixel by pixel."""
    k = psf.components.shape[1]
    residual, weight = psf_kernels.residuals(
        field.image, field.mask, field.spoilt, psf.components, psf.order, x, y, flux, sky_variance,
        neighbours.start, neighbours.x, neighbours.y, neighbours.radius, _MODEL_ERROR,
    )  # fmt: skip
    weight[~used], residual[~used] = 0.0, 0.0
    terms = _evaluate_terms(psf, x, y)
    n = terms.shape[1]
    normal = (weight.T @ (terms[:, :, None] * terms[:, None, :]).reshape(len(x), n * n)).reshape(-1, n, n)
    right = (weight * residual).T @ terms
    components = psf.components.reshape(n, -1).T.astype(np.float64)
    expected, precision = _prior(components[:, 0].reshape(k, k), n)
    normal[:, np.arange(n), np.arange(n)] += precision
    step = np.linalg.solve(normal, (right - precision * (components - expected))[:, :, None])[:, :, 0]
    return _normalised((components + step).T.reshape(n, k, k))


def _evaluate_terms(psf: Psf, x: Floats, y: Floats) -> Floats:
    """(stars, terms) of the polynomial, as `Psf` orders them."""
    u, v = 2.0 * x / max(psf.shape[1] - 1, 1) - 1.0, 2.0 * y / max(psf.shape[0] - 1, 1) - 1.0
    result: Floats = np.stack([u**i * v**j for i, j in _terms(psf.order)], axis=1)
    return result


def _prior(mean_kernel: Floats, terms: int) -> tuple[Floats, Floats]:
    """Expected components and inverse variances, (pixels, terms): the radial profile, no variation."""
    half = mean_kernel.shape[0] // 2
    radii = _radii(half)
    ring = radii.round().astype(np.int64).ravel()
    profile = np.bincount(ring, mean_kernel.ravel()) / np.bincount(ring)
    radial = np.interp(radii, np.arange(profile.size), profile)
    slope = np.abs(np.interp(radii, np.arange(profile.size), np.gradient(profile)))
    amplitude = (np.maximum(radial, _FLOOR) + slope).ravel()
    scatter = np.full((amplitude.size, terms), _VARIATION) * amplitude[:, None]
    scatter[:, 0] = _ASYMMETRY * amplitude
    expected = np.zeros_like(scatter)
    expected[:, 0] = radial.ravel()
    return expected, 1.0 / scatter**2


def _normalised(components: Floats) -> Floats:
    """Sum 1 everywhere: the constant term's sum is 1, the others' 0."""
    components[0] /= components[0].sum()
    components[1:] -= components[1:].sum(axis=(1, 2))[:, None, None] * components[0]
    return components
