"""A science image and a template of one simulated sky, and what was put into the difference.

Point sources are Moffat profiles evaluated on the pixels; galaxies are sums of Gaussians, convolved with a
Gaussian mixture near the Moffat. Template and science have their own WCS, PSF and noise; the science WCS that
is handed over hides a smooth error of some hundredths of a pixel.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from schemas.image import Mask, MaskedImage, Psf, Template, VisitImage
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

NJY_PER_ELECTRON = 0.52  # r band, 30 s
SKY_ELECTRONS = 930.0
READ_NOISE = 6.0
FULL_WELL = 130_000.0
_WIDTHS = np.array([0.6, 0.9, 1.3, 2.0, 3.2, 5.0])


@dataclass(frozen=True)
class Seeing:
    fwhm: float  # pixels
    beta: float = 3.0
    shear: float = 0.03
    angle: float = 0.4
    gradient: float = 0.03  # relative change of width from the centre to an edge

    def at(self, u: Floats | float, v: Floats | float) -> "tuple[Floats, Floats, Floats]":
        """Inverse shape (a, b, c) of r2 = a dx2 + 2 b dx dy + c dy2, in units of the Moffat's alpha."""
        alpha = self.fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1)) * (1 + self.gradient * (0.7 * u + 0.5 * u * v))
        e1 = self.shear * np.cos(2 * self.angle) + 0.01 * u
        e2 = self.shear * np.sin(2 * self.angle) + 0.01 * v
        return (1 - 2 * e1) / alpha**2, -2 * e2 / alpha**2, (1 + 2 * e1) / alpha**2

    def stamp(self, u: float, v: float, dx: Floats, dy: Floats) -> Floats:
        a, b, c = self.at(u, v)
        norm = (self.beta - 1) / np.pi * np.sqrt(a * c - b * b)
        return norm * (1 + a * dx * dx + 2 * b * dx * dy + c * dy * dy) ** -self.beta


@dataclass(frozen=True, eq=False)
class Pair:
    science: VisitImage
    template: Template
    x: Floats  # injected, science pixels
    y: Floats
    flux: Floats  # nJy
    length: Floats  # of the trail, pixels
    stars_x: Floats
    stars_y: Floats
    stars_flux: Floats


def psf_of(seeing: Seeing, shape: tuple[int, int], size: int = 25) -> Psf:
    """Order-2 polynomial fitted to the seeing's stamps, as a perfect `characterize` would."""
    half, u = size // 2, np.linspace(-1, 1, 7)
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    uu, vv = (g.ravel() for g in np.meshgrid(u, u))
    stamps = np.array([seeing.stamp(a, b, dx, dy) for a, b in zip(uu, vv, strict=True)])
    stamps /= stamps.sum((1, 2), keepdims=True)
    terms = np.stack([uu**i * vv**j for i in range(3) for j in range(3 - i)], axis=1)
    components = np.linalg.lstsq(terms, stamps.reshape(len(uu), -1), rcond=None)[0]
    return Psf(components.reshape(-1, size, size).astype(np.float32), 2, shape)


def aperture_of(seeing: Seeing, size: int = 25) -> float:
    """Part of a star's light inside the PSF's stamp: the calibration ties fluxes to it."""
    half = size // 2
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    return float(seeing.stamp(0.0, 0.0, dx, dy).sum())


