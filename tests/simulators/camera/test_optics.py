from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers

from schemas.clock import mjd_from_tai
from schemas.instrument import camera
from schemas.pointing import nominal_wcs
from schemas.wcs import separation_arcsec
from simulators.camera.optics import airmass, conditions, field_position, psf_field, true_wcs, vignetting
from tests.simulators.camera.conftest import SCIENCE, SEED, STARTED, exposed

EPOCH = STARTED + 7.5


def test_conditions_are_of_the_visit_and_of_the_seed_alone() -> None:
    one, two = (conditions(SEED, exposed(snap), EPOCH) for snap in (0, 1))
    assert one.seeing == two.seeing
    np.testing.assert_array_equal(one.psf, two.psf)
    assert conditions(SEED + 1, exposed(), EPOCH).seeing != one.seeing
    assert conditions(SEED, exposed(visit=2026070500006), EPOCH).seeing != one.seeing


def test_conditions_stay_within_those_of_a_good_site() -> None:
    many = [conditions(SEED, exposed(visit=2026070500000 + k), EPOCH) for k in range(300)]
    assert min(c.seeing for c in many) >= 0.7
    assert max(c.seeing for c in many) <= 1.2
    assert 0.8 < np.median([c.seeing for c in many]) < 0.95
    assert all(0.95 <= c.transparency <= 1.05 for c in many)
    assert 15.0 < np.median([c.sky for c in many]) < 35.0  # electrons/s/pixel in r: 21.2 mag/arcsec^2 at airmass 1
    offset = np.array([np.hypot(*c.pointing[:2]) for c in many])
    assert 1.5 < np.median(offset) < 4.0


def test_airmass_is_astropys() -> None:
    iers.conf.auto_download = False
    place = EarthLocation.from_geodetic(-70.7494, -30.2446, 2663.0)
    for tai in (STARTED, STARTED + 7200.0):
        time = Time(mjd_from_tai(tai), format="mjd", scale="tai")
        horizontal = SkyCoord(250.0, -20.0, unit="deg").transform_to(AltAz(obstime=time, location=place))
        assert airmass(250.0, -20.0, tai) == pytest.approx(float(horizontal.secz), rel=0.01)


def test_light_falls_from_one_and_a_half_degrees_on() -> None:
    radius = np.array([0.0, 1.0, 1.5, 1.75, 2.05])
    light = vignetting(radius, np.zeros(5))
    assert np.all(np.diff(light) <= 0.0)
    assert light[1] > 0.999
    assert light[2] > 0.98
    assert 0.1 < light[4] < 0.4


@pytest.mark.parametrize("detector", [0, 94, 188])
def test_the_true_wcs_is_near_the_nominal_one_and_bent(detector: int) -> None:
    chip, observation = camera("LSSTCam")[detector], exposed()
    observed = conditions(SEED, observation, EPOCH)
    true = true_wcs(SEED, observed, observation, chip)
    nominal = nominal_wcs(chip, observation.ra, observation.dec, observation.rotation)
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, 4000, 9), np.linspace(0, 3900, 9)))
    ra, dec = true.pixel_to_sky(x, y)
    apart = separation_arcsec(ra, dec, *nominal.pixel_to_sky(x, y))
    assert 0.1 < np.median(apart) < 12.0
    design = np.stack([np.ones_like(x), x, y], 1)
    bend = np.stack(nominal.sky_to_pixel(ra, dec), 1)
    bend -= design @ np.linalg.lstsq(design, bend, rcond=None)[0]
    assert 0.1 < np.abs(bend).max() < 3.0
    back = true.sky_to_pixel(ra, dec)
    np.testing.assert_allclose(back, (x, y), atol=1e-6)


def test_the_psf_varies_over_the_field_and_little_over_a_detector() -> None:
    cam, observed = camera("LSSTCam"), conditions(SEED, exposed(), EPOCH)
    fwhm = []
    for detector in (4, 94, 180):
        field = psf_field(SEED, observed, cam[detector])
        corners = np.array([field.at(x, y) for x in (0.0, 4000.0) for y in (0.0, 3900.0)])
        assert np.ptp(corners[:, 0]) / corners[0, 0] < 0.08
        assert np.hypot(corners[:, 1], corners[:, 2]).max() < 0.12
        fwhm.append(corners[:, 0].mean())
    assert np.ptp(fwhm) / np.mean(fwhm) > 0.005
    x, y = np.zeros(1), np.zeros(1)
    assert float(field_position(cam[SCIENCE], x, y)[0][0]) == pytest.approx(-0.2 * 2047.5 / 3600.0)


def test_seeing_follows_the_band() -> None:
    base = exposed()
    blue = np.median([conditions(SEED, replace(base, visit=v, band="u"), EPOCH).seeing for v in range(200)])
    red = np.median([conditions(SEED, replace(base, visit=v, band="y"), EPOCH).seeing for v in range(200)])
    assert blue > 1.1 * red
