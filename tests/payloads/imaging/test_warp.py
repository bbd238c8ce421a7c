from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from payloads.imaging.psf_field import fit_psf, kernels_at, warp_psf
from payloads.imaging.warp import _source_grid, lanczos_table, warp
from schemas.image import Mask, MaskedImage, Psf, Template
from schemas.wcs import Wcs
from tests.payloads.planes import masked_images, shapes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SCALE = 0.2 / 3600
SHAPE = (150, 170)


def turned_wcs(angle: float, middle: tuple[float, float] = (85.0, 75.0), sip: Floats | None = None) -> Wcs:
    c, s = np.cos(angle), np.sin(angle)
    cd = SCALE * np.array([[-c, s], [s, c]])
    return Wcs((40.0, -20.0), middle, cd) if sip is None else Wcs((40.0, -20.0), middle, cd, sip)


def smooth_template(side: int = 300) -> tuple[Template, Callable[[Floats, Floats], Floats]]:
    """A sum of broad Gaussians whose value is known anywhere."""
    rng = np.random.default_rng(5)
    blobs = np.column_stack([rng.uniform(60, 240, (40, 2)), rng.uniform(1, 9, 40)])

    def value(x: Floats, y: Floats) -> Floats:
        return sum(f * np.exp(-((x - bx) ** 2 + (y - by) ** 2) / (2 * 2.0**2)) for bx, by, f in blobs)

    y, x = np.mgrid[:side, :side]
    image = value(x, y).astype(np.float32)
    pixels = MaskedImage(image, np.zeros(image.shape, np.uint16), np.full(image.shape, 2.0, np.float32))
    wcs = Wcs((40.0, -20.0), (150.0, 150.0), SCALE * np.diag([-1.0, 1.0]))
    psf = Psf(np.ones((1, 5, 5), np.float32), 0, image.shape)
    return Template(pixels, wcs, psf, "r"), value


