from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backbone.product_fits import read_product, write_product
from payloads.drp.relative import Frame, RelativeCalibration, apply, relative_calibration
from payloads.imaging.stars import StarFlag
from schemas.errors import BadData
from schemas.image import MaskedImage, Psf, VisitImage
from schemas.tables import Table
from schemas.wcs import Wcs, separation_arcsec
from tests.payloads.drp.star_week import Recipe, Week, week

Floats = NDArray[np.float64]
MMAG = 1085.7


def places_off(made: RelativeCalibration, of: Week) -> Floats:
    """Rms between true and made maps of each frame, mas an axis."""
    x, y = (g.ravel() for g in np.meshgrid(*[np.linspace(40, 3960, 10)] * 2))
    off = []
    for frame, true in zip(of.frames, of.wcs, strict=True):
        wcs = made.wcs_of(frame.summary.visit, frame.summary.detector)
        apart = separation_arcsec(*true.pixel_to_sky(x, y), *wcs.pixel_to_sky(x, y))
        off.append(1000.0 * np.sqrt(np.mean(apart**2) / 2))
    return np.array(off)


def with_frame(of: Week, row: int, frame: Frame) -> list[Frame]:
    return [*of.frames[:row], frame, *of.frames[row + 1 :]]


def with_wcs(frame: Frame, wcs: Wcs) -> Frame:
    return Frame(replace(frame.summary, wcs=wcs), frame.stars)


@pytest.fixture(scope="module")
def plain() -> Week:
    return week(Recipe(seed=1, visits=6))


@pytest.fixture(scope="module")
def made(plain: Week) -> RelativeCalibration:
    return relative_calibration(plain.frames, plain.refcat)


@pytest.fixture(scope="module")
def raft() -> Week:
    return week(Recipe(seed=2, visits=6, detectors="R22", wcs_error_mas=25.0, zero_point_error=0.02))


@pytest.fixture(scope="module")
def raft_made(raft: Week) -> RelativeCalibration:
    return relative_calibration(raft.frames, raft.refcat)


def test_places_and_scales_come_out_as_well_as_photons_allow(raft: Week, raft_made: RelativeCalibration) -> None:
    assert places_off(raft_made, raft).max() < 1.8  # 5 mas of 280 stars, 10 terms: 1 mas
    off = np.log(raft_made.scale / raft.scale)
    assert MMAG * np.std(off) < 0.6
    assert not raft_made.kept.any()
    assert (raft_made.order == 3).all()


def test_errors_of_scales_are_what_scales_are_off() -> None:
    pulls: list[float] = []
    for seed in range(8):
        of = week(Recipe(seed=100 + seed, visits=4))
        out = relative_calibration(of.frames, of.refcat)
        pulls.extend((out.scale - of.scale) / out.scale_err)
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1.0, abs=0.35)  # 4 of a week share their catalogue


def test_errors_besides_the_photons_are_found(raft_made: RelativeCalibration) -> None:
    assert raft_made.place_floor_mas == pytest.approx(2.0, rel=0.2)
    assert raft_made.flux_floor == pytest.approx(0.002, rel=0.25)
    assert raft_made.reference_mas == pytest.approx(5.0, rel=0.1)


def test_figures_tell_before_from_after(raft_made: RelativeCalibration) -> None:
    before, after = raft_made.before, raft_made.after
    assert before.internal_mas > 25.0
    assert after.internal_mas < 4.0
    assert before.internal_mmag > 15.0
    assert after.internal_mmag < 7.0
    assert after.reference_mas == pytest.approx(5.0, rel=0.1)
    assert before.reference_mmag > after.reference_mmag


def test_a_visit_alone_is_laid_upon_the_catalogue() -> None:
    of = week(Recipe(seed=3, visits=1, wcs_error_mas=40.0, zero_point_error=0.05))
    out = relative_calibration(of.frames, of.refcat)
    assert places_off(out, of).max() < 3.0
    assert out.scale == pytest.approx(of.scale, rel=0.0015)
    assert np.isnan(out.after.internal_mas)
    assert out.after.reference_mas < 8.0


def test_a_frame_through_a_cloud_comes_out_right() -> None:
    of = week(Recipe(seed=4, visits=6, clouds={2: 1.0, 5: 0.3}))
    out = relative_calibration(of.frames, of.refcat)
    assert np.log(out.scale / of.scale) == pytest.approx(0.0, abs=0.002)
    assert out.scale[1] == pytest.approx(2.512, rel=0.02)


def test_a_cloud_that_the_catalogue_does_not_know_of_is_told_by_other_frames() -> None:
    of = week(Recipe(seed=5, visits=5, clouds={2: 1.0}))
    of.refcat["r_flux"][of.refcat["dec"] > np.median(of.refcat["dec"]) - 0.08] = np.nan
    out = relative_calibration(of.frames, of.refcat)
    assert np.log(out.scale / of.scale) == pytest.approx(0.0, abs=0.004)


