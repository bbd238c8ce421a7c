"""The minor planets against independent witnesses: Newton's law integrated, astropy's Earth, brute force."""

import re

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import EarthLocation, get_body_barycentric
from astropy.time import Time
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from schemas.tables import Table, dtype_of
from schemas.wcs import separation_arcsec
from simulators.sky.asteroids import FAINTEST_V, Asteroids, _dimming
from simulators.sky.kepler import GAUSS_K, motions, observatory, seen_from
from simulators.sky.population import designations
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind, nanojansky

Floats = NDArray[np.float64]
MJD = 61226.2
TT_MINUS_TAI = 32.184 / 86400.0
SPEED_OF_LIGHT = 173.144632674  # au/day
OBLIQUITY = np.radians(84381.448 / 3600.0)


def rotation(axis: int, angle: float) -> Floats:
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def state_at_perihelion(q: float, e: float, angles: Floats) -> Floats:
    inclination, node, argument = np.radians(angles)
    turn = rotation(0, OBLIQUITY) @ rotation(2, node) @ rotation(0, inclination) @ rotation(2, argument)
    speed = GAUSS_K * np.sqrt((1.0 + e) / q)
    return np.concatenate([turn @ [q, 0.0, 0.0], turn @ [0.0, speed, 0.0]])


def newton(_: float, state: Floats) -> Floats:
    return np.concatenate([state[3:], -(GAUSS_K**2) * state[:3] / np.linalg.norm(state[:3]) ** 3])


def integrated(q: float, e: float, angles: Floats, days: float) -> Floats:
    """Heliocentric position (au) `days` after perihelion: Newton's law, integrated."""
    start = state_at_perihelion(q, e, angles)
    answer = solve_ivp(newton, (0.0, days), start, method="DOP853", rtol=1e-12, atol=1e-14)
    result: Floats = answer.y[:3, -1]
    return result


def apparent(q: float, e: float, angles: Floats, days: float, observer: Floats) -> Floats:
    """The vector from an observer to where a body was when its light left."""
    delay = 0.0
    for _ in range(4):
        towards = integrated(q, e, angles, days - delay) - observer
        delay = float(np.linalg.norm(towards)) / SPEED_OF_LIGHT
    return towards


def angles_of(vector: Floats) -> tuple[float, float]:
    x, y, z = vector
    return float(np.degrees(np.arctan2(y, x)) % 360.0), float(np.degrees(np.arcsin(z / np.linalg.norm(vector))))


@pytest.mark.parametrize("e", [0.0, 0.1, 0.5, 0.9])
def test_a_body_moves_as_newtons_law_integrated_says(e: float) -> None:
    a, orientation = 2.3, np.array([[12.0], [200.0], [77.0]])
    motion = motions(np.array([a]), np.array([e]), orientation, np.array([0.0]))
    observer = observatory(MJD)
    for days in (1.0, 150.0, 900.0):
        towards, from_sun = seen_from(motion, days, observer)
        expected = apparent(a * (1.0 - e), e, orientation[:, 0], days, observer)
        np.testing.assert_allclose(towards[0], expected, atol=2e-9)
        assert from_sun[0] == pytest.approx(np.linalg.norm(expected + observer), abs=2e-9)


def test_energy_is_kept_over_a_century_at_any_eccentricity() -> None:
    e = np.linspace(0.0, 0.95, 500)
    a = np.full(500, 1.7)
    angles = np.random.default_rng(3).uniform(0.0, 180.0, (3, 500))
    motion = motions(a, e, angles, np.random.default_rng(4).uniform(0.0, 360.0, 500))
    far = np.zeros(3)
    far.flags.writeable = False  # as observatory() gives it
    for days in (-36525.0, 0.0, 36525.0):
        step = 1e-3
        (before, _), (here, r), (after, _) = (seen_from(motion, days + s, far) for s in (-step, 0.0, step))
        velocity = (after - before) / (2.0 * step)
        energy = 0.5 * np.sum(velocity**2, axis=1) - GAUSS_K**2 / r
        error = (energy + GAUSS_K**2 / (2.0 * a)) / (GAUSS_K**2 / r)
        assert np.abs(error).max() < 1e-3  # the differences are in light's arrival: v/c is up to 5e-4 of the speed
        np.testing.assert_allclose(np.linalg.norm(here, axis=1), r)


