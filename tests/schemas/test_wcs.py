import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from schemas.errors import BadData
from schemas.instrument import camera
from schemas.pointing import nominal_wcs
from schemas.wcs import Wcs, separation_arcsec


def distorted() -> Wcs:
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[0, 1, 2], sip[1, 0, 3], sip[1, 1, 1] = 2e-7, 3e-11, -2e-11, 1e-7
    plain = nominal_wcs(camera("LSSTCam")[3], 359.9, -89.0, 33.0)
    return Wcs(plain.crval, plain.crpix, plain.cd, sip)


def test_pixels_agree_with_astropy_to_a_microarcsecond() -> None:
    wcs = distorted()
    peer = WCS(fits.Header(wcs.to_header()))
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 4000, 9), np.linspace(0, 4000, 9)))
    ra, dec = wcs.pixel_to_sky(x, y)
    peer_ra, peer_dec = peer.all_pix2world(x, y, 0)
    assert separation_arcsec(ra, dec, peer_ra, peer_dec).max() < 1e-6


def test_the_way_to_the_sky_and_back_ends_where_it_began() -> None:
    wcs = distorted()
    x, y = np.array([0.0, 4071.0, 17.5]), np.array([3999.0, 0.0, 2000.25])
    back = wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y))
    np.testing.assert_allclose(back, (x, y), atol=1e-6)


def test_a_header_round_trip_keeps_every_coefficient() -> None:
    wcs = distorted()
    again = Wcs.from_header(wcs.to_header())
    np.testing.assert_array_equal(again.sip, wcs.sip)
    np.testing.assert_array_equal(again.cd, wcs.cd)
    assert (again.crval, again.crpix) == (wcs.crval, wcs.crpix)


def test_another_projection_is_refused_by_name() -> None:
    with pytest.raises(BadData, match="RA---SIN"):
        Wcs.from_header({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"})


def test_the_back_of_the_sky_has_no_pixel() -> None:
    x, _ = distorted().sky_to_pixel(179.9, 89.0)
    assert np.isnan(x)


@pytest.mark.parametrize("rotation", [0.0, 90.0])
def test_the_focal_planes_y_points_where_rotation_says(rotation: float) -> None:
    detector = camera("LSSTCam").select("R22_S11")[0]
    wcs = nominal_wcs(detector, 10.0, 0.0, rotation)
    x, y = (detector.format.width - 1) / 2, (detector.format.height - 1) / 2
    ra, dec = wcs.pixel_to_sky(x, y + 100)
    east, north = (ra - 10.0) * 3600 / 20, dec * 3600 / 20
    np.testing.assert_allclose([east, north], [np.sin(np.radians(rotation)), np.cos(np.radians(rotation))], atol=1e-6)
