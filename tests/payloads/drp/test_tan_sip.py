import numpy as np
import pytest

from payloads.drp.tan_sip import tan_sip
from schemas.wcs import Wcs, from_tangent, separation_arcsec, to_tangent

SHAPE = (4004, 4096)
X, Y = (g.ravel() for g in np.meshgrid(np.linspace(0, 4095, 9), np.linspace(0, 4003, 9)))


def distorted(ra: float, dec: float) -> Wcs:
    scale, angle = 0.2 / 3600, np.radians(70.0)
    cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[1, 1, 1], sip[0, 3, 0], sip[1, 1, 2] = 1e-7, -8e-8, 4e-11, -4e-11
    return Wcs((ra, dec), (1990.0, 2100.0), cd, sip)


@pytest.mark.parametrize("at", [(0.02, -30.0), (359.99, 10.0), (120.0, -89.95), (200.0, 89.9999)])
def test_a_map_about_another_pixel_is_the_same_map(at: tuple[float, float]) -> None:
    true = distorted(*at)
    made = tan_sip(X, Y, *true.pixel_to_sky(X, Y), SHAPE)
    x, y = np.random.default_rng(1).uniform(0, 4000, (2, 300))
    assert made.crpix == (2047.5, 2001.5)
    assert 1e6 * separation_arcsec(*made.pixel_to_sky(x, y), *true.pixel_to_sky(x, y)).max() < 2.0


def test_a_cubic_on_a_plane_tangent_a_degree_away_is_tan_sip_to_microarcseconds() -> None:
    true, center = distorted(150.0, -30.0), (151.2, -29.2)

    def moved(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        xi, eta = to_tangent(*true.pixel_to_sky(x, y), center)
        u, v = (x - 2047.5) / 2048, (y - 2001.5) / 2048
        return from_tangent(xi + 2e-5 * (u**3 - u * v), eta + 1e-5 * (v + u * v * v), center)

    made = tan_sip(X, Y, *moved(X, Y), SHAPE)
    x, y = np.random.default_rng(2).uniform(0, 4000, (2, 300))
    assert 1e6 * separation_arcsec(*made.pixel_to_sky(x, y), *moved(x, y)).max() < 10.0
