from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from payloads.alert_production import measure as module
from payloads.alert_production.detect import Detections, detect, footprint_moments
from payloads.alert_production.measure import measure
from payloads.alert_production.subtract import Subtraction
from schemas.clock import mjd_from_tai
from schemas.identity import dia_source_id, visit_detector_of
from schemas.image import Mask, MaskPlane
from schemas.tables import Table, dtype_of, empty
from schemas.wcs import separation_arcsec
from tests.payloads.alert_production.conftest import DETECTOR, PROCESSED, VISIT
from tests.payloads.alert_production.pairs import Pair
from tests.payloads.planes import generators, masks, shapes

Floats = NDArray[np.float64]


def matches(sources: Table, pair: Pair) -> NDArray[np.int64]:
    """Index of the source at each injection that stands alone, -1 if none."""
    distance = np.hypot(sources["x"] - pair.x[:, None], sources["y"] - pair.y[:, None])
    apart = np.hypot(pair.x[:, None] - pair.x, pair.y[:, None] - pair.y) + 1e3 * np.eye(pair.x.size)
    return np.where((distance.min(1) < 2) & (apart.min(1) > 30), distance.argmin(1), -1)


def again(pair: Pair, subtraction: Subtraction, detections: Detections) -> Table:
    return measure(detections, subtraction, pair.science, visit=VISIT, detector=DETECTOR, processed=PROCESSED)


def test_rows_are_dia_sources_of_this_visit_and_detector(sources: Table, pair: Pair) -> None:
    assert sources.dtype == dtype_of("DiaSource")
    assert (sources["visit"] == VISIT).all()
    assert (sources["detector"] == DETECTOR).all()
    assert (sources["band"] == "r").all()
    assert (sources["midpointMjdTai"] == mjd_from_tai(pair.science.midpoint)).all()
    assert (sources["timeProcessedMjdTai"] == mjd_from_tai(PROCESSED)).all()
    assert (sources["exposureTime"] == 30.0).all()
    assert (sources["diaObjectId"] == 0).all()


def test_ids_are_numbered_by_row_then_column_and_the_same_every_time(
    sources: Table, pair: Pair, subtraction: Subtraction, detections: Detections
) -> None:
    assert list(sources["diaSourceId"]) == [dia_source_id(VISIT, DETECTOR, k) for k in range(sources.size)]
    assert visit_detector_of(int(sources["diaSourceId"][-1])) == (VISIT, DETECTOR)
    assert (np.diff(sources["y"]) >= 0).all()
    assert again(pair, subtraction, detections).tobytes() == sources.tobytes()


def test_fluxes_pull_to_the_truth_with_unit_width(sources: Table, pair: Pair) -> None:
    found = matches(sources, pair)
    row, flux = sources[found[found >= 0]], pair.flux[found >= 0]
    pulls = (row["psfFlux"] - flux) / row["psfFluxErr"]
    assert row.size > 40
    assert 1.4826 * np.median(np.abs(pulls - np.median(pulls))) == pytest.approx(1.0, abs=0.3)
    np.testing.assert_array_equal(row["isNegative"], flux < 0)
    assert (row["snr"] > 0).all()


def test_positions_pull_to_the_truth_in_pixels_and_on_the_sky(sources: Table, pair: Pair) -> None:
    found = matches(sources, pair)
    row, x, y = sources[found[found >= 0]], pair.x[found >= 0], pair.y[found >= 0]
    for off in ((row["x"] - x) / row["xErr"], (row["y"] - y) / row["yErr"]):
        assert 1.4826 * np.median(np.abs(off)) == pytest.approx(1.0, abs=0.35)
    ra, dec = pair.science.wcs.pixel_to_sky(x, y)
    separation = separation_arcsec(ra, dec, row["ra"], row["dec"]) / 3600
    expected = np.hypot(row["raErr"], row["decErr"])
    assert np.median(separation / expected) == pytest.approx(0.83, abs=0.25)
    assert (np.abs(row["ra_dec_Cov"]) <= row["raErr"] * row["decErr"]).all()


def test_the_science_flux_is_what_is_there_and_the_template_flux_what_was(sources: Table, pair: Pair) -> None:
    found = matches(sources, pair)
    row = sources[found[found >= 0]]
    error = np.hypot(row["scienceFluxErr"], row["templateFluxErr"])
    change = row["scienceFlux"] - row["templateFlux"] - row["psfFlux"]
    blank = np.abs(row["templateFlux"]) < 3 * row["templateFluxErr"]
    assert np.abs(np.median((change / error)[blank])) < 1.0


def test_point_sources_look_like_the_psf(sources: Table, pair: Pair) -> None:
    found = matches(sources, pair)
    row = sources[found[found >= 0]]
    bright = row[(row["snr"] > 20) & ~row["shape_flag"]]
    for name in ("ixx", "iyy"):
        assert np.median(bright[name] / bright[f"{name}PSF"]) == pytest.approx(1.0, abs=0.06)
    assert np.median(bright["extendedness"]) < 0.2
    assert np.median(bright["psfChi2"] / bright["psfNdata"]) == pytest.approx(1.0, abs=0.1)