def make_pair(  # noqa: PLR0915
    n: int = 1024,
    seed: int = 1,
    *,
    science_fwhm: float = 5.0,
    template_fwhm: float = 4.0,
    injected: int = 60,
    snr: tuple[float, float] = (5.0, 50.0),
    astrometric_error: float = 0.06,
    density: float = 1.0,
    rotation: float = 0.3,
    depth: float = 10.0,
    faded: int = 0,
    trails: int = 0,
    variables: int = 0,
    cosmic_rays: int = 0,
    hot_columns: int = 0,
) -> Pair:
    """`density`: relative to 1500 stars (14 < m < 24.5) and 6000 galaxies per 4096 x 4096 pixels.

    `injected`, `faded`, `trails`, `variables` are real: new in the science image, only in the template,
    moving while exposed, and stars of the template that changed. `cosmic_rays` and `hot_columns` are unmasked
    artifacts.
    """
    rng = np.random.default_rng(seed)
    area = (n + 120) ** 2 / 4096**2 * density
    science_seeing, template_seeing = Seeing(science_fwhm), Seeing(template_fwhm, angle=1.2)
    scale = 0.2 / 3600
    true_wcs = _wcs(rotation, scale, (n - 1) / 2)
    template_side = int(n * 1.42) + 64
    template_wcs = Wcs((150.002, 2.2), (template_side / 2, template_side / 2), scale * np.diag([-1.0, 1.0]))

    stars = rng.poisson(1500 * area)
    sx, sy = rng.uniform(-60, n + 60, (2, stars))
    mag = _magnitudes(rng, stars, 14.0, 24.5, 0.25)
    star_flux = 10 ** (-0.4 * (mag - 31.4))
    galaxies = rng.poisson(6000 * area)
    gx, gy = rng.uniform(-60, n + 60, (2, galaxies))
    g_flux = 10 ** (-0.4 * (_magnitudes(rng, galaxies, 18.0, 25.0, 0.35) - 31.4))
    g_size = np.exp(rng.normal(np.log(2.2), 0.4, galaxies)) * (g_flux / 1e3) ** 0.15
    g_shape = rng.normal(0, 0.25, (2, galaxies)).clip(-0.6, 0.6)

    ix, iy = rng.uniform(45, n - 45, (2, injected))
    half_on_galaxies = min(injected // 2, galaxies)
    hosts = rng.permutation(np.flatnonzero((np.minimum(gx, gy) > 45) & (np.maximum(gx, gy) < n - 45)))
    hosts = hosts[:half_on_galaxies]
    ix[: hosts.size] = gx[hosts] + rng.normal(0, 2.5, hosts.size)
    iy[: hosts.size] = gy[hosts] + rng.normal(0, 2.5, hosts.size)
    sigma_sky = NJY_PER_ELECTRON * np.sqrt(SKY_ELECTRONS + READ_NOISE**2) * np.sqrt(1 + 1 / depth)
    area_of_noise = np.sqrt(1 / (psf_of(science_seeing, (n, n)).at(n / 2, n / 2).astype(float) ** 2).sum())
    one_sigma = sigma_sky * area_of_noise
    i_flux = _log_uniform(rng, snr, injected) * one_sigma
    old_x, old_y = rng.uniform(45, n - 45, (2, faded))
    old_flux = _log_uniform(rng, snr, faded) * one_sigma
    trail_x, trail_y = rng.uniform(70, n - 70, (2, trails))
    trail_flux = 2.0 * _log_uniform(rng, snr, trails) * one_sigma
    trail_length, trail_angle = rng.uniform(2, 25, trails), rng.uniform(0, np.pi, trails)
    inside = (np.minimum(sx, sy) > 45) & (np.maximum(sx, sy) < n - 45) & (mag > 17)
    changed = rng.permutation(np.flatnonzero(inside))[:variables]
    change = _log_uniform(rng, snr, changed.size) * one_sigma
    change = np.where(rng.random(changed.size) < 0.5, change, -np.minimum(change, star_flux[changed]))

    truth = _Canvas(n, science_seeing)
    for x, y, f in zip(sx, sy, star_flux, strict=True):
        truth.star(x, y, f)
    for k in range(galaxies):
        truth.galaxy(gx[k], gy[k], g_flux[k], g_size[k], g_shape[:, k])
    for x, y, f in zip(ix, iy, i_flux, strict=True):
        truth.star(x, y, f)
    for x, y, f, length, angle in zip(trail_x, trail_y, trail_flux, trail_length, trail_angle, strict=True):
        for t in np.linspace(-0.5, 0.5, 41):
            truth.star(x + t * length * np.cos(angle), y + t * length * np.sin(angle), f / 41)
    for x, y, f in zip(sx[changed], sy[changed], change, strict=True):
        truth.star(x, y, f)
    science = _observe(rng, truth.image, 1.0)
    _strike(rng, science, cosmic_rays, hot_columns)

    canvas = _Canvas(template_side, template_seeing)
    for x, y, f in zip(*template_wcs.sky_to_pixel(*true_wcs.pixel_to_sky(sx, sy)), star_flux, strict=True):
        canvas.star(x, y, f)
    for x, y, f in zip(*template_wcs.sky_to_pixel(*true_wcs.pixel_to_sky(old_x, old_y)), old_flux, strict=True):
        canvas.star(x, y, f)
    turned = _turn(g_shape, rotation)
    for k, (x, y) in enumerate(zip(*template_wcs.sky_to_pixel(*true_wcs.pixel_to_sky(gx, gy)), strict=True)):
        canvas.galaxy(x, y, g_flux[k], g_size[k], turned[:, k])
    deep = _observe(rng, canvas.image, depth)

    handed = _distorted(true_wcs, astrometric_error, n)
    science_psf = psf_of(science_seeing, (n, n))
    template_psf = psf_of(template_seeing, (template_side, template_side))
    visit = VisitImage(science, handed, science_psf, NJY_PER_ELECTRON, "r", 5.2e9, 30.0)
    x, y = (
        np.concatenate([ix, old_x, trail_x, sx[changed]]),
        np.concatenate([iy, old_y, trail_y, sy[changed]]),
    )
    flux = np.concatenate([i_flux, -old_flux, trail_flux, change])
    length = np.concatenate([np.zeros(injected + faded), trail_length, np.zeros(changed.size)])
    template = Template(deep, template_wcs, template_psf, "r")
    return Pair(visit, template, x, y, flux, length, sx, sy, star_flux)


def _wcs(rotation: float, scale: float, middle: float) -> Wcs:
    c, s = np.cos(rotation), np.sin(rotation)
    return Wcs((150.0, 2.2), (middle, middle), scale * np.array([[-c, s], [s, c]]))


def _distorted(wcs: Wcs, error: float, n: int) -> Wcs:
    """The WCS with a quadratic error of x, `error` pixels at the middle of an edge."""
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0] = sip[1, 1, 1] = error / (n / 2) ** 2
    return replace(wcs, sip=sip)


