"""The compiled loops of the PSF, each held to the same thing in plain NumPy."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.imaging import psf, psf_kernels
from payloads.imaging.psf import Field, Neighbours
from schemas.image import Image, Mask, MaskedImage, Psf
from tests.payloads.planes import generators, masked_images, shapes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SPOILT = int(Mask.BAD | Mask.SAT)
SKY = 25.0


def moved(kernel: Floats, dx: float, dy: float, margin: int = 0) -> Floats:
    """The kernel, widened by `margin` pixels, moved by (dx, dy): a sum over 9 x 9 Lanczos-4 weights of sum 1."""

    def weights(offset: float) -> Floats:
        taps = offset + np.arange(-4, 5)
        w = np.sinc(taps) * np.sinc(taps / 4) * (np.abs(taps) < 4)
        return np.asarray(w / w.sum())

    k = kernel.shape[0] + 2 * margin
    padded = np.pad(kernel, 4 + margin)
    by_x = sum(w * padded[:, t : t + k] for t, w in enumerate(weights(dx)))
    return np.asarray(sum(w * by_x[t : t + k] for t, w in enumerate(weights(dy))))


@given(
    size=st.integers(1, 15), dx=st.floats(-0.5, 0.5), dy=st.floats(-0.5, 0.5),
    margin=st.integers(0, 4), rng=generators(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_kernel_is_moved_as_lanczos_defines(
    size: int, dx: float, dy: float, margin: int, rng: np.random.Generator
) -> None:
    kernel, n = rng.random((size, size)), size + 2 * margin
    rows, out = np.empty((n + 8, n)), np.empty((n, n))
    wx, wy, slopes = np.empty(9), np.empty(9), np.empty(9)
    psf_kernels.lanczos(dx, wx, slopes)
    psf_kernels.lanczos(dy, wy, slopes)
    psf_kernels._convolve(np.pad(kernel, 4 + margin), wx, wy, rows, out)
    assert out == pytest.approx(moved(kernel, dx, dy, margin), abs=1e-12)


@pytest.mark.parametrize("offset", [-0.5, -0.2, 0.1, 0.49])
def test_lanczos_slopes_are_derivatives(offset: float) -> None:
    step, ahead, behind, slopes, unused = 1e-5, np.empty(9), np.empty(9), np.empty(9), np.empty(9)
    psf_kernels.lanczos(offset + step, ahead, unused)
    psf_kernels.lanczos(offset - step, behind, unused)
    psf_kernels.lanczos(offset, unused, slopes)
    inner = slice(1, 8)  # the outermost taps enter and leave the window
    assert slopes[inner] == pytest.approx(((ahead - behind) / (2 * step))[inner], abs=1e-4)


@given(half=st.integers(0, 9), factor=st.sampled_from([1, 3, 5, 11]), rng=generators())
@settings(max_examples=40, deadline=None)
def test_a_magnified_kernel_is_made_of_the_kernels_moved_by_parts_of_a_pixel(
    half: int, factor: int, rng: np.random.Generator
) -> None:
    kernel = rng.random((2 * half + 1, 2 * half + 1)).astype(np.float32)
    middle, quarter = half, (2 * half + 1) // 4
    inner = slice(middle - quarter, middle + quarter + 1)
    fine = psf_kernels.magnify(kernel, factor)
    for j, i in np.ndindex(factor, factor):
        expected = moved(kernel.astype(float), (factor // 2 - i) / factor, (factor // 2 - j) / factor)[inner, inner]
        assert fine[j::factor, i::factor] == pytest.approx(expected, abs=1e-6)


@dataclass(frozen=True, eq=False)
class Scene:
    """Stars of a PSF that varies, on noise with spoilt pixels, some discs to be left out."""

    field: Field
    psf: Psf
    x: Floats
    y: Floats
    flux: Floats
    near: Neighbours

    def kernel(self, star: int) -> Floats:
        return np.asarray(self.psf.at(self.x[star], self.y[star]), np.float64)

    def window(self, x: float, y: float, side: int, star: int) -> tuple[Floats, Bools]:
        """Pixels about the one nearest (x, y), and which of them count for a star."""
        offset = np.arange(side) - side // 2
        rows, columns = np.rint(y) + offset[:, None], np.rint(x) + offset
        ny, nx = self.field.mask.shape
        on = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
        at = np.clip(rows, 0, ny - 1).astype(int), np.clip(columns, 0, nx - 1).astype(int)
        good = on & ((self.field.mask[at] & SPOILT) == 0)
        for k in range(self.near.start[star], self.near.start[star + 1]):
            good &= np.hypot(columns - self.near.x[k], rows - self.near.y[k]) >= self.near.radius[k]
        return np.where(good, self.field.image[at], 0.0), good


def varying_psf(shape: tuple[int, int], half: int, order: int, rng: np.random.Generator) -> Psf:
    offset = np.arange(-half, half + 1.0)
    components = rng.normal(0.0, 0.01, ((order + 1) * (order + 2) // 2, 2 * half + 1, 2 * half + 1))
    components *= (gaussian := np.exp(-(offset[:, None] ** 2 + offset**2) / 7.0))
    components[0] += gaussian
    return Psf((components / gaussian.sum()).astype(np.float32), order, shape)


def scene_of(pixels: MaskedImage, half: int, order: int, rng: np.random.Generator) -> Scene:
    shape, stars = pixels.shape, 3
    model = varying_psf(shape, half, order, rng)
    x, y = (rng.uniform(0, n - 1, stars) for n in shape[::-1])
    flux = 10 ** rng.uniform(3.5, 4.5, stars)
    image = np.pad(pixels.image.astype(float), 40)
    for a, b, f in zip(x, y, flux, strict=True):
        ix, iy = round(a) + 40, round(b) + 40
        light = moved(np.asarray(model.at(a, b), float), a - round(a), b - round(b))
        image[iy - half : iy + half + 1, ix - half : ix + half + 1] += f * light
    start = np.array([0, 0, 1, 3])
    discs = Neighbours(start, rng.uniform(0, shape[1], 3), rng.uniform(0, shape[0], 3), rng.uniform(0, 6, 3))
    light_on: Image = image[40:-40, 40:-40].astype(np.float32)
    return Scene(Field(light_on, pixels.mask, SPOILT), model, x, y, flux, discs)


def noise_of(expected: Floats, model_error: float) -> Floats:
    """Variance of a pixel: of the sky, of the light the model expects, of the model itself."""
    return np.asarray(SKY + np.maximum(expected, 0.0) + (model_error * expected) ** 2)


@dataclass(frozen=True, eq=False)
class Linear:
    """A star's fit about a place: the model, what it is fitted to, and the next step in x, y and flux."""

    model: Floats
    values: Floats
    step: Floats
    position_err: float

    def flux(self) -> float:
        """That of the model alone as weight."""
        return float(self.model @ self.values / (self.model @ self.model))