def test_aperture_fluxes_agree_with_psf_fluxes(sources: Table, pair: Pair) -> None:
    found = matches(sources, pair)
    row = sources[found[found >= 0]]
    bright = row[row["snr"] > 30]
    assert np.median(bright["apFlux"] / bright["psfFlux"]) == pytest.approx(1.0, abs=0.08)


def spot(subtraction: Subtraction, x: float, y: float) -> Floats:
    """A point source of flux 1 in the difference, by a spline through its PSF."""
    kernel = subtraction.difference.psf.at(x, y).astype(float)
    half = kernel.shape[0] // 2
    y0, x0, out = int(y) - 40, int(x) - 40, np.zeros((1024, 1024))
    gy, gx = np.mgrid[:80, :80].astype(float)
    at = [gy + y0 - y + half, gx + x0 - x + half]
    out[y0 : y0 + 80, x0 : x0 + 80] = map_coordinates(kernel, at, order=5, mode="constant")
    return out


def with_image(subtraction: Subtraction, image: Floats, mask: MaskPlane | None = None) -> Subtraction:
    pixels = replace(subtraction.difference.pixels, image=image.astype(np.float32))
    if mask is not None:
        pixels = replace(pixels, mask=mask)
    return replace(subtraction, difference=replace(subtraction.difference, pixels=pixels))


def measured(pair: Pair, subtraction: Subtraction) -> Table:
    return again(pair, subtraction, detect(subtraction))


def one_at(sources: Table, x: float, y: float, radius: float = 6) -> Table:
    near = np.flatnonzero(np.hypot(sources["x"] - x, sources["y"] - y) < radius)
    assert near.size == 1
    return sources[near[0]]


def test_a_dipole_is_told_with_the_bearing_from_its_negative_to_its_positive_lobe(
    pair: Pair, subtraction: Subtraction
) -> None:
    image = np.nan_to_num(subtraction.difference.pixels.image) + 9000 * spot(subtraction, 203, 600)
    image -= 8000 * spot(subtraction, 208, 604)
    row = one_at(measured(pair, with_image(subtraction, image)), 205.5, 602)
    assert row["isDipole"]
    assert row["dipoleFitAttempted"]
    assert row["dipoleMeanFlux"] == pytest.approx(8500, rel=0.15)
    assert row["dipoleLength"] == pytest.approx(0.2 * np.hypot(5, 4), rel=0.15)
    ends = pair.science.wcs.pixel_to_sky(np.array([208.0, 203.0]), np.array([604.0, 600.0]))
    east, north = np.diff(ends[0])[0] * np.cos(np.radians(ends[1][0])), np.diff(ends[1])[0]
    bearing = np.degrees(np.arctan2(east, north)) % 360
    assert row["dipoleAngle"] == pytest.approx(bearing, abs=8)


def test_a_trail_is_told_with_its_length_and_bearing(pair: Pair, subtraction: Subtraction) -> None:
    dx, dy = 14.0, 9.0
    streak = sum(20000 / 61 * spot(subtraction, 205 + t * dx, 600 + t * dy) for t in np.linspace(-0.5, 0.5, 61))
    image = np.nan_to_num(subtraction.difference.pixels.image) + streak
    row = one_at(measured(pair, with_image(subtraction, image)), 205, 600)
    assert row["trailLength"] == pytest.approx(0.2 * np.hypot(dx, dy), abs=4 * float(row["trailLengthErr"]) + 0.15)
    assert row["trailFlux"] == pytest.approx(20000, rel=0.08)
    ends = pair.science.wcs.pixel_to_sky(np.array([205.0, 205.0 + dx]), np.array([600.0, 600.0 + dy]))
    east, north = np.diff(ends[0])[0] * np.cos(np.radians(ends[1][0])), np.diff(ends[1])[0]
    bearing = np.degrees(np.arctan2(east, north)) % 180
    assert abs((row["trailAngle"] - bearing + 90) % 180 - 90) < 4
    assert separation_arcsec(*pair.science.wcs.pixel_to_sky(205, 600), row["trailRa"], row["trailDec"]) < 0.1
    assert row["extendedness"] > 0.9 or row["shape_flag"]


def trails(subtraction: Subtraction, fluxes: tuple[float, ...], lengths: tuple[float, ...]) -> Subtraction:
    """A trail of each flux and each length, 70 pixels from one another."""
    image = np.nan_to_num(subtraction.difference.pixels.image)
    for (k, flux), (i, length) in product(enumerate(fluxes), enumerate(lengths)):
        x, y = 200 + 70 * i, 500 + 70 * k
        image[y - 30 : y + 31, x - 30 : x + 31] = 0.0  # of what may lie there
        ends = np.linspace(-0.5, 0.5, 21) * length
        image += sum(flux / 21 * spot(subtraction, x + t * 0.8, y + t * 0.6) for t in ends)
    return with_image(subtraction, image)


