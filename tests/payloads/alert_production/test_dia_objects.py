import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.alert_production.dia_objects import remake, update
from payloads.imaging.sphere import position_at
from schemas.errors import BadData
from schemas.instrument import BANDS
from schemas.tables import Table, empty
from schemas.wcs import separation_arcsec

Floats = NDArray[np.float64]

NOW = 61300.5
NO_SOURCES, NO_FORCED = empty("DiaSource", 0), empty("DiaForcedSource", 0)


def _objects(places: list[tuple[float, float]]) -> Table:
    table = empty("DiaObject", len(places))
    table["diaObjectId"] = 10 * (1 + np.arange(len(places)))
    table["ra"], table["dec"] = np.asarray(places, dtype=float).T
    return table


def _sources(objects: Table, per_object: int, seed: int = 1, holes: float = 0.2) -> Table:
    """Sources about the objects, in all bands and no order, values missing, a stranger's among them."""
    rng, rows = np.random.default_rng(seed), len(objects) * per_object
    table = empty("DiaSource", rows)
    table["diaSourceId"], table["diaObjectId"] = (
        1000 + np.arange(rows),
        rng.permutation(np.repeat(objects["diaObjectId"], per_object)),
    )
    row = np.searchsorted(objects["diaObjectId"], table["diaObjectId"])
    table["ra"], table["dec"] = position_at(objects["ra"][row], objects["dec"][row], *rng.normal(0.0, 0.1, (2, rows)))
    table["raErr"], table["decErr"] = rng.uniform(0.02, 0.2, (2, rows)) / 3600.0
    table["ra_dec_Cov"] = rng.uniform(-0.5, 0.5, rows) * table["raErr"] * table["decErr"]
    table["midpointMjdTai"], table["band"] = rng.uniform(61000.0, 61300.0, rows), rng.choice(BANDS, rows)
    for flux in ("psfFlux", "scienceFlux"):
        table[flux], table[f"{flux}Err"] = rng.normal(500.0, 300.0, rows), rng.uniform(20.0, 200.0, rows)
        for column in (flux, f"{flux}Err"):
            table[column][rng.random(rows) < holes] = np.nan
    stranger = table[:1].copy()
    stranger["diaSourceId"], stranger["diaObjectId"] = 5, 12345
    return np.concatenate([table, stranger])


def _forced(objects: Table, per_object: int, seed: int = 2) -> Table:
    rng, rows = np.random.default_rng(seed), len(objects) * per_object
    table = empty("DiaForcedSource", rows)
    table["diaForcedSourceId"], table["diaObjectId"] = (
        np.arange(rows) + 1,
        rng.choice(objects["diaObjectId"], rows),
    )
    table["psfFlux"], table["psfFluxErr"], table["band"] = (
        rng.normal(0, 99, rows),
        rng.uniform(5, 50, rows),
        rng.choice(BANDS, rows),
    )
    table["midpointMjdTai"], table["psfFluxErr"][::7] = rng.uniform(61000.0, 61300.0, rows), 0.0
    return table


def _weighted(flux: Floats, error: Floats) -> tuple[float, float]:
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    flux, weight = flux[good].astype(float), 1.0 / error[good].astype(float) ** 2
    if not len(flux):
        return np.nan, np.nan
    return (flux * weight).sum() / weight.sum(), 1.0 / np.sqrt(weight.sum())


