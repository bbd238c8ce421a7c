"""The light of a band's coadd shared among its objects: all fluxes in one least squares.

Each object has a model of flux 1 on a box of pixels. The normal equations of all fluxes are sparse, as models overlap
with few others, and are solved at once. Every usable pixel has the same weight, so that bright sources are not biased
by variances made of the same counts; errors follow from the variances.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

from schemas.image import Image

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_RIDGE = 1e-9
"""Keeps two equal models apart, of which nothing tells which has the light."""
_LEAST_OVERLAP, _MOST_NEIGHBOURS = 0.01, 24


@dataclass(frozen=True, eq=False)
class Models:
    """What objects of flux 1 look like: `values` float32, one square box after another, each in C order.

    Box k begins at pixel (`x0`, `y0`) (may be off the image), has `side` rows and columns and begins at `start[k]`.
    """

    x0: Ints
    y0: Ints
    side: Ints
    start: Ints
    values: Image

    @classmethod
    def around(cls, x: Floats, y: Floats, half: Ints) -> "Models":
        """Boxes of (2 half + 1)**2 pixels about the pixels nearest to x, y (n,), all dark."""
        side = 2 * half + 1
        start = np.concatenate([[0], np.cumsum(side**2)])
        x0, y0 = (np.floor(c + 0.5).astype(np.int64) - half for c in (x, y))
        return cls(x0, y0, side, start[:-1], np.zeros(start[-1], np.float32))

    def of(self, which: Ints) -> "Models":
        """Those of some objects."""
        return Models(self.x0[which], self.y0[which], self.side[which], self.start[which], self.values)

    def box(self, k: int) -> Image:
        """Model k, (side, side)."""
        side = self.side[k]
        return self.values[self.start[k] : self.start[k] + side**2].reshape(side, side)


@dataclass(frozen=True, eq=False)
class Field:
    """A coadd's pixels, each (ny, nx): light less its sky, the variance of its noise, and which are usable."""

    image: Image
    variance: Image
    usable: Flags


@dataclass(frozen=True, eq=False)
class Shares:
    """Fluxes and their errors (n,) in the image's unit, NaN where a model has no usable pixel.

    `larger`: by how much neighbours make an error larger than it is alone, >= 1. `seen`: the part of the squares of
    each model that is on usable pixels. `blended`: of the light under a model, weighted by it, the part that is
    others', 0 to 1. `residual`: what all models leave of the image, NaN where unusable.
    """

    flux: Floats
    flux_err: Floats
    larger: Floats
    seen: Floats
    blended: Floats
    residual: Image

    @classmethod
    def none(cls, field: Field, objects: int, residual: Image | None = None) -> "Shares":
        """No light shared yet: so many objects of flux 0, and all that there is left, or `residual`."""
        zero = np.zeros(objects)
        left = np.where(field.usable, field.image, np.float32(np.nan)) if residual is None else residual
        return cls(zero, zero, np.ones(objects), zero, zero, left)


def share(field: Field, models: Models) -> Shares:
    """The simultaneous fit of all fluxes. The error of each is that in a fit with the 24 that overlap most with it."""
    boxes = models.x0, models.y0, models.side, models.start, models.values
    first, second, plain, noisy = _overlaps(field.variance, field.usable, *boxes)
    n = models.side.size
    right, whole = _projections(field.image, field.usable, *boxes)
    squares = plain[:n]
    known = np.flatnonzero(squares > 0.0)
    flux = np.full(n, np.nan)
    flux[known] = _solved(first, second, plain, right, known)
    residual = np.where(field.usable, field.image, np.float32(np.nan))
    _take_away(*boxes, np.nan_to_num(flux), residual)
    errors, larger = _errors(n, first, second, plain, noisy)
    with np.errstate(invalid="ignore", divide="ignore"):
        blended = np.clip(1.0 - flux * squares / right, 0.0, 1.0)
        return Shares(flux, errors, larger, squares / whole, blended, residual)