def linear_fit(scene: Scene, star: int, at: Floats, side: int, model_error: float) -> Linear | None:
    """Least squares about `at` (x, y, flux; NaN for the linear one); None where there is nothing to fit."""
    kernel, (x, y, flux), h = scene.kernel(star), at, 1e-4
    inset = (kernel.shape[0] - side) // 2
    values, good = scene.window(x, y, side, star)
    if good.sum() < side:
        return None

    def model(a: float, b: float) -> Floats:
        return moved(kernel, a - np.rint(x), b - np.rint(y))[inset : inset + side, inset : inset + side][good]

    here, values = model(x, y), values[good]
    flux = here @ values / (here @ here) if np.isnan(flux) else flux
    by_x, by_y = (model(x + h, y) - model(x - h, y)) / (2 * h), (model(x, y + h) - model(x, y - h)) / (2 * h)
    slopes = np.stack([flux * by_x, flux * by_y, here], axis=1)
    weight = 1.0 / noise_of(flux * here, model_error)
    assume(np.linalg.cond(slopes / np.linalg.norm(slopes, axis=0)) < 1e3)
    covariance = np.linalg.inv(slopes.T @ (slopes * weight[:, None]))
    step = covariance @ (slopes.T @ (weight * (values - flux * here)))
    error = np.sqrt((covariance[0, 0] + covariance[1, 1]) / 2)
    return Linear(here, values, np.array([step[0], step[1], flux + step[2]]), error)