def _statistics_by_loop(sources: Table, forced: Table, number: int, band: str) -> dict[str, float]:
    """One object, one band, plainly."""
    mine = np.sort(sources[(sources["diaObjectId"] == number) & (sources["band"] == band)], order="midpointMjdTai")
    theirs = forced[(forced["diaObjectId"] == number) & (forced["band"] == band)]
    mean, mean_error = _weighted(mine["psfFlux"], mine["psfFluxErr"])
    science, science_error = _weighted(mine["scienceFlux"], mine["scienceFluxErr"])
    forced_mean, forced_error = _weighted(theirs["psfFlux"], theirs["psfFluxErr"])
    good = mine[np.isfinite(mine["psfFlux"]) & np.isfinite(mine["psfFluxErr"])]
    flux, time = good["psfFlux"].astype(float), good["midpointMjdTai"]
    return {
        "psfFluxMean": mean, "psfFluxMeanErr": mean_error, "psfFluxNdata": len(good),
        "psfFluxSigma": np.std(flux, ddof=1) if len(flux) > 1 else np.nan,
        "psfFluxMin": flux.min() if len(flux) else np.nan, "psfFluxMax": flux.max() if len(flux) else np.nan,
        "psfFluxErrMean": good["psfFluxErr"].astype(float).mean() if len(flux) else np.nan,
        "psfFluxMaxSlope": (np.diff(flux) / np.diff(time)).max() if len(flux) > 1 else np.nan,
        "scienceFluxMean": science, "scienceFluxMeanErr": science_error,
        "fpFluxMean": forced_mean, "fpFluxMeanErr": forced_error,
    }  # fmt: skip


@pytest.mark.parametrize("per_object", [1, 2, 12])
def test_every_statistic_is_that_of_a_plain_loop(per_object: int) -> None:
    objects = _objects([(10.0, -30.0), (359.99999, 5.0), (200.0, 89.9999), (33.0, -90.0)])
    sources, forced = _sources(objects, per_object), _forced(objects, 9)
    updated = update(objects, NO_SOURCES, sources, forced, NOW)
    for row in updated:
        for band in BANDS:
            for name, expected in _statistics_by_loop(sources, forced, row["diaObjectId"], band).items():
                assert row[f"{band}_{name}"] == pytest.approx(expected, rel=2e-5, nan_ok=True), (band, name)


def test_the_place_is_the_mean_weighted_by_the_inverse_covariances() -> None:
    objects = _objects([(359.99999, 40.0)])
    sources = _sources(objects, 20)[:-1]
    row = update(objects, NO_SOURCES, sources, NO_FORCED, NOW)[0]
    total, moment = np.zeros((2, 2)), np.zeros(2)
    for source in sources:
        covariance = source["ra_dec_Cov"].astype(float)
        weight = np.linalg.inv(
            [
                [source["raErr"].astype(float) ** 2, covariance],
                [covariance, source["decErr"].astype(float) ** 2],
            ]
        )
        east = ((source["ra"] - 359.99999 + 180.0) % 360.0 - 180.0) * np.cos(np.radians(source["dec"]))
        total, moment = total + weight, moment + weight @ [east, source["dec"] - 40.0]
    east, north = np.linalg.solve(total, moment)
    ra = (359.99999 + east / np.cos(np.radians(40.0))) % 360.0
    assert separation_arcsec(ra, 40.0 + north, row["ra"], row["dec"]) < 1e-5
    covariance = np.linalg.inv(total)
    assert row["raErr"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-4)
    assert row["decErr"] == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-4)
    assert row["ra_dec_Cov"] == pytest.approx(covariance[0, 1], rel=1e-3)


def test_sources_all_about_the_pole_have_their_mean_at_the_pole() -> None:
    objects, sources = _objects([(0.0, 90.0)]), empty("DiaSource", 4)
    sources["diaSourceId"], sources["diaObjectId"], sources["midpointMjdTai"] = range(1, 5), 10, 61000.0
    sources["ra"], sources["dec"], sources["raErr"], sources["decErr"] = (
        [0, 90, 180, 270],
        89.9999,
        1e-5,
        1e-5,
    )
    assert update(objects, NO_SOURCES, sources, NO_FORCED, NOW)["dec"][0] == pytest.approx(90.0, abs=1e-9)


def test_a_source_without_errors_counts_only_where_none_has_any() -> None:
    objects, sources = _objects([(10.0, 0.0), (20.0, 0.0)]), empty("DiaSource", 4)
    sources["diaSourceId"], sources["diaObjectId"], sources["midpointMjdTai"] = (
        range(1, 5),
        (10, 10, 20, 20),
        61000.0,
    )
    sources["ra"], sources["dec"] = (10.0, 10.0001, 20.0, 20.0001), 0.0
    sources["raErr"][0] = sources["decErr"][0] = 1e-5
    updated = update(objects, NO_SOURCES, sources, NO_FORCED, NOW)
    assert updated["ra"] == pytest.approx([10.0, 20.00005], abs=1e-9)
    assert updated["raErr"][0] == pytest.approx(1e-5)
    assert np.isnan(updated["raErr"][1])
    assert np.isnan(updated["ra_dec_Cov"][1])


