import numpy as np
import pytest

from schemas.wcs import separation_arcsec
from simulators.sky import transients, variables
from simulators.sky.galaxies import galaxies_of
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind
from simulators.sky.variables import Shape, shape_at

SEED, CELL = 7, 400_000


def test_a_variable_of_the_sky_repeats_after_its_period_and_not_before(sky: Sky) -> None:
    cell_ids = sky.sources(60.0, -30.0, 0.05, "r", 61226.0)
    star = cell_ids[cell_ids["kind"] == Kind.VARIABLE][0]
    table = variables.variables_of(sky.seed, int(star["id"]) >> 36 & 0xFFFFF)
    (row,) = table[table["id"] == star["id"]]

    def seen(mjd: float) -> float:
        sources = sky.sources(float(star["ra"]), float(star["dec"]), 0.001, "r", mjd)
        return float(sources["flux"][sources["id"] == star["id"]][0])

    period = float(row["period"])
    start = 61226.0
    fluxes = [seen(start + period * phase) for phase in np.arange(0.0, 1.0, 0.1)]
    assert np.ptp(fluxes) > 0.01 * np.mean(fluxes)
    for phase in (0.0, 0.35, 0.8):
        once = seen(start + period * phase)
        assert seen(start + period * (phase + 1.0)) == pytest.approx(once, rel=1e-5)
        assert seen(start + period * (phase + 7.0)) == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("shape", list(Shape))
def test_a_shape_has_mean_zero_and_joins_at_its_ends(shape: Shape) -> None:
    phase = (np.arange(100_000) + 0.5) / 100_000
    values = shape_at(shape, phase)
    assert np.mean(values) == pytest.approx(0.0, abs=1e-6)
    assert np.abs(values).max() <= 1.0
    assert values[0] == pytest.approx(values[-1], abs=1e-3)


def test_the_template_shows_a_variables_mean() -> None:
    table = variables.variables_of(SEED, CELL)
    short = table[table["period"] < 1.0]
    fluxes = [variables.flux_at(short, "g", 61000.0 + t) for t in np.random.default_rng(1).uniform(0, 500, 4000)]
    rows = variables.observe_variables(short, "g", 61000.0)
    np.testing.assert_allclose(np.mean(fluxes, axis=0), rows["template_flux"], rtol=0.03)


def test_variables_are_quieter_in_the_red() -> None:
    table = variables.variables_of(SEED, CELL)
    assert (table["amplitude"][:, 1] >= table["amplitude"][:, 4]).all()
    assert table["period"].min() >= 0.05
    assert table["period"].max() <= 300.0


def test_a_transient_rises_peaks_when_it_says_and_fades() -> None:
    table = transients.transients_of(SEED, CELL, 612)
    assert len(table) > 10
    for index in range(len(table)):
        one = table[index : index + 1]
        days = float(one["peak_mjd"][0]) + np.arange(-40.0, 230.0, 0.25)
        curve = np.array([transients.flux_at(one, "r", day)[0] for day in days])
        assert curve.max() == pytest.approx(one["peak_flux"][0], rel=1e-3)
        assert abs(days[curve.argmax()] - one["peak_mjd"][0]) <= 0.5
        exploded = float(one["peak_mjd"][0] - 5.0 * one["rise"][0])
        assert 0.0 <= exploded + 1e-3 - 61200.0 < 100.0
        assert (curve[days < exploded] == 0.0).all()
        assert (curve[days > exploded + 200.0] == 0.0).all()
        assert curve[(days < exploded + 199.0)].min() >= 0.0


def test_a_transient_reddens() -> None:
    table = transients.transients_of(SEED, CELL, 612)
    early, late = table["peak_mjd"].max() - 5.0, table["peak_mjd"].max() + 60.0
    youngest = table[table["peak_mjd"].argmax()][None]
    colour = [transients.flux_at(youngest, "g", t)[0] / transients.flux_at(youngest, "i", t)[0] for t in (early, late)]
    assert colour[0] > 1.5 * colour[1]


def test_transients_lie_in_or_near_their_hosts() -> None:
    table, galaxies = transients.transients_of(SEED, CELL, 612), galaxies_of(SEED, CELL)
    hosts = galaxies[np.searchsorted(galaxies["id"], table["host"])]
    distance = separation_arcsec(table["ra"], table["dec"], hosts["ra"], hosts["dec"])
    assert (distance < 5.0 * hosts["radius"]).all()
    assert np.median(distance / hosts["radius"]) == pytest.approx(0.94, abs=0.4)


def test_a_transient_is_in_the_sky_on_its_days_only(sky: Sky) -> None:
    seen = sky.sources(60.0, -30.0, 0.16, "r", 61250.0)
    now = set(seen["id"][seen["kind"] == Kind.TRANSIENT].tolist())
    later = sky.sources(60.0, -30.0, 0.16, "r", 61250.0 + 201.0)
    ids = set(later["id"][later["kind"] == Kind.TRANSIENT].tolist())
    assert now
    assert ids
    assert not now & ids