def test_the_observatory_is_where_astropy_has_it() -> None:
    time = Time(59000.3, format="mjd", scale="tai")
    rubin = EarthLocation.from_geodetic(-70.749417 * units.deg, -30.244639 * units.deg, 2663.0 * units.m)
    earth, sun = (get_body_barycentric(body, time, ephemeris="builtin") for body in ("earth", "sun"))
    site = rubin.get_gcrs(time).cartesian.xyz.to_value(units.km)
    expected = (earth - sun).xyz.to_value(units.km) + site
    ours = observatory(59000.3) * 149597870.7
    assert np.linalg.norm(site) > 6000.0
    assert np.linalg.norm(ours - expected) < 2.0


def test_fields_hold_what_brute_force_finds(sky: Sky) -> None:
    bodies = sky._asteroids
    for mjd, ra, dec in ((61226.001, 280.0, -23.0), (61226.999, 0.0, 0.0), (61227.5, 100.0, 60.0)):
        days = mjd + TT_MINUS_TAI - 61200.0
        observer = observatory(mjd)
        towards, from_sun = seen_from(bodies._motions, days, observer)
        a, d = np.radians([ra, dec])
        center = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
        near = towards @ center / np.linalg.norm(towards, axis=1) >= np.cos(np.radians(3.0))
        bright = bodies.bodies["h"] + _dimming(towards, from_sun, observer) < FAINTEST_V
        found = sky.asteroids(ra, dec, 3.0, "r", mjd)
        assert (np.sort(found["id"]) & 0xFFFFFFFF).tolist() == np.flatnonzero(near & bright).tolist()


def test_rates_are_the_motion_of_the_next_minutes(sky: Sky) -> None:
    now, later = (sky.asteroids(280.0, -23.0, 1.75, "r", MJD + s / 86400.0) for s in (0.0, 600.0))
    ids = np.intersect1d(now["id"], later["id"])
    a, b = (np.sort(t[np.isin(t["id"], ids)], order="id") for t in (now, later))
    assert len(a) > 300
    north = (b["dec"] - a["dec"]) * 3600.0 / 600.0
    east = (b["ra"] - a["ra"]) * np.cos(np.radians(a["dec"])) * 3600.0 / 600.0
    slow = np.hypot(a["rate_ra"], a["rate_dec"]) < 0.05
    assert slow.mean() > 0.98
    np.testing.assert_allclose(a["rate_dec"][slow], north[slow], atol=2e-4)
    np.testing.assert_allclose(a["rate_ra"][slow], east[slow], atol=2e-4)
    # The main belt near opposition: about 0.2 deg/day.
    assert 0.005 < np.median(np.hypot(a["rate_ra"], a["rate_dec"])) < 0.02


def test_the_ecliptic_has_a_few_bodies_a_detector_and_the_poles_next_to_none(sky: Sky) -> None:
    for center in ((280.0, -23.0), (224.0, -16.5), (14.0, 6.0)):
        found = sky.asteroids(*center, 1.75, "r", MJD)
        per_detector = np.sum(found["flux"] > nanojansky(24.4)) * 0.0518 / (np.pi * 1.75**2)
        assert 2.0 < per_detector < 6.0
    assert len(sky.asteroids(270.0, 66.6, 1.75, "r", MJD)) < 20


def test_bodies_shine_as_the_hg_system_says() -> None:
    observer = np.array([1.0, 0.0, 0.0])
    opposition = _dimming(np.array([[1.0, 0.0, 0.0]]), np.array([2.0]), observer)
    assert opposition[0] == pytest.approx(5.0 * np.log10(2.0))
    body = np.array([2.0, 0.0, 0.0])
    watcher = body - 1.5 * np.array([np.cos(np.radians(20.0)), np.sin(np.radians(20.0)), 0.0])
    dimming = _dimming((body - watcher)[None], np.array([2.0]), watcher)
    assert dimming[0] - 5.0 * np.log10(3.0) == pytest.approx(1.00, abs=0.01)  # G = 0.15, worked by hand


@pytest.fixture(scope="module")
def orbits(sky: Sky) -> Table:
    return sky.orbits()