def _turn(shape: Floats, rotation: float) -> Floats:
    """Ellipticities as the template's grid (x west to east mirrored by the same parity) sees them."""
    c, s = np.cos(2 * rotation), np.sin(2 * rotation)
    return np.stack([c * shape[0] - s * shape[1], s * shape[0] + c * shape[1]])


def _magnitudes(rng: np.random.Generator, count: int, low: float, high: float, slope: float) -> Floats:
    u = rng.uniform(10 ** (slope * low), 10 ** (slope * high), count)
    return np.log10(u) / slope


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], count: int) -> Floats:
    return np.exp(rng.uniform(*np.log(limits), count))


class _Canvas:
    def __init__(self, side: int, seeing: Seeing) -> None:
        self.image = np.zeros((side, side))
        self.side, self.seeing = side, seeing
        self.mixture = _mixture(seeing)
        self.calibration = 1 / aperture_of(seeing)

    def star(self, x: float, y: float, flux: float) -> None:
        half = int(np.clip(3 * (abs(flux) / 10) ** 0.22, 12, 150))
        self._add(x, y, half, lambda dx, dy: flux * self.calibration * self.seeing.stamp(*self._uv(x, y), dx, dy))

    def galaxy(self, x: float, y: float, flux: float, size: float, shape: Floats) -> None:
        """An exponential disc as three Gaussians, each convolved with the PSF's mixture."""
        a, b, c = self.seeing.at(*self._uv(x, y))
        det = a * c - b * b
        psf = np.array([[c, -b], [-b, a]]) / det / self.seeing.fwhm**2
        psf *= 2 * (2 ** (1 / self.seeing.beta) - 1) * 2

        def profile(dx: Floats, dy: Floats) -> Floats:
            total = np.zeros_like(dx)
            for part, radius in ((0.25, 0.45), (0.5, 1.0), (0.25, 1.8)):
                e1, e2 = shape
                own = (radius * size) ** 2 * np.array([[1 + e1, e2], [e2, 1 - e1]])
                for weight, width in zip(self.mixture, _WIDTHS, strict=True):
                    if weight > 0:
                        m = own + psf * (width * self.seeing.fwhm / 2.3548) ** 2
                        inv, norm = np.linalg.inv(m), 2 * np.pi * np.sqrt(np.linalg.det(m))
                        r2 = inv[0, 0] * dx**2 + 2 * inv[0, 1] * dx * dy + inv[1, 1] * dy**2
                        total += part * weight * np.exp(-0.5 * r2) / norm
            return flux * self.calibration * total

        self._add(x, y, int(np.clip(4 * size + 10, 14, 50)), profile)

    def _uv(self, x: float, y: float) -> tuple[float, float]:
        return 2 * x / (self.side - 1) - 1, 2 * y / (self.side - 1) - 1

    def _add(self, x: float, y: float, half: int, profile) -> None:  # noqa: ANN001
        cx, cy = round(x), round(y)
        x0, x1 = max(cx - half, 0), min(cx + half + 1, self.side)
        y0, y1 = max(cy - half, 0), min(cy + half + 1, self.side)
        if x0 < x1 and y0 < y1:
            gy, gx = np.mgrid[y0:y1, x0:x1]
            self.image[y0:y1, x0:x1] += profile(gx - x, gy - y)