def point_fluxes(field: Field, shares: Shares, models: Models, points: Models) -> tuple[Floats, Floats, Floats]:
    """Fluxes and errors of `points` fitted to each object's own light, NaN as in `share`; the part of them seen."""
    flux, alone, seen = (np.full(points.side.size, np.nan) for _ in range(3))
    _point_each(
        shares.residual, field.variance, field.usable, shares.flux,
        models.x0, models.y0, models.side, models.start, models.values,
        points.x0, points.y0, points.side, points.start, points.values, flux, alone,
        seen,
    )  # fmt: skip
    return flux, alone * shares.larger, seen


def _solved(first: Ints, second: Ints, plain: Floats, right: Floats, known: Ints) -> Floats:
    """The fluxes `known` of the normal equations whose lower triangle is `plain` at (`first`, `second`)."""
    if not known.size:
        return np.empty(0)
    place = np.full(right.size, -1)
    place[known] = np.arange(known.size)
    row, column = place[first], place[second]
    used = (row >= 0) & (column >= 0)
    row, column, value = row[used], column[used], plain[used]
    below = row != column
    value = np.where(below, value, value * (1.0 + _RIDGE))
    places = np.concatenate([row, column[below]]), np.concatenate([column, row[below]])
    normal = csc_array((np.concatenate([value, value[below]]), places), shape=(known.size, known.size))
    result: Floats = splu(normal, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(right[known])
    return result


def _errors(n: int, first: Ints, second: Ints, plain: Floats, noisy: Floats) -> tuple[Floats, Floats]:
    """Errors of n fluxes, NaN where nothing is seen, and by how much neighbours make them larger."""
    errors, larger = np.full(n, np.nan), np.ones(n)
    rows, columns = np.concatenate([first, second[n:]]), np.concatenate([second, first[n:]])
    order = np.argsort(rows, kind="stable")
    begin = np.searchsorted(rows[order], np.arange(n + 1))
    normal, noise = (np.concatenate([values, values[n:]])[order] for values in (plain, noisy))
    _errors_each(begin, columns[order], normal, noise, _MOST_NEIGHBOURS, _LEAST_OVERLAP, errors, larger)
    return errors, larger


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _projections(
    image: Image, usable: Flags, x0: Ints, y0: Ints, sides: Ints, start: Ints, values: Image
) -> tuple[Floats, Floats]:
    """Of each model: the sum of its product with the image over usable pixels, and of its squares over all."""
    right, whole = np.zeros(x0.size), np.zeros(x0.size)
    for k in range(x0.size):
        for i in range(sides[k] ** 2):
            whole[k] += values[start[k] + i] ** 2
        for r in range(max(0, -y0[k]), min(sides[k], usable.shape[0] - y0[k])):
            at, y = start[k] + r * sides[k], y0[k] + r
            for c in range(max(0, -x0[k]), min(sides[k], usable.shape[1] - x0[k])):
                if usable[y, x0[k] + c]:
                    right[k] += values[at + c] * image[y, x0[k] + c]
    return right, whole


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _point_each(
    residual: Image,
    variance: Image,
    usable: Flags,
    shared: Floats,
    x0: Ints,
    y0: Ints,
    sides: Ints,
    start: Ints,
    values: Image,
    point_x0: Ints,
    point_y0: Ints,
    point_sides: Ints,
    point_start: Ints,
    points: Image,
    flux: Floats,
    error: Floats,
    seen: Floats,
) -> None:
    for k in range(flux.size):
        product = squares = noise = whole = 0.0
        side = point_sides[k]
        for i in range(side * side):
            whole += points[point_start[k] + i] ** 2
        for r in range(max(0, -point_y0[k]), min(side, usable.shape[0] - point_y0[k])):
            y = point_y0[k] + r
            row = y - y0[k]
            for c in range(max(0, -point_x0[k]), min(side, usable.shape[1] - point_x0[k])):
                x = point_x0[k] + c
                if usable[y, x]:
                    point, own = points[point_start[k] + r * side + c], residual[y, x]
                    if 0 <= row < sides[k] and 0 <= x - x0[k] < sides[k]:
                        own += shared[k] * values[start[k] + row * sides[k] + x - x0[k]]
                    product += point * own
                    squares += point * point
                    noise += point * point * variance[y, x]
        seen[k] = squares / whole
        if squares > 0.0:
            flux[k], error[k] = product / squares, np.sqrt(noise) / squares


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take_away(x0: Ints, y0: Ints, sides: Ints, start: Ints, values: Image, flux: Floats, residual: Image) -> None:
    for k in range(x0.size):
        for r in range(max(0, -y0[k]), min(sides[k], residual.shape[0] - y0[k])):
            at, y = start[k] + r * sides[k], y0[k] + r
            for c in range(max(0, -x0[k]), min(sides[k], residual.shape[1] - x0[k])):
                residual[y, x0[k] + c] -= flux[k] * values[at + c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _overlaps(
    variance: Image, usable: Flags, x0: Ints, y0: Ints, sides: Ints, start: Ints, values: Image
) -> tuple[Ints, Ints, Floats, Floats]:
    """Pairs of models whose boxes overlap, first each with itself, then second < first; and two sums of each.

    Those of their products over usable pixels, and of these times the variance.
    """
    n = x0.size
    first, second = [k for k in range(n)], [k for k in range(n)]  # noqa: C416 (numba's lists)
    for k in range(n):
        for j in range(k):
            apart_x = x0[j] >= x0[k] + sides[k] or x0[k] >= x0[j] + sides[j]
            apart_y = y0[j] >= y0[k] + sides[k] or y0[k] >= y0[j] + sides[j]
            if not (apart_x or apart_y):
                first.append(k)
                second.append(j)
    plain, noisy = np.zeros(len(first)), np.zeros(len(first))
    for p in range(len(first)):
        a, b = first[p], second[p]
        left, right = max(x0[a], x0[b], 0), min(x0[a] + sides[a], x0[b] + sides[b], usable.shape[1])
        for y in range(max(y0[a], y0[b], 0), min(y0[a] + sides[a], y0[b] + sides[b], usable.shape[0])):
            at_a = start[a] + (y - y0[a]) * sides[a] - x0[a]
            at_b = start[b] + (y - y0[b]) * sides[b] - x0[b]
            for x in range(left, right):
                if usable[y, x]:
                    both = values[at_a + x] * values[at_b + x]
                    plain[p] += both
                    noisy[p] += both * variance[y, x]
    return np.array(first), np.array(second), plain, noisy


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _errors_each(  # noqa: C901 (rows of a sparse matrix, one by one)
    begin: Ints,
    columns: Ints,
    plain: Floats,
    noisy: Floats,
    most: int,
    least: float,
    errors: Floats,
    larger: Floats,
) -> None:
    """Of each flux in the fit with those neighbours, at most `most`, whose models overlap by `least`.

    Row k of the normal equations: `columns`, `plain` and `noisy` from `begin[k]` to `begin[k + 1]`.
    """
    n = errors.size
    squares, noises = np.zeros(n), np.zeros(n)
    for k in range(n):
        for p in range(begin[k], begin[k + 1]):
            if columns[p] == k:
                squares[k], noises[k] = plain[p], noisy[p]
    member = np.full(n, -1)
    for k in range(n):
        if not squares[k] > 0.0:
            continue
        near, overlap = columns[begin[k] : begin[k + 1]], np.zeros(begin[k + 1] - begin[k])
        for p in range(near.size):
            weight = squares[k] * squares[near[p]]
            if weight > 0.0:
                overlap[p] = -plain[begin[k] + p] / np.sqrt(weight) - (2.0 if near[p] == k else 0.0)
        chosen = near[np.argsort(overlap)[: min(most + 1, np.sum(overlap < -least))]]
        for i in range(chosen.size):
            member[chosen[i]] = i
        normal, noise = np.zeros((chosen.size, chosen.size)), np.zeros((chosen.size, chosen.size))
        for i in range(chosen.size):
            for p in range(begin[chosen[i]], begin[chosen[i] + 1]):
                j = member[columns[p]]
                if j >= 0:
                    normal[i, j], noise[i, j] = plain[p] * (1.0 + (_RIDGE if i == j else 0.0)), noisy[p]
        for i in range(chosen.size):
            member[chosen[i]] = -1
        unit = np.zeros(chosen.size)
        unit[0] = 1.0
        row = np.linalg.solve(normal, unit)
        errors[k] = np.sqrt(max(np.dot(row, np.dot(noise, row)), 0.0))
        larger[k] = max(errors[k] * squares[k] / np.sqrt(noises[k]), 1.0)
