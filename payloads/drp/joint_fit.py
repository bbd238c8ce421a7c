"""Least squares for what many frames and their common stars tell of one another.

An observation k of star i in frame j measures y_k = B_k c_j + t_i with weight w_k: `B_k` a few basis functions of where
on the frame it lies, c_j the frame's coefficients, t_i the star's value, which an outside catalogue may know as well.
The stars are eliminated exactly (Padmanabhan et al. 2008, ApJ 674, 1217), what remains is solved by conjugate gradients
with each frame's own block as preconditioner: the cost grows with the observations, not with the frames squared.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg

from schemas.errors import Broken

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WHISPER = 1e-8
"""Part of its weight that an outlier keeps: nothing for the others, but its star goes on being fitted, and it may come
back."""

_TOLERANCE = 1e-7
_STEPS = 2000
_HALF_WITHIN, _HALVINGS = 0.6745, 20
_ENOUGH_VALUES = 20_000
_LEAST_SPARE = 0.02
"""A value that is nearly all that is known of its star tells nothing of itself."""


@dataclass(frozen=True, eq=False)
class Links:
    """Which frame saw which star where: `frame`, `star` (n,), in order of frame; `basis` (n, p)."""

    frame: Ints
    star: Ints
    basis: Floats
    n_frames: int
    n_stars: int

    @cached_property
    def starts(self) -> Ints:
        """(n_frames + 1,): the first observation of each frame."""
        first: Ints = np.searchsorted(self.frame, np.arange(self.n_frames + 1))
        return first

    @cached_property
    def columns(self) -> Ints:
        """(n, p): of each term of each observation, the column of its coefficient."""
        p = self.basis.shape[1]
        result: Ints = self.frame[:, None] * p + np.arange(p)
        return result

    @cached_property
    def by_star(self) -> Ints:
        """(n,): the observations in order of star."""
        order: Ints = np.argsort(self.star, kind="stable")
        return order

    def rows_of_stars(self, values: Floats) -> "csr_array[np.float64]":
        """`values` (n, p) as a matrix of stars and coefficients."""
        p, ends = self.basis.shape[1], np.cumsum(np.bincount(self.star, minlength=self.n_stars))
        start = (np.concatenate([[0], ends]) * p).astype(np.int32)
        columns = self.columns.astype(np.int32)[self.by_star].ravel()
        return csr_array((values[self.by_star].ravel(), columns, start), shape=(self.n_stars, self.n_frames * p))

    def of_frames(self, coefficients: Floats) -> Floats:
        """(n, q): B_k c_j. `coefficients`: (n_frames, p, q)."""
        result: Floats = np.einsum("np,npq->nq", self.basis, coefficients[self.frame])
        return result


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known beforehand.

    Of the coefficients `target` (n_frames, p, q) with `weight` (n_frames, p); of the stars `anchor` (n_stars, q) with
    `anchor_weight` (n_stars,), 0 where nothing is.
    """

    weight: Floats
    target: Floats
    anchor: Floats
    anchor_weight: Floats


@dataclass(frozen=True, eq=False)
class Solution:
    """`frames`: (n_frames, p, q). `stars`: (n_stars, q). `star_weight`: (n_stars,), of observations and anchor."""

    frames: Floats
    stars: Floats
    star_weight: Floats


def solve(links: Links, measured: Floats, weight: Floats, prior: Prior, guess: Floats) -> Solution:
    """The least squares of observations, anchors and priors. `measured`: (n, q); `weight`: (n,), 0: not used.

    `guess`: (n_frames, p, q), whence the search for the frames' coefficients begins.

    Stars without any weight come out 0. Raises Broken should it not converge.
    """
    star_weight = np.bincount(links.star, weight, links.n_stars) + prior.anchor_weight
    inverse = np.divide(1.0, star_weight, out=np.zeros_like(star_weight), where=star_weight > 0.0)
    alone = _mean(links, measured, weight, prior, inverse)
    pulls = _by_frame(links, (measured - alone[links.star]) * weight[:, None]) + prior.weight[:, :, None] * prior.target
    coefficients = _conjugate_gradients(_normal(links, weight, prior.weight, inverse), pulls, guess)
    stars = _mean(links, measured - links.of_frames(coefficients), weight, prior, inverse)
    return Solution(coefficients, stars, star_weight)


def level_errors(links: Links, weight: Floats, prior: Prior) -> Floats:
    """(n_frames,): standard errors of the first coefficients, those of other frames and the stars being free."""
    star_weight = np.bincount(links.star, weight, links.n_stars) + prior.anchor_weight
    used = weight > 0.0
    shape = links.n_stars, links.n_frames
    seen = csr_array((weight[used], (links.star[used], links.frame[used])), shape)
    shared = (seen.T @ seen.multiply(1.0 / np.maximum(star_weight, np.finfo(float).tiny)[:, None]).tocsr()).toarray()
    normal = np.diag(np.bincount(links.frame, weight, links.n_frames) + prior.weight[:, 0]) - shared
    result: Floats = np.sqrt(np.diag(np.linalg.inv(normal)))
    return result


