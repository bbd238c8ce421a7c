import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import EarthLocation, get_body_barycentric_posvel
from astropy.time import Time
from astropy.utils import iers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from payloads.alert_production.ephemerides import Night, OrbitCatalogue, apparent_magnitude
from schemas.errors import BadData
from schemas.identity import ss_object_id
from schemas.tables import EPHEMERIS_DTYPE, Table, empty
from schemas.wcs import separation_arcsec

MJD = 61041.22
LIGHT = 299792.458 * 86400.0 / 149597870.7


def _orbits(count: int, seed: int = 5) -> Table:
    """Main belt, near-Earth, distant and unbound ones, about MJD."""
    rng = np.random.default_rng(seed)
    table = empty("mpc_orbits", count)
    table["designation"] = [f"2031 AA{k}" for k in range(count)]
    table["q"] = np.choose(
        rng.integers(0, 3, count), [rng.uniform(1.9, 3.2, count), rng.uniform(0.3, 1.1, count), 34.0]
    )
    table["e"] = np.choose(rng.integers(0, 4, count), [0.05, 0.3, 0.93, 1.0 + rng.uniform(-1e-6, 0.5, count)])
    for name, top in (("i", 60.0), ("node", 360.0), ("argperi", 360.0)):
        table[name] = rng.uniform(0.0, top, count)
    table["peri_time"], table["epoch_mjd"] = MJD + rng.uniform(-400.0, 400.0, count), MJD - 1.0
    table["h"], table["g"] = rng.uniform(12.0, 24.0, count), np.where(rng.random(count) < 0.5, np.nan, 0.2)
    return table


def _all_sky(catalogue: OrbitCatalogue, mjd: float = MJD) -> Table:
    return catalogue.predict(0.0, 0.0, 180.0, mjd)


def _turn(angle_deg: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[[1, 0, 0], [0, c, -s], [0, s, c]], None, [[c, -s, 0], [s, c, 0], [0, 0, 1]]][axis])


def _barycentric_path(orbit: np.void, mjd_tt: float) -> np.ndarray:
    """Heliocentric equatorial position by integrating Newton's law from perihelion."""
    k2 = 0.01720209895**2
    start = [orbit["q"], 0.0, 0.0, 0.0, np.sqrt(k2 * (1.0 + orbit["e"]) / orbit["q"]), 0.0]
    path = solve_ivp(
        lambda _, s: np.concatenate([s[3:], -k2 * s[:3] / np.linalg.norm(s[:3]) ** 3]),
        (0.0, mjd_tt - orbit["peri_time"]), start, method="DOP853", rtol=1e-12, atol=1e-14,
    )  # fmt: skip
    turned = _turn(orbit["node"], 2) @ _turn(orbit["i"], 0) @ _turn(orbit["argperi"], 2) @ path.y[:3, -1]
    return _turn(84381.448 / 3600.0, 0) @ turned


def _place_by_astropy(orbit: np.void, mjd_tai: float) -> tuple[float, float, float]:
    """RA, dec (deg) and range (au): Sun, Earth and site by astropy, light time by repeated integration."""
    time = Time(mjd_tai, format="mjd", scale="tai")
    site = EarthLocation.from_geodetic(-70.749417 * u.deg, -30.244639 * u.deg, 2663.0 * u.m)
    earth = get_body_barycentric_posvel("earth", time, ephemeris="builtin")[0]
    here = (earth + site.get_gcrs_posvel(time)[0]).xyz.to_value(u.au)
    delay = 0.0
    for _ in range(4):
        then = time - delay * u.day
        sun = get_body_barycentric_posvel("sun", then, ephemeris="builtin")[0].xyz.to_value(u.au)
        offset = sun + _barycentric_path(orbit, then.tt.mjd) - here
        delay = np.linalg.norm(offset) / LIGHT
    x, y, z = offset
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y))), delay * LIGHT


