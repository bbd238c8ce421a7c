"""Point sources measured at positions: PSF fluxes and centroids, apertures, adaptive moments.

PSF fits give every pixel the same weight: the fluxes of bright sources are then not biased by variances that
were estimated from the same counts; the errors follow from the variance plane.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging.warp import lanczos_table
from schemas.image import Image, Mask, MaskedImage, MaskPlane

Floats = NDArray[np.float64]

UNUSABLE = np.uint16(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.EDGE | Mask.SAT_TEMPLATE | Mask.UNMASKED_NAN)
"""Pixels with any of these bits take no part."""

FAILED_EDGE, FAILED_NO_PIXELS, FAILED_CENTROID = 1, 2, 4
"""Bits of `PointSources.failure`."""

_LEAST_USABLE = 0.5
_FARTHEST = 3.0
_FAR_AWAY = 1e9
_STEPS = 12
_SLOPE_STEP = 0.375
"""Pixels to either side over which a PSF's slope is taken: Lanczos interpolation's own slope is 4 % off at a pixel."""
_RESULTS = 10


@dataclass(frozen=True, eq=False)
class PointSources:
    """What fits of a PSF gave, each array (n,). Flux in the image's unit, positions and errors in pixels.

    `chi2` over `n_pixels` pixels, `log_likelihood` natural; `failure`: 0 or the bits above, and the flux NaN
    if the PSF has less than half its weight on usable pixels.
    """

    x: Floats
    y: Floats
    flux: Floats
    flux_err: Floats
    xx: Floats
    yy: Floats
    xy: Floats
    chi2: Floats
    log_likelihood: Floats
    n_pixels: NDArray[np.int32]
    failure: NDArray[np.int32]


def usable(pixels: MaskedImage) -> NDArray[np.bool_]:
    """(ny, nx): pixels with a finite value, a positive finite variance, and none of the bits of `UNUSABLE`."""
    good: NDArray[np.bool_] = (pixels.mask & UNUSABLE) == 0
    good &= np.isfinite(pixels.image) & np.isfinite(pixels.variance) & (pixels.variance > 0.0)
    return good


def fit_point_sources(pixels: MaskedImage, psfs: Image, x: Floats, y: Floats, *, move: bool) -> PointSources:
    """PSFs `psfs` (n, k, k) fitted about pixels x, y (n,): flux and, if `move`, position.

    `xx`, `yy`, `xy`: covariance of the position, 0 where it did not move. A fit that runs more than 3
    pixels away is FAILED_CENTROID and is forced where it began.

    Where noise chooses the position it chooses the brightest: with two coordinates free the best flux is too high by
    error**2 / flux, to second order, which is taken away.
    """
    results, failure = np.full((x.size, _RESULTS), np.nan), np.zeros(x.size, np.int32)
    _fit_all(
        pixels.image, pixels.variance, pixels.mask, psfs,
        np.asarray(x, np.float64), np.asarray(y, np.float64),
        _STEPS if move else 0, lanczos_table(), results, failure,
    )  # fmt: skip
    at_x, at_y, flux, flux_err, xx, yy, xy, chi2, log_likelihood, n_pixels = results.T
    return PointSources(
        at_x, at_y, flux, flux_err, xx, yy, xy, chi2, log_likelihood, n_pixels.astype(np.int32), failure
    )


def aperture_fluxes(pixels: MaskedImage, x: Floats, y: Floats, radius: float) -> tuple[Floats, Floats, Floats]:
    """Sums within `radius` pixels, their errors, and the part of the aperture that was unusable, each (n,).

    A pixel on the rim counts by the part of it that is nearer than the radius, to first order.
    """
    out = np.empty((3, x.size))
    _aperture(pixels.image, pixels.variance, pixels.mask, x, y, radius, out)
    return out[0], out[1], out[2]


def adaptive_moments(
    pixels: MaskedImage, x: Floats, y: Floats, signs: Floats, sigma: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, 3) second moments xx, yy, xy (pixels**2) of `signs` times the image, and whether the fit failed.

    Moments of the elliptical Gaussian that fits best (Bernstein & Jarvis 2002, AJ 123, 583), begun from a
    round one of `sigma` pixels at x, y and kept centred there; where it failed, twice those
    under that first weight, which a Gaussian as wide as the weight has.
    """
    moments, failed = np.empty((x.size, 3)), np.zeros(x.size, np.bool_)
    _moments(pixels.image, pixels.mask, x, y, signs, sigma, moments, failed)
    return moments, failed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def shifted(psf: Image, dx: float, dy: float, table: Image, out: Floats) -> None:
    """Into `out` (k, k): a PSF (k, k) moved by dx, dy pixels by Lanczos interpolation; 0 beyond it."""
    k, taps = psf.shape[0], table.shape[1]
    ix, iy = int(np.floor(-dx)), int(np.floor(-dy))
    along = table[int((-dx - ix) * (table.shape[0] - 1) + 0.5)]
    down = table[int((-dy - iy) * (table.shape[0] - 1) + 0.5)]
    lines = np.zeros((k, k))
    out[:] = 0.0
    for t in range(taps):
        offset = ix + t - taps // 2 + 1
        for r in range(k):
            for c in range(max(0, -offset), min(k, k - offset)):
                lines[r, c] += along[t] * psf[r, c + offset]
    for t in range(taps):
        offset = iy + t - taps // 2 + 1
        for r in range(max(0, -offset), min(k, k - offset)):
            for c in range(k):
                out[r, c] += down[t] * lines[r + offset, c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_all(
    image: Image,
    variance: Image,
    mask: MaskPlane,
    psfs: Image,
    x: Floats,
    y: Floats,
    steps: int,
    table: Image,
    results: Floats,
    failure: NDArray[np.int32],
) -> None:
    k = psfs.shape[1]
    data, noise = np.empty((k, k)), np.empty((k, k))
    model, model_x, model_y = np.empty((k, k)), np.empty((k, k)), np.empty((k, k))
    for n in range(x.size):
        if not (abs(x[n]) < _FAR_AWAY and abs(y[n]) < _FAR_AWAY):
            failure[n] |= FAILED_NO_PIXELS
            results[n, 9] = 0.0
            continue
        cx, cy = int(np.floor(x[n] + 0.5)), int(np.floor(y[n] + 0.5))
        cut_off = _cut(image, variance, mask, cx - k // 2, cy - k // 2, data, noise)
        if cut_off:
            failure[n] |= FAILED_EDGE
        here_x, here_y = x[n], y[n]
        for _ in range(steps):
            _profile(psfs[n], here_x - cx, here_y - cy, table, model, model_x, model_y)
            move_x, move_y, _, _, _ = _step(data, noise, model, model_x, model_y)
            here_x, here_y = here_x + move_x, here_y + move_y
            far = abs(here_x - x[n]) > _FARTHEST or abs(here_y - y[n]) > _FARTHEST
            if far or np.isnan(here_x + here_y):
                failure[n] |= FAILED_CENTROID
                here_x, here_y = x[n], y[n]
                break
            if abs(move_x) + abs(move_y) < 1e-3:
                break
        _profile(psfs[n], here_x - cx, here_y - cy, table, model, model_x, model_y)
        results[n, 0], results[n, 1] = here_x, here_y
        _, _, results[n, 4], results[n, 5], results[n, 6] = _step(data, noise, model, model_x, model_y)
        if steps == 0:
            results[n, 4:7] = 0.0
        results[n, 9] = 0.0
        if not _flux(data, noise, model, results[n]):
            failure[n] |= FAILED_NO_PIXELS
        elif steps > 0 and not failure[n] & FAILED_CENTROID:
            square = (results[n, 2] / results[n, 3]) ** 2
            results[n, 2] *= square / (square + 1.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(image: Image, variance: Image, mask: MaskPlane, x0: int, y0: int, data: Floats, noise: Floats) -> bool:
    """Pixels from (x0, y0) on, the noise of unusable ones infinite; True if some are off the image."""
    cut_off = False
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            data[r, c], noise[r, c] = 0.0, np.inf
            y, x = y0 + r, x0 + c
            if y < 0 or x < 0 or y >= image.shape[0] or x >= image.shape[1]:
                cut_off = True
            elif is_usable(image, mask, y, x) and variance[y, x] > 0.0:
                data[r, c], noise[r, c] = image[y, x], variance[y, x]
    return cut_off


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _profile(psf: Image, dx: float, dy: float, table: Image, model: Floats, model_x: Floats, model_y: Floats) -> None:
    """The PSF moved by dx, dy and its derivatives by them."""
    ahead = np.empty_like(model)
    shifted(psf, dx + _SLOPE_STEP, dy, table, model_x)
    shifted(psf, dx - _SLOPE_STEP, dy, table, ahead)
    for r in range(model.shape[0]):
        for c in range(model.shape[1]):
            model_x[r, c] = (model_x[r, c] - ahead[r, c]) / (2 * _SLOPE_STEP)
    shifted(psf, dx, dy + _SLOPE_STEP, table, model_y)
    shifted(psf, dx, dy - _SLOPE_STEP, table, ahead)
    for r in range(model.shape[0]):
        for c in range(model.shape[1]):
            model_y[r, c] = (model_y[r, c] - ahead[r, c]) / (2 * _SLOPE_STEP)
    shifted(psf, dx, dy, table, model)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _step(
    data: Floats, noise: Floats, model: Floats, model_x: Floats, model_y: Floats
) -> tuple[float, float, float, float, float]:
    """Gauss-Newton: how to move in x and y, and the covariance xx, yy, xy of the position reached."""
    normal, spread, right = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
    squares = product = 0.0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if np.isfinite(noise[r, c]):
                squares += model[r, c] * model[r, c]
                product += model[r, c] * data[r, c]
    flux = product / squares
    gradient = np.empty(3)
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if np.isfinite(noise[r, c]):
                gradient[0] = model[r, c]
                gradient[1], gradient[2] = flux * model_x[r, c], flux * model_y[r, c]
                left = data[r, c] - flux * model[r, c]
                for i in range(3):
                    right[i] += gradient[i] * left
                    for j in range(3):
                        normal[i, j] += gradient[i] * gradient[j]
                        spread[i, j] += gradient[i] * gradient[j] * noise[r, c]
    determinant = np.linalg.det(normal)
    if not abs(determinant) > 0.0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    inverse = np.linalg.inv(normal)
    move = inverse @ right
    covariance = inverse @ spread @ inverse
    limit = max(1.0, max(abs(move[1]), abs(move[2])) / 0.7)
    return move[1] / limit, move[2] / limit, covariance[1, 1], covariance[2, 2], covariance[1, 2]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _flux(data: Floats, noise: Floats, model: Floats, result: Floats) -> bool:
    """Flux, error, chi2, log likelihood, number of pixels into `result`; False if too few are usable."""
    squares = every = product = spread = 0.0
    count = 0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            square = model[r, c] * model[r, c]
            every += square
            if np.isfinite(noise[r, c]):
                count += 1
                squares += square
                product += model[r, c] * data[r, c]
                spread += square * noise[r, c]
    if squares < _LEAST_USABLE * every:
        return False
    flux = product / squares
    chi2 = logs = 0.0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if np.isfinite(noise[r, c]):
                left = data[r, c] - flux * model[r, c]
                chi2 += left * left / noise[r, c]
                logs += np.log(2.0 * np.pi * noise[r, c])
    result[2], result[3] = flux, np.sqrt(spread) / squares
    result[7], result[8], result[9] = chi2, -0.5 * (chi2 + logs), count
    return True


@numba.njit(cache=True, nogil=True, error_model="numpy")
def is_usable(image: Image, mask: MaskPlane, y: int, x: int) -> bool:
    """Whether a pixel is on the image, finite, and has none of the bits of `UNUSABLE`."""
    if y < 0 or x < 0 or y >= image.shape[0] or x >= image.shape[1]:
        return False
    return not mask[y, x] & UNUSABLE and np.isfinite(image[y, x])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _aperture(image: Image, variance: Image, mask: MaskPlane, x: Floats, y: Floats, radius: float, out: Floats) -> None:
    reach = int(radius + 1.0)
    for n in range(x.size):
        cx, cy = int(np.floor(x[n] + 0.5)), int(np.floor(y[n] + 0.5))
        total = spread = area = lost = 0.0
        for r in range(cy - reach, cy + reach + 1):
            for c in range(cx - reach, cx + reach + 1):
                part = min(max(radius + 0.5 - np.hypot(c - x[n], r - y[n]), 0.0), 1.0)
                area += part
                if not is_usable(image, mask, r, c):
                    lost += part
                elif part > 0.0:
                    total += part * image[r, c]
                    spread += part * part * variance[r, c]
        out[0, n], out[1, n], out[2, n] = total, np.sqrt(spread), lost / area


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moments(
    image: Image,
    mask: MaskPlane,
    x: Floats,
    y: Floats,
    signs: Floats,
    sigma: Floats,
    moments: Floats,
    failed: NDArray[np.bool_],
) -> None:
    for n in range(x.size):
        start = sigma[n] * sigma[n]
        wxx, wyy, wxy = start, start, 0.0
        failed[n] = True
        for step in range(60):
            mxx, myy, mxy = _weighted(image, mask, x[n], y[n], signs[n], wxx, wyy, wxy)
            if step == 0:
                moments[n, 0], moments[n, 1], moments[n, 2] = 2.0 * mxx, 2.0 * myy, 2.0 * mxy
            # For a Gaussian under a Gaussian weight, 1 / measured = 1 / true + 1 / weight.
            det = mxx * myy - mxy * mxy
            wdet = wxx * wyy - wxy * wxy
            if not (det > 0.0 and mxx > 0.0):
                break
            ixx = myy / det - wyy / wdet
            iyy = mxx / det - wxx / wdet
            ixy = -mxy / det + wxy / wdet
            idet = ixx * iyy - ixy * ixy
            if not (idet > 0.0 and ixx > 0.0):
                break
            nxx, nyy, nxy = iyy / idet, ixx / idet, -ixy / idet
            if nxx + nyy > 40.0 * start or nxx < 0.04 * start or nyy < 0.04 * start:
                break
            change = abs(nxx - wxx) + abs(nyy - wyy) + abs(nxy - wxy)
            wxx, wyy, wxy = nxx, nyy, nxy
            if change < 1e-4 * start:
                failed[n] = False
                moments[n, 0], moments[n, 1], moments[n, 2] = wxx, wyy, wxy
                break


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _weighted(
    image: Image, mask: MaskPlane, x: float, y: float, sign: float, wxx: float, wyy: float, wxy: float
) -> tuple[float, float, float]:
    """Second moments about (x, y) under a Gaussian weight; NaN where nothing positive is left."""
    det = wxx * wyy - wxy * wxy
    reach = int(4.0 * np.sqrt(max(wxx, wyy)) + 1.0)
    total = xx = yy = xy = 0.0
    for r in range(max(int(y) - reach, 0), min(int(y) + reach + 2, image.shape[0])):
        for c in range(max(int(x) - reach, 0), min(int(x) + reach + 2, image.shape[1])):
            if not is_usable(image, mask, r, c):
                continue
            dx, dy = c - x, r - y
            weight = np.exp(-0.5 * (wyy * dx * dx - 2.0 * wxy * dx * dy + wxx * dy * dy) / det)
            light = sign * weight * image[r, c]
            total += light
            xx += light * dx * dx
            yy += light * dy * dy
            xy += light * dx * dy
    if not total > 0.0:
        return np.nan, np.nan, np.nan
    return xx / total, yy / total, xy / total
