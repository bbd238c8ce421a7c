import numpy as np
import pytest

from payloads.alert_production.forced import FORCED_DTYPE, forced_photometry
from payloads.alert_production.subtract import Subtraction
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
