from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.drp.warps import CELL, MARGIN, make_warp
from payloads.imaging.photometry import fit_point_sources
from payloads.imaging.psf_field import with_corners
from schemas.errors import BadData
from schemas.image import Mask, MaskedImage, Psf, VisitImage
from tests.payloads.drp.object_sky import kernel
from tests.payloads.drp.small_sky import PATCH, TRACT, an_image

Floats = NDArray[np.float64]

GRID = TRACT.wcs.shifted(TRACT.patch_box(PATCH).x0 - MARGIN, TRACT.patch_box(PATCH).y0 - MARGIN)
MIDDLE = (900.0, 1100.0)


def sky_of(x: Floats | float, y: Floats | float) -> tuple[Floats, Floats]:
    return GRID.pixel_to_sky(x, y)


def place_of(x: float, y: float) -> tuple[float, float]:
    ra, dec = sky_of(x, y)
    return float(ra), float(dec)


def stars(n: int = 40, around: tuple[float, float] = MIDDLE, reach: float = 250.0) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(3)
    cells = rng.permutation(81)[:n]
    x = around[0] + (cells % 9 - 4) * reach / 4.5 + rng.uniform(-3, 3, n)
    y = around[1] + (cells // 9 - 4) * reach / 4.5 + rng.uniform(-3, 3, n)
    return x, y, np.exp(rng.uniform(np.log(1e3), np.log(1e5), n))


def image_at(middle: tuple[float, float], **options: Any) -> tuple[VisitImage, tuple[Floats, Floats, Floats]]:
    x, y, flux = stars(around=middle)
    return an_image(*sky_of(x, y), flux, place_of(*middle), **options), (x, y, flux)


@pytest.mark.parametrize(("angle", "sip"), [(0.0, 0.0), (0.6, 0.2), (2.5, -0.15)])
def test_a_star_keeps_its_flux_and_its_place_however_the_camera_is_turned(angle: float, sip: float) -> None:
    image, (x, y, flux) = image_at(MIDDLE, angle=angle, sip=sip)
    warp = make_warp([(4, image)], TRACT, PATCH, 12)
    psf = warp.kernels[int(MIDDLE[1]) // CELL, int(MIDDLE[0]) // CELL]
    measured = fit_point_sources(
        warp.pixels, np.broadcast_to(psf, (len(x), *psf.shape)), x - warp.x0, y - warp.y0, move=True
    )
    np.testing.assert_allclose(measured.flux, flux, rtol=2e-3)
    np.testing.assert_allclose(measured.x + warp.x0, x, atol=0.01)
    np.testing.assert_allclose(measured.y + warp.y0, y, atol=0.01)


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4])
def test_a_star_keeps_its_flux_though_its_light_reaches_beyond_the_psf_that_is_turned(angle: float) -> None:
    fwhm, half, far, none = 4.2, 12, 60, np.empty(0)
    inner = kernel(fwhm, half=half)
    image = an_image(none, none, none, place_of(*MIDDLE), angle=angle)
    places = [(ix, iy) for ix in (150, 350, 550) for iy in (150, 350, 550)]
    offsets = np.random.default_rng(2).uniform(-0.5, 0.5, (9, 2))
    for (ix, iy), (dx, dy) in zip(places, offsets, strict=True):
        light = kernel(fwhm, dx, dy, half=far) / inner.sum()
        image.pixels.image[iy - far : iy + far + 1, ix - far : ix + far + 1] += 1e4 * light
    psf = Psf((inner / inner.sum())[None].astype(np.float32), 0, image.pixels.shape)
    warp = make_warp([(4, replace(image, psf=psf))], TRACT, PATCH, 12)
    found = warp.kernels[int(MIDDLE[1]) // CELL, int(MIDDLE[0]) // CELL]
    x, y = GRID.sky_to_pixel(*image.wcs.pixel_to_sky(*(np.array(places) + offsets).T))
    measured = fit_point_sources(
        warp.pixels, np.broadcast_to(found, (9, *found.shape)), x - warp.x0, y - warp.y0, move=True
    )
    assert np.mean(measured.flux) == pytest.approx(1e4, rel=8e-4)  # turned, 2e-3 to 3.5e-3 too faint without corners
    assert found.shape == inner.shape
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_psf_with_corners_is_the_same_within_and_round_beyond() -> None:
    part = kernel(4.2, half=12)
    psf = Psf(np.stack([part, 0.1 * part[::-1, ::-1], 0.0 * part]).astype(np.float32), 1, (100, 200))
    wide = with_corners(psf)
    edge = (wide.components.shape[1] - 25) // 2
    np.testing.assert_array_equal(wide.components[:, edge:-edge, edge:-edge], psf.components)
    assert (wide.components.shape[1] // 2) >= 12 * np.sqrt(2.0)
    wanted = kernel(4.2, half=wide.components.shape[1] // 2)
    v, u = np.indices(wanted.shape) - wanted.shape[0] // 2
    seen = np.hypot(u, v) <= 12 * np.sqrt(2.0)
    np.testing.assert_allclose(wide.components[0][seen], wanted[seen], rtol=0.05)


def test_the_grid_is_the_patchs_with_its_margin() -> None:
    image, _ = image_at(MIDDLE)
    warp = make_warp([(4, image)], TRACT, PATCH, 12)
    assert warp.shape == (2176, 2176)
    ra, dec = TRACT.wcs.pixel_to_sky(TRACT.patch_box(PATCH).x0, TRACT.patch_box(PATCH).y0)
    np.testing.assert_allclose(warp.wcs.sky_to_pixel(ra, dec), (MARGIN, MARGIN), atol=1e-6)
    assert (warp.visit, warp.detectors, warp.band, warp.kernels.shape[:2]) == (12, (4,), "r", (8, 8))


def test_only_the_part_that_a_visit_covers_is_kept_and_what_is_missing_in_it_says_so() -> None:
    image, _ = image_at(MIDDLE, angle=0.6)
    warp = make_warp([(4, image)], TRACT, PATCH, 12)
    assert max(warp.pixels.shape) < 1010
    assert warp.x0 % 2 == warp.y0 % 2 == 0
    missing = np.isnan(warp.pixels.image)
    assert 0.2 < missing.mean() < 0.6
    assert np.isinf(warp.pixels.variance[missing]).all()
    assert (warp.pixels.mask[missing] == Mask.NO_DATA).all()
    assert not (warp.pixels.mask[~missing] & np.uint16(Mask.NO_DATA)).any()


def test_two_detectors_lie_side_by_side_with_a_gap_and_each_with_its_own_psf() -> None:
    left, _ = image_at((560.0, 1100.0), fwhm=4.0)
    right, _ = image_at((1290.0, 1100.0), fwhm=5.0)
    warp = make_warp([(4, left), (5, right)], TRACT, PATCH, 12)
    row = warp.pixels.image[1100 - warp.y0]
    gap = np.flatnonzero(np.isnan(row)) + warp.x0
    inside = gap[(gap > 560) & (gap < 1290)]
    assert 30 <= len(inside) <= 40  # 30 pixels between them, and four on each side that interpolation lacks
    assert warp.detectors == (4, 5)
    peak = warp.kernels[1100 // CELL, :, 12, 12]
    assert peak[560 // CELL] > 1.4 * peak[1290 // CELL]
    assert np.isnan(warp.kernels[0]).all()


def test_where_detectors_overlap_the_first_is_taken() -> None:
    image, _ = image_at(MIDDLE)
    twice = replace(image, pixels=replace(image.pixels, image=2.0 * image.pixels.image))
    one, both = (make_warp(images, TRACT, PATCH, 12) for images in ([(4, image)], [(4, image), (5, twice)]))
    np.testing.assert_array_equal(one.pixels.image, both.pixels.image)


def test_mask_bits_are_carried_and_no_struck_pixel_slips_between_turned_ones() -> None:
    image, _ = image_at(MIDDLE, angle=np.pi / 4)
    rng = np.random.default_rng(1)
    struck = np.zeros(image.pixels.shape, bool)
    struck[rng.integers(50, 650, 200), rng.integers(50, 650, 200)] = True
    image.pixels.mask[struck] |= np.uint16(Mask.CR)
    warp = make_warp([(4, image)], TRACT, PATCH, 12)
    y, x = np.nonzero(struck)
    at_x, at_y = (np.rint(c).astype(int) for c in warp.wcs.sky_to_pixel(*image.wcs.pixel_to_sky(x, y)))
    assert (warp.pixels.mask[at_y - warp.y0, at_x - warp.x0] & np.uint16(Mask.CR)).all()
    assert (warp.pixels.mask & np.uint16(Mask.CR) != 0).sum() < 12 * struck.sum()
    assert (image.pixels.mask[~struck] == 0).all()  # the image itself is left alone


def test_the_variance_is_that_of_a_sum_over_a_psf() -> None:
    pulls = []
    for seed in range(4):
        x, y, flux = stars(40)
        image = an_image(*sky_of(x, y), 0.0 * flux, place_of(*MIDDLE), angle=0.4, noise=30.0, seed=seed)
        warp = make_warp([(4, image)], TRACT, PATCH, 12)
        psf = warp.kernels[int(MIDDLE[1]) // CELL, int(MIDDLE[0]) // CELL]
        measured = fit_point_sources(
            warp.pixels, np.broadcast_to(psf, (len(x), *psf.shape)), x - warp.x0, y - warp.y0, move=False
        )
        pulls.append(measured.flux / measured.flux_err)
    assert np.std(np.concatenate(pulls)) == pytest.approx(1.0, abs=0.15)
    assert warp.sky_variance == pytest.approx(900.0, rel=0.01)


def test_pixels_without_a_variance_do_not_count_for_the_skys() -> None:
    image, _ = image_at(MIDDLE)
    image.pixels.variance[300:400, 300:400] = np.nan
    image.pixels.variance[400:420, 300:400] = 0.0
    assert make_warp([(4, image)], TRACT, PATCH, 12).sky_variance == pytest.approx(1.0, rel=1e-4)


def test_a_nan_spoils_what_interpolation_reaches_and_no_more() -> None:
    image, _ = image_at(MIDDLE)
    image.pixels.image[300, 350] = np.nan
    clean = make_warp([(4, image_at(MIDDLE)[0])], TRACT, PATCH, 12)
    warp = make_warp([(4, image)], TRACT, PATCH, 12)
    lost = np.isnan(warp.pixels.image) & ~np.isnan(clean.pixels.image)
    assert 49 <= lost.sum() <= 81
    np.testing.assert_array_equal(warp.pixels.image[~lost], clean.pixels.image[~lost])


def test_what_cannot_be_warped_is_refused_by_name() -> None:
    image, _ = image_at(MIDDLE)
    with pytest.raises(BadData, match=r"visit 12 on patch 0 .* no detector of \[4\]"):
        make_warp([(4, image)], TRACT, 0, 12)
    with pytest.raises(BadData, match=r"visit 12 .* no detector of \[\]"):
        make_warp([], TRACT, PATCH, 12)
    with pytest.raises(BadData, match=r"several bands, \['g', 'r'\]"):
        make_warp([(4, image), (5, replace(image, band="g"))], TRACT, PATCH, 12)
    nothing = MaskedImage(np.full_like(image.pixels.image, np.nan), image.pixels.mask, image.pixels.variance)
    with pytest.raises(BadData, match="no detector"):
        make_warp([(4, replace(image, pixels=nothing))], TRACT, PATCH, 12)