def reference_fit(scene: Scene, star: int, side: int, model_error: float) -> Floats:
    """x, y, error, flux, error, reduced chi2 after at most six steps; NaN where the star is lost."""
    start = np.array([scene.x[star], scene.y[star], np.nan])
    at, lost = start.copy(), np.full(6, np.nan)
    for count in range(6):
        fit = linear_fit(scene, star, at, side, model_error)
        if fit is None:
            return lost
        at = np.array([*(at[:2] + fit.step[:2]), fit.step[2]])
        moved_by, gone = np.abs(fit.step[:2]), np.abs(at - start)[:2]
        if moved_by.max() >= 2 or gone.max() >= 3:
            return lost
        if moved_by.sum() < 2e-3 or count == 5:
            break
    flux, model = fit.flux(), fit.model
    spread = model**2 @ noise_of(flux * model, 0.0)
    chi2 = ((fit.values - flux * model) ** 2 / noise_of(flux * model, model_error)).sum()
    flux_err, freedom = np.sqrt(spread) / (model @ model), max(model.size - 3, 1)
    return np.array([at[0], at[1], fit.position_err, flux, flux_err, chi2 / freedom])


@given(data=st.data(), shape=shapes(3, 40), half=st.integers(2, 7), order=st.integers(0, 2), rng=generators())
@settings(max_examples=60, deadline=None)
def test_stars_are_fitted_by_newtons_steps_at_edges_and_beside_spoilt_pixels_and_neighbours(
    data: st.DataObject, shape: tuple[int, int], half: int, order: int, rng: np.random.Generator
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.CR), sigma=5.0, spoilt=()))
    pixels.image[(pixels.mask & Mask.BAD) != 0] = np.nan
    scene = scene_of(pixels, half, order, rng)
    fits = psf.measure(scene.field, scene.psf, scene.x, scene.y, np.full(3, SKY), half - 1, scene.near, 0.01)
    found = np.stack(list(vars(fits).values()), axis=1)
    for star in range(3):
        np.testing.assert_allclose(found[star], reference_fit(scene, star, 2 * half - 1, 0.01), rtol=1e-3, atol=1e-3)


@given(data=st.data(), shape=shapes(1, 40), half=st.integers(1, 6), order=st.integers(0, 2), rng=generators())
@settings(max_examples=60, deadline=None)
def test_residuals_are_what_stars_have_over_the_model_moved_back_to_the_grid(
    data: st.DataObject, shape: tuple[int, int], half: int, order: int, rng: np.random.Generator
) -> None:
    pixels = data.draw(masked_images(shape, (Mask.BAD, Mask.CR), sigma=5.0, spoilt=()))
    pixels.image[(pixels.mask & Mask.BAD) != 0] = np.nan
    scene, k = scene_of(pixels, half, order, rng), 2 * half + 1
    flux = np.where([True, True, rng.random() < 0.5], scene.flux, rng.choice([0.0, -5.0, np.nan]))
    near = scene.near
    out, weight = psf_kernels.residuals(
        scene.field.image, scene.field.mask, SPOILT, scene.psf.components, order, scene.x, scene.y, flux,
        np.full(3, SKY), near.start, near.x, near.y, near.radius, 0.01,
    )  # fmt: skip
    for star in range(3):
        x, y = scene.x[star], scene.y[star]
        if not flux[star] > 0:
            assert not out[star].any()
            assert not weight[star].any()
            continue
        model = moved(scene.kernel(star), x - np.rint(x), y - np.rint(y), 4)
        values, good = scene.window(x, y, k + 8, star)
        left = moved(np.where(good, values / flux[star] - model, 0.0), np.rint(x) - x, np.rint(y) - y)
        inner = np.s_[4 : 4 + k, 4 : 4 + k]
        expected = np.where(good[inner], left[inner], 0.0)
        per_noise = np.where(good[inner], flux[star] ** 2 / noise_of(flux[star] * model[inner], 0.01), 0.0)
        np.testing.assert_allclose(out[star].reshape(k, k), expected, atol=1e-6)
        np.testing.assert_allclose(weight[star].reshape(k, k), per_noise, rtol=1e-4)
