import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import BadData
from schemas.instrument import BANDS
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import separation_arcsec
from simulators.sky.cells import CELL_SQDEG, cells_within, generator, uniform_positions
from simulators.sky.sky import Sky
from simulators.sky.sources import SKY_SOURCE_DTYPE, Kind, ab_magnitude, kind_of, nanojansky

MJD = 61226.2
CCD_RADIUS, CCD_SQDEG = 0.16, 0.0518
ROOT = Path(__file__).parents[3]
OF_CCD = CCD_SQDEG / (np.pi * CCD_RADIUS**2)
NOISE = nanojansky(24.4) / 5.0  # of a 30 s visit in r


def cut(sources: Table, ra: float, dec: float, radius: float) -> Table:
    inside = sources[separation_arcsec(sources["ra"], sources["dec"], ra, dec) <= radius * 3600.0]
    return np.sort(inside, order="id")


def significance(sources: Table) -> NDArray[np.float64]:
    difference = sources["flux"].astype(float) - sources["template_flux"]
    ratio: NDArray[np.float64] = difference / NOISE / np.sqrt(1.0 + sources["flux"] / 6e4)
    return ratio


def test_every_field_is_of_the_promised_dtype_and_finite(sky: Sky) -> None:
    sources = sky.sources(60.0, -30.0, CCD_RADIUS, "g", MJD)
    assert sources.dtype == SKY_SOURCE_DTYPE
    for name in SKY_SOURCE_DTYPE.names or ():
        assert np.isfinite(sources[name]).all(), name
    assert (sources["flux"] > 0.0).all()
    assert {int(kind) for kind in sources["kind"]} >= {Kind.STAR, Kind.GALAXY, Kind.VARIABLE, Kind.TRANSIENT}


def test_ids_are_unique_and_carry_the_kind(sky: Sky) -> None:
    sources = sky.sources(280.0, -23.0, 1.0, "r", MJD)
    assert len(np.unique(sources["id"])) == len(sources)
    sample = sources[:: len(sources) // 500]
    assert [kind_of(int(row["id"])) for row in sample] == list(sample["kind"])


def test_the_same_seed_gives_the_same_sky_whatever_was_asked_before(sky: Sky) -> None:
    again = Sky(sky.seed)
    again.sources(200.0, 10.0, CCD_RADIUS, "y", MJD - 50.0)
    expected = sky.sources(280.0, -23.0, CCD_RADIUS, "r", MJD)
    assert again.sources(280.0, -23.0, CCD_RADIUS, "r", MJD).tobytes() == expected.tobytes()
    other = Sky(sky.seed + 1).sources(280.0, -23.0, CCD_RADIUS, "r", MJD)
    assert np.mean(np.isin(np.round(other["ra"], 9), np.round(expected["ra"], 9))) < 1e-3


def test_another_process_sees_the_same_sky(sky: Sky) -> None:
    program = (
        "import hashlib; from simulators.sky.sky import Sky;"
        f"rows = Sky({sky.seed}).sources(280.0, -23.0, {CCD_RADIUS}, 'r', {MJD});"
        "print(hashlib.sha256(rows.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    here = sky.sources(280.0, -23.0, CCD_RADIUS, "r", MJD)
    assert answer.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((280.0, -23.0), (280.2, -23.1)),
        ((0.05, -5.0), (359.9, -5.02)),
        ((10.0, 89.95), (200.0, 89.97)),
        ((0.0, -90.0), (123.0, -89.9)),
        ((44.99, 41.81), (45.1, 41.85)),
    ],
    ids=["plain", "RA wrap", "north pole", "south pole", "corner of base pixels"],
)
def test_overlapping_circles_see_the_same_sources(
    sky: Sky, first: tuple[float, float], second: tuple[float, float]
) -> None:
    a, b = (sky.sources(*center, 0.3, "i", MJD) for center in (first, second))
    shared_by_a, shared_by_b = cut(a, *second, 0.3), cut(b, *first, 0.3)
    assert len(shared_by_a) > 500
    assert shared_by_a.tobytes() == shared_by_b.tobytes()