def test_slopes_over_frames_are_found() -> None:
    of = week(Recipe(seed=6, visits=6, slope=0.02))
    out = relative_calibration(of.frames, of.refcat)
    assert np.abs(out.slope - of.slope).max() < 0.003
    assert np.log(out.scale / of.scale) == pytest.approx(0.0, abs=0.0015)


def test_variable_stars_bias_nothing() -> None:
    steady, varying = (week(Recipe(seed=7, visits=6, variables=part)) for part in (0.0, 0.2))
    varying.refcat["variable"] = False
    for of in (steady, varying):
        out = relative_calibration(of.frames, of.refcat)
        assert np.log(out.scale / of.scale) == pytest.approx(0.0, abs=0.0015)
        assert out.after.internal_mmag < 7.5
    assert out.n_fluxes.sum() < sum(len(frame.stars) for frame in varying.frames) * 0.87


def test_frames_that_share_no_star_are_tied_by_the_catalogue() -> None:
    one, other = week(Recipe(seed=8, visits=2)), week(Recipe(seed=9, visits=2, center=(151.0, -30.0)))
    moved = [Frame(replace(f.summary, visit=f.summary.visit + 10), f.stars) for f in other.frames]
    out = relative_calibration([*one.frames, *moved], np.concatenate([one.refcat, other.refcat]))
    assert np.log(out.scale / [*one.scale, *other.scale]) == pytest.approx(0.0, abs=0.002)


def test_without_a_catalogue_frames_agree_with_one_another(plain: Week) -> None:
    out = relative_calibration(plain.frames, plain.refcat[:0])
    off = np.log(out.scale / plain.scale)
    assert off - off.mean() == pytest.approx(0.0, abs=0.0015)
    assert out.after.internal_mas < 4.0
    assert np.isnan(out.after.reference_mas)
    assert (out.scale_err > 0.1).all()


def test_frames_of_few_stars_are_kept_as_they_are(plain: Week, made: RelativeCalibration) -> None:
    frames = with_frame(plain, 1, Frame(plain.frames[1].summary, plain.frames[1].stars[:0]))
    frames[3] = Frame(frames[3].summary, frames[3].stars[:6])
    out = relative_calibration(frames, plain.refcat)
    assert out.kept.tolist() == [False, True, False, True, False, False]
    assert out.scale[[1, 3]].tolist() == [1.0, 1.0]
    assert np.isnan(out.scale_err[[1, 3]]).all()
    assert out.order[[1, 3]].tolist() == [0, 0]
    told = plain.frames[3].summary
    kept = out.wcs_of(told.visit, told.detector)
    assert (kept.crval, kept.crpix) == (told.wcs.crval, told.wcs.crpix)
    np.testing.assert_array_equal(kept.sip, told.wcs.sip)
    assert out.scale[0] == pytest.approx(made.scale[0], rel=0.001)


def test_where_no_frame_has_a_star_all_are_kept_as_they_are(plain: Week) -> None:
    frames = [Frame(frame.summary, frame.stars[:0]) for frame in plain.frames]
    for refcat in (plain.refcat, plain.refcat[:0]):
        out = relative_calibration(frames, refcat)
        assert out.kept.all()
        assert (out.scale == 1.0).all()
        assert np.isnan(out.after.internal_mas)


@pytest.mark.parametrize(("stars", "order"), [(12, 1), (25, 2), (60, 3)])
def test_few_stars_bend_a_map_less(plain: Week, stars: int, order: int) -> None:
    bright = np.argsort(-plain.frames[0].stars["flux"])[:stars]
    few = Frame(plain.frames[0].summary, plain.frames[0].stars[np.sort(bright)])
    out = relative_calibration(with_frame(plain, 0, few), plain.refcat)
    assert out.order[0] == order
    assert out.n_places[0] <= stars


def test_a_frame_whose_stars_are_nearly_all_outliers_is_kept_as_it_is(plain: Week, made: RelativeCalibration) -> None:
    smeared = plain.frames[4].stars.copy()
    rng = np.random.default_rng(1)
    smeared["x"] += rng.choice([-1.0, 1.0], len(smeared)) * rng.uniform(0.6, 1.6, len(smeared))
    out = relative_calibration(with_frame(plain, 4, Frame(plain.frames[4].summary, smeared)), plain.refcat)
    assert out.kept.tolist() == [False] * 4 + [True, False]
    assert out.wcs_of(5, 94).crval == plain.frames[4].summary.wcs.crval
    assert places_off(out, plain)[:4].max() < 2.0
    np.testing.assert_allclose(out.scale[:4], made.scale[:4], rtol=0.001)


