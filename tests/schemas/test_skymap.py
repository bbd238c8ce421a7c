import numpy as np
import pytest

from schemas.instrument import camera
from schemas.pointing import nominal_wcs
from schemas.skymap import PATCH_PIXELS, TRACT_PATCHES, tract, tract_at
from schemas.wcs import separation_arcsec


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.999, -30.0), (123.4, -89.99), (10.0, 89.2), (200.0, 45.6)])
def test_every_position_lies_in_the_inner_area_of_its_tract(ra: float, dec: float) -> None:
    plane = tract_at(ra, dec)
    assert tract(plane.id) == plane
    assert float(separation_arcsec(ra, dec, plane.ra, plane.dec)) < 3600 * 1.15 or abs(dec) > 88
    x, y = plane.wcs.sky_to_pixel(ra, dec)
    assert 0 <= x < TRACT_PATCHES * PATCH_PIXELS
    assert 0 <= y < TRACT_PATCHES * PATCH_PIXELS


def test_a_detector_lies_wholly_on_the_plane_of_its_centres_tract() -> None:
    rng = np.random.default_rng(5)
    for detector in rng.choice(camera("LSSTCam").detectors, 40):
        ra, dec = rng.uniform(0, 360), rng.uniform(-75, 30)
        wcs = nominal_wcs(detector, ra, dec, rng.uniform(0, 360))
        shape = detector.format.height, detector.format.width
        plane = tract_at(*(float(v) for v in wcs.pixel_to_sky(shape[1] / 2, shape[0] / 2)))
        box = plane.box_of(wcs, shape)
        assert min(box.x0, box.y0) >= 0
        assert max(box.x1, box.y1) <= TRACT_PATCHES * PATCH_PIXELS


def test_patches_cover_a_box_and_no_more() -> None:
    plane = tract_at(150.0, -20.0)
    box = plane.patch_box(45)
    assert plane.patches_in(box) == [45]
    wider = type(box)(box.x0 - 1, box.y0, box.x1, box.y1 + 1)
    assert plane.patches_in(wider) == [44, 45, 44 + TRACT_PATCHES, 45 + TRACT_PATCHES]
