"""Where each object is and how it is shaped: its light, less its neighbours', fitted with a point and with a disc.

Levenberg-Marquardt over position, flux and ellipse, every usable pixel weighing the same; the model's slopes are
differences of the model.
"""

from dataclasses import dataclass, fields

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.drp.blends import Field, Models
from payloads.drp.optics import POINT, Optics, Shapes
from payloads.drp.profiles import add_excess, add_profile, disc_profile, smearing
from payloads.imaging.warp import lanczos_table
from schemas.image import Image

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_STEPS = 25
_ENOUGH = 0.02
"""Of chi2: a step that gains less ends a fit."""
_MOST_DAMPING = 1e5
_PIXEL_STEP, _ROOT_STEP = 0.02, 0.03
_FARTHEST = 3.0
_ROUNDNESS = 0.4
"""A priori scatter of an ellipse's axes about each other, as part of their mean."""
_LARGEST = 60.0
"""Half-light radius (pixels) at which an ellipse is given up."""


@dataclass(frozen=True, eq=False)
class Fits:
    """What a fit of each object gave, each (n,), `root` (n, 3), `covariance` of the position (n, 2, 2) (pixels).

    `chi2` over the same pixels as that of another fit of the same objects; `failed`: nothing else is to be used.
    """

    x: Floats
    y: Floats
    root: Floats
    flux: Floats
    chi2: Floats
    covariance: Floats
    failed: Flags

    @classmethod
    def none(cls, objects: int) -> "Fits":
        """None of so many objects is fitted."""
        nan = np.full(objects, np.nan)
        covariance = np.full((objects, 2, 2), np.nan)
        return cls(nan, nan, np.zeros((objects, 3)), nan, nan, covariance, np.ones(objects, np.bool_))

    def and_then(self, other: "Fits") -> "Fits":
        """These and after them others."""
        names = [part.name for part in fields(Fits)]
        return Fits(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True, eq=False)
class Light:
    """What is fitted: a band's `field`, what all models leave of it (`residual`), and these with their fluxes (n,)."""

    field: Field
    residual: Image
    models: Models
    flux: Floats
    optics: Optics


def fit_points(light: Light, shapes: Shapes, which: Ints, half: Ints) -> Fits:
    """Places of points, for objects `which`: see `fit_discs`."""
    return _fit(light, shapes, np.zeros((shapes.x.size, 3)), POINT, which, half, 2, _STEPS)


def fit_discs(light: Light, shapes: Shapes, root: Floats, which: Ints, half: Ints) -> Fits:
    """Places and ellipses of objects `which` as exponential discs, begun from `root` (n, 3).

    To what is left of the field each object's own model is added back. Fitted in windows of (2 half + 1)**2 pixels. The
    results have a row for every object.
    """
    return _fit(light, shapes, root, disc_profile(), which, half, 5, _STEPS)


def try_discs(light: Light, shapes: Shapes, root: Floats, which: Ints, half: Ints) -> Floats:
    """`chi2` of discs of given ellipses, (n,): of which a fit is worth its while."""
    return _fit(light, shapes, root, disc_profile(), which, half, 5, 0).chi2


