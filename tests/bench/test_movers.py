from dataclasses import replace

import numpy as np
import pytest

from bench import movers, peers
from payloads.alert_production.score import MIN_RELIABILITY
from schemas.tables import Table, empty
from simulators.pairs import Pair, Recipe, make_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(Recipe(
        4, shape=(600, 600), stars=100, galaxies=0, transients=10, trails=10, moved=10, variables=2, snr=(10.0, 60.0)
    ))  # fmt: skip


def perfect(pair: Pair) -> Table:
    """Detections that say what is true, of everything."""
    truth, kind = pair.truth, np.asarray(pair.truth["kind"])
    table = empty("DiaSource", len(truth))
    for name in ("trailLength", "trailAngle", "trailFlux", "dipoleLength", "dipoleAngle"):
        table[name] = np.nan
    table["x"], table["y"], table["snr"], table["reliability"] = truth["x"], truth["y"], abs(truth["snr"]), 1.0
    flux, trail, moved = movers.true_flux(pair), kind == "trail", kind == "moved"
    table["psfFlux"], table["dipoleMeanFlux"], table["isDipole"] = flux, flux, moved
    table["dipoleLength"], table["dipoleAngle"] = truth["length"], truth["angle"]
    table["trailLength"][trail], table["trailLengthErr"][trail] = truth["length"][trail], 1e-6
    table["trailAngle"][trail], table["trailFlux"][trail] = truth["angle"][trail] % 180.0, flux[trail]
    return table


def held(pair: Pair, sources: Table) -> movers.Held:
    return movers.held(pair, sources, movers.distances(sources, pair), np.ones(len(pair.truth), bool))


def test_perfect_detections_have_no_errors(pair: Pair) -> None:
    told = held(pair, perfect(pair))
    assert told.rightly.all()
    assert told.believed.all()
    moving = np.isin(told.kind, ["trail", "moved"])
    for error in (told.length_error[moving], told.angle_error[moving], told.flux_error):
        np.testing.assert_allclose(error, 0.0, atol=1e-4)
    assert np.isnan(told.length_error[~moving]).all()


def test_errors_come_out_as_they_were_put_in(pair: Pair) -> None:
    sources = perfect(pair)
    sources["trailLength"] += 0.4
    sources["trailAngle"] = (sources["trailAngle"] + 3.0) % 180.0
    sources["dipoleAngle"] = (sources["dipoleAngle"] - 5.0) % 360.0
    sources["psfFlux"] *= 0.9
    sources["reliability"] = MIN_RELIABILITY - 0.01
    told = held(pair, sources)
    trail, moved = told.kind == "trail", told.kind == "moved"
    np.testing.assert_allclose(told.length_error[trail], 2.0, atol=1e-4)
    np.testing.assert_allclose(told.angle_error[trail], 3.0, atol=1e-3)
    np.testing.assert_allclose(told.angle_error[moved], -5.0, atol=1e-3)
    np.testing.assert_allclose(told.flux_error[~trail & ~moved], -0.1, atol=1e-4)
    assert not told.believed.any()


def test_what_is_told_as_another_thing_is_not_told_rightly(pair: Pair) -> None:
    sources = perfect(pair)
    sources["isDipole"] = ~sources["isDipole"]
    assert not held(pair, sources).rightly.any()


def test_a_detection_at_the_end_of_a_trail_is_on_it_and_one_beyond_is_not(pair: Pair) -> None:
    trail = np.flatnonzero(np.asarray(pair.truth["kind"]) == "trail")[0]
    sources = empty("DiaSource", 2)
    x, y, dx, dy = (float(pair.truth[name][trail]) for name in ("x", "y", "dx", "dy"))
    beyond = 1.0 + 6.0 / np.hypot(dx, dy)
    sources["x"], sources["y"] = [x + dx, x + beyond * dx], [y + dy, y + beyond * dy]
    np.testing.assert_allclose(movers.distances(sources, pair)[:, trail], [0.0, 6.0], atol=1e-3)


def test_what_another_comes_near_is_not_alone(pair: Pair) -> None:
    truth = pair.truth.copy()
    assert movers.alone(pair).mean() > 0.5
    truth["x"][1], truth["y"][1] = truth["x"][0] + 9.0, truth["y"][0]
    assert not movers.alone(replace(pair, truth=truth))[:2].any()


def test_a_peak_is_the_snr_of_a_point_and_less_of_a_trail(pair: Pair) -> None:
    seen, snr = movers.peak(pair), np.abs(pair.truth["snr"])
    kind, length = np.asarray(pair.truth["kind"]), np.hypot(pair.truth["dx"], pair.truth["dy"])
    blank = movers.noise_of_host(pair) < 1.05
    np.testing.assert_allclose(seen[blank & (kind == "transient")], snr[blank & (kind == "transient")], rtol=0.03)
    long = (kind == "trail") & (length > 5.0)
    assert long.any()
    assert (seen[long] < 0.8 * snr[long]).all()


def test_fluxes_are_told_in_the_templates_electrons(pair: Pair) -> None:
    still = np.asarray(pair.truth["kind"]) == "transient"
    np.testing.assert_allclose(movers.true_flux(pair)[still], peers.ratio(pair) * pair.truth["flux"][still])


def test_the_table_has_a_line_for_each_span_and_tells_nothing_of_none(pair: Pair) -> None:
    sources = perfect(pair)
    none = movers.held(pair, sources, movers.distances(sources, pair), np.zeros(len(pair.truth), bool))
    nothing = list(movers.lines(none))
    assert len(nothing) == sum(len(edges) - 1 for edges in movers.LENGTHS.values())
    assert all(line.split()[-1] == "-" for line in nothing)