def test_positions_are_those_of_an_integration_seen_through_astropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iers.conf, "auto_download", False)
    orbits = _orbits(12)
    found = _all_sky(OrbitCatalogue(orbits))
    for orbit, row in zip(orbits, found, strict=True):
        ra, dec, distance = _place_by_astropy(orbit, MJD)
        assert separation_arcsec(ra, dec, row["ra"], row["dec"]) < 0.002
        assert row["topo_range"] == pytest.approx(distance, abs=1e-8)


def test_mars_is_found_with_standishs_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements of J2000 (Standish & Williams, Approximate Positions of the Planets, table 1); 1 arcmin."""
    monkeypatch.setattr(iers.conf, "auto_download", False)
    table = empty("mpc_orbits", 1)
    table["designation"], table["e"], table["i"], table["node"] = "Mars", 0.09339410, 1.84969142, 49.55953891
    a, longitude, perihelion = 1.52371034, -4.55343205, -23.94362959
    table["q"], table["argperi"] = a * (1.0 - 0.09339410), perihelion - 49.55953891
    table["peri_time"] = 51544.5 - np.radians(longitude - perihelion) * a**1.5 / 0.01720209895
    mjd = 51700.3
    row = _all_sky(OrbitCatalogue(table), mjd)[0]
    time = Time(mjd, format="mjd", scale="tai")
    mars, earth = (
        get_body_barycentric_posvel(body, time, ephemeris="builtin")[0].xyz.to_value(u.au) for body in ("mars", "earth")
    )
    x, y, z = mars - earth
    apart = separation_arcsec(
        np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), row["ra"], row["dec"]
    )
    assert apart < 90.0  # light time alone moves Mars by 25 arcsec


def test_rates_are_those_of_the_positions() -> None:
    catalogue, step = OrbitCatalogue(_orbits(300)), 1e-4
    before, now, after = (_all_sky(catalogue, MJD + dt) for dt in (-step, 0.0, step))
    ra_rate = (after["ra"] - before["ra"] + 180.0) % 360.0 - 180.0
    ra_rate *= np.cos(np.radians(now["dec"])) / (2.0 * step)
    assert now["rate_ra"] == pytest.approx(ra_rate, rel=1e-5, abs=1e-5)
    assert now["rate_dec"] == pytest.approx((after["dec"] - before["dec"]) / (2.0 * step), rel=1e-5, abs=1e-5)
    range_rate = (after["topo_range"] - before["topo_range"]) / (2.0 * step)
    assert now["range_rate"] == pytest.approx(range_rate, rel=1e-5, abs=1e-8)


def test_the_triangle_of_sun_object_and_observer_closes() -> None:
    found = _all_sky(OrbitCatalogue(_orbits(200)))
    r, delta, phase = found["helio_range"], found["topo_range"], np.radians(found["phase_angle"])
    earth = np.sqrt(r**2 + delta**2 - 2.0 * r * delta * np.cos(phase))
    assert earth == pytest.approx(np.full(200, 0.9833), abs=2e-4)  # early January


def test_magnitude_at_opposition_needs_no_phase() -> None:
    assert apparent_magnitude(15.0, 0.15, 2.0, 1.0, 0.0) == pytest.approx(15.0 + 5.0 * np.log10(2.0))
    assert apparent_magnitude(15.0, np.nan, 2.0, 1.0, 20.0) == apparent_magnitude(15.0, 0.15, 2.0, 1.0, 20.0)
    dimming = -2.5 * np.log10(0.85 * np.exp(-3.33 * np.tan(0.1) ** 0.63) + 0.15 * np.exp(-1.87 * np.tan(0.1) ** 1.22))
    assert apparent_magnitude(0.0, 0.15, 1.0, 1.0, np.degrees(0.2)) == pytest.approx(dimming)


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.9, 20.0), (123.0, -90.0), (40.0, 88.0), (266.0, -24.0)])
@pytest.mark.parametrize("radius", [0.2, 25.0, 180.0])
def test_a_night_sees_what_the_whole_catalogue_sees(ra: float, dec: float, radius: float) -> None:
    catalogue = OrbitCatalogue(_orbits(4000))
    night = Night(catalogue, MJD)
    for dt in (-0.5, 0.1, 0.49):
        assert np.array_equal(
            night.predict(ra, dec, radius, MJD + dt),
            catalogue.predict(ra, dec, radius, MJD + dt),
            equal_nan=False,
        )


@given(ra=st.floats(0.0, 359.999), dec=st.floats(-90.0, 90.0), radius=st.floats(0.0, 180.0))
@settings(max_examples=60, deadline=None)
def test_only_those_in_the_field_are_told(ra: float, dec: float, radius: float) -> None:
    catalogue = OrbitCatalogue(_orbits(300))
    everything, field = _all_sky(catalogue), catalogue.predict(ra, dec, radius, MJD)
    distance = separation_arcsec(everything["ra"], everything["dec"], ra, dec) / 3600.0
    clear = np.abs(distance - radius) > 1e-6
    told = np.isin(everything["ssObjectId"], field["ssObjectId"])
    assert np.array_equal(told[clear], (distance <= radius)[clear])
    assert np.array_equal(field, everything[told], equal_nan=False)


def test_the_match_radius_grows_with_the_age_of_the_elements() -> None:
    orbits = _orbits(3)
    orbits["epoch_mjd"] = MJD, MJD - 30.0, MJD + 5000.0
    assert _all_sky(OrbitCatalogue(orbits))["radius"] == pytest.approx([1.0, 2.5, 10.0])


def test_orbits_that_cannot_be_followed_are_named() -> None:
    orbits = _orbits(6)
    orbits["q"][1], orbits["e"][2], orbits["node"][3], orbits["designation"][5] = (
        0.0,
        -0.1,
        np.nan,
        "2031 AA4",
    )
    catalogue = OrbitCatalogue(orbits)
    assert catalogue.refused == ("2031 AA1", "2031 AA2", "2031 AA3", "2031 AA4")
    assert _all_sky(catalogue)["designation"].tolist() == ["2031 AA0", "2031 AA4"]


def test_an_object_that_was_predicted_has_its_orbit() -> None:
    orbits = _orbits(20)
    orbits["q"][3] = np.nan
    catalogue = OrbitCatalogue(orbits)
    wanted = _all_sky(catalogue)[[15, 2]]
    found = Night(catalogue, MJD).orbits_of(wanted["ssObjectId"])
    assert found["designation"].tolist() == wanted["designation"].tolist() == ["2031 AA16", "2031 AA2"]
    assert len(catalogue.orbits_of(np.zeros(0, np.int64))) == 0
    with pytest.raises(BadData, match="no orbit of the catalogue is of ssObjectId 5"):
        catalogue.orbits_of(np.array([5]))


def test_a_night_lasts_a_day() -> None:
    night = Night(OrbitCatalogue(_orbits(2)), MJD)
    assert [night.covers(MJD + days) for days in (-0.6, -0.5, 0.0, 0.5, 0.6)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_an_empty_catalogue_sees_nothing() -> None:
    catalogue = OrbitCatalogue(empty("mpc_orbits", 0))
    assert len(_all_sky(catalogue)) == 0
    assert Night(catalogue, MJD).predict(1.0, 2.0, 3.0, MJD).dtype == EPHEMERIS_DTYPE


def test_a_time_of_another_night_is_refused() -> None:
    with pytest.raises(BadData, match=r"MJD 61042\.22 is not within 0\.5 d"):
        Night(OrbitCatalogue(_orbits(2)), MJD).predict(0.0, 0.0, 1.0, MJD + 1.0)


def test_a_table_without_elements_is_refused_by_column() -> None:
    with pytest.raises(BadData, match="mpc_orbits has no column argperi"):
        OrbitCatalogue(np.zeros(1, [d for d in _orbits(1).dtype.descr if d[0] != "argperi"]))


def test_read_only_orbits_will_do() -> None:
    orbits = _orbits(5)
    orbits.flags.writeable = False
    assert len(_all_sky(OrbitCatalogue(orbits))) == 5


def test_an_objects_number_comes_from_its_name() -> None:
    assert ss_object_id("2008 AB") == 5238447401658179367
    assert ss_object_id("2008 AB") != ss_object_id("2008 AC")
    with pytest.raises(BadData, match="empty designation"):
        ss_object_id("")
