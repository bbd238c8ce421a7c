"""Dipoles and trails: two PSFs of opposite sign, or one smeared along a line, fitted to a difference."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging.photometry import is_usable, shifted
from payloads.imaging.warp import lanczos_table
from schemas.image import Image, MaskedImage, MaskPlane

Floats = NDArray[np.float64]

DIPOLE, TRAIL = 6, 5
"""Kinds of model, by their number of parameters."""

_STEPS = 40
_MARGIN = 6
_LONGEST = 60.0
_NOWHERE = -1e9
_PIXEL_STEP = 0.375
"""As in a point source's fit: Lanczos interpolation's own slope is 4 % off at a pixel."""
_ENOUGH = 0.01
"""Of chi2: a step that gains less moves nothing by more than a tenth of its error."""


@dataclass(frozen=True, eq=False)
class Lobes:
    """`parameters` (n, p), their `covariance` (n, p, p), NaN where a fit failed; `chi2` over `n_pixels` (n,).

    A dipole's: flux, x, y of the positive lobe, then (flux positive) of the negative one. A trail's: flux, x,
    y of its middle, and the vector from one end to the other. Pixels, and the image's unit of flux.
    """

    parameters: Floats
    covariance: Floats
    chi2: Floats
    n_pixels: NDArray[np.int32]


def fit_lobes(kind: int, pixels: MaskedImage, psfs: Image, start: Floats) -> Lobes:
    """Levenberg-Marquardt from `start` (n, kind), with inverse variances as weights; `psfs` (n, k, k)."""
    n = start.shape[0]
    start = np.where(np.isfinite(start).all(1, keepdims=True), start, _NOWHERE).astype(np.float64)
    result, covariance = start.copy(), np.full((n, kind, kind), np.nan)
    chi2, n_pixels = np.full(n, np.nan), np.zeros(n, np.int32)
    lengths = np.hypot(start[:, -2], start[:, -1]) if kind == TRAIL else np.zeros(n)
    halves = psfs.shape[1] // 2 + _MARGIN + np.minimum(lengths, _LONGEST).astype(np.int64) // 2
    _fit_each(
        kind, pixels.image, pixels.variance, pixels.mask, psfs, lanczos_table(), halves, result, covariance, chi2,
        n_pixels,
    )  # fmt: skip
    result[np.isnan(chi2)] = np.nan
    return Lobes(result, covariance, chi2, n_pixels)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_each(
    kind: int,
    image: Image,
    variance: Image,
    mask: MaskPlane,
    psfs: Image,
    table: Image,
    halves: NDArray[np.int64],
    result: Floats,
    covariance: Floats,
    chi2: Floats,
    n_pixels: NDArray[np.int32],
) -> None:
    for n in range(result.shape[0]):
        side = 2 * halves[n] + 1
        x0, y0 = int(result[n, 1]) - halves[n], int(result[n, 2]) - halves[n]
        data, weight = np.zeros((side, side)), np.zeros((side, side))
        n_pixels[n] = _cut(image, variance, mask, x0, y0, data, weight)
        if n_pixels[n] < 2 * kind:
            continue
        shapes = _shapes(psfs[n], table)
        points = int(min(np.hypot(result[n, kind - 2], result[n, kind - 1]), _LONGEST)) + 4
        here, trial = result[n].copy(), result[n].copy()
        model, slopes = np.empty((side, side)), np.empty((kind, side, side))
        best = _chi2(kind, here, psfs[n], table, x0, y0, points, data, weight, model)
        damping = 1e-3
        normal, right = np.empty((kind, kind)), np.empty(kind)
        for _ in range(_STEPS):
            _slopes(kind, here, shapes, table, x0, y0, points, slopes)
            _normal(data, weight, model, slopes, normal, right)
            damped = normal.copy()
            for p in range(kind):
                damped[p, p] *= 1.0 + damping
                damped[p, p] += 1e-12 * (normal[0, 0] if p % 3 == 0 else normal[1, 1]) + 1e-300
            move = np.linalg.solve(damped, right)
            for p in range(kind):
                trial[p] = here[p] + move[p]
            value = _chi2(kind, trial, psfs[n], table, x0, y0, points, data, weight, model)
            if value < best:
                done = best - value < _ENOUGH
                here[:] = trial
                best, damping = value, max(damping * 0.2, 1e-9)
                if done:
                    break
            else:
                damping *= 8.0
                _chi2(kind, here, psfs[n], table, x0, y0, points, data, weight, model)
                if damping > 1e6:
                    break
        _slopes(kind, here, shapes, table, x0, y0, points, slopes)
        _normal(data, weight, model, slopes, normal, right)
        if np.linalg.cond(normal) < 1e25 and _is_near(here, result[n], kind, halves[n]):
            covariance[n] = np.linalg.inv(normal)
            result[n] = here
            chi2[n] = best


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _is_near(here: Floats, start: Floats, kind: int, half: int) -> bool:
    far = abs(here[1] - start[1]) > 5.0 or abs(here[2] - start[2]) > 5.0
    if kind == 6:
        far = far or abs(here[4] - start[4]) > 5.0 or abs(here[5] - start[5]) > 5.0
    else:
        far = far or np.hypot(here[3], here[4]) > 2.0 * half
    return not far and np.isfinite(here.sum())


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(image: Image, variance: Image, mask: MaskPlane, x0: int, y0: int, data: Floats, weight: Floats) -> int:
    count = 0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            y, x = y0 + r, x0 + c
            if is_usable(image, mask, y, x) and 0.0 < variance[y, x] < np.inf:
                data[r, c], weight[r, c] = image[y, x], 1.0 / variance[y, x]
                count += 1
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shapes(psf: Image, table: Image) -> Floats:
    """(3, k, k): a PSF and how it changes as it moves in x, in y."""
    result = np.empty((3, *psf.shape))
    behind = np.empty(psf.shape)
    result[0] = psf
    for axis in range(2):
        dx, dy = _PIXEL_STEP * (1 - axis), _PIXEL_STEP * axis
        shifted(psf, dx, dy, table, result[1 + axis])
        shifted(psf, -dx, -dy, table, behind)
        result[1 + axis] = (result[1 + axis] - behind) / (2.0 * _PIXEL_STEP)
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _render(kind: int, p: Floats, psf: Image, table: Image, x0: int, y0: int, points: int, out: Floats) -> None:
    out[:] = 0.0
    moved = np.empty(psf.shape)
    if kind == 6:
        _add(psf, table, p[1] - x0, p[2] - y0, p[0], moved, out)
        _add(psf, table, p[4] - x0, p[5] - y0, -p[3], moved, out)
    else:
        for i in range(points):
            t = (i + 0.5) / points - 0.5
            _add(psf, table, p[1] + t * p[3] - x0, p[2] + t * p[4] - y0, p[0] / points, moved, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(psf: Image, table: Image, x: float, y: float, flux: float, moved: Floats, out: Floats) -> None:
    """`psf` at (x, y) into `out`; it is left in `moved` as it is there."""
    if not (abs(x) < 1e5 and abs(y) < 1e5):
        return
    ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    shifted(psf, x - ix, y - iy, table, moved)
    _deposit(moved, ix, iy, flux, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _deposit(moved: Floats, ix: int, iy: int, flux: float, out: Floats) -> None:
    half, k = moved.shape[0] // 2, moved.shape[0]
    for r in range(max(0, half - iy), min(k, out.shape[0] + half - iy)):
        for c in range(max(0, half - ix), min(k, out.shape[1] + half - ix)):
            out[iy - half + r, ix - half + c] += flux * moved[r, c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _chi2(
    kind: int,
    p: Floats,
    psf: Image,
    table: Image,
    x0: int,
    y0: int,
    points: int,
    data: Floats,
    weight: Floats,
    model: Floats,
) -> float:
    _render(kind, p, psf, table, x0, y0, points, model)
    total = 0.0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            left = data[r, c] - model[r, c]
            total += weight[r, c] * left * left
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _slopes(kind: int, p: Floats, shapes: Floats, table: Image, x0: int, y0: int, points: int, slopes: Floats) -> None:
    """Derivatives of the model by each parameter."""
    slopes[:] = 0.0
    moved = np.empty(shapes[0].shape)
    if kind == 6:
        for lobe in range(2):
            flux, x, y, sign = p[3 * lobe], p[3 * lobe + 1] - x0, p[3 * lobe + 2] - y0, 1.0 - 2.0 * lobe
            for k in range(3):
                _add(shapes[k], table, x, y, sign * (1.0 if k == 0 else flux), moved, slopes[3 * lobe + k])
    else:
        for i in range(points):
            t = (i + 0.5) / points - 0.5
            x, y = p[1] + t * p[3] - x0, p[2] + t * p[4] - y0
            for k in range(3):
                weight = (1.0 if k == 0 else p[0]) / points
                _add(shapes[k], table, x, y, weight, moved, slopes[k])
                if k > 0:
                    _deposit(moved, int(np.floor(x + 0.5)), int(np.floor(y + 0.5)), t * weight, slopes[2 + k])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _normal(data: Floats, weight: Floats, model: Floats, slopes: Floats, normal: Floats, right: Floats) -> None:
    for i in range(slopes.shape[0]):
        for j in range(i + 1):
            total = 0.0
            for r in range(data.shape[0]):
                for c in range(data.shape[1]):
                    total += weight[r, c] * slopes[i, r, c] * slopes[j, r, c]
            normal[i, j] = normal[j, i] = total
        total = 0.0
        for r in range(data.shape[0]):
            for c in range(data.shape[1]):
                total += weight[r, c] * slopes[i, r, c] * (data[r, c] - model[r, c])
        right[i] = total
