"""The kernel from one PSF to another: Alard & Lupton 1998 (ApJ 503, 325), Alard 2000 (A&AS 144, 363).

K(x, y) = sum_i sum_p c[i, p] P_p(u, v) B_i: Gaussians times polynomials, whose coefficients are polynomials
of order 2 (less where stars are few), fitted to stamps about stars with a background of the same order.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging.convolve import FAST
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

_HALF_WIDTHS = (12, 17, 22)
"""Of the kernel, pixels: few, for convolutions are compiled for each."""
_SIGMAS = 4.5
"""That a kernel reaches, in sigmas by which the PSF is widened."""
_MARGIN = 3
"""By which a stamp is larger than the kernel."""

_ORDERS = ((60, 2), (25, 1), (0, 0))
"""The order of the variation over the image by the fewest stamps that bear it."""

_DEGREES = (4, 3, 2)
_WIDTHS = (0.5, 1.0, 2.0)
_NARROWEST = 0.7
_CELLS = 14
_PER_CELL = 2
_STAR_SIGMA = 15.0
_LEAST_PEAK = 0.5
"""Of what is usual: how much of a star the sharper image shows, whatever the two images' units."""

_FEWEST = 5
_UNUSABLE = np.uint16(Mask.SAT | Mask.NO_DATA | Mask.EDGE | Mask.VIGNETTED)
_UNUSABLE_SOURCE = _UNUSABLE | np.uint16(Mask.BAD)
_UNWEIGHTED = np.uint16(Mask.BAD | Mask.CR | Mask.INTRP | Mask.STREAK | Mask.UNMASKED_NAN)
_SYSTEMATIC = 0.005
_SMOOTHED = 0.1
"""Part of the source's variance that is left after a typical kernel."""

_MOST_NOISE = 0.3
"""Of the power of any combination of the vectors: what is taken away for white noise. In that reckoning fine structure
may be all noise, where interpolation has smoothed the noise: without a limit the solution would be anything."""
_DEGENERATE = 1e-8
"""Of the largest power of a combination of the vectors, what any has at the least: of solutions that are all but equal
a small one is picked."""


@dataclass(frozen=True, eq=False)
class MatchingKernel:
    """`coefficients`: (n + 1, terms), the last row the background's; `basis`: (n, k, k).

    `x`, `y`: pixels (n,) about which the stamps that it was fitted to lie; `chi2`: their median, per pixel.
    """

    coefficients: Floats
    order: int
    basis: Floats
    shape: tuple[int, int]
    x: Indices
    y: Indices
    chi2: float

    def at(self, x: Floats, y: Floats) -> Image:
        """Kernels (..., k, k) at pixels x, y (...)."""
        weights = _polynomials(x, y, self.shape, self.order) @ self.coefficients[:-1].T
        result: Image = np.tensordot(weights, self.basis, 1).astype(np.float32)
        return result

    def background(self, x: Floats, y: Floats) -> Image:
        """Of the target less the matched source, at pixels x, y, in the target's unit."""
        result: Image = (_polynomials(x, y, self.shape, self.order) @ self.coefficients[-1]).astype(np.float32)
        return result


def fit_kernel(source: MaskedImage, target: MaskedImage, sigma: float) -> MatchingKernel:
    """The kernel that makes `source` look like `target`, two images of one shape.

    `sigma`: how much wider the target's PSF is, in quadrature, pixels. Raises BadData if too few stars are
    clean.
    """
    half = next((half for half in _HALF_WIDTHS if half >= _SIGMAS * sigma), _HALF_WIDTHS[-1])
    xs, ys = choose_stamps(source, target, half)
    first, second, lines = _basis_lines(max(sigma, _NARROWEST), half)
    image, weight, noise = _cut(source, target, xs, ys, half + _MARGIN)
    vectors = np.empty((xs.size, first.size + 2, *image.shape[1:]), np.float32)
    vectors[:, -1] = image
    _stamp_vectors(source.image, xs, ys, lines, first, second, vectors)
    matrices = _gram_matrices(vectors.reshape(*vectors.shape[:2], -1), weight.reshape(xs.size, -1))
    order = next(order for fewest, order in _ORDERS if xs.size >= fewest)
    terms = _polynomials(xs.astype(np.float64), ys.astype(np.float64), target.shape, order)
    basis = np.einsum("iy,ix->iyx", lines[second], lines[first]).astype(np.float64)
    diluted = noise[:, None, None] * _overlaps(basis)
    coefficients, chi2, kept = _solve(matrices, diluted, (weight > 0).sum((1, 2)), terms)
    return MatchingKernel(coefficients, order, basis, target.shape, xs[kept], ys[kept], float(np.median(chi2)))