def test_a_trail_is_tried_from_a_lower_ratio_of_moments_where_it_is_bright(
    pair: Pair, subtraction: Subtraction
) -> None:
    made = trails(subtraction, (2_200.0, 20_000.0), (0.0, 5.0, 7.0, 10.0, 14.0))
    found = detect(made)
    sources = again(pair, made, found)
    _, spread = footprint_moments(found.first, found.pixels, 1024)
    narrow, wide = np.linalg.eigvalsh(spread).T
    kinds = set()
    for k in np.flatnonzero((np.diff(found.first) >= 12) & (found.opposite == 0)):
        row = sources[np.argmin(np.hypot(sources["x"] - found.x[k], sources["y"] - found.y[k]))]
        bright, ratio = row["snr"] > 10, wide[k] / narrow[k]
        tried = row["trailNdata"] > 0
        assert tried == (ratio > (1.3 if bright else 2.0))
        kinds.add((bool(bright), "short" if ratio < 1.3 else "long" if ratio > 2.0 else "between"))
    assert {(True, "short"), (True, "between"), (True, "long"), (False, "between")} <= kinds


def test_masked_pixels_are_told_in_the_footprint_and_in_the_centre(pair: Pair, subtraction: Subtraction) -> None:
    image = np.nan_to_num(subtraction.difference.pixels.image) + 9000 * spot(subtraction, 203, 600)
    image += 9000 * spot(subtraction, 303, 600)
    mask = subtraction.difference.pixels.mask.copy()
    mask[600, 206], mask[600, 303] = Mask.CR | Mask.INTRP, Mask.SUSPECT | Mask.INJECTED_TEMPLATE
    sources = measured(pair, with_image(subtraction, image, mask))
    beside, central = one_at(sources, 203, 600), one_at(sources, 303, 600)
    assert beside["pixelFlags_cr"]
    assert beside["pixelFlags_interpolated"]
    assert not beside["pixelFlags_crCenter"]
    assert central["pixelFlags_suspectCenter"]
    assert central["pixelFlags_injected_templateCenter"]
    assert not central["pixelFlags_cr"]


def test_the_box_holds_the_footprint(sources: Table) -> None:
    assert (sources["bboxSize"] >= 11).all()
    bright = sources["snr"] > 30
    assert sources["bboxSize"][bright].mean() > sources["bboxSize"][~bright].mean()


def test_a_centre_outside_its_footprint_is_told(detections: Detections) -> None:
    table = empty("DiaSource", detections.x.size)
    table["x"], table["y"] = detections.x, detections.y
    table["x"][0], table["y"][1] = detections.x[0] + 60, detections.y[1] - 60
    module._put_flags(table, detections, 2.0)
    assert np.flatnonzero(table["shape_flag_not_contained"]).tolist() == [0, 1]


def test_no_detections_make_no_rows(pair: Pair, subtraction: Subtraction) -> None:
    none = measured(pair, with_image(subtraction, np.zeros((1024, 1024))))
    assert none.size == 0
    assert none.dtype == dtype_of("DiaSource")


def bits_within(mask: MaskPlane, y: int, x: int, reach: int) -> int:
    box = mask[max(y - reach, 0) : max(y + reach + 1, 0), max(x - reach, 0) : max(x + reach + 1, 0)]
    return int(np.bitwise_or.reduce(box.ravel(), initial=0))


@given(data=st.data(), shape=shapes(1, 30), rng=generators(), count=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_gathered_bits_are_those_of_the_pixels_round_about(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator, count: int
) -> None:
    mask = data.draw(masks(shape, (Mask.BAD, Mask.CR, Mask.VIGNETTED)))
    members = [rng.integers(0, shape, (rng.integers(1, 6), 2)) for _ in range(count)]
    first = np.cumsum([0, *(len(m) for m in members)])
    pixels = np.concatenate([np.empty(0, np.int64), *(m[:, 0] * shape[1] + m[:, 1] for m in members)]).astype(np.int64)
    xs, ys = (rng.integers(-4, n + 4, count) for n in shape[::-1])  # a fit may leave the image
    footprint, center, box = np.zeros(count, np.uint16), np.zeros(count, np.uint16), np.zeros((count, 4), np.int64)
    module._gather(mask, xs, ys, first, pixels, footprint, center, box)
    for k, member in enumerate(members):
        assert footprint[k] == np.bitwise_or.reduce([bits_within(mask, y, x, 2) for y, x in member])
        assert center[k] == bits_within(mask, ys[k], xs[k], 1)
        (y0, x0), (y1, x1) = member.min(0), member.max(0)
        assert box[k].tolist() == [x0, x1, y0, y1]