def _fit(
    light: Light, shapes: Shapes, root: Floats, profile: Floats, which: Ints, half: Ints, free: int, steps: int
) -> Fits:
    n, models, optics = shapes.x.size, light.models, light.optics
    result = np.column_stack([shapes.x, shapes.y, root, np.nan_to_num(light.flux)])
    chi2, covariance, failed = np.full(n, np.nan), np.full((n, 2, 2), np.nan), np.ones(n, np.bool_)
    _fit_each(
        light.residual, light.field.variance, light.field.usable,
        models.x0, models.y0, models.side, models.start, models.values,
        optics.mixtures, optics.place, optics.excess, optics.sigma, profile, lanczos_table(), which, half, free, steps,
        result, chi2, covariance, failed,
    )  # fmt: skip
    return Fits(result[:, 0], result[:, 1], result[:, 2:5], result[:, 5], chi2, covariance, failed)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_each(
    image: Image,
    variance: Image,
    usable: Flags,
    x0: Ints,
    y0: Ints,
    sides: Ints,
    start: Ints,
    values: Image,
    mixtures: Floats,
    place: Ints,
    excess: Image,
    sigma: Floats,
    profile: Floats,
    table: Image,
    which: Ints,
    halves: Ints,
    free: int,
    steps: int,
    result: Floats,
    chi2: Floats,
    covariance: Floats,
    failed: Flags,
) -> None:
    for k in which:
        side = 2 * halves[k] + 1
        left, top = int(np.floor(result[k, 0] + 0.5)) - halves[k], int(np.floor(result[k, 1] + 0.5)) - halves[k]
        data, noise = np.zeros((side, side)), np.full((side, side), np.inf)
        count, typical = _cut(image, variance, usable, left, top, data, noise)
        if count < 4 * free:
            continue
        _add_own(x0[k] - left, y0[k] - top, sides[k], values[start[k] : start[k] + sides[k] ** 2], result[k, 5], data)
        typical /= count
        here = result[k].copy()
        here[0], here[1] = here[0] - left, here[1] - top
        model, slopes = np.empty((side, side)), np.empty((free + 1, side, side))
        normal, right = np.empty((free + 1, free + 1)), np.empty(free + 1)
        given = profile, mixtures[place[k]], sigma[place[k]], excess[k], table
        if not _descend(data, noise, typical, given, steps, here, model, slopes, normal, right):
            continue
        if steps > 0:
            _slopes(here, given, model, slopes)
            _normal(data, noise, model, here[5], slopes, typical, normal, right)
            _place_errors(noise, slopes, normal, typical, covariance[k])
        chi2[k] = _misfit(data, noise, model, here[5])[1]
        result[k] = here
        result[k, 0], result[k, 1] = here[0] + left, here[1] + top
        failed[k] = False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _descend(
    data: Floats,
    noise: Floats,
    typical: float,
    given: tuple[Floats, Floats, float, Image, Image],
    steps: int,
    here: Floats,
    model: Floats,
    slopes: Floats,
    normal: Floats,
    right: Floats,
) -> bool:
    """Levenberg-Marquardt from `here` (x, y, root, flux), in place, as is `model`, of flux 1; whether it is sound."""
    free = right.size - 1
    begin_x, begin_y, trial, trial_model = here[0], here[1], here.copy(), np.empty_like(model)
    _unit(here, given, model)
    here[5] = _best_flux(data, noise, model)
    if not np.isfinite(here[5]):  # nothing of the model is on usable pixels
        return False
    best, damping = _misfit(data, noise, model, here[5])[0] / typical + _prior(here), 1e-3
    for _ in range(steps):
        _slopes(here, given, model, slopes)
        _normal(data, noise, model, here[5], slopes, typical, normal, right)
        if free == 5:
            _add_prior(here, normal, right)
        gained = 0.0
        while gained == 0.0 and damping < _MOST_DAMPING:
            trial[:] = here
            trial[:free] += _step(normal, right, damping)[:free]
            _unit(trial, given, trial_model)
            trial[5] = _best_flux(data, noise, trial_model)
            value = _misfit(data, noise, trial_model, trial[5])[0] / typical + _prior(trial)
            if value < best and _is_sound(trial, begin_x, begin_y):
                gained, best, damping = best - value, value, max(damping * 0.2, 1e-7)
                here[:], model[:] = trial, trial_model
            else:
                damping *= 8.0
        if gained < _ENOUGH:
            break
    return _is_sound(here, begin_x, begin_y)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _step(normal: Floats, right: Floats, damping: float) -> Floats:
    damped = normal.copy()
    for p in range(right.size):
        damped[p, p] = damped[p, p] * (1.0 + damping) + 1e-12 * normal[0, 0] + 1e-300
    return np.linalg.solve(damped, right).astype(np.float64)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(
    image: Image, variance: Image, usable: Flags, left: int, top: int, data: Floats, noise: Floats
) -> tuple[int, float]:
    """Pixels from (left, top) on, the noise of unusable ones infinite; how many are usable, their variances."""
    count, total = 0, 0.0
    for r in range(max(0, -top), min(data.shape[0], usable.shape[0] - top)):
        for c in range(max(0, -left), min(data.shape[1], usable.shape[1] - left)):
            if usable[top + r, left + c]:
                data[r, c], noise[r, c] = image[top + r, left + c], variance[top + r, left + c]
                count += 1
                total += noise[r, c]
    return count, total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_own(dx: int, dy: int, side: int, values: Image, flux: float, data: Floats) -> None:
    for r in range(max(0, -dy), min(side, data.shape[0] - dy)):
        for c in range(max(0, -dx), min(side, data.shape[1] - dx)):
            data[dy + r, dx + c] += flux * values[r * side + c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _unit(p: Floats, given: tuple[Floats, Floats, float, Image, Image], out: Floats) -> None:
    """The model of flux 1 of parameters x, y, a, c, b; `given`: profile, PSF's Gaussians, width, excess, table."""
    profile, psf, width, excess, table = given
    out[:] = 0.0
    add_profile(out, p[0], p[1], p[2:5], profile, psf, 1.0)
    add_excess(out, p[0], p[1], excess, table, smearing(p[2:5], width))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _slopes(p: Floats, given: tuple[Floats, Floats, float, Image, Image], model: Floats, slopes: Floats) -> None:
    """By each free parameter, the flux last; what a PSF has over its Gaussians is held still."""
    profile, psf, width, excess, table = given
    free = slopes.shape[0] - 1
    ahead = p.copy()
    for i in range(free):
        step = _PIXEL_STEP if i < 2 else _ROOT_STEP
        ahead[i] = p[i] + step
        moved = slopes[i]
        moved[:] = 0.0
        add_profile(moved, ahead[0], ahead[1], ahead[2:5], profile, psf, 1.0)
        add_excess(moved, p[0], p[1], excess, table, smearing(p[2:5], width))
        ahead[i] = p[i]
        for r in range(model.shape[0]):
            for c in range(model.shape[1]):
                moved[r, c] = p[5] * (moved[r, c] - model[r, c]) / step
    slopes[free] = model


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _best_flux(data: Floats, noise: Floats, model: Floats) -> float:
    product = squares = 0.0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if np.isfinite(noise[r, c]):
                product += model[r, c] * data[r, c]
                squares += model[r, c] * model[r, c]
    return product / squares


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _misfit(data: Floats, noise: Floats, model: Floats, flux: float) -> tuple[float, float]:
    """Sum of the squares of what is left of usable pixels, and chi2."""
    squares = chi2 = 0.0
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if np.isfinite(noise[r, c]):
                square = (data[r, c] - flux * model[r, c]) ** 2
                squares += square
                chi2 += square / noise[r, c]
    return squares, chi2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _normal(
    data: Floats,
    noise: Floats,
    model: Floats,
    flux: float,
    slopes: Floats,
    typical: float,
    normal: Floats,
    right: Floats,
) -> None:
    normal[:], right[:] = 0.0, 0.0
    terms = slopes.shape[0]
    for r in range(data.shape[0]):
        for c in range(data.shape[1]):
            if not np.isfinite(noise[r, c]):
                continue
            left = (data[r, c] - flux * model[r, c]) / typical
            for i in range(terms):
                slope = slopes[i, r, c]
                right[i] += slope * left
                for j in range(i + 1):
                    normal[i, j] += slope * slopes[j, r, c] / typical
    for i in range(terms):
        for j in range(i):
            normal[j, i] = normal[i, j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scatter(p: Floats) -> float:
    scatter: float = _ROUNDNESS * 0.5 * (abs(p[2]) + abs(p[4])) + 0.2
    return scatter


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _prior(p: Floats) -> float:
    """Minus twice the logarithm of how likely an ellipse is beforehand."""
    scatter = _scatter(p)
    apart: float = (p[2] - p[4]) ** 2 + p[3] ** 2
    return apart / scatter**2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_prior(p: Floats, normal: Floats, right: Floats) -> None:
    weight = _scatter(p) ** -2
    apart = (p[2] - p[4]) * weight
    right[2] -= apart
    right[4] += apart
    right[3] -= p[3] * weight
    normal[2, 2] += weight
    normal[4, 4] += weight
    normal[2, 4] -= weight
    normal[4, 2] -= weight
    normal[3, 3] += weight


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _is_sound(p: Floats, x: float, y: float) -> bool:
    near: bool = abs(p[0] - x) < _FARTHEST and abs(p[1] - y) < _FARTHEST
    return near and p[2] * p[2] + p[3] * p[3] + p[4] * p[4] < _LARGEST * _LARGEST


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _place_errors(noise: Floats, slopes: Floats, normal: Floats, typical: float, covariance: Floats) -> None:
    """Covariance of x, y: of weights that are all 1, under the noise as it is."""
    terms = slopes.shape[0]
    spread = np.zeros((terms, terms))
    for r in range(noise.shape[0]):
        for c in range(noise.shape[1]):
            if np.isfinite(noise[r, c]):
                for i in range(terms):
                    for j in range(terms):
                        spread[i, j] += slopes[i, r, c] * slopes[j, r, c] * noise[r, c] / typical**2
    solid = normal.copy()
    for i in range(terms):
        solid[i, i] = solid[i, i] * (1.0 + 1e-9) + 1e-300
    inverse = np.linalg.inv(solid)
    whole = np.dot(inverse, np.dot(spread, inverse))
    covariance[0, 0], covariance[1, 1] = whole[0, 0], whole[1, 1]
    covariance[0, 1] = covariance[1, 0] = whole[0, 1]