@dataclass(frozen=True, eq=False)
class Left:
    """What a solution leaves, as large as the errors were before stars were drawn towards them.

    `seen`: (n, q), of observations, `known`: (n_stars, q), of anchors; NaN of what is alone with its star.
    """

    seen: Floats
    known: Floats


def left(links: Links, measured: Floats, weight: Floats, prior: Prior, solution: Solution) -> Left:
    """Residuals, each over the square root of the part of its variance that its star has not taken up.

    A star's place is drawn towards each of its observations: of an error's variance 1 - weight / (all weight) remains.
    """
    residual = measured - links.of_frames(solution.frames) - solution.stars[links.star]
    whole = solution.star_weight
    return Left(
        residual / _spare(weight, whole[links.star])[:, None],
        (prior.anchor - solution.stars) / _spare(prior.anchor_weight, whole)[:, None],
    )


def _spare(weight: Floats, whole: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        part = 1.0 - weight / whole
    result: Floats = np.sqrt(np.where(part > _LEAST_SPARE, part, np.nan))
    return result


def excess(values: Floats, errors: Floats, least: float) -> float:
    """The error, of all alike, that `values` (n, q) have besides their `errors` (n,); at least `least`.

    With it half of the values are within 0.674 errors, as of a normal distribution: outliers count as any other. Of
    very many values, some 20 000 evenly chosen ones say as much.
    """
    some = slice(None, None, 1 + len(values) // _ENOUGH_VALUES)
    values, errors = np.abs(values[some]), errors[some]
    low, high = np.log(least), np.log(2.0 * least + 1.4826 * float(values.max(initial=0.0)))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        wide = np.median(values / np.hypot(errors, np.exp(middle))[:, None]) > _HALF_WITHIN
        low, high = (middle, high) if wide else (low, middle)
    return float(np.exp(low))


def _mean(links: Links, values: Floats, weight: Floats, prior: Prior, inverse: Floats) -> Floats:
    """(n_stars, q): weighted means of what observations and anchors say."""
    total = [np.bincount(links.star, weight * column, links.n_stars) for column in values.T]
    result: Floats = (np.stack(total, axis=1) + prior.anchor * prior.anchor_weight[:, None]) * inverse[:, None]
    return result


def _by_frame(links: Links, values: Floats) -> Floats:
    """(n_frames, p, q): sums of B_k values_k over each frame."""
    p, size = links.basis.shape[1], links.n_frames * links.basis.shape[1]
    sums = [
        np.bincount(links.columns.ravel(), (links.basis * column[:, None]).ravel(), size).reshape(-1, p)
        for column in values.T
    ]
    return np.stack(sums, axis=2)


@dataclass(frozen=True, eq=False)
class _Normal:
    """The normal equations of the frames, the stars eliminated: `own` (n_frames, p, p) less what `shared` tells."""

    own: Floats
    shared: "csr_array[np.float64]"
    inverse: Floats

    def times(self, vector: Floats) -> Floats:
        """The matrix times a vector, both flat."""
        p = self.own.shape[1]
        own = np.einsum("fpq,fq->fp", self.own, vector.reshape(-1, p)).ravel()
        result: Floats = own - self.shared.T @ (self.inverse * (self.shared @ vector))
        return result


def _normal(links: Links, weight: Floats, prior: Floats, inverse: Floats) -> _Normal:
    weighted = links.basis * weight[:, None]
    own = np.zeros((links.n_frames, *[links.basis.shape[1]] * 2))
    for frame, (first, last) in enumerate(zip(links.starts, links.starts[1:], strict=False)):
        own[frame] = weighted[first:last].T @ links.basis[first:last] + np.diag(prior[frame])
    return _Normal(own, links.rows_of_stars(weighted), inverse)


def _conjugate_gradients(normal: _Normal, pulls: Floats, guess: Floats) -> Floats:
    frames, p, q = pulls.shape
    blocks, size = np.linalg.inv(normal.own), (frames * p, frames * p)
    matrix = LinearOperator(size, normal.times, dtype=np.float64)
    nearly = LinearOperator(size, lambda v: np.einsum("fpq,fq->fp", blocks, v.reshape(-1, p)).ravel(), dtype=np.float64)
    result = np.empty_like(pulls)
    for k in range(q):
        solved, failed = cg(
            matrix, pulls[:, :, k].ravel(), guess[:, :, k].ravel(), rtol=_TOLERANCE, maxiter=_STEPS, M=nearly
        )
        if failed:
            raise Broken(f"{frames} frames' equations did not converge in {_STEPS} steps")
        result[:, :, k] = solved.reshape(frames, p)
    return result
