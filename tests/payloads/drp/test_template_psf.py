from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import fftconvolve

from backbone.product_fits import read_product, write_product
from payloads.drp.coadd_psf import BLOCK, PsfSum, blocks_in
from payloads.drp.psf_fourier import transform
from payloads.drp.single_frame import FrameSummary
from payloads.drp.template_psf import TemplatePsf, brought, how_many, template_psf
from payloads.imaging.psf_field import kernel_sigma
from payloads.imaging.stars import FWHM_OF_SIGMA
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, Psf
from tests.payloads.drp.small_sky import SIDE, TRACT, Stars, a_warp, an_image, gaussian

MIDDLE = TRACT.wcs.pixel_to_sky(1000.0, 1000.0)


def kernel(fwhm: float) -> Image:
    made: Image = (gaussian(fwhm) / gaussian(fwhm).sum()).astype(np.float32)
    return made


def frame(visit: int, fwhm: float, *, angle: float = 0.0, sky_e: float = 1000.0, detector: int = 1) -> FrameSummary:
    image = an_image(*(np.empty(0) for _ in range(3)), (float(MIDDLE[0]), float(MIDDLE[1])), angle=angle, fwhm=fwhm)
    return FrameSummary(
        visit=visit, detector=detector, band="r", physical_filter="r_57", ny=700, nx=700, wcs=image.wcs, midpoint=5e9,
        exposure_time=30.0, zero_point=1.0, fwhm_px=fwhm, sky_e=sky_e, depth_mag=24.0, wcs_rms_mas=5.0, n_stars=100,
        psf=image.psf,
    )  # fmt: skip


def psfs_of(fwhm: float) -> Image:
    """Of all blocks of the small grid."""
    return np.broadcast_to(kernel(fwhm), (*blocks_in((SIDE, SIDE)), 25, 25))


def flat(level: float) -> MaskedImage:
    shape = SIDE, SIDE
    mask = np.random.default_rng(4).integers(0, 4, shape).astype(np.uint16)
    return MaskedImage(np.full(shape, level, np.float32), mask, np.full(shape, 4.0, np.float32))


def fwhm_of(psf: Image) -> float:
    return kernel_sigma(psf) * FWHM_OF_SIGMA


def test_the_common_psf_is_the_sharpest_visits_and_a_little_wider() -> None:
    widths = np.random.default_rng(3).permutation(np.linspace(4.0, 7.0, 30))
    made = template_psf([frame(k, w) for k, w in enumerate(widths)], TRACT.wcs)
    chosen = np.argsort(widths)[:10]
    assert made.visits == tuple(sorted(chosen.tolist()))
    mean = np.mean([kernel(w) for w in widths[chosen]], axis=0)
    assert fwhm_of(made.kernel) == pytest.approx(1.03 * fwhm_of(mean), rel=3e-3)
    assert made.kernel.sum() == pytest.approx(1.0, abs=1e-5)


def test_all_detectors_of_a_visit_count_and_the_fainter_sky_counts_more() -> None:
    assert (how_many(5), how_many(30)) == (8, 10)
    frames = [frame(1, 4.0, sky_e=1000.0), frame(1, 5.0, sky_e=1000.0, detector=2), frame(2, 6.0, sky_e=2000.0)]
    mean = 0.4 * kernel(4.0) + 0.4 * kernel(5.0) + 0.2 * kernel(6.0)
    assert fwhm_of(template_psf(frames, TRACT.wcs).kernel) == pytest.approx(1.03 * fwhm_of(mean), rel=3e-3)


def test_the_common_psf_is_on_the_tracts_pixels() -> None:
    long = frame(1, 4.0, angle=np.pi / 2.0)
    v, u = np.mgrid[-12:13, -12:13]
    drawn = np.exp(-0.5 * ((u / 2.4) ** 2 + (v / 1.6) ** 2))
    long = replace(long, psf=Psf((drawn / drawn.sum())[None].astype(np.float32), 0, (700, 700)))
    made = template_psf([long], TRACT.wcs).kernel
    across = np.arange(made.shape[0]) - made.shape[0] // 2
    assert (made * across[:, None] ** 2).sum() > 1.5 * (made * across**2).sum()


def test_no_visits_have_no_psf() -> None:
    with pytest.raises(BadData, match="no visits"):
        template_psf([], TRACT.wcs)


def test_the_psf_of_a_tract_is_kept_as_it_is(tmp_path: Path) -> None:
    made = template_psf([frame(1, 4.0), frame(2, 4.4)], TRACT.wcs)
    write_product(tmp_path / "psf.fits", made, {})
    read = read_product(tmp_path / "psf.fits", TemplatePsf)
    np.testing.assert_array_equal(read.kernel, made.kernel)
    assert read.visits == (1, 2)


