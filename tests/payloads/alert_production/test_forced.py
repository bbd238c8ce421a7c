import numpy as np
import pytest

from payloads.alert_production.forced import FORCED_DTYPE, forced_photometry, forced_sources
from payloads.alert_production.subtract import Subtraction
from schemas.clock import mjd_from_tai
from schemas.identity import dia_forced_source_id
from schemas.image import DiaProducts
from schemas.tables import empty
from tests.payloads.alert_production.pairs import Pair


def test_fluxes_are_forced_at_the_places_given(pair: Pair, subtraction: Subtraction) -> None:
    ra, dec = pair.science.wcs.pixel_to_sky(pair.x, pair.y)
    table = forced_photometry(subtraction.difference, pair.science, ra, dec)
    assert table.dtype == FORCED_DTYPE
    np.testing.assert_allclose(table["x"], pair.x, atol=1e-6)
    usable = table[table["usable"]]
    pulls = (usable["psfFlux"] - pair.flux[table["usable"]]) / usable["psfFluxErr"]
    assert usable.size > 50
    assert 1.4826 * np.median(np.abs(pulls - np.median(pulls))) == pytest.approx(1.0, abs=0.35)
    assert (usable["scienceFluxErr"] > 0).all()


def test_a_place_off_the_image_or_on_its_rim_is_not_usable(pair: Pair, subtraction: Subtraction) -> None:
    x, y = np.array([-300.0, 500.0, 3.0]), np.array([20.0, 5000.0, 500.0])
    table = forced_photometry(subtraction.difference, pair.science, *pair.science.wcs.pixel_to_sky(x, y))
    assert not table["usable"].any()
    assert np.isnan(table["psfFlux"]).all()
    assert np.isfinite(table["scienceFlux"][2])  # the science image has light there


def test_no_places_make_no_rows(pair: Pair, subtraction: Subtraction) -> None:
    assert forced_photometry(subtraction.difference, pair.science, np.empty(0), np.empty(0)).size == 0


def test_rows_are_of_the_usable_objects_in_order_and_say_where_and_when(pair: Pair, subtraction: Subtraction) -> None:
    products = DiaProducts(empty("DiaSource", 0), (), subtraction.difference, pair.science, {})
    objects = empty("DiaObject", 3)
    x, y = np.array([pair.x[0], -300.0, pair.x[1]]), np.array([pair.y[0], 0.0, pair.y[1]])
    objects["diaObjectId"] = 30, 20, 10
    objects["ra"], objects["dec"] = pair.science.wcs.pixel_to_sky(x, y)
    visit, detector, processed = 2026070500001, 94, 1.7833e9
    rows = forced_sources(products, objects, visit=visit, detector=detector, processed=processed)
    assert rows["diaObjectId"].tolist() == [10, 30]
    assert rows["diaForcedSourceId"].tolist() == [dia_forced_source_id(visit, detector, n) for n in (0, 1)]
    when = mjd_from_tai(subtraction.difference.midpoint), mjd_from_tai(processed)
    for row in rows[["visit", "detector", "band", "midpointMjdTai", "timeProcessedMjdTai"]]:
        assert tuple(row) == (visit, detector, pair.science.band, *when)
    assert np.isnan(rows["timeWithdrawnMjdTai"]).all()
    alone = forced_photometry(subtraction.difference, pair.science, objects["ra"][:1], objects["dec"][:1])
    for name in ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr"):
        assert rows[name][1] == alone[name][0]