def test_a_frame_of_few_stars_bends_as_its_detector_does_elsewhere() -> None:
    of = week(Recipe(seed=12, visits=8))
    frame = of.frames[0]
    bright = np.sort(np.argsort(-frame.stars["flux"])[:14])
    wcs = frame.summary.wcs
    straight = replace(frame.summary, wcs=Wcs(wcs.crval, wcs.crpix, wcs.cd))
    few = Frame(straight, frame.stars[bright])
    out = relative_calibration(with_frame(of, 0, few), of.refcat)
    alone = relative_calibration([few], of.refcat)
    assert places_off(alone, replace(of, frames=[few], wcs=of.wcs[:1]))[0] > 20.0
    assert places_off(out, of)[0] < 6.0


def test_a_frame_that_lies_elsewhere_is_excluded_by_name(plain: Week, made: RelativeCalibration) -> None:
    wcs = plain.frames[2].summary.wcs
    wrong = Wcs((wcs.crval[0], wcs.crval[1] + 90.0 / 3600), wcs.crpix, wcs.cd, wcs.sip)
    out = relative_calibration(with_frame(plain, 2, with_wcs(plain.frames[2], wrong)), plain.refcat)
    assert [(e.visit, e.detector) for e in out.excluded] == [(3, plain.frames[2].summary.detector)]
    assert 3 not in out.visit
    assert out.scale == pytest.approx(np.delete(made.scale, 2), rel=0.001)
    with pytest.raises(BadData, match=r"visit 3 detector 94: its stars are not where its WCS"):
        out.wcs_of(3, plain.frames[2].summary.detector)


def test_a_frame_that_lies_half_an_arcsecond_beside_is_brought_back(plain: Week) -> None:
    wcs = plain.frames[2].summary.wcs
    beside = Wcs((wcs.crval[0], wcs.crval[1] + 0.6 / 3600), wcs.crpix, wcs.cd, wcs.sip)
    out = relative_calibration(with_frame(plain, 2, with_wcs(plain.frames[2], beside)), plain.refcat)
    assert places_off(out, plain).max() < 2.5
    assert out.before.internal_mas > 100.0


def test_bad_rows_of_stars_count_for_nothing(plain: Week, made: RelativeCalibration) -> None:
    bad = np.repeat(plain.frames[0].stars[:1], 7)
    for row, name in enumerate(("x", "y", "position_err", "flux", "flux_err")):
        bad[name][row] = np.nan
    bad["flags"][5] = StarFlag.CROWDED
    bad["flux"][6] = -1.0
    stars = np.concatenate([plain.frames[0].stars, bad])
    out = relative_calibration(with_frame(plain, 0, Frame(plain.frames[0].summary, stars)), plain.refcat)
    np.testing.assert_array_equal(out.scale, made.scale)
    np.testing.assert_array_equal(out.sip, made.sip)


def test_references_without_place_or_flux_count_for_nothing(plain: Week, made: RelativeCalibration) -> None:
    refcat = np.concatenate([plain.refcat, plain.refcat[:4]])
    refcat["ra"][-1], refcat["dec"][-2] = np.nan, np.nan
    refcat["r_flux"][:2], refcat["r_fluxErr"][2:4] = (np.nan, -5.0), (np.nan, 0.0)
    out = relative_calibration(plain.frames, refcat)
    assert out.scale == pytest.approx(made.scale, rel=0.001)


def test_the_same_comes_out_again_and_in_any_order(plain: Week, made: RelativeCalibration) -> None:
    again = relative_calibration(plain.frames, plain.refcat)
    turned = relative_calibration(plain.frames[::-1], plain.refcat)
    np.testing.assert_array_equal(again.scale, made.scale)
    np.testing.assert_array_equal(again.sip, made.sip)
    np.testing.assert_allclose(turned.scale[::-1], made.scale, rtol=1e-6)
    assert turned.visit.tolist() == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("center", [(0.0, -30.0), (83.0, -89.9), (10.0, 0.0)])
def test_neither_ra_0_nor_the_poles_are_special(center: tuple[float, float]) -> None:
    of = week(Recipe(seed=10, visits=3, center=center, dither=0.02 if center[1] < -80 else 0.05))
    out = relative_calibration(of.frames, of.refcat)
    assert places_off(out, of).max() < 2.5
    assert np.log(out.scale / of.scale) == pytest.approx(0.0, abs=0.002)


def changed(frame: Frame, **changes: object) -> Frame:
    return Frame(replace(frame.summary, **changes), frame.stars)  # type: ignore[arg-type]


