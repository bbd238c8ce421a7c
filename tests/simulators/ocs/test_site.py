import erfa
import numpy as np

from schemas.clock import TAI_MINUS_UTC, day_obs_of, mjd_from_tai
from simulators.ocs import site

TIMES = 1783290968.0 + 86400.0 * np.linspace(-180, 180, 37)


def _utc_and_tt(tai: float) -> tuple[float, float]:
    return mjd_from_tai(tai - TAI_MINUS_UTC), mjd_from_tai(tai + 32.184)


def test_the_sun_stands_where_the_iau_routines_have_it() -> None:
    for tai in TIMES:
        ut1, tt = _utc_and_tt(tai)
        earth = erfa.epv00(2400000.5, tt)[0]["p"]
        ra, dec = erfa.c2s(-(erfa.pnm06a(2400000.5, tt) @ earth))
        angle = erfa.gst06a(2400000.5, ut1, 2400000.5, tt) + np.radians(site.LONGITUDE) - ra
        altitude = np.degrees(erfa.hd2ae(angle, dec, np.radians(site.LATITUDE))[1])
        assert abs(site.sun_altitude(tai) - altitude) < 0.05


def test_the_hour_angle_follows_the_earths_turning() -> None:
    for tai in TIMES:
        ut1, tt = _utc_and_tt(tai)
        sidereal = np.degrees(erfa.gmst06(2400000.5, ut1, 2400000.5, tt)) + site.LONGITUDE
        assert abs((site.hour_angle(10.0, tai) - (sidereal - 10.0) + 180.0) % 360.0 - 180.0) < 0.01


def test_latitudes_are_those_of_the_iau_frames() -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 200), np.degrees(np.arcsin(rng.uniform(-1, 1, 200)))
    galactic = np.degrees(erfa.icrs2g(np.radians(ra), np.radians(dec))[1])
    np.testing.assert_allclose(site.galactic_latitude(ra, dec), galactic, atol=1e-3)
    ecliptic = np.degrees(erfa.eqec06(2451545.0, 0.0, np.radians(ra), np.radians(dec))[1])
    np.testing.assert_allclose(site.ecliptic_latitude(ra, dec), ecliptic, atol=1e-3)


def test_the_dark_hours_lie_in_their_night_and_are_longer_in_winter() -> None:
    for day_obs in (20260105, 20260705, 20261221):
        first, last = site.dark_hours(day_obs)
        assert day_obs_of(first) == day_obs_of(last) == day_obs
        edge = site.sun_altitude([first - 60, first, last, last + 60])
        assert np.all((edge < -18.0) == [False, True, True, False])
    assert np.diff(site.dark_hours(20260705)) > np.diff(site.dark_hours(20260105)) + 3 * 3600
