from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backbone.product_fits import read_product, write_product
from payloads.drp.coadd import NO_DATA_VARIANCE, Coadd, make_coadd, sharpest, template_of
from payloads.drp.warps import MARGIN, Warp
from payloads.imaging.photometry import PointSources, fit_point_sources
from payloads.imaging.psf_field import kernels_at
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage
from tests.payloads.drp.small_sky import HALF, SIDE, Stars, a_warp, add_star, loaders, some_stars, with_bits

Floats = NDArray[np.float64]

NOISE = 20.0
WIDTHS = (3.6, 4.4, 4.0, 4.8, 3.8, 4.2)


def visits(stars: Stars, widths: tuple[float, ...] = WIDTHS, seed: int = 0) -> list[Warp]:
    return [a_warp(k, stars, fwhm=fwhm, noise=NOISE, seed=100 * seed + k) for k, fwhm in enumerate(widths)]


def forced(coadd: Coadd, x: Floats, y: Floats, *, move: bool = False) -> PointSources:
    return fit_point_sources(coadd.pixels, kernels_at(coadd.psf, x, y), x, y, move=move)


def grid_of_places() -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.arange(40.0, SIDE - 40, 17), np.arange(40.0, SIDE - 40, 17))
    return x.ravel(), y.ravel()


def with_spot(warp: Warp, x: float, y: float, flux: float, fwhm: float = 4.0) -> Warp:
    add_star(warp.pixels.image, x, y, flux, fwhm)
    return warp


def test_stars_have_their_fluxes_and_places_and_the_errors_are_true() -> None:
    stars = some_stars()
    coadd = make_coadd(loaders(visits(stars)))
    measured = forced(coadd, stars.x, stars.y, move=True)
    bright = stars.flux > 2e4
    np.testing.assert_allclose(measured.flux[bright] / stars.flux[bright], 1.0, atol=0.01)
    assert np.median(measured.flux / stars.flux) == pytest.approx(1.0, abs=0.003)
    np.testing.assert_allclose(measured.x[bright], stars.x[bright], atol=0.03)
    pull = (forced(coadd, stars.x, stars.y).flux - stars.flux) / measured.flux_err
    assert np.std(pull) == pytest.approx(1.0, abs=0.3)


def test_the_noise_is_what_the_variance_says() -> None:
    pulls = []
    x, y = grid_of_places()
    for seed in range(3):
        coadd = make_coadd(loaders(visits(Stars(), seed=seed + 1)))
        measured = forced(coadd, x, y)
        pulls.append(measured.flux / measured.flux_err)
    assert np.std(np.concatenate(pulls)) == pytest.approx(1.0, abs=0.05)
    assert np.mean(np.concatenate(pulls)) == pytest.approx(0.0, abs=0.1)
    expected = NOISE**2 / len(WIDTHS)
    assert np.median(coadd.pixels.variance) == pytest.approx(expected, rel=1e-3)


def test_the_weights_are_the_inverse_variances_and_the_psf_is_made_with_them() -> None:
    stars = some_stars()
    quiet, loud = a_warp(1, stars, fwhm=4.0, noise=10.0), a_warp(2, stars, fwhm=6.0, noise=30.0)
    coadd = make_coadd(loaders([quiet, loud]))
    np.testing.assert_array_equal(coadd.inputs.weight[:, 3, 5], np.float32([1.0 / 100.0, 1.0 / 900.0]))
    expected = (9.0 * quiet.kernels[0, 0] + loud.kernels[0, 0]) / 10.0
    np.testing.assert_allclose(coadd.psf.at(200.0, 300.0), expected, atol=2e-4)
    assert coadd.pixels.variance[100, 100] == pytest.approx(90.0, rel=1e-4)


@pytest.mark.parametrize("number", [3, 4, 6, 10])
def test_what_is_in_one_visit_is_left_out(number: int) -> None:
    stars = some_stars(30)
    warps = visits(stars, (WIDTHS * 2)[:number])
    x, y = 211.0, 260.0
    with_spot(warps[1], x, y, 3e4)
    coadd, clean = make_coadd(loaders(warps)), make_coadd(loaders(visits(stars, (WIDTHS * 2)[:number])))
    at = np.array([x]), np.array([y])
    left = forced(coadd, *at).flux - forced(clean, *at).flux
    assert abs(left[0]) < 0.1 * 3e4 / number
    assert coadd.depth[260, 211] == number - 1
    weight = coadd.inputs.at(np.array([211, 400]), np.array([260, 400]))
    np.testing.assert_array_equal(weight[:, 0] > 0.0, np.arange(number) != 1)
    np.testing.assert_array_equal(weight[:, 1], np.float32(1.0 / NOISE**2))
    assert coadd.artefacts[1] > 0.0
    assert coadd.artefacts[0] == 0.0