def test_known_orbits_predict_the_bodies_seen(sky: Sky, orbits: Table) -> None:
    assert orbits.dtype == dtype_of("mpc_orbits")
    seen = sky.asteroids(280.0, -23.0, 0.7, "r", MJD)
    numbers = seen["id"] & 0xFFFFFFFF
    known = np.isin(numbers, orbits["id"] - 1)
    assert 0.6 < known.mean() < 0.95
    for row in seen[known][:15]:
        (orbit,) = orbits[orbits["id"] == (row["id"] & 0xFFFFFFFF) + 1]
        days = MJD + TT_MINUS_TAI - orbit["peri_time"]
        orientation = np.array([orbit[name] for name in ("i", "node", "argperi")])
        towards = apparent(orbit["q"], orbit["e"], orientation, days, observatory(MJD))
        assert separation_arcsec(*angles_of(towards), row["ra"], row["dec"]) < 1e-3


def test_known_orbits_are_consistent(orbits: Table) -> None:
    assert len(orbits) / 547_500 == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(orbits["q"], orbits["a"] * (1.0 - orbits["e"]))
    np.testing.assert_allclose(orbits["period"], 365.2568983 * orbits["a"] ** 1.5, rtol=1e-6)  # Gauss' year
    phase = (orbits["epoch_mjd"] - orbits["peri_time"]) * orbits["mean_motion"]
    np.testing.assert_allclose(np.mod(phase - orbits["mean_anomaly"] + 180.0, 360.0), 180.0, atol=1e-6)
    assert (orbits["epoch_mjd"] == 61200.0).all()
    assert (orbits["g"] == 0.15).all()


def test_designations_are_unique_and_well_formed(orbits: Table) -> None:
    assert len(np.unique(orbits["designation"])) == len(orbits)
    assert (orbits["designation"] == orbits["unpacked_primary_provisional_designation"]).all()
    for unpacked, packed in zip(
        orbits["designation"][::4001], orbits["packed_primary_provisional_designation"][::4001], strict=True
    ):
        match = re.fullmatch(r"20(\d\d) ([A-HJ-Y])([A-HJ-Z])([1-9]\d?)?", unpacked)
        assert match, unpacked
        year, half_month, letter, cycle = match.groups()
        assert packed == f"K{year}{half_month}{int(cycle or 0):02d}{letter}"


def test_the_first_designations_are_those_of_the_rule() -> None:
    unpacked, packed = designations(np.array([0, 24, 25, 600, 60_000, 60_600 + 599]))
    assert unpacked.tolist() == ["2000 AA", "2000 AZ", "2000 BA", "2000 AA1", "2001 AA", "2001 YZ1"]
    assert packed.tolist() == ["K00A00A", "K00A00Z", "K00B00A", "K00A01A", "K01A00A", "K01Y01Z"]


def test_populations_are_where_they_belong(sky: Sky) -> None:
    bodies = sky._asteroids.bodies
    main_belt = np.mean((bodies["a"] > 2.1) & (bodies["a"] < 3.3))
    assert main_belt > 0.9
    trojans = bodies[(bodies["a"] > 5.0) & (bodies["a"] < 5.4)]
    longitude = trojans["node"] + trojans["argperi"] + trojans["mean_anomaly"] - 116.6
    away = np.abs(np.mod(longitude + 180.0, 360.0) - 180.0)
    assert np.median(away) == pytest.approx(60.0, abs=2.0)
    assert np.sum(bodies["a"] * (1.0 - bodies["e"]) < 1.3) > 5000
    assert np.sum(bodies["a"] > 30.0) > 5000


def test_drawing_again_gives_the_same_bodies(sky: Sky) -> None:
    assert Asteroids(sky.seed).bodies.tobytes() == sky._asteroids.bodies.tobytes()


def test_a_body_is_a_point_of_its_kind(sky: Sky) -> None:
    found = sky.sources(280.0, -23.0, 0.5, "r", MJD)
    bodies = found[found["kind"] == Kind.ASTEROID]
    assert len(bodies)
    assert bodies.tobytes() == sky.asteroids(280.0, -23.0, 0.5, "r", MJD).tobytes()
    assert (bodies["radius"] == 0.0).all()
