import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import EarthLocation, get_body_barycentric_posvel
from astropy.time import Time
from astropy.utils import iers
from numpy.typing import NDArray

from payloads.alert_production.observatory import AU_KM, HEIGHT, LATITUDE, LONGITUDE, observer_at

Motion = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

MJD = np.array([59000.1, 61041.22, 61400.9])


@pytest.fixture
def by_astropy(monkeypatch: pytest.MonkeyPatch) -> Motion:
    """Position (au), velocity (au/day) from the Sun, and the Sun's; measured UT1 and polar motion."""
    monkeypatch.setattr(iers.conf, "auto_download", False)
    monkeypatch.setattr(iers.conf, "auto_max_age", None)  # the table that came along grows old
    time = Time(MJD, format="mjd", scale="tai")
    site = EarthLocation.from_geodetic(LONGITUDE * u.deg, LATITUDE * u.deg, HEIGHT * u.m)
    earth, sun = (get_body_barycentric_posvel(body, time, ephemeris="builtin") for body in ("earth", "sun"))
    place, motion = site.get_gcrs_posvel(time)
    position = (earth[0] - sun[0] + place).xyz.to_value(u.au).T
    velocity = (earth[1] - sun[1] + motion).xyz.to_value(u.au / u.day).T
    return position, velocity, sun[1].xyz.to_value(u.au / u.day).T


def test_the_observatory_is_where_astropy_has_it(by_astropy: Motion) -> None:
    found = observer_at(MJD)
    assert np.abs(found.position - by_astropy[0]).max() * AU_KM < 0.5
    assert np.abs(found.velocity - by_astropy[1]).max() * AU_KM / 86400.0 < 1e-4
    assert np.abs(found.sun_velocity - by_astropy[2]).max() * AU_KM / 86400.0 < 1e-4


def test_one_time_gives_one_place() -> None:
    one, many = observer_at(MJD[0]), observer_at(MJD)
    assert one.position.shape == (3,)
    assert one.position == pytest.approx(many.position[0])