def test_what_most_visits_miss_and_what_varies_are_told_apart() -> None:
    stars = some_stars(30)
    warps = visits(stars, (WIDTHS * 2)[:10])
    variable = stars.x[0], stars.y[0]
    for k, part in enumerate((0.5, -0.4, 0.6, -0.5, 0.3, -0.5, 0.5, 0.4, -0.4, -0.5)):
        with_spot(warps[k], *variable, part * stars.flux[0], WIDTHS[k % len(WIDTHS)])
    for warp in warps[:2]:
        with_spot(warp, 211.0, 260.0, 3e4)
    coadd = make_coadd(loaders(warps))
    assert coadd.depth[round(variable[1]), round(variable[0])] == 10
    assert coadd.depth[260, 211] == 8
    measured = forced(coadd, np.array([variable[0]]), np.array([variable[1]]))
    assert measured.flux[0] == pytest.approx(stars.flux[0], rel=0.05)


def test_of_two_visits_what_is_brighter_in_one_is_left_out_and_of_one_nothing_can_be() -> None:
    stars = some_stars(30)
    warps = visits(stars, (4.0, 4.4))
    with_spot(warps[0], 211.0, 260.0, 3e4)
    both, alone = make_coadd(loaders(warps)), make_coadd(loaders(warps[:1]))
    assert both.depth[260, 211] == 1
    assert both.pixels.image[260, 211] < 100.0
    assert alone.depth[260, 211] == 1
    assert alone.pixels.image[260, 211] > 1000.0
    np.testing.assert_allclose(alone.pixels.variance, NOISE**2, rtol=1e-4)


def test_a_trail_is_followed_to_where_it_is_too_faint_to_see() -> None:
    stars = some_stars(30)
    warps = visits(stars)
    y, x = np.mgrid[:SIDE, :SIDE]
    across = np.abs(0.6 * x + 0.8 * y - 350.0)
    strength = np.clip(np.abs(x - 250.0) / 100.0, 0.2, 1.0)  # under half a sigma in the middle
    warps[2].pixels.image[:] += (2.0 * NOISE * strength * np.exp(-(across**2) / 18.0)).astype(np.float32)
    coadd = make_coadd(loaders(warps))
    inside = (across < 3.0) & (x > 30) & (y > 30) & (x < SIDE - 30) & (y < SIDE - 30)
    assert (coadd.depth[inside] == len(warps) - 1).mean() > 0.97
    assert coadd.artefacts[2] < 0.06


def test_a_bad_column_that_nobody_masked_is_left_out() -> None:
    warps = visits(some_stars(30))
    warps[3].pixels.image[:, 300:302] -= 8.0 * NOISE
    coadd = make_coadd(loaders(warps))
    assert (coadd.depth[50:-50, 300] == len(warps) - 1).all()
    assert np.median(coadd.depth) == len(warps)


def test_bright_stars_are_no_artefacts_for_an_error_of_psf_and_place() -> None:
    stars = some_stars(30, brightest=3e6)
    warps = [a_warp(k, replace(stars, x=stars.x + 0.04 * (-1) ** k), fwhm=w) for k, w in enumerate(WIDTHS)]
    warps[1] = replace(warps[1], kernels=a_warp(1, stars, fwhm=4.5).kernels)  # told 4.5, is 4.4
    coadd = make_coadd(loaders(warps))
    places = np.rint(stars.y).astype(int), np.rint(stars.x).astype(int)
    assert (coadd.depth[places] == len(warps)).all()


def test_pixels_spoilt_in_a_visit_come_from_the_others() -> None:
    stars = some_stars(30)
    warps = visits(stars)
    bits = (Mask.CR, Mask.BAD, Mask.NO_DATA, Mask.STREAK, Mask.UNMASKED_NAN)
    places = [(slice(100 + 40 * k, 104 + 40 * k), slice(200, 204)) for k in range(len(bits))]
    for warp, bit, place in zip(warps, bits, places, strict=False):
        with_bits(warp, bit, *place).pixels.image[place] = 1e4
    warps[0].pixels.image[300, 300] = np.nan
    warps[0].pixels.variance[301, 301] = np.nan
    coadd = make_coadd(loaders(warps))
    for place in places:
        assert (coadd.depth[place] == len(warps) - 1).all()
        assert np.abs(coadd.pixels.image[place]).max() < 3 * NOISE
        assert (coadd.pixels.mask[place] == 0).all()
    assert coadd.depth[300, 300] == coadd.depth[301, 301] == len(warps) - 1
    assert np.isfinite(coadd.pixels.image).all()