@pytest.mark.parametrize("center", [(0.0, 0.0), (359.999, -44.0), (10.0, -89.99), (271.0, 89.9)])
def test_a_small_circle_is_a_cut_of_a_large_one_and_full_to_its_rim(sky: Sky, center: tuple[float, float]) -> None:
    small, large = (sky.sources(*center, radius, "r", MJD) for radius in (0.1, 0.5))
    assert np.sort(small, order="id").tobytes() == cut(large, *center, 0.1).tobytes()
    distance = separation_arcsec(large["ra"], large["dec"], *center) / 3600.0
    inner = np.mean(distance**2 < 0.125)  # half the area
    assert inner == pytest.approx(0.5, abs=4.0 * 0.5 / np.sqrt(len(large)) + 0.02)


def test_a_cell_is_filled_evenly_and_not_beyond() -> None:
    cell = cells_within(0.0, -90.0, 0.01)[0]
    ra, dec = uniform_positions(generator(1, Kind.STAR, cell), cell, 20_000)
    assert all(cell in cells_within(float(a), float(d), 1e-6) for a, d in zip(ra[:200], dec[:200], strict=True))
    near_pole = np.mean(dec < -90.0 + 0.1)
    quarter_disc = 0.25 * np.pi * 0.1**2 / CELL_SQDEG  # a cell is a quadrant about the pole
    assert near_pole == pytest.approx(quarter_disc, abs=0.01)


@pytest.mark.parametrize("center", [(60.0, -30.0), (5.0, -5.0), (150.0, 2.0)])
def test_a_detector_at_middle_latitudes_has_the_stated_numbers(sky: Sky, center: tuple[float, float]) -> None:
    sources = sky.sources(*center, CCD_RADIUS, "i", MJD)
    count = {kind: np.sum(sources["kind"] == kind) * OF_CCD for kind in Kind}
    assert 3000 < count[Kind.STAR] < 6000
    assert 1800 < count[Kind.GALAXY] < 2800
    assert 10 < count[Kind.VARIABLE] < 50
    galaxies = sources[sources["kind"] == Kind.GALAXY]
    assert 24.3 < ab_magnitude(galaxies["flux"]).max() <= 24.51
    stars = sources[sources["kind"] == Kind.STAR]
    assert np.mean(ab_magnitude(stars["flux"]) < 15.0) < 0.02


def test_stars_crowd_towards_the_plane_of_the_galaxy(sky: Sky) -> None:
    plane, pole = (sky.sources(*center, CCD_RADIUS, "r", MJD) for center in ((266.4, -28.9), (12.9, -27.1)))
    stars_in_plane, stars_at_pole = (np.sum(field["kind"] == Kind.STAR) for field in (plane, pole))
    assert 2.0 < stars_in_plane / stars_at_pole < 4.0


def test_about_twenty_variables_and_twenty_transients_a_detector_have_changed(sky: Sky) -> None:
    for mjd in (60500.0, MJD):
        sources = sky.sources(60.0, -30.0, 0.8, "r", mjd)
        found = sources[np.abs(significance(sources)) > 5.0]
        detectors = np.pi * 0.8**2 / CCD_SQDEG
        for kind in (Kind.VARIABLE, Kind.TRANSIENT):
            assert 15.0 < np.sum(found["kind"] == kind) / detectors < 25.0
        ratios = significance(found[found["kind"] == Kind.TRANSIENT])
        assert np.percentile(ratios, 10) < 8.0
        assert np.percentile(ratios, 90) > 40.0


def test_constant_sources_are_in_the_template_as_they_are(sky: Sky) -> None:
    sources = sky.sources(60.0, -30.0, CCD_RADIUS, "z", MJD)
    constant = np.isin(sources["kind"], [Kind.STAR, Kind.GALAXY])
    assert (sources["flux"][constant] == sources["template_flux"][constant]).all()
    new = np.isin(sources["kind"], [Kind.TRANSIENT, Kind.ASTEROID])
    assert (sources["template_flux"][new] == 0.0).all()


def test_galaxies_have_shapes_and_faint_ones_are_small(sky: Sky) -> None:
    sources = sky.sources(60.0, -30.0, 0.3, "i", MJD)
    galaxies = sources[sources["kind"] == Kind.GALAXY]
    mag = ab_magnitude(galaxies["flux"])
    medians = [np.median(galaxies["radius"][(mag > low) & (mag < low + 1.0)]) for low in (20.0, 22.0, 23.5)]
    assert 1.4 > medians[0] > medians[1] > medians[2] > 0.2
    assert galaxies["axis_ratio"].min() > 0.19
    assert galaxies["axis_ratio"].max() <= 1.0
    assert (sources["radius"][sources["kind"] != Kind.GALAXY] == 0.0).all()