def test_blocks_have_the_mean_of_the_visits_with_the_weights_that_those_have_there() -> None:
    added, shape = PsfSum((SIDE, SIDE)), blocks_in((SIDE, SIDE))
    sharp, wide = (a_warp(1, Stars(), fwhm=w).kernels for w in (4.0, 5.0))
    weight = np.zeros(shape)
    weight[:10] = 1.0
    added.add(sharp, weight)
    weight[4:12] = 3.0
    weight[:4] = 0.0
    added.add(wide, weight)
    means = added.means()
    np.testing.assert_allclose(means[2, 3], kernel(4.0), atol=1e-6)
    np.testing.assert_allclose(means[6, 3], 0.25 * kernel(4.0) + 0.75 * kernel(5.0), atol=1e-6)
    np.testing.assert_allclose(means[11, 3], kernel(5.0), atol=1e-6)
    np.testing.assert_allclose(means[16, 3], kernel(5.0), atol=1e-6)  # no visit is there


def test_between_the_middles_of_cells_a_psf_goes_from_one_to_the_other() -> None:
    added = PsfSum((SIDE, SIDE))
    kernels = a_warp(1, Stars()).kernels
    kernels[:, 0], kernels[:, 1] = kernel(4.0), kernel(5.0)
    added.add(kernels, np.ones(blocks_in((SIDE, SIDE))))
    means = added.means()
    for column in range(SIDE // BLOCK):
        part = np.clip(((column + 0.5) * BLOCK - 136.0) / 272.0, 0.0, 1.0)  # the cells' middles are at 136 and 408
        np.testing.assert_allclose(means[3, column], (1.0 - part) * kernel(4.0) + part * kernel(5.0), atol=1e-6)


@pytest.mark.parametrize(("fwhm", "off"), [(4.0, 2e-4), (4.4, 4e-5), (4.7, 2e-4)])
def test_what_a_block_is_brought_to_is_told_and_comes_near_though_it_has_to_be_sharpened(
    fwhm: float, off: float
) -> None:
    pixels = flat(0.0)
    pixels.image[260:285, 260:285] = 1e6 * kernel(fwhm)
    result, made = brought(pixels, psfs_of(fwhm), kernel(4.5))
    np.testing.assert_allclose(result.image[260:285, 260:285] / 1e6, made.at(272.0, 272.0), atol=3e-5)
    np.testing.assert_allclose(made.at(272.0, 272.0), kernel(4.5), atol=off)  # of 0.012, 0.0020 and 0.0036
    assert result.image.sum() == pytest.approx(1e6, rel=1e-4)


@pytest.mark.parametrize("fwhm", [4.0, 5.0])
def test_the_variance_is_that_of_a_sum_over_the_psf(fwhm: float) -> None:
    pixels = flat(0.0)
    pixels.image[:] = np.random.default_rng(5).normal(scale=2.0, size=(SIDE, SIDE))
    result, _ = brought(pixels, psfs_of(fwhm), kernel(4.5))
    sums = fftconvolve(result.image, kernel(4.5), mode="valid")[20:-20, 20:-20]
    expected = result.variance[100, 100] * (kernel(4.5) ** 2).sum()
    assert np.var(sums) == pytest.approx(expected, rel=0.05)
    assert (result.variance[100, 100] > 4.0) == (fwhm > 4.5)


def test_what_is_not_finite_stays_and_spoils_nothing() -> None:
    pixels = flat(5.0)
    pixels.image[100:110, 100:110], pixels.image[3, 3] = np.nan, np.inf
    result, _ = brought(pixels, psfs_of(4.4), kernel(4.5))
    np.testing.assert_array_equal(np.isfinite(result.image), np.isfinite(pixels.image))
    np.testing.assert_allclose(result.image[200:300], 5.0, rtol=1e-5)
    np.testing.assert_array_equal(result.image[:12], pixels.image[:12])


def test_what_is_much_wider_is_not_restored_at_any_price() -> None:
    for fwhm in (5.0, 6.0, 8.0):
        pixels = flat(0.0)
        pixels.image[260:285, 260:285] = 1e6 * kernel(fwhm)
        result, made = brought(pixels, psfs_of(fwhm), kernel(4.5))
        assert 4.0 < result.variance[100, 100] <= 6.0
        assert 4.5 < fwhm_of(made.at(272.0, 272.0)) < fwhm
        assert result.image.min() > -0.02 * result.image.max()
        assert result.image[258:287, 258:287].sum() == pytest.approx(1e6, rel=0.01)


def test_what_is_saturated_or_bad_has_a_wider_mask_then() -> None:
    pixels = flat(0.0)
    pixels.mask[:] = 0
    pixels.mask[100, 100], pixels.mask[200, 200], pixels.mask[300, 300] = Mask.SAT, Mask.BAD, Mask.NO_DATA
    pixels.image[300, 300] = np.nan
    mask = brought(pixels, psfs_of(4.4), kernel(4.5))[0].mask
    assert (mask[98:103, 98:103] == Mask.SAT).all()
    assert (mask[198:203, 198:203] == Mask.BAD).all()
    assert np.count_nonzero(mask) == 51
    assert np.count_nonzero(pixels.mask) == 3


def test_a_psf_too_large_to_be_transformed_is_refused() -> None:
    with pytest.raises(BadData, match="97 pixels"):
        transform(np.zeros((97, 97), np.float32))