def test_what_no_visit_has_well_says_so() -> None:
    warps = visits(some_stars(30))
    for warp in warps:
        with_bits(warp, Mask.SAT, slice(100, 110), slice(100, 110)).pixels.image[100:110, 100:110] = 5e4
        with_bits(warp, Mask.BAD, slice(200, 210), slice(100, 110))
        warp.pixels.image[300:310, 100:110] = np.nan
        warp.pixels.variance[300:310, 100:110] = np.inf
        with_bits(warp, Mask.NO_DATA, slice(300, 310), slice(100, 110))
    with_bits(warps[0], Mask.SAT, slice(400, 410), slice(100, 110))
    pixels = make_coadd(loaders(warps)).pixels
    told = {row: set(pixels.mask[row : row + 10, 100:110].ravel().tolist()) for row in (100, 200, 300, 400)}
    assert told == {100: {Mask.SAT | Mask.BAD}, 200: {Mask.BAD}, 300: {Mask.NO_DATA}, 400: {Mask.SAT}}
    np.testing.assert_allclose(pixels.image[100:110, 100:110], 5e4, rtol=1e-3)
    assert np.isnan(pixels.image[300:310, 100:110]).all()
    assert np.isinf(pixels.variance[300:310, 100:110]).all()


def test_halos_that_most_visits_have_are_the_coadds() -> None:
    warps = visits(some_stars(30))
    for k, warp in enumerate(warps):
        with_bits(warp, Mask.HALO, slice(100, 110), slice(100, 110 if k < 4 else 105))
        with_bits(warp, Mask.HALO | Mask.DETECTED, slice(200, 210), slice(100, 110 if k < 2 else 100))
    mask = make_coadd(loaders(warps)).pixels.mask
    assert (mask[100:110, 100:110] == Mask.HALO).all()
    assert (mask[200:210, 100:110] == 0).all()


def test_the_sky_is_matched_between_visits_and_zero_between_sources() -> None:
    stars = some_stars(30)
    skies = 15.0 * np.array([1.0, -1.0, 0.5, 3.0, 0.0, 0.3])
    warps = [a_warp(k, stars, fwhm=w, noise=NOISE, sky=s) for k, (w, s) in enumerate(zip(WIDTHS, skies, strict=True))]
    slope = np.linspace(-10.0, 10.0, SIDE, dtype=np.float32)
    warps[2].pixels.image[:] += slope
    half = replace(warps[3], pixels=_part(warps[3].pixels, slice(0, 270)))
    coadd = make_coadd(loaders([*warps[:3], half, *warps[4:]]))
    assert (coadd.depth[280:] == 5).mean() > 0.99  # nothing was taken for an artefact
    x, y = grid_of_places()
    far = np.hypot(x[:, None] - stars.x, y[:, None] - stars.y).min(1) > 25.0
    measured = forced(coadd, x[far], y[far])
    assert np.median(measured.flux / measured.flux_err) == pytest.approx(0.0, abs=0.25)
    assert abs(np.median(coadd.pixels.image[:260]) - np.median(coadd.pixels.image[280:])) < 1.5


def _part(pixels: MaskedImage, rows: slice) -> MaskedImage:
    return MaskedImage(pixels.image[rows], pixels.mask[rows], pixels.variance[rows])


def test_a_patch_seen_in_part_has_its_psf_wherever_it_is_seen() -> None:
    stars = some_stars(30)
    wide, sharp = (a_warp(k, stars, fwhm=w) for k, w in ((1, 5.0), (2, 4.0)))
    kernels = wide.kernels.copy()
    kernels[1] = np.nan
    lower = replace(wide, pixels=_part(wide.pixels, slice(0, 272)), kernels=kernels)
    coadd = make_coadd(loaders([lower, replace(lower, visit=3)]))
    assert (coadd.depth[272:] == 0).all()
    np.testing.assert_allclose(coadd.psf.at(200.0, 500.0), wide.kernels[0, 0], atol=1e-5)
    both = make_coadd(loaders([lower, sharp]))
    np.testing.assert_allclose(both.psf.at(135.0, 407.5), sharp.kernels[0, 0], atol=2e-4)
    np.testing.assert_allclose(both.psf.at(135.0, 135.5), (wide.kernels[0, 0] + sharp.kernels[0, 0]) / 2, atol=2e-4)


