"""Sources against a truth of which every figure is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from access.report.truth_check import BINS, MATCH_ARCSEC, REAL_SNR, Compared, compare, read_truth, summary
from schemas.tables import Table, empty
from schemas.wcs import from_tangent, separation_arcsec
from simulators.camera import truth as simulated
from tests.access.small_night import VISIT, SmallNight

CENTER = (150.0, -30.0)
FLUX, ERROR = 1000.0, 10.0


def sky(east: Any, north: Any, center: tuple[float, float] = CENTER) -> tuple[NDArray[Any], NDArray[Any]]:
    """RA, dec (deg) of offsets (arcsec)."""
    return from_tangent(np.asarray(east) / 3600.0, np.asarray(north) / 3600.0, center)


def truths(snr: Any, east: Any, north: Any, center: tuple[float, float] = CENTER) -> dict[str, NDArray[Any]]:
    """The columns of a truth table as the simulator writes them, every row usable."""
    table = np.zeros(len(snr), simulated.TRUTH_DTYPE)
    table["snr"], table["difference_flux"], table["usable"] = snr, FLUX, True
    table["ra"], table["dec"] = sky(east, north, center)
    return {name: table[name] for name in simulated.TRUTH_DTYPE.names or ()}


def measured(east: Any, north: Any, center: tuple[float, float] = CENTER) -> Table:
    table = empty("DiaSource", len(east))
    table["ra"], table["dec"] = sky(east, north, center)
    table["psfFlux"], table["psfFluxErr"] = FLUX, ERROR
    table["diaSourceId"] = 1 + np.arange(len(east))
    return table


@pytest.fixture
def known() -> Compared:
    """Eight truths in a column, 20 arcsec apart, and what was found beside some of them."""
    truth = truths([5.5, 7.0, 7.0, -30.0, 60.0, 100.0, 4.0, 2.0], np.zeros(8), 20.0 * np.arange(8))
    truth["usable"][5] = False
    sources = measured([0.0, 0.0, 0.9, 1.1, 0.0, 0.0, 0.0, 50.0], 20.0 * np.array([1, 2, 3, 4, 5, 6, 7, 0]))
    alerted = np.array([False, True, True, True, True, True, False, False])
    return compare(truth, sources, alerted)


def test_completeness_is_the_share_found_and_told_of_the_usable_truth_in_each_bin(known: Compared) -> None:
    bins = [(b.snr_min, b.snr_max, b.true, b.detected, b.alerted) for b in summary([known]).completeness]
    assert bins == [
        (5.0, 6.0, 1, 0.0, 0.0),  # nothing lies there
        (6.0, 8.0, 2, 1.0, 0.5),  # one of the two was not alerted on
        (8.0, 12.0, 0, None, None),
        (12.0, 20.0, 0, None, None),
        (20.0, 50.0, 1, 1.0, 1.0),  # it faded: S/N -30
        (50.0, None, 1, 0.0, 0.0),  # the source lies 1.1 arcsec away
    ]


def test_purity_is_the_share_of_alerts_at_something_that_changed(known: Compared) -> None:
    figures = summary([known])
    assert figures.purity == 4 / 5
    assert figures.purity_before_score == 5 / 8  # an S/N of 2 is no change, and one source has nothing near
    assert figures.matched == 3  # what is not usable is real, but measures nothing


def test_a_night_is_the_sum_of_its_visit_detectors(known: Compared) -> None:
    once, twice = summary([known]), summary([known, known])
    assert twice.matched == 2 * once.matched
    assert [b.true for b in twice.completeness] == [2 * b.true for b in once.completeness]
    assert twice.purity == once.purity


def test_positions_are_measured_less_true_on_the_sky() -> None:
    count, offsets = 5, np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    north = 20.0 * np.arange(count)
    truth = truths(np.full(count, 30.0), np.zeros(count), north)
    compared = compare(truth, measured(offsets / 1e3, north - 0.015), np.ones(count, bool))
    np.testing.assert_allclose(compared.residuals.d_ra_mas, offsets, atol=0.1)
    np.testing.assert_allclose(compared.residuals.d_dec_mas, -15.0, atol=0.1)
    figures = summary([compared])
    assert figures.position_mas == pytest.approx(25.0, abs=0.1)  # of 20 east and 15 south
    assert figures.position_width_mas == pytest.approx(20.0 / 1.349, abs=0.1)


def test_flux_bias_is_the_median_of_bright_changes_that_were_measured() -> None:
    north = 20.0 * np.arange(10)
    truth = truths([30.0] * 5 + [8.0] * 5, np.zeros(10), north)
    sources = measured(np.zeros(10), north)
    sources["psfFlux"] = FLUX * np.array([np.nan, 1.0, 1.04, 1.06, 1.5] + [3.0] * 5)
    figures = summary([compare(truth, sources, np.ones(10, bool))])
    assert figures.flux_bias == pytest.approx(0.05, rel=1e-4)
    assert figures.matched == 10


def test_pulls_are_flux_differences_in_units_of_the_stated_error() -> None:
    north, pulls = 20.0 * np.arange(6), [-2.0, -1.0, 0.0, 1.0, 2.0, np.nan]
    sources = measured(np.zeros(6), north)
    sources["psfFlux"] = FLUX + ERROR * np.array(pulls)
    compared = compare(truths(np.full(6, 8.0), np.zeros(6), north), sources, np.ones(6, bool))
    np.testing.assert_allclose(compared.residuals.pull, pulls, atol=1e-4)
    assert summary([compared]).flux_pull_width == pytest.approx(2.0 / 1.349, rel=1e-4)
    assert summary([compared]).flux_bias is None  # none is bright


def test_a_fading_source_has_the_bias_of_its_own_sign() -> None:
    truth = truths([-40.0], [0.0], [0.0])
    truth["difference_flux"][:] = -FLUX
    sources = measured([0.0], [0.0])
    sources["psfFlux"] = -1.1 * FLUX
    assert summary([compare(truth, sources, np.ones(1, bool))]).flux_bias == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("center", [(150.0, -30.0), (0.0, 10.0), (359.99, -70.0), (40.0, 89.95)])
def test_matches_are_those_of_all_pairs_wherever_the_detector_points(center: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    (east, north), (x, y) = rng.uniform(-30.0, 30.0, (2, 300)), rng.uniform(-30.0, 30.0, (2, 200))
    truth = truths(rng.uniform(0.0, 30.0, 300), east, north, center)
    sources = measured(x, y, center)
    alerted = rng.random(200) < 0.5
    compared = compare(truth, sources, alerted)
    apart = separation_arcsec(truth["ra"][:, None], truth["dec"][:, None], sources["ra"], sources["dec"])
    near = apart <= MATCH_ARCSEC
    assert compared.real.tolist() == near[truth["snr"] >= REAL_SNR].any(axis=0).tolist()
    worth = truth["snr"] >= BINS[0]
    assert compared.detected.tolist() == near[worth].any(axis=1).tolist()
    assert compared.alerted.tolist() == near[worth][:, alerted].any(axis=1).tolist()


@pytest.mark.parametrize("snr", [[], [0.0, 2.0], [30.0]], ids=["no truth", "no change", "a change"])
@pytest.mark.parametrize("east", [[], [0.0, 1000.0]], ids=["no sources", "sources"])
@pytest.mark.parametrize("told", [True, False], ids=["alerts", "no alerts"])
def test_what_is_empty_has_no_figure(snr: list[float], east: list[float], told: bool) -> None:
    truth = truths(snr, 60.0 + np.zeros(len(snr)), np.arange(len(snr)))
    sources = measured(east, np.zeros(len(east)))
    figures = summary([compare(truth, sources, np.full(len(east), told))])
    assert figures.purity == (0.0 if east and told else None)
    assert figures.purity_before_score == (0.0 if east else None)
    assert [b.detected for b in figures.completeness] == [None] * 4 + [0.0 if snr == [30.0] else None, None]
    assert (figures.position_mas, figures.position_width_mas) == (None, None)
    assert (figures.flux_bias, figures.flux_pull_width, figures.matched) == (None, None, 0)


def test_a_night_without_truth_has_no_figures() -> None:
    figures = summary([])
    assert (figures.purity, figures.position_mas, figures.flux_bias, figures.matched) == (None, None, None, 0)
    assert [b.true for b in figures.completeness] == [0] * len(BINS)


def test_the_simulators_own_file_is_read_and_one_that_is_not_there_is_none(tmp_path: Path) -> None:
    table = np.zeros(3, simulated.TRUTH_DTYPE)
    table["ra"], table["usable"] = [1.0, 2.0, 3.0], [True, False, True]
    simulated._write(tmp_path / f"{VISIT}-094.parquet", table)
    truth = read_truth(tmp_path, VISIT, 94)
    assert truth is not None
    assert set(truth) == set(simulated.TRUTH_DTYPE.names or ())
    assert truth["ra"].tolist() == [1.0, 2.0, 3.0]
    assert truth["usable"].tolist() == [True, False, True]
    assert read_truth(tmp_path, VISIT, 95) is None


async def test_the_report_compares_each_visit_detector_that_has_a_truth(good: SmallNight) -> None:
    sources = await good.l1.sources_of(VISIT, 94)  # of its six, the first four are alerts
    table = np.zeros(5, simulated.TRUTH_DTYPE)
    table["ra"], table["dec"] = sources["ra"][:5], sources["dec"][:5]
    table["ra"][0] += 0.1  # the first alert is of nothing
    table["snr"], table["difference_flux"], table["usable"] = 30.0, 5.0, True
    simulated._write(good.truth / f"{VISIT}-094.parquet", table)
    collected = await good.collected()
    truth = collected.report.truth
    assert len(collected.compared) == 1
    assert (truth.purity, truth.purity_before_score, truth.matched) == (3 / 4, 4 / 6, 3)
    assert truth.position_mas == pytest.approx(0.0, abs=1e-3)
    (bright,) = [b for b in truth.completeness if b.true]
    assert (bright.snr_min, bright.detected, bright.alerted) == (20.0, 4 / 5, 3 / 5)
    assert (await good.collected(untrue=frozenset({(VISIT, 94)}))).compared == []