def places(template: Template, wcs: Wcs, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Where each pixel lies in the template."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return template.wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y))


def reference(template: Template, wcs: Wcs, shape: tuple[int, int]) -> MaskedImage:
    """Lanczos-4 at exact positions, pixel by pixel, in NumPy, times a pixel's area; NaN without 8 x 8 pixels."""
    area = abs(np.linalg.det(wcs.cd) / np.linalg.det(template.wcs.cd))
    sx, sy = places(template, wcs, shape)
    ix, iy, t = np.floor(sx).astype(int), np.floor(sy).astype(int), np.arange(-3, 5)

    def weights(fraction: Floats) -> Floats:
        d = t - fraction[..., None]
        w = np.sinc(d) * np.sinc(d / 4) * (np.abs(d) < 4)
        return w / w.sum(-1, keepdims=True)

    source = template.pixels
    ny, nx = source.shape
    rows, columns = (np.clip(i[..., None] + t, 0, n - 1) for i, n in ((iy, ny), (ix, nx)))
    image = np.einsum(
        "yxr,yxrc,yxc->yx", weights(sy - iy), source.image[rows[..., :, None], columns[..., None, :]], weights(sx - ix)
    )
    image *= area
    image[(sx < 3) | (sy < 3) | (sx >= nx - 4) | (sy >= ny - 4)] = np.nan
    nearest = np.clip(np.rint(sy).astype(int), 0, ny - 1), np.clip(np.rint(sx).astype(int), 0, nx - 1)
    variance = np.where(np.isnan(image), np.inf, area * max(0.65 * area, 1.0) * source.variance[nearest])
    return MaskedImage(image, np.where(np.isnan(image), np.uint16(Mask.NO_DATA), source.mask[nearest]), variance)


def clear_cut(template: Template, wcs: Wcs, shape: tuple[int, int]) -> Bools:
    """Pixels that lie so far from a whole or a half pixel that rounding does not choose the nearest one."""
    doubled = 2 * np.stack(places(template, wcs, shape))
    result: Bools = (np.abs(doubled - np.rint(doubled)) > 1e-4).all(axis=0)
    return result


def test_a_warp_is_lanczos_interpolation_at_the_exact_positions() -> None:
    template, _ = smooth_template()
    wcs = turned_wcs(0.4)
    # Positions are rounded to 1/1024 pixel.
    np.testing.assert_allclose(warp(template, wcs, SHAPE).image, reference(template, wcs, SHAPE).image, atol=5e-3)


@given(
    data=st.data(), there=shapes(1, 60), here=shapes(1, 140), angle=st.floats(-3.1, 3.1), scale=st.floats(0.5, 1.5),
    middle=st.tuples(st.floats(-20.0, 80.0), st.floats(-20.0, 80.0)),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_templates_of_any_shape_and_scale_are_warped_to_their_edges_and_to_what_they_miss(
    data: st.DataObject, there: tuple[int, int], here: tuple[int, int], angle: float, scale: float,
    middle: tuple[float, float],
) -> None:  # fmt: skip
    pixels = data.draw(masked_images(there, (Mask.SAT, Mask.CR), spoilt=(np.nan,)))
    source = Wcs((40.0, -20.0), (there[1] / 2, there[0] / 2), scale * SCALE * np.diag([-1.0, 1.0]))
    template = Template(pixels, source, Psf(np.ones((1, 5, 5), np.float32), 0, there), "r")
    wcs = turned_wcs(angle, middle)
    made, expected, sure = warp(template, wcs, here), reference(template, wcs, here), clear_cut(template, wcs, here)
    np.testing.assert_allclose(made.image[sure], expected.image[sure], atol=0.02 / scale**2)
    np.testing.assert_allclose(made.variance[sure], expected.variance[sure], rtol=1e-5)
    np.testing.assert_array_equal(made.mask[sure], expected.mask[sure])


@pytest.mark.parametrize(("finer", "most"), [(0.5, 2.0), (0.8, 2.0), (1.0, 1.15), (1.25, 1.15), (1.6, 1.15)])
def test_a_source_keeps_its_flux_and_a_psf_sized_sum_its_noise_on_pixels_of_any_size(finer: float, most: float) -> None:
    """A template's pixel is `finer` of the image's: noise of 1 in each, and one source of 1000.

    What is told of the noise is right for pixels that are no larger; for larger ones it is too much, by a factor of
    less than `most`, and never too little.
    """
    rng, n = np.random.default_rng(4), 700
    gy, gx = np.mgrid[:n, :n]
    light = 1000.0 * np.exp(-((gx - 350.0) ** 2 + (gy - 350.0) ** 2) / 18.0) / (18.0 * np.pi)
    wcs = Wcs((40.0, -20.0), (350.0, 350.0), finer * SCALE * np.diag([-1.0, 1.0]))
    whole = {"flux": light, "noise": rng.normal(0.0, 1.0, (n, n))}
    flat, psf = np.zeros((n, n), np.uint16), Psf(np.ones((1, 5, 5), np.float32), 0, (n, n))
    side = int(0.65 * n * finer)
    out = {}
    for name, image in whole.items():
        pixels = MaskedImage(image.astype(np.float32), flat, np.ones((n, n), np.float32))
        out[name] = warp(Template(pixels, wcs, psf, "r"), turned_wcs(0.3, (side / 2, side / 2)), (side, side))
    assert out["flux"].image.sum() == pytest.approx(1000.0, rel=2e-3)
    told = float(out["noise"].variance[side // 2, side // 2])
    summed = gaussian_filter(out["noise"].image.astype(float), 2.2)
    weight = gaussian_filter(np.pad([[1.0]], 20), 2.2)
    assert 0.87 < told * (weight**2).sum() / summed.var() < most


def test_a_warp_gives_the_sky_that_the_template_samples() -> None:
    template, value = smooth_template()
    wcs = turned_wcs(-1.1, (80.3, 77.8))
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    truth = value(*template.wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y)))
    error = warp(template, wcs, SHAPE).image - truth
    assert np.abs(error).max() < 0.003 * truth.max()


def test_positions_between_grid_points_are_within_a_milliarcsecond() -> None:
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[1, 0, 2], sip[1, 1, 1], sip[0, 3, 0] = 3e-7, -2e-7, 2e-7, 1e-11
    target = turned_wcs(0.7, (2000.0, 2000.0), sip)
    source = Wcs((40.02, -20.03), (2500.0, 2400.0), SCALE * np.diag([-1.0, 1.0]))
    gx, gy = _source_grid(source, target, (4000, 4000))
    x, y = np.meshgrid(np.arange(31.5, 4000, 640), np.arange(31.5, 4000, 640))
    i, j, f = x // 64, y // 64, 31.5 / 64
    i, j = i.astype(int), j.astype(int)
    between = [
        (1 - f) * ((1 - f) * g[j, i] + f * g[j, i + 1]) + f * ((1 - f) * g[j + 1, i] + f * g[j + 1, i + 1])
        for g in (gx, gy)
    ]
    exact = source.sky_to_pixel(*target.pixel_to_sky(x, y))
    assert np.hypot(between[0] - exact[0], between[1] - exact[1]).max() * 200 < 1.0


def test_what_the_template_does_not_have_is_no_data_and_not_zero() -> None:
    template, _ = smooth_template(side=120)
    wcs = turned_wcs(0.0)
    out = warp(template, wcs, SHAPE)
    outside = (out.mask & Mask.NO_DATA) != 0
    assert outside.any()
    assert np.isnan(out.image[outside]).all()
    assert np.isinf(out.variance[outside]).all()
    assert np.isfinite(out.image[~outside]).all()
    assert (out.variance[~outside] == 2.0).all()


def test_a_nan_in_the_template_is_no_data_as_far_as_the_interpolation_reaches() -> None:
    template, _ = smooth_template()
    template.pixels.image[150, 150] = np.nan
    out = warp(template, turned_wcs(0.0), SHAPE)
    x = np.nonzero(out.mask & Mask.NO_DATA)[1]
    assert 49 <= x.size <= 64
    assert np.ptp(x) <= 7


def test_the_nearest_pixels_mask_is_carried_over() -> None:
    template, _ = smooth_template()
    template.pixels.mask[150, 150] = Mask.SAT
    out = warp(template, Wcs((40.0, -20.0), (85.2, 75.1), template.wcs.cd), SHAPE)
    assert [tuple(at) for at in np.argwhere(out.mask & Mask.SAT)] == [(75, 85)]


def test_a_read_only_template_is_warped() -> None:
    template, _ = smooth_template()
    for plane in (template.pixels.image, template.pixels.mask, template.pixels.variance):
        plane.flags.writeable = False
    assert np.isfinite(warp(template, turned_wcs(0.4), SHAPE).image).all()


def test_lanczos_weights_sum_to_one_and_reproduce_pixels() -> None:
    table = lanczos_table()
    np.testing.assert_allclose(table.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(table[0], [0, 0, 0, 1, 0, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(table[-1], [0, 0, 0, 0, 1, 0, 0, 0], atol=1e-7)


def gaussian_psf(sxx: float, syy: float, sxy: float, shape: tuple[int, int], size: int = 25) -> Psf:
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inverse = np.linalg.inv([[sxx, sxy], [sxy, syy]])
    kernel = np.exp(-0.5 * (inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y))
    return Psf((kernel / kernel.sum())[None].astype(np.float32), 0, shape)


def test_a_psf_turns_with_the_pixels() -> None:
    source = Wcs((40.0, -20.0), (150.0, 150.0), SCALE * np.diag([-1.0, 1.0]))
    c, s = np.cos(0.4), np.sin(0.4)
    jacobian = np.linalg.inv(source.cd) @ turned_wcs(0.4).cd
    np.testing.assert_allclose(np.abs(jacobian), [[c, s], [s, c]], atol=1e-9)
    shape_there = np.array([[6.0, 1.0], [1.0, 4.0]])
    here = np.linalg.inv(jacobian) @ shape_there @ np.linalg.inv(jacobian).T
    turned = warp_psf(gaussian_psf(6.0, 4.0, 1.0, (300, 300)), source, turned_wcs(0.4), SHAPE)
    expected = gaussian_psf(here[0, 0], here[1, 1], here[0, 1], SHAPE).at(20, 100)
    np.testing.assert_allclose(turned.at(20, 100), expected, atol=1e-5)


def test_kernels_at_many_places_are_those_that_the_psf_gives_one_by_one() -> None:
    rng = np.random.default_rng(2)
    psf = Psf(np.abs(rng.normal(size=(6, 9, 9))).astype(np.float32) + 1, 2, (100, 120))
    x, y = rng.uniform(0, 100, (2, 7))
    np.testing.assert_allclose(kernels_at(psf, x, y), [psf.at(*at) for at in zip(x, y, strict=True)], rtol=1e-5)


def test_a_psf_is_fitted_back_from_its_own_kernels() -> None:
    rng = np.random.default_rng(3)
    components = 0.01 * rng.normal(size=(6, 5, 5))
    components[0] += 1.0
    components /= components[0].sum()
    components[1:] -= components[1:].mean((1, 2), keepdims=True)  # every kernel keeps the sum 1
    psf = Psf(components.astype(np.float32), 2, (90, 90))
    x, y = rng.uniform(0, 90, (2, 30))
    fitted = fit_psf(kernels_at(psf, x, y), x, y, 2, (90, 90))
    np.testing.assert_allclose(fitted.components, psf.components, atol=1e-6)
    assert fitted.at(10, 80).sum() == pytest.approx(1.0, abs=1e-5)