def peaks_of(image: Image, stars: Stars) -> Floats:
    """Of the light within a kernel's stamp of each star, the part within 3 pixels."""
    offset = np.arange(-HALF, HALF + 1)
    y, x = (np.rint(place).astype(int)[:, None, None] for place in (stars.y, stars.x))
    stamps = image[y + offset[:, None], x + offset]
    radius = np.hypot(offset[:, None], offset)
    result: Floats = stamps[:, radius < 3.0].sum(1) / stamps.sum((1, 2))
    return result


def test_a_coadd_brought_to_one_psf_has_it_where_visits_end_too() -> None:
    spread = some_stars(90)
    stars = replace(spread, x=np.rint(spread.x), y=np.rint(spread.y), flux=np.full(90, 3e5))
    warps = [a_warp(k, stars, fwhm=w, noise=5.0) for k, w in enumerate(WIDTHS)]
    kernels = warps[0].kernels.copy()
    kernels[1] = np.nan
    warps[0] = replace(warps[0], pixels=_part(warps[0].pixels, slice(0, 300)), kernels=kernels)
    target = a_warp(9, Stars(), fwhm=4.4).kernels[0, 0]
    as_it_is, one = make_coadd(loaders(warps)), make_coadd(loaders(warps), target)
    expected = peaks_of(np.pad(target, 12), Stars(np.array([24.0]), np.array([24.0]), np.ones(1)))[0]
    told, brought_to = peaks_of(as_it_is.pixels.image, stars), peaks_of(one.pixels.image, stars)
    assert np.ptp(told) > 0.015
    assert np.median(np.abs(brought_to - expected)) < 5e-4
    np.testing.assert_allclose(brought_to, expected, atol=0.004)
    np.testing.assert_allclose(one.psf.at(200.0, 500.0), target, atol=2e-4)
    np.testing.assert_array_equal(one.pixels.mask, as_it_is.pixels.mask)
    measured = forced(one, stars.x, stars.y)
    np.testing.assert_allclose(measured.flux, stars.flux, rtol=0.006)


@pytest.mark.parametrize("columns", [24, 46])
def test_a_visit_of_which_a_sliver_lies_on_the_patch_is_added_and_may_be_alone(columns: int) -> None:
    stars = some_stars(30)
    whole = a_warp(9, stars, fwhm=4.0, noise=NOISE)
    kernels = whole.kernels.copy()
    kernels[:, 1] = np.nan
    planes = (plane[:, :columns] for plane in vars(whole.pixels).values())
    sliver = replace(whole, pixels=MaskedImage(*planes), kernels=kernels)
    coadd = make_coadd(loaders([*visits(stars), sliver]))
    assert (coadd.depth[:, :columns] == len(WIDTHS) + 1).mean() > 0.99
    weight = coadd.inputs.at(np.array([2, 18, 50]), np.array([100, 100, 100]))
    assert weight[-1, 2] == 0.0
    assert 0.0 < weight[-1, 0] < 0.6 * weight[0, 0]  # it falls to the edge
    assert (coadd.depth[:, columns:] == len(WIDTHS)).mean() > 0.99
    alone = make_coadd(loaders([sliver]))
    assert (alone.depth[:, :columns] == 1).all()
    np.testing.assert_allclose(alone.pixels.image[:, :columns], whole.pixels.image[:, :columns], atol=NOISE / 10.0)


def test_a_visit_of_much_worse_seeing_spoils_nothing_and_its_own_artefacts_are_found() -> None:
    stars = some_stars(30)
    warps = [*visits(stars), a_warp(9, stars, fwhm=8.0, noise=NOISE)]
    with_spot(warps[-1], 211.0, 260.0, 6e4, 8.0)
    coadd = make_coadd(loaders(warps))
    places = np.rint(stars.y).astype(int), np.rint(stars.x).astype(int)
    assert (coadd.depth[places] == len(warps)).all()
    assert coadd.depth[260, 211] == len(warps) - 1
    measured = forced(coadd, stars.x, stars.y)
    assert np.median(measured.flux / stars.flux) == pytest.approx(1.0, abs=0.005)


def test_warps_are_loaded_and_let_go() -> None:
    made = visits(some_stars(30), (4.0, 4.2, 4.4))
    loads = []

    def load(k: int) -> Warp:
        loads.append(k)
        return made[k]

    coadd = make_coadd([lambda k=k: load(k) for k in range(3)])  # type: ignore[misc]
    assert sorted(loads) == [0, 0, 1, 1, 2, 2]
    assert coadd.inputs.visits == (0, 1, 2)


def test_the_same_whatever_the_order_of_visits() -> None:
    warps = visits(some_stars(30))
    one, other = make_coadd(loaders(warps)), make_coadd(loaders(warps[::-1]))
    np.testing.assert_allclose(one.pixels.image, other.pixels.image, atol=0.02)
    np.testing.assert_array_equal(one.pixels.mask, other.pixels.mask)