def test_times_and_counts() -> None:
    objects = _objects([(10.0, 0.0), (20.0, 0.0)])
    objects["firstDiaSourceMjdTai"][0], objects["lastDiaSourceMjdTai"][0], objects["nDiaSources"][0] = (
        60000.0,
        61000.0,
        50,
    )
    sources = _sources(objects, 2, holes=0.0)[:-1]
    sources["midpointMjdTai"] = np.where(sources["diaObjectId"] == 10, 61000.0 + np.arange(4) % 2, 61100.0)
    sources["midpointMjdTai"][sources["diaObjectId"] == 10] = 61000.0, 61005.0
    known = sources["midpointMjdTai"] == 61000.0
    updated = update(objects, sources[known], sources[~known], NO_FORCED, NOW)
    assert updated["firstDiaSourceMjdTai"].tolist() == [60000.0, 61100.0]
    assert updated["lastDiaSourceMjdTai"].tolist() == [61005.0, 61100.0]
    assert updated["nDiaSources"].tolist() == [51, 2]
    assert updated["validityStartMjdTai"].tolist() == [NOW, NOW]
    assert np.isnan(updated["validityEndMjdTai"]).all()


def test_to_update_twice_is_to_update_once() -> None:
    objects = _objects([(10.0, 0.0), (20.0, 0.0)])
    sources, forced = _sources(objects, 5), _forced(objects, 5)
    once = update(objects, NO_SOURCES, sources, forced, NOW)
    twice = update(once, sources, NO_SOURCES, forced, NOW)
    for name in once.dtype.names or ():
        assert twice[name] == pytest.approx(once[name], rel=1e-6, nan_ok=True), name


def test_points_at_one_time_make_no_slope() -> None:
    objects, sources = _objects([(10.0, 0.0)]), _sources(_objects([(10.0, 0.0)]), 3, holes=0.0)[:-1]
    sources["midpointMjdTai"], sources["band"] = 61000.0, "r"
    assert np.isnan(update(objects, NO_SOURCES, sources, NO_FORCED, NOW)["r_psfFluxMaxSlope"][0])


def test_withdrawn_rows_count_no_more() -> None:
    objects = _objects([(10.0, 0.0)])
    sources, forced = _sources(objects, 3, holes=0.0)[:-1], _forced(objects, 3)
    sources["timeWithdrawnMjdTai"][0] = forced["timeWithdrawnMjdTai"][:] = 61200.0
    updated = update(objects, NO_SOURCES, sources, forced, NOW)[0]
    assert updated["nDiaSources"] == 2
    assert all(np.isnan(updated[f"{band}_fpFluxMean"]) for band in BANDS)


def test_made_anew_an_object_is_what_its_sources_alone_make_of_it() -> None:
    objects = _objects([(10.0, 0.0), (20.0, 0.0)])
    sources, forced = _sources(objects, 4, holes=0.0), _forced(objects, 4)
    before = update(objects, NO_SOURCES, sources, forced, NOW)
    last = sources["midpointMjdTai"] == before["lastDiaSourceMjdTai"][0]
    sources["timeWithdrawnMjdTai"][last & (sources["diaObjectId"] == 10)] = NOW
    before["nDiaSources"][0] -= 1
    again, fresh = remake(before, sources, forced, NOW + 1.0), update(objects, NO_SOURCES, sources, forced, NOW + 1.0)
    assert again["lastDiaSourceMjdTai"][0] < before["lastDiaSourceMjdTai"][0]
    for name in again.dtype.names or ():
        assert again[name] == pytest.approx(fresh[name], rel=1e-6, nan_ok=True), name