def _mixture(seeing: Seeing) -> Floats:
    """Weights of Gaussians (of the given widths times FWHM / 2.35) nearest the circular Moffat."""
    r = np.linspace(0.1, 4 * seeing.fwhm, 200)
    alpha = seeing.fwhm / (2 * np.sqrt(2 ** (1 / seeing.beta) - 1))
    target = (seeing.beta - 1) / (np.pi * alpha**2) * (1 + (r / alpha) ** 2) ** -seeing.beta
    sigma = _WIDTHS * seeing.fwhm / 2.3548
    parts = np.exp(-0.5 * (r[:, None] / sigma) ** 2) / (2 * np.pi * sigma**2)
    weights, _ = nnls(parts * np.sqrt(r)[:, None], target * np.sqrt(r))
    return weights / weights.sum()


def _strike(rng: np.random.Generator, image: MaskedImage, cosmic_rays: int, hot_columns: int) -> None:
    """Tracks of a pixel's width, and parts of columns that are too bright; not in the mask."""
    ny, nx = image.shape
    for _ in range(cosmic_rays):
        length, angle = rng.integers(1, 9), rng.uniform(0, np.pi)
        x0, y0, charge = *rng.uniform(20, min(ny, nx) - 20, 2), rng.uniform(150, 3000) * NJY_PER_ELECTRON
        for t in range(length):
            y, x = int(y0 + t * np.sin(angle)), int(x0 + t * np.cos(angle))
            image.image[y, x] += charge * rng.uniform(0.5, 1.5)
    for _ in range(hot_columns):
        x, y = rng.integers(20, nx - 20), rng.integers(0, ny - 200)
        image.image[y : y + rng.integers(20, 200), x] += rng.uniform(40, 400) * NJY_PER_ELECTRON


def _observe(rng: np.random.Generator, sky_free: Floats, depth: float) -> MaskedImage:
    """Noise, saturation and variance of `depth` stacked exposures."""
    electrons = sky_free / NJY_PER_ELECTRON
    saturated = electrons + SKY_ELECTRONS > FULL_WELL
    electrons = np.minimum(electrons, FULL_WELL - SKY_ELECTRONS)
    mean = (electrons + SKY_ELECTRONS) * depth
    counts = rng.poisson(mean) + rng.normal(0, READ_NOISE * np.sqrt(depth), mean.shape)
    image = (counts / depth - SKY_ELECTRONS) * NJY_PER_ELECTRON
    variance = np.maximum(counts / depth, 1.0) + READ_NOISE**2
    mask = np.where(saturated, int(Mask.SAT), 0).astype(np.uint16)
    return MaskedImage(image.astype(np.float32), mask, (variance * NJY_PER_ELECTRON**2 / depth).astype(np.float32))