def test_a_template_is_the_patch_without_its_margin_and_nothing_is_a_number() -> None:
    warps = visits(some_stars(30))
    for warp in warps:
        warp.pixels.image[100:110, 100:110] = np.nan
        with_bits(warp, Mask.NO_DATA, slice(100, 110), slice(100, 110))
        with_bits(warp, Mask.HALO, slice(200, 210), slice(200, 210))
        with_bits(warp, Mask.SAT, slice(300, 310), slice(200, 210))
    coadd = make_coadd(loaders(warps))
    template = template_of(coadd)
    side = SIDE - 2 * MARGIN
    assert template.pixels.shape == (side, side) == template.psf.shape
    hole = slice(100 - MARGIN, 110 - MARGIN), slice(100 - MARGIN, 110 - MARGIN)
    assert (template.pixels.image[hole] == 0.0).all()
    assert (template.pixels.variance[hole] == NO_DATA_VARIANCE).all()
    assert set(np.unique(template.pixels.mask).tolist()) == {0, Mask.NO_DATA, Mask.SAT | Mask.BAD}
    assert template.inputs is not None
    places = np.array([7, 180, 300]), np.array([9, 100, 300])
    np.testing.assert_array_equal(template.inputs.at(*places), coadd.inputs.at(*(place + MARGIN for place in places)))
    ra, dec = coadd.wcs.pixel_to_sky(MARGIN + 7.0, MARGIN + 9.0)
    np.testing.assert_allclose(template.wcs.sky_to_pixel(ra, dec), (7.0, 9.0), atol=1e-6)
    np.testing.assert_allclose(template.psf.at(7.0, 9.0), coadd.psf.at(MARGIN + 7.0, MARGIN + 9.0), atol=1e-5)


def test_the_sharpest_third_is_chosen_and_as_many_more_as_a_corner_needs() -> None:
    widths = np.random.default_rng(1).permutation(np.linspace(3.5, 6.0, 30))
    warps = [a_warp(k, Stars(), fwhm=w) for k, w in enumerate(widths)]
    chosen = [load().visit for load in sharpest(loaders(warps))]
    assert chosen == sorted(np.argsort(widths)[:10].tolist())
    corner = np.argsort(widths)[20:23]
    for k, warp in enumerate(warps):
        if k not in corner:
            warp.kernels[1, 1] = np.nan
    assert [load().visit for load in sharpest(loaders(warps))] == sorted([*chosen, *corner.tolist()])
    assert len(sharpest(loaders(warps[:5]))) == 5
    assert sharpest([]) == []


def test_a_coadd_and_a_warp_are_kept_as_they_are(tmp_path: Path) -> None:
    warps = visits(some_stars(10), (4.0, 4.2))
    coadd = make_coadd(loaders(warps))
    for kept in (coadd, warps[0]):
        write_product(tmp_path / "kept.fits", kept, {})
        read = read_product(tmp_path / "kept.fits", type(kept))
        np.testing.assert_array_equal(read.pixels.image, kept.pixels.image)
        np.testing.assert_array_equal(read.pixels.mask, kept.pixels.mask)
        assert read.wcs.crpix == kept.wcs.crpix
    warp = read_product(tmp_path / "kept.fits", Warp)
    assert (warp.shape, warp.detectors) == ((SIDE, SIDE), (1,))


def test_a_visit_of_which_all_is_spoilt_or_left_out_makes_no_coadd_by_name() -> None:
    spoilt = with_bits(a_warp(3, Stars()), Mask.BAD, slice(None), slice(None))
    with pytest.raises(BadData, match=r"visits \[3\]: none has a good pixel"):
        make_coadd(loaders([spoilt]), a_warp(9, Stars()).kernels[0, 0])


def test_what_makes_no_coadd_is_refused_by_name() -> None:
    good = a_warp(1, some_stars(10))
    with pytest.raises(BadData, match="no warps"):
        make_coadd([])
    with pytest.raises(BadData, match=r"visit 2 .* another band"):
        make_coadd(loaders([good, replace(a_warp(2, Stars()), band="g")]))
    with pytest.raises(BadData, match=r"visit 2 .* another grid"):
        make_coadd(loaders([good, replace(a_warp(2, Stars()), wcs=good.wcs.shifted(1.0, 0.0))]))
    spoilt = with_bits(a_warp(3, Stars()), Mask.BAD, slice(None), slice(None))
    with pytest.raises(BadData, match=r"visits \[3\]: none has a good pixel"):
        make_coadd(loaders([replace(spoilt, sky_variance=np.inf)]))
