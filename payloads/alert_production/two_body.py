"""Two-body motion about the Sun for any eccentricity: ellipses, near-parabolas and hyperbolas by one formula.

Universal variables from perihelion (Stumpff 1947; Battin 1999, An Introduction to the Mathematics and
Methods of Astrodynamics, sec. 4.5), Kepler's equation by the Laguerre-Conway iteration (Conway 1986,
Celest. Mech. 39, 199). Lengths in au, times in days, angles in radians.
"""

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

GAUSS_K = 0.01720209895
"""Gaussian gravitational constant, au**1.5 / day, solar mass 1."""
OBLIQUITY = np.radians(84381.448 / 3600.0)
"""Of the ecliptic of J2000 to which the MPC refers its elements (IAU 1976)."""
_MAX_ITERATIONS = 50


@numba.njit(cache=True, nogil=True, error_model="numpy")
def stumpff(psi: float) -> tuple[float, float]:
    """c2 and c3 of `psi`; the series near zero, where the closed forms cancel."""
    if psi > 0.5:
        s = np.sqrt(psi)
        return (1.0 - np.cos(s)) / psi, (s - np.sin(s)) / (s * psi)
    if psi < -0.5:
        s = np.sqrt(-psi)
        return (1.0 - np.cosh(s)) / psi, (s - np.sinh(s)) / (s * psi)
    c2, c3 = 1.0, 1.0
    for k in range(8, 0, -1):
        c2 = 1.0 - psi * c2 / ((2 * k + 1) * (2 * k + 2))
        c3 = 1.0 - psi * c3 / ((2 * k + 2) * (2 * k + 3))
    return c2 / 2.0, c3 / 6.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_guess(q: float, e: float, t: float) -> float:
    """Universal anomaly near the solution; `t` is Gauss's constant times the time since perihelion."""
    alpha = (1.0 - e) / q
    if e < 0.9:
        mean = t * alpha * np.sqrt(alpha)
        return float((mean + 0.85 * e * np.sign(mean)) / np.sqrt(alpha))
    mean = abs(t) * abs(alpha) ** 1.5
    if e > 1.0 and mean > 6.0:
        return float(np.sign(t) * np.log(2.0 * mean / e + 1.8) / np.sqrt(-alpha))
    # Barker's equation, exact for the parabola: chi**3 + 3 a chi = 2 b.
    a, b = 2.0 * q / e, 3.0 * t / e
    w = np.cbrt(abs(b) + np.sqrt(b * b + a**3))
    chi = 2.0 * b / (w * w + a + (a / w) ** 2)
    if alpha > 0.0:
        chi = min(max(chi, -np.pi / np.sqrt(alpha)), np.pi / np.sqrt(alpha))
    return float(chi)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def in_plane(q: float, e: float, days: float) -> tuple[float, float, float, float]:
    """x, y (au) and their rates (au/day), x towards perihelion, `days` after perihelion passage."""
    alpha, t = (1.0 - e) / q, GAUSS_K * days
    if alpha > 0.0:
        period = 2.0 * np.pi / (alpha * np.sqrt(alpha))
        t -= period * np.round(t / period)
    chi = _first_guess(q, e, t)
    for _ in range(_MAX_ITERATIONS):
        c2, c3 = stumpff(alpha * chi * chi)
        miss = q * chi + e * chi**3 * c3 - t
        slope = q + e * chi * chi * c2
        bend = e * chi * (1.0 - alpha * chi * chi * c3)
        step = -5.0 * miss / (slope + np.sqrt(abs(16.0 * slope * slope - 20.0 * miss * bend)))
        chi += step
        if abs(step) <= 1e-9 * abs(chi):  # the next step would be a thousandth of rounding
            break
    c2, c3 = stumpff(alpha * chi * chi)
    radius = q + e * chi * chi * c2
    sine = chi * (1.0 - alpha * chi * chi * c3)
    speed = GAUSS_K * np.sqrt((1.0 + e) / q)
    return (
        q - chi * chi * c2,
        np.sqrt(q * (1.0 + e)) * sine,
        -GAUSS_K * sine / radius,
        speed * (1.0 - chi * chi * c2 / radius),
    )


def orbit_axes(inclination: ArrayLike, node: ArrayLike, argperi: ArrayLike) -> tuple[Floats, Floats]:
    """Unit vectors (n, 3), ICRS axes, towards perihelion and 90 deg ahead of it in the orbit.

    Angles: radians, ecliptic and equinox of J2000; elementwise.
    """
    ci, si = np.cos(inclination), np.sin(inclination)
    cn, sn = np.cos(node), np.sin(node)
    cw, sw = np.cos(argperi), np.sin(argperi)
    perihelion = np.stack([cw * cn - sw * sn * ci, cw * sn + sw * cn * ci, sw * si], axis=-1)
    ahead = np.stack([-sw * cn - cw * sn * ci, -sw * sn + cw * cn * ci, cw * si], axis=-1)
    return _to_equator(perihelion), _to_equator(ahead)


def _to_equator(ecliptic: Floats) -> Floats:
    c, s = np.cos(OBLIQUITY), np.sin(OBLIQUITY)
    rotation = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    result: Floats = ecliptic @ rotation.T
    return result