def test_what_cannot_be_used_is_refused_by_name(plain: Week) -> None:
    first, last = plain.frames[0], plain.frames[-1]
    nowhere = Wcs((np.nan, 0.0), (0.0, 0.0), np.eye(2))
    far = Wcs((100.0, 40.0), first.summary.wcs.crpix, first.summary.wcs.cd)
    for frames, why in (
        ([], "no frame"),
        ([first, changed(last, band="g")], "visit 6 detector 94 is in g, visit 1 detector 94 in r"),
        ([changed(first, band="w")], "visit 1 detector 94: no band 'w'"),
        ([first, last, first], "visit 1 detector 94 is there twice"),
        ([first, with_wcs(last, nowhere)], "visit 6 detector 94 has no finite WCS"),
        ([*plain.frames[:-1], with_wcs(last, far)], "visit 6 detector 94 is more than 5 deg"),
        ([first, Frame(last.summary, last.stars[["x", "y"]])], "visit 6 detector 94: stars have columns"),
    ):
        with pytest.raises(BadData, match=why):
            relative_calibration(frames, plain.refcat)
    with pytest.raises(BadData, match="reference catalogue has columns"):
        relative_calibration([first], plain.refcat[["id"]])


def test_where_all_lie_elsewhere_nothing_is_made(plain: Week) -> None:
    refcat: Table = plain.refcat.copy()
    refcat["dec"] += 40.0 / 3600
    with pytest.raises(BadData, match="none of 6 frames"):
        relative_calibration(plain.frames, refcat)


def image_of(frame: Frame, rng: np.random.Generator) -> VisitImage:
    shape = frame.summary.ny, frame.summary.nx
    pixels = MaskedImage(
        rng.normal(100, 10, shape).astype(np.float32), np.zeros(shape, np.uint16), np.full(shape, 100, np.float32)
    )
    psf = Psf(np.ones((1, 5, 5), np.float32), 0, shape)
    background = np.full((4, 4), 50, np.float32)
    return VisitImage(pixels, frame.summary.wcs, psf, 2.0, "r", frame.summary.midpoint, 30.0, background)


def test_an_image_is_given_its_scale_and_its_map() -> None:
    of = week(Recipe(seed=11, visits=3, slope=0.02, zero_point_error=0.1))
    out = relative_calibration(of.frames, of.refcat)
    image = image_of(of.frames[1], np.random.default_rng(1))
    done = apply(out, image, 2, 94)
    ny, nx = image.pixels.shape
    for x, y in ((0, 0), (nx - 1, 5), (nx // 2, ny // 2)):
        u, v = (x - (nx - 1) / 2) / (max(nx, ny) / 2), (y - (ny - 1) / 2) / (max(nx, ny) / 2)
        factor = of.scale[1] * np.exp(of.slope[1] @ (u, v))
        assert done.pixels.image[y, x] / image.pixels.image[y, x] == pytest.approx(factor, rel=0.004)
        assert done.pixels.variance[y, x] / 100 == pytest.approx(factor**2, rel=0.008)
    assert done.zero_point == pytest.approx(2.0 * out.scale[1])
    assert done.background[0, 0] == pytest.approx(50 * out.scale[1])
    assert done.wcs.crval == tuple(out.crval[1])
    assert done.pixels.image.dtype == done.pixels.variance.dtype == np.float32
    assert image.pixels.variance[0, 0] == 100


def test_an_image_that_is_not_of_the_calibration_is_refused_by_name(plain: Week, made: RelativeCalibration) -> None:
    image = image_of(plain.frames[0], np.random.default_rng(1))
    with pytest.raises(BadData, match="visit 77 detector 94: not among"):
        apply(made, image, 77, 94)
    with pytest.raises(BadData, match="visit 1 detector 94: an image in g"):
        apply(made, replace(image, band="g"), 1, 94)
    small = MaskedImage(*(plane[:50] for plane in vars(image.pixels).values()))
    with pytest.raises(BadData, match=r"visit 1 detector 94: an image in r of \(50,"):
        apply(made, replace(image, pixels=small), 1, 94)


def test_a_calibration_lasts_as_a_product(plain: Week, tmp_path: Path) -> None:
    wcs = plain.frames[2].summary.wcs
    wrong = Wcs((wcs.crval[0], wcs.crval[1] + 90.0 / 3600), wcs.crpix, wcs.cd, wcs.sip)
    out = relative_calibration(with_frame(plain, 2, with_wcs(plain.frames[2], wrong)), plain.refcat)
    write_product(tmp_path / "it.fits", out, {})
    back = read_product(tmp_path / "it.fits", RelativeCalibration)
    np.testing.assert_array_equal(back.sip, out.sip)
    assert (back.excluded, back.after, back.band) == (out.excluded, out.after, "r")
    assert back.wcs_of(1, 94).crval == out.wcs_of(1, 94).crval
