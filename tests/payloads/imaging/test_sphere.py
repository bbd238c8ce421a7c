import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.imaging.sphere import local_axes, offsets_arcsec, position_at, unit_vectors
from schemas.wcs import separation_arcsec

OFFSET = st.floats(-30.0, 30.0)


@given(ra=st.floats(0.0, 359.999), dec=st.floats(-89.9, 89.9), east=OFFSET, north=OFFSET)
def test_an_offset_leads_back_to_itself(ra: float, dec: float, east: float, north: float) -> None:
    there = position_at(ra, dec, east, north)
    assert offsets_arcsec(*there, ra, dec) == pytest.approx((east, north), abs=1e-8)
    assert separation_arcsec(*there, ra, dec) == pytest.approx(np.hypot(east, north), abs=1e-5)


def test_ra_zero_is_crossed() -> None:
    ra, dec = position_at(359.9999, 10.0, 1.0, 0.0)
    assert 0.0 < ra < 0.001
    assert offsets_arcsec(0.0001, 10.0, 359.9999, 10.0)[0] == pytest.approx(0.72 * np.cos(np.radians(10.0)))
    assert dec == pytest.approx(10.0)


def test_the_pole_is_a_place_like_another() -> None:
    east, north = offsets_arcsec(180.0, 89.9999, 0.0, 89.9999)
    assert np.hypot(east, north) == pytest.approx(0.72, rel=1e-6)


def test_the_axes_point_east_and_north() -> None:
    ra, dec = np.array([10.0, 200.0]), np.array([-30.0, 60.0])
    east, north = local_axes(ra, dec)
    assert np.cross(unit_vectors(ra, dec), east) == pytest.approx(north)
    assert (unit_vectors(ra, dec + 1e-6) - unit_vectors(ra, dec)) / np.radians(1e-6) == pytest.approx(north, abs=1e-6)