def choose_stamps(source: MaskedImage, target: MaskedImage, half: int) -> tuple[Indices, Indices]:
    """Pixels x, y of the target's brightest clean maxima, at most two in each of 14 x 14 cells.

    `half`: of the kernel's width; as far as it reaches from a stamp all must be clean. Raises BadData for fewer than 5.
    """
    reach = 2 * half + _MARGIN + 1
    y, x, peak = _maxima(target.image, target.variance, np.float32(_STAR_SIGMA), reach)
    # The sharper image shows every constant star about as much higher: what it does not is a cosmic ray, or new.
    seen = source.image[y, x]
    ratio = np.nan_to_num(seen / peak)
    usual = np.median(ratio) if ratio.size else 0.0
    there = (ratio > _LEAST_PEAK * usual) & (seen > _STAR_SIGMA * np.sqrt(source.variance[y, x]))
    y, x, peak = y[there], x[there], peak[there]
    ny, nx = target.shape
    cell = (y * _CELLS // ny) * _CELLS + x * _CELLS // nx
    taken, chosen = np.zeros(_CELLS * _CELLS, int), []
    for k in np.argsort(-peak):
        if taken[cell[k]] < _PER_CELL and _is_clean(source, target, int(x[k]), int(y[k]), reach):
            taken[cell[k]] += 1
            chosen.append(k)
    if len(chosen) < _FEWEST:
        raise BadData(f"{len(chosen)} clean stars to fit the matching kernel, {_FEWEST} are needed")
    return x[chosen], y[chosen]


def _is_clean(source: MaskedImage, target: MaskedImage, x: int, y: int, reach: int) -> bool:
    box = np.s_[y - reach : y + reach + 1, x - reach : x + reach + 1]
    masked = ((target.mask[box] & _UNUSABLE) | (source.mask[box] & _UNUSABLE_SOURCE)).any()
    return not masked and bool(np.isfinite(source.image[box]).all())


def _basis_lines(sigma: float, half: int) -> tuple[Indices, Indices, Image]:
    """1-D profiles (n, k), and which of them basis i has along x and along y."""
    t = np.arange(-half, half + 1.0)
    lines: list[Floats] = []
    first: list[int] = []
    second: list[int] = []
    for width, degree in zip(_WIDTHS, _DEGREES, strict=True):
        start, s = len(lines), width * sigma
        profiles = [np.exp(-t * t / (2 * s * s)) * (t / s) ** n for n in range(degree + 1)]
        lines += [p / np.abs(p).sum() for p in profiles]
        pairs = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
        first += [start + i for i, _ in pairs]
        second += [start + j for _, j in pairs]
    return np.array(first), np.array(second), np.array(lines, np.float32)


def _cut(source: MaskedImage, target: MaskedImage, xs: Indices, ys: Indices, half: int) -> tuple[Image, Image, Floats]:
    """The target's stamps and weights (n, k, k), k = 2 half + 1, and the source's noise in each, weighted (n,).

    Weights are inverse variances, of both images, with a floor for errors of the PSF.
    """
    offset = np.arange(-half, half + 1)
    at = ys[:, None, None] + offset[:, None], xs[:, None, None] + offset
    image, noise = target.image[at], source.variance[at]
    weight = 1.0 / (target.variance[at] + _SMOOTHED * noise + (_SYSTEMATIC * image) ** 2)
    usable = ((target.mask[at] & _UNWEIGHTED) == 0) & np.isfinite(image) & np.isfinite(weight) & np.isfinite(noise)
    image, weight, noise = (np.where(usable, plane, 0.0).astype(np.float32) for plane in (image, weight, noise))
    return image, weight, (weight * noise).sum((1, 2), np.float64)


def _overlaps(basis: Floats) -> Floats:
    """(m, m) scalar products of the basis kernels, 0 for the background: what white noise adds."""
    n = len(basis)
    overlaps = np.zeros((n + 1, n + 1))
    flat = basis.reshape(n, -1)
    overlaps[:n, :n] = flat @ flat.T
    return overlaps


def _solve(matrices: Floats, diluted: Floats, pixels: Indices, terms: Floats) -> tuple[Floats, Floats, Flags]:
    """Coefficients (m, terms), chi2 per pixel of the stamps kept, and which: those up to 4 sigma above the median."""
    keep = np.ones(len(matrices), bool)
    for _ in range(5):
        coefficients = _least_squares(matrices[keep], diluted[keep], terms[keep])
        model = np.concatenate([terms @ coefficients.T, -np.ones((len(terms), 1))], axis=1)
        chi2 = np.einsum("qi,qij,qj->q", model, matrices, model) / pixels
        middle = np.median(chi2[keep])
        good = chi2 < middle + 4.0 * 1.4826 * np.median(np.abs(chi2[keep] - middle))
        if (good == keep).all() or good.sum() < _FEWEST:
            break
        keep = good
    return coefficients, chi2[keep], keep


def _least_squares(matrices: Floats, diluted: Floats, terms: Floats) -> Floats:
    """Least squares with noise in the vectors: what it adds to their products is taken away again."""
    m = matrices.shape[1] - 1
    size = m * terms.shape[1]
    products = terms[:, :, None] * terms[:, None, :]
    power, noise = (
        np.tensordot(part[:, :m, :m], products, (0, 0)).transpose(0, 2, 1, 3).reshape(size, size)
        for part in (matrices, diluted)
    )
    right = np.tensordot(matrices[:, :m, m], terms, (0, 0)).reshape(size)
    scale = 1.0 / np.sqrt(np.diag(power))
    powers, axes = np.linalg.eigh(power * scale * scale[:, None])
    axes /= np.sqrt(np.maximum(powers, _DEGENERATE * powers[-1]))
    # In axes in which the vectors' products are 1, what the noise adds is its part.
    part, turn = np.linalg.eigh(axes.T @ (noise * scale * scale[:, None]) @ axes)
    axes = axes @ turn
    solution: Floats = scale * (axes @ ((axes.T @ (right * scale)) / (1.0 - np.clip(part, 0.0, _MOST_NOISE))))
    return solution.reshape(m, -1)


def _polynomials(x: Floats, y: Floats, shape: tuple[int, int], order: int) -> Floats:
    """(..., terms): u**i v**j, u and v from -1 to 1 over the image."""
    u, v = 2.0 * x / (shape[1] - 1) - 1.0, 2.0 * y / (shape[0] - 1) - 1.0
    terms: Floats = np.stack([u**i * v**j for i in range(order + 1) for j in range(order + 1 - i)], axis=-1)
    return terms


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _maxima(image: Image, variance: Image, sigmas: np.float32, margin: int) -> tuple[Indices, Indices, Image]:
    """Rows, columns and values of the maxima of 5 x 5 pixels that stand `sigmas` above the noise."""
    ys, xs, peaks = [0], [0], [np.float32(0.0)]
    for y in range(margin, image.shape[0] - margin):
        for x in range(margin, image.shape[1] - margin):
            value = image[y, x]
            if value <= 0.0 or not value * value > sigmas * sigmas * variance[y, x]:
                continue
            highest = True
            for r in range(y - 2, y + 3):
                for c in range(x - 2, x + 3):
                    if image[r, c] > value:
                        highest = False
            if highest:
                ys.append(y)
                xs.append(x)
                peaks.append(value)
    return np.array(ys)[1:], np.array(xs)[1:], np.array(peaks)[1:]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _stamp_vectors(
    source: Image,
    xs: Indices,
    ys: Indices,
    lines: Image,
    first: Indices,
    second: Indices,
    vectors: Image,
) -> None:
    """Into `vectors` (n, basis + 2, k, k): each stamp convolved with each basis kernel, then a constant."""
    side, width = vectors.shape[2], lines.shape[1]
    tall = side + width - 1
    along = np.empty((lines.shape[0], tall, side), np.float32)
    for q in range(xs.size):
        top, left = ys[q] - tall // 2, xs[q] - tall // 2
        along[:] = 0.0
        for a in range(lines.shape[0]):
            for r in range(tall):
                for t in range(width):
                    pixels, tap = source[top + r, left + width - 1 - t :], lines[a, t]
                    for c in range(side):
                        along[a, r, c] += tap * pixels[c]
        vectors[q, : first.size] = 0.0
        vectors[q, first.size] = 1.0
        for i in range(first.size):
            for r in range(side):
                for t in range(width):
                    tap, pixels = lines[second[i], t], along[first[i], r + width - 1 - t]
                    for c in range(side):
                        vectors[q, i, r, c] += tap * pixels[c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _gram_matrices(vectors: Image, weight: Image) -> Floats:
    """(n, m, m) weighted products of each stamp's vectors (n, m, pixels)."""
    n, m, pixels = vectors.shape
    matrices = np.empty((n, m, m))
    weighted = np.empty(pixels, np.float32)
    for q in range(n):
        for i in range(m):
            for p in range(pixels):
                weighted[p] = vectors[q, i, p] * weight[q, p]
            for j in range(i + 1):
                total = np.float32(0.0)
                other = vectors[q, j]
                for p in range(pixels):
                    total += weighted[p] * other[p]
                matrices[q, i, j] = matrices[q, j, i] = total
    return matrices
