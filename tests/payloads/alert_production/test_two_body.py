from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from payloads.alert_production.two_body import GAUSS_K, OBLIQUITY, in_plane, orbit_axes, stumpff

Floats = NDArray[np.float64]
State = tuple[float, float, float, float]


def _ellipse(q: float, e: float, days: float) -> State:
    """Kepler's equation by bisection."""
    a = q / (1.0 - e)
    mean = GAUSS_K * a**-1.5 * days
    turns = np.round(mean / (2 * np.pi))
    anomaly = brentq(lambda x: x - e * np.sin(x) - (mean - 2 * np.pi * turns), -4.0, 4.0, xtol=1e-15)
    rate = GAUSS_K * a**-1.5 / (1.0 - e * np.cos(anomaly))
    b = a * np.sqrt(1.0 - e * e)
    c, s = np.cos(anomaly), np.sin(anomaly)
    return a * (c - e), b * s, -a * rate * s, b * rate * c


def _hyperbola(q: float, e: float, days: float) -> State:
    a = q / (e - 1.0)
    mean = GAUSS_K * a**-1.5 * days
    anomaly = brentq(lambda x: e * np.sinh(x) - x - mean, -30.0, 30.0, xtol=1e-15)
    rate = GAUSS_K * a**-1.5 / (e * np.cosh(anomaly) - 1.0)
    b = a * np.sqrt(e * e - 1.0)
    c, s = np.cosh(anomaly), np.sinh(anomaly)
    return a * (e - c), b * s, -a * rate * s, b * rate * c


def _parabola(q: float, days: float) -> State:
    """Barker's equation, by its real root."""
    roots = np.roots([1.0 / 3.0, 0.0, 1.0, -GAUSS_K * days / np.sqrt(2.0 * q**3)])
    tangent = roots[np.argmin(np.abs(roots.imag))].real
    speed = GAUSS_K * np.sqrt(2.0 / q) / (1.0 + tangent**2)
    return q * (1.0 - tangent**2), 2.0 * q * tangent, -speed * tangent, speed


@pytest.mark.parametrize("e", [0.0, 0.08, 0.5, 0.89, 0.91, 0.99, 0.9999])
@pytest.mark.parametrize("days", [0.0, -1e-6, 3.0, -300.0, 1234.5, -40000.0])
def test_an_ellipse_follows_keplers_equation(e: float, days: float) -> None:
    found, expected = in_plane(1.3, e, days), _ellipse(1.3, e, days)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("e", [1.0001, 1.2, 3.4, 6.1])
@pytest.mark.parametrize("days", [0.0, 1e-6, -25.0, 900.0, -40000.0])
def test_a_hyperbola_follows_keplers_equation(e: float, days: float) -> None:
    found, expected = in_plane(0.26, e, days), _hyperbola(0.26, e, days)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("days", [0.0, 0.1, -30.0, 5000.0])
def test_a_parabola_follows_barkers_equation(days: float) -> None:
    assert in_plane(0.7, 1.0, days) == pytest.approx(_parabola(0.7, days), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("days", [-400.0, 2.0, 3000.0])
def test_nothing_jumps_at_the_parabola(days: float) -> None:
    just_below, just_above = in_plane(0.5, 1.0 - 1e-12, days), in_plane(0.5, 1.0 + 1e-12, days)
    assert just_below == pytest.approx(just_above, rel=1e-9, abs=1e-12)


@given(q=st.floats(0.005, 60.0), e=st.floats(0.0, 4.0), days=st.floats(-2e4, 2e4))
@settings(max_examples=300, deadline=None)
def test_energy_and_angular_momentum_are_kept(q: float, e: float, days: float) -> None:
    x, y, vx, vy = in_plane(q, e, days)
    mu = GAUSS_K**2
    kinetic, potential = (vx * vx + vy * vy) / 2.0, mu / np.hypot(x, y)
    assert kinetic - potential == pytest.approx(-mu * (1.0 - e) / (2.0 * q), abs=1e-9 * potential + 1e-14 * kinetic)
    assert x * vy - y * vx == pytest.approx(np.sqrt(mu * q * (1.0 + e)), rel=1e-9)


@given(q=st.floats(0.005, 60.0), e=st.floats(0.0, 0.99) | st.floats(1.01, 4.0), days=st.floats(-2e4, 2e4))
@settings(max_examples=200, deadline=None)
def test_every_orbit_follows_keplers_equation(q: float, e: float, days: float) -> None:
    expected = (_ellipse if e < 1.0 else _hyperbola)(q, e, days)
    distance, speed = np.hypot(*expected[:2]), GAUSS_K * np.sqrt((1.0 + e) / q)
    found = in_plane(q, e, days)
    assert found[:2] == pytest.approx(expected[:2], abs=1e-8 * distance)
    assert found[2:] == pytest.approx(expected[2:], abs=1e-8 * speed)


@given(psi=st.floats(-40.0, 40.0))
@settings(max_examples=200, deadline=None)
def test_stumpffs_functions_are_their_power_series(psi: float) -> None:
    powers = [(-psi) ** k for k in range(40)]
    expected = tuple(sum(p / factorial(2 * k + n) for k, p in enumerate(powers)) for n in (2, 3))
    assert stumpff(psi) == pytest.approx(expected, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(("q", "e"), [(2.4, 0.1), (0.4, 0.95), (0.9, 1.0), (0.3, 1.5)])
def test_an_integration_of_newtons_law_arrives_at_the_same_place(q: float, e: float) -> None:
    def law(_: float, state: Floats) -> Floats:
        return np.concatenate([state[2:], -(GAUSS_K**2) * state[:2] / np.hypot(*state[:2]) ** 3])

    days = 200.0
    start = [q, 0.0, 0.0, GAUSS_K * np.sqrt((1.0 + e) / q)]
    end = solve_ivp(law, (0.0, days), start, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
    assert in_plane(q, e, days) == pytest.approx(end, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("psi", [-0.5, 0.5])
def test_the_series_meets_the_closed_form(psi: float) -> None:
    inside, outside = stumpff(psi * (1.0 - 1e-13)), stumpff(psi * (1.0 + 1e-13))
    assert inside == pytest.approx(outside, rel=1e-12)


def test_the_axes_are_right_angled_and_turn_with_the_orbit() -> None:
    rng = np.random.default_rng(3)
    perihelion, ahead = orbit_axes(*rng.uniform(0.0, np.pi, (3, 50)))
    assert np.sum(perihelion * ahead, axis=1) == pytest.approx(0.0, abs=1e-15)
    assert np.linalg.norm(perihelion, axis=1) == pytest.approx(1.0)
    assert np.linalg.norm(ahead, axis=1) == pytest.approx(1.0)


def test_an_orbit_in_the_ecliptic_stays_in_it() -> None:
    perihelion, ahead = orbit_axes(0.0, 0.0, np.pi / 2.0)
    assert perihelion == pytest.approx([0.0, np.cos(OBLIQUITY), np.sin(OBLIQUITY)])
    assert ahead == pytest.approx([-1.0, 0.0, 0.0])
