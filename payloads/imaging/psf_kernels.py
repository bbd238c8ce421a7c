"""Compiled loops of the PSF: placing a kernel between pixels, fitting it, gathering what is left.

A kernel is moved by Lanczos interpolation with 4 lobes (9 taps), normalised so that it keeps a constant.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, MaskPlane

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOBES = 4
_TAPS = 2 * LOBES + 1
_STEPS = 6
_BRIGHT_ENOUGH = 1e-3
"""Part of the sky's noise below which a star has no flux to weigh it by."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def lanczos(offset: float, weights: Floats, slopes: Floats) -> None:
    """Weights of taps -4..4 for a kernel moved by `offset` (|offset| <= 1/2), and their derivatives by it."""
    total, total_slope = 0.0, 0.0
    for t in range(_TAPS):
        d = offset + t - LOBES
        if abs(d) >= LOBES:
            weights[t], slopes[t] = 0.0, 0.0
        elif abs(d) < 1e-6:
            weights[t], slopes[t] = 1.0, 0.0
        else:
            a, b = np.pi * d, np.pi * d / LOBES
            s, window = np.sin(a) / a, np.sin(b) / b
            weights[t] = s * window
            slopes[t] = (np.cos(a) - s) / d * window + s * (np.cos(b) - window) / d
        total += weights[t]
        total_slope += slopes[t]
    for t in range(_TAPS):
        weights[t] /= total
        slopes[t] = slopes[t] / total - weights[t] * total_slope / total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _kernel_at(components: Image, order: int, x: float, y: float, shape: tuple[int, int], padded: Floats) -> None:
    """The kernel at (x, y), sum 1, into the middle of `padded`, whose margin stays as it is."""
    u, v = 2.0 * x / max(shape[1] - 1, 1) - 1.0, 2.0 * y / max(shape[0] - 1, 1) - 1.0
    k = components.shape[1]
    margin = (padded.shape[0] - k) // 2
    inner = padded[margin : margin + k, margin : margin + k]
    inner[:, :] = 0.0
    term, total = 0, 0.0
    for i in range(order + 1):
        for j in range(order + 1 - i):
            c = u**i * v**j
            for r in range(k):
                for s in range(k):
                    inner[r, s] += c * components[term, r, s]
            term += 1
    for r in range(k):
        for s in range(k):
            total += inner[r, s]
    for r in range(k):
        for s in range(k):
            inner[r, s] /= total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _convolve(padded: Floats, by_x: Floats, by_y: Floats, rows: Floats, out: Floats) -> None:
    """out[r, c] = sum of by_y[t] by_x[s] padded[r + t, c + s], about the middle of `padded`."""
    n = out.shape[0]
    first = (padded.shape[0] - n) // 2 - LOBES
    for r in range(n + 2 * LOBES):
        source, target = padded[first + r, first : first + n + 2 * LOBES], rows[r]
        for c in range(n):
            total = 0.0
            for s in range(_TAPS):
                total += by_x[s] * source[c + s]
            target[c] = total
    for r in range(n):
        target = out[r]
        for c in range(n):
            target[c] = 0.0
        for t in range(_TAPS):
            source, w = rows[r + t], by_y[t]
            for c in range(n):
                target[c] += w * source[c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _usable(
    mask: MaskPlane, spoilt: int, ix: int, iy: int, start: int, stop: int,
    xs: Floats, ys: Floats, radii: Floats, good: NDArray[np.bool_],
) -> int:  # fmt: skip
    """Which pixels of a window about (ix, iy) count: not spoilt, in no neighbour's disc. How many."""
    n, half, count = good.shape[0], good.shape[0] // 2, 0
    for r in range(n):
        for c in range(n):
            y, x = iy + r - half, ix + c - half
            inside = y >= 0 and x >= 0 and y < mask.shape[0] and x < mask.shape[1]
            good[r, c] = inside and mask[y, x] & spoilt == 0
    for k in range(start, stop):
        for r in range(n):
            for c in range(n):
                if (iy + r - half - ys[k]) ** 2 + (ix + c - half - xs[k]) ** 2 < radii[k] ** 2:
                    good[r, c] = False
    for r in range(n):
        for c in range(n):
            count += good[r, c]
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit_stars(
    image: Image, mask: MaskPlane, spoilt: int, components: Image, order: int,
    xs: Floats, ys: Floats, sky_variance: Floats,
    start: Ints, near_x: Floats, near_y: Floats, near_radius: Floats, half: int, model_error: float,
) -> Floats:  # fmt: skip
    """(n, 6): x, y, error of each, flux, its error, reduced chi2; NaN where a fit fails.

    Gauss-Newton in flux and position with the model's own noise; last, the flux with the PSF alone as weight.
    """
    out = np.full((xs.size, 6), np.nan)
    n, k = 2 * half + 1, components.shape[1]
    padded = np.zeros((k + 2 * LOBES, k + 2 * LOBES))
    rows = np.empty((n + 2 * LOBES, n))
    model, by_x, by_y = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    good = np.empty((n, n), np.bool_)
    wx, wy, sx, sy = np.empty(_TAPS), np.empty(_TAPS), np.empty(_TAPS), np.empty(_TAPS)
    for star in range(xs.size):
        x, y, flux = xs[star], ys[star], 0.0
        _kernel_at(components, order, x, y, image.shape, padded)
        for step in range(_STEPS):
            ix, iy = round(x), round(y)
            if _usable(mask, spoilt, ix, iy, start[star], start[star + 1], near_x, near_y, near_radius, good) < n:
                break
            lanczos(x - ix, wx, sx)
            lanczos(y - iy, wy, sy)
            _convolve(padded, wx, wy, rows, model)
            if step == 0:
                flux = _weighted_flux(image, good, ix, iy, model)[0]
            _convolve(padded, sx, wy, rows, by_x)
            _convolve(padded, wx, sy, rows, by_y)
            dx, dy, flux, error = _newton(image, good, ix, iy, model, by_x, by_y, flux, sky_variance[star], model_error)
            if not (abs(dx) < 2.0 and abs(dy) < 2.0 and abs(x + dx - xs[star]) < 3.0 and abs(y + dy - ys[star]) < 3.0):
                break
            x, y = x + dx, y + dy
            if abs(dx) + abs(dy) < 2e-3 or step == _STEPS - 1:
                _summarise(image, good, ix, iy, model, sky_variance[star], model_error, x, y, error, out[star])
                break
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _weighted_flux(image: Image, good: NDArray[np.bool_], ix: int, iy: int, model: Floats) -> tuple[float, float]:
    n, half, top, bottom = good.shape[0], good.shape[0] // 2, 0.0, 0.0
    for r in range(n):
        for c in range(n):
            if good[r, c]:
                top += model[r, c] * image[iy + r - half, ix + c - half]
                bottom += model[r, c] ** 2
    return top / bottom, bottom


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _noise(expected: float, sky_variance: float, model_error: float) -> float:
    return sky_variance + max(expected, 0.0) + (model_error * expected) ** 2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _newton(
    image: Image, good: NDArray[np.bool_], ix: int, iy: int, model: Floats, by_x: Floats, by_y: Floats,
    flux: float, sky_variance: float, model_error: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Steps in x and y, the new flux, the error of a coordinate (the mean of both)."""
    n, half = good.shape[0], good.shape[0] // 2
    normal, right = np.zeros((3, 3)), np.zeros(3)
    for r in range(n):
        for c in range(n):
            if good[r, c]:
                expected = flux * model[r, c]
                w = 1.0 / _noise(expected, sky_variance, model_error)
                a, b, f = flux * by_x[r, c], flux * by_y[r, c], model[r, c]
                d = image[iy + r - half, ix + c - half] - expected
                normal[0, 0] += w * a * a
                normal[0, 1] += w * a * b
                normal[0, 2] += w * a * f
                normal[1, 1] += w * b * b
                normal[1, 2] += w * b * f
                normal[2, 2] += w * f * f
                right[0] += w * a * d
                right[1] += w * b * d
                right[2] += w * f * d
    if not (flux * flux * normal[2, 2] > _BRIGHT_ENOUGH):
        return np.inf, np.inf, flux, np.inf
    return _solve_three(normal, right, flux)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _solve_three(normal: Floats, right: Floats, flux: float) -> tuple[float, float, float, float]:
    a, b, c = normal[0, 0], normal[0, 1], normal[0, 2]
    d, e, f = normal[1, 1], normal[1, 2], normal[2, 2]
    aa, ab, ac = d * f - e * e, c * e - b * f, b * e - c * d
    dd, de, ff = a * f - c * c, b * c - a * e, a * d - b * b
    determinant = a * aa + b * ab + c * ac
    if not determinant > 0.0:
        return np.inf, np.inf, flux, np.inf
    dx = (aa * right[0] + ab * right[1] + ac * right[2]) / determinant
    dy = (ab * right[0] + dd * right[1] + de * right[2]) / determinant
    df = (ac * right[0] + de * right[1] + ff * right[2]) / determinant
    return dx, dy, flux + df, np.sqrt(0.5 * (aa + dd) / determinant)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _summarise(
    image: Image, good: NDArray[np.bool_], ix: int, iy: int, model: Floats,
    sky_variance: float, model_error: float, x: float, y: float, position_error: float, row: Floats,
) -> None:  # fmt: skip
    n, half = good.shape[0], good.shape[0] // 2
    flux, bottom = _weighted_flux(image, good, ix, iy, model)
    chi2, spread, count = 0.0, 0.0, 0
    for r in range(n):
        for c in range(n):
            if good[r, c]:
                expected = flux * model[r, c]
                d = image[iy + r - half, ix + c - half] - expected
                chi2 += d * d / _noise(expected, sky_variance, model_error)
                spread += model[r, c] ** 2 * _noise(expected, sky_variance, 0.0)
                count += 1
    row[0], row[1], row[2] = x, y, position_error
    row[3], row[4], row[5] = flux, np.sqrt(spread) / bottom, chi2 / max(count - 3, 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def residuals(
    image: Image, mask: MaskPlane, spoilt: int, components: Image, order: int,
    xs: Floats, ys: Floats, flux: Floats, sky_variance: Floats,
    start: Ints, near_x: Floats, near_y: Floats, near_radius: Floats, model_error: float,
) -> tuple[Floats, Floats]:  # fmt: skip
    """What each star has over the model, as part of its flux, and its weight: two (n, k * k)."""
    k = components.shape[1]
    n = k + 2 * LOBES
    out, weight = np.zeros((xs.size, k * k)), np.zeros((xs.size, k * k))
    padded, left = np.zeros((n + 2 * LOBES, n + 2 * LOBES)), np.empty((n, n))
    model, rows, moved = np.empty((n, n)), np.empty((n + 2 * LOBES, n)), np.empty((k, k))
    good = np.empty((n, n), np.bool_)
    wx, wy, slopes = np.empty(_TAPS), np.empty(_TAPS), np.empty(_TAPS)
    for star in range(xs.size):
        if not flux[star] > 0.0:
            continue
        ix, iy = round(xs[star]), round(ys[star])
        _kernel_at(components, order, xs[star], ys[star], image.shape, padded)
        lanczos(xs[star] - ix, wx, slopes)
        lanczos(ys[star] - iy, wy, slopes)
        _convolve(padded, wx, wy, rows, model)
        _usable(mask, spoilt, ix, iy, start[star], start[star + 1], near_x, near_y, near_radius, good)
        for r in range(n):
            for c in range(n):
                # A pixel that does not count is taken to agree with the model, with no weight.
                seen = image[iy + r - n // 2, ix + c - n // 2] if good[r, c] else 0.0
                left[r, c] = seen / flux[star] - model[r, c] if good[r, c] else 0.0
        lanczos(ix - xs[star], wx, slopes)
        lanczos(iy - ys[star], wy, slopes)
        _convolve(left, wx, wy, rows[: k + 2 * LOBES, :k], moved)
        for r in range(k):
            for c in range(k):
                if good[r + LOBES, c + LOBES]:
                    noise = _noise(flux[star] * model[r + LOBES, c + LOBES], sky_variance[star], model_error)
                    out[star, r * k + c] = moved[r, c]
                    weight[star, r * k + c] = flux[star] ** 2 / noise
    return out, weight


@numba.njit(cache=True, nogil=True, error_model="numpy")
def magnify(kernel: Image, factor: int) -> Floats:
    """The kernel's inner half on a grid `factor` (odd) times as fine, from its middle outwards."""
    k = kernel.shape[0]
    half = k // 4
    n = 2 * half + 1
    padded, rows, out = (
        np.zeros((k + 2 * LOBES, k + 2 * LOBES)),
        np.empty((n + 2 * LOBES, n)),
        np.empty((n, n)),
    )
    padded[LOBES : LOBES + k, LOBES : LOBES + k] = kernel
    fine = np.empty((n * factor, n * factor))
    wx, wy, slopes = np.empty(_TAPS), np.empty(_TAPS), np.empty(_TAPS)
    for j in range(factor):
        for i in range(factor):
            lanczos((factor // 2 - i) / factor, wx, slopes)
            lanczos((factor // 2 - j) / factor, wy, slopes)
            _convolve(padded, wx, wy, rows, out)
            fine[j::factor, i::factor] = out
    return fine