def test_made_anew_sources_of_months_taken_away_still_count() -> None:
    objects = _objects([(10.0, 0.0), (20.0, 0.0), (30.0, 0.0)])
    objects["firstDiaSourceMjdTai"], objects["lastDiaSourceMjdTai"] = 60000.0, 60900.0
    objects["nDiaSources"] = 7, 1, 0
    sources = empty("DiaSource", 2)
    sources["diaSourceId"], sources["diaObjectId"], sources["midpointMjdTai"] = (1, 2), 10, (61000.0, 61001.0)
    sources["timeWithdrawnMjdTai"][1] = NOW
    made = remake(objects, sources, NO_FORCED, NOW)
    assert made["nDiaSources"].tolist() == [7, 1, 0]
    assert made["firstDiaSourceMjdTai"] == pytest.approx([60000.0, 60000.0, np.nan], nan_ok=True)
    assert made["lastDiaSourceMjdTai"] == pytest.approx([61000.0, 60900.0, np.nan], nan_ok=True)


def test_made_anew_means_are_of_no_more_than_association_looks_at() -> None:
    objects = _objects([(10.0, 0.0), (20.0, 0.0)])
    sources, forced = _sources(objects, 6, holes=0.0)[:-1], _forced(objects, 6)
    for table in (sources, forced):
        table["midpointMjdTai"][::3] -= 500.0
    old, old_forced = (table["midpointMjdTai"] < 60900.0 for table in (sources, forced))
    first = update(objects, NO_SOURCES, sources[old], forced[old_forced], NOW - 300.0)
    before = update(first, NO_SOURCES, sources[~old], forced[~old_forced], NOW)
    assert before["nDiaSources"].tolist() == [6, 6]
    again = remake(before, sources, forced, NOW)
    for name in again.dtype.names or ():
        assert again[name] == pytest.approx(before[name], rel=1e-6, nan_ok=True), name


def test_a_source_that_comes_late_is_counted_though_later_ones_are_known() -> None:
    objects = _objects([(10.0, 0.0)])
    sources = empty("DiaSource", 3)
    sources["diaSourceId"], sources["diaObjectId"] = (1, 2, 3), 10
    sources["midpointMjdTai"], sources["ra"], sources["dec"] = (60500.0, 61010.0, 61005.0), 10.0, 0.0
    first = update(objects, NO_SOURCES, sources[:1], NO_FORCED, 60500.1)
    second = update(first, NO_SOURCES, sources[1:2], NO_FORCED, 61010.1)  # the first is older than is looked
    third = update(second, sources[1:2], sources[2:], NO_FORCED, 61020.0)
    assert third["nDiaSources"].tolist() == [3]
    assert third["lastDiaSourceMjdTai"].tolist() == [61010.0]


def test_an_object_without_sources_keeps_its_place() -> None:
    objects = _objects([(10.0, 0.0)])
    objects["raErr"] = 1e-5
    updated = update(objects, NO_SOURCES, empty("DiaSource", 0), NO_FORCED, NOW)[0]
    assert (updated["ra"], updated["dec"], updated["raErr"]) == (10.0, 0.0, np.float32(1e-5))
    assert updated["nDiaSources"] == updated["r_psfFluxNdata"] == 0
    assert np.isnan(updated["r_psfFluxMean"])


def test_no_objects_no_rows() -> None:
    assert len(update(empty("DiaObject", 0), NO_SOURCES, _sources(_objects([(1.0, 1.0)]), 2), NO_FORCED, NOW)) == 0


def test_the_input_is_left_as_it_was() -> None:
    objects = _objects([(10.0, 0.0)])
    sources = _sources(objects, 3)
    for table in (objects, sources):
        table.flags.writeable = False
    update(objects, NO_SOURCES, sources, NO_FORCED, NOW)
    assert objects["nDiaSources"][0] == 0


def test_tables_that_cannot_be_used_are_refused_by_name() -> None:
    objects = _objects([(10.0, 0.0)])
    sources = _sources(objects, 2)
    with pytest.raises(BadData, match="the DiaSource table holds diaSourceId 1000 more than once"):
        update(objects, NO_SOURCES, np.concatenate([sources, sources[sources["diaSourceId"] == 1000]]), NO_FORCED, NOW)
    with pytest.raises(BadData, match="the DiaForcedSource table has no column diaForcedSourceId"):
        update(objects, NO_SOURCES, sources, sources, NOW)
