import numpy as np
import pytest

from payloads.drp.light_curves import light_curves
from schemas.drp_tables import forced_source_dtype, light_curve_dtype, object_dtype
from schemas.errors import BadData
from schemas.identity import object_id
from schemas.tables import Table, nulls

BANDS = ("g", "r")


def objects_of(n: int) -> Table:
    rows = nulls(object_dtype(), n)
    rows["tract"], rows["patch"] = 7, 9
    rows["objectId"] = [object_id(7, 9, number) for number in range(n)]
    return rows


def a_visit(objects: Table, visit: int, seed: int, scatter: float = 1.0) -> Table:
    rng = np.random.default_rng(seed)
    rows = nulls(forced_source_dtype(), len(objects))
    for name in ("objectId", "tract", "patch"):
        rows[name] = objects[name]
    rows["visit"], rows["detector"], rows["band"] = visit, 3, BANDS[visit % 2]
    rows["expMidptMJD"] = 61000.0 + 0.37 * visit
    rows["psfFluxErr"] = rng.uniform(5.0, 20.0, len(objects))
    rows["psfFlux"] = 100.0 + scatter * rows["psfFluxErr"] * rng.normal(size=len(objects))
    return rows


def test_forced_sources_come_in_the_order_of_object_and_time() -> None:
    objects = objects_of(30)
    visits = [a_visit(objects, visit, visit) for visit in (5, 2, 9, 1)]
    sources, _ = light_curves(objects, visits)
    assert sources.dtype == forced_source_dtype()
    assert len(sources) == 120
    np.testing.assert_array_equal(sources["objectId"], np.repeat(objects["objectId"], 4))
    np.testing.assert_array_equal(sources["visit"], np.tile([1, 2, 5, 9], 30))


def test_each_statistic_is_what_its_definition_says() -> None:
    objects = objects_of(3)
    sources, curves = light_curves(objects, [a_visit(objects, visit, visit, 2.0) for visit in range(12)])
    assert curves.dtype == light_curve_dtype()
    assert curves["band"].tolist() == ["g", "r"] * 3
    for row in curves:
        own = sources[(sources["objectId"] == row["objectId"]) & (sources["band"] == row["band"])]
        flux, error = own["psfFlux"].astype(np.float64), own["psfFluxErr"].astype(np.float64)
        mean = np.average(flux, weights=error**-2)
        pull = (flux - mean) / error
        scaled = pull**2 * 6.0 / 5.0 - 1.0
        wanted = {
            "psfFluxNdata": 6, "psfFluxMean": mean, "psfFluxMeanErr": np.sum(error**-2.0) ** -0.5,
            "psfFluxSigma": np.std(flux, ddof=1), "psfFluxMin": flux.min(), "psfFluxMax": flux.max(),
            "psfFluxErrMean": error.mean(), "psfFluxChi2": np.sum(pull**2) / 5.0,
            "psfFluxMaxSlope": np.max(np.diff(flux) / np.diff(own["expMidptMJD"])),
            "psfFluxStetsonJ": np.mean(np.sign(scaled) * np.sqrt(np.abs(scaled))),
            "firstMJD": own["expMidptMJD"][0], "lastMJD": own["expMidptMJD"][-1],
        }  # fmt: skip
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name


def test_what_is_constant_has_a_chi2_of_one_and_what_varies_more() -> None:
    objects = objects_of(200)
    _, quiet = light_curves(objects, [a_visit(objects, visit, visit) for visit in range(40)])
    _, wild = light_curves(objects, [a_visit(objects, visit, visit, 3.0) for visit in range(40)])
    assert quiet["psfFluxChi2"].mean() == pytest.approx(1.0, abs=0.06)
    assert wild["psfFluxChi2"].mean() == pytest.approx(9.0, rel=0.1)
    assert wild["psfFluxStetsonJ"].min() > quiet["psfFluxStetsonJ"].mean()


def test_points_that_are_flagged_or_null_do_not_count() -> None:
    objects = objects_of(2)
    visits = [a_visit(objects, visit, visit) for visit in range(8)]
    visits[2]["psfFlux"][0] = np.nan
    visits[4]["psfFlux_flag"][0] = True
    visits[6]["psfFluxErr"][0] = 0.0
    for visit in (1, 3, 5, 7):
        visits[visit]["psfFlux"][1] = np.nan
    sources, curves = light_curves(objects, visits)
    assert len(sources) == 16
    assert list(zip(curves["band"], curves["psfFluxNdata"], strict=True)) == [("g", 1), ("r", 4), ("g", 4)]
    lone = curves[0]
    assert all(np.isnan(lone[name]) for name in ("psfFluxSigma", "psfFluxChi2", "psfFluxStetsonJ", "psfFluxMaxSlope"))
    assert lone["psfFluxMin"] == lone["psfFluxMax"]


def test_no_objects_and_no_sources_give_no_rows() -> None:
    objects = objects_of(2)
    for sources, curves in (light_curves(objects[:0], []), light_curves(objects, [a_visit(objects, 1, 1)[:0]])):
        assert (len(sources), len(curves)) == (0, 0)
        assert sources.dtype == forced_source_dtype()


def test_sources_of_no_object_or_twice_in_a_visit_are_refused_by_name() -> None:
    objects = objects_of(3)
    visit = a_visit(objects, 4, 1)
    with pytest.raises(BadData, match=f"no object {objects['objectId'][2]}"):
        light_curves(objects[:2], [visit])
    with pytest.raises(BadData, match=f"object {objects['objectId'][0]} comes twice in visit 4 detector 3"):
        light_curves(objects, [visit, visit])
    visit["band"] = "w"
    with pytest.raises(BadData, match="no known band: 'w'"):
        light_curves(objects, [visit])