def test_stars_lie_on_the_locus(sky: Sky) -> None:
    fields = [sky.sources(60.0, -30.0, CCD_RADIUS, band, MJD) for band in BANDS]
    u, g, r, i, z, y = (ab_magnitude(f["flux"][f["kind"] == Kind.STAR]) for f in fields)
    turn_off = np.abs(g - i - 0.6) < 0.05
    assert np.median((g - r)[turn_off]) == pytest.approx(0.46, abs=0.05)
    assert np.median((u - g)[turn_off]) == pytest.approx(1.19, abs=0.1)
    assert np.std((r - i)[turn_off]) < 0.05
    assert np.median((z - y)[g - i > 2.0]) > 0.1


def test_the_reference_catalogue_holds_the_stars_of_the_sky_within_its_errors(sky: Sky) -> None:
    refcat = sky.refcat(0.02, -30.0, CCD_RADIUS)
    assert refcat.dtype == REFCAT_DTYPE
    sources = sky.sources(0.02, -30.0, CCD_RADIUS + 0.01, "r", 57388.5)
    stars = sources[np.isin(sources["kind"], [Kind.STAR, Kind.VARIABLE])]
    order = np.argsort(stars["id"])
    match = stars[order[np.searchsorted(stars["id"], refcat["id"], sorter=order)]]
    assert (match["id"] == refcat["id"]).all()
    offsets = separation_arcsec(match["ra"], match["dec"], refcat["ra"], refcat["dec"]) * 1000.0
    assert 1.0 < np.sqrt(np.mean(offsets**2) / 2.0) < 5.0
    pull = (refcat["r_flux"] - match["template_flux"]) / refcat["r_fluxErr"]
    assert abs(np.std(pull) - 1.0) < 0.1
    assert (refcat["variable"] == (match["kind"] == Kind.VARIABLE)).all()
    mag = ab_magnitude(match["template_flux"])
    assert 14.0 <= mag.min() < 16.0
    assert 22.4 < mag.max() <= 22.501


def test_the_reference_catalogue_lacks_no_star(sky: Sky) -> None:
    refcat = sky.refcat(180.0, -60.0, CCD_RADIUS)
    sources = sky.sources(180.0, -60.0, CCD_RADIUS - 0.001, "r", 57388.5)
    mag = ab_magnitude(np.maximum(sources["template_flux"], 1.0))
    wanted = np.isin(sources["kind"], [Kind.STAR, Kind.VARIABLE]) & (mag > 14.001) & (mag < 22.499)
    assert np.isin(sources["id"][wanted], refcat["id"]).all()


def test_stars_move_as_the_reference_catalogue_says(sky: Sky) -> None:
    refcat = sky.refcat(33.0, -89.9, CCD_RADIUS)
    early, late = (sky.sources(33.0, -89.9, CCD_RADIUS, "r", 57388.5 + 365.25 * t) for t in (0.0, 40.0))
    ids = np.intersect1d(np.intersect1d(early["id"], late["id"]), refcat["id"])
    a, b, r = (np.sort(table[np.isin(table["id"], ids)], order="id") for table in (early, late, refcat))
    moved = separation_arcsec(a["ra"], a["dec"], b["ra"], b["dec"]) * 1000.0 / 40.0
    said = np.hypot(r["pm_ra"], r["pm_dec"])
    assert np.median(moved) > 2.0
    assert np.std(moved - said) < 0.6


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ((np.nan, 0.0, 0.1, "r", MJD), "position"),
        ((0.0, 91.0, 0.1, "r", MJD), "position"),
        ((0.0, 0.0, 0.0, "r", MJD), "radius"),
        ((0.0, 0.0, np.nan, "r", MJD), "radius"),
        ((0.0, 0.0, 0.1, "w", MJD), "'w'"),
        ((0.0, 0.0, 0.1, "r", np.nan), "time"),
    ],
)
def test_what_is_no_field_is_refused_by_name(
    sky: Sky, field: tuple[float, float, float, str, float], says: str
) -> None:
    with pytest.raises(BadData, match=says):
        sky.sources(*field)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(BadData, match="-3"):
        Sky(-3)
