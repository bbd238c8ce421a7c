from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import BadData
from schemas.image import Image, Observation
from schemas.instrument import Format, camera
from simulators.camera import calibrations
from simulators.camera.calibrations import LAMP_RATE, SPOT_ELECTRONS, lamp_level
from simulators.camera.ccd import ccd, response, view
from simulators.camera.exposure import FocalPlane
from tests.simulators.camera.conftest import SCIENCE, SEED, FixedSky, exposed, recipe_of

SMALL = replace(camera("LSSTCam")[SCIENCE], format=Format("E2V", 64, 112, 10, 54, 46))
CHIP = ccd(SEED, "LSSTCam", SMALL)


def of_type(kind: str, seconds: float, number: int = 0, visit: int = 0) -> Observation:
    first = exposed(visit=2026070500004 + visit)
    return replace(
        first, image_type=kind, exposure_time=seconds, snap=number, exposure=first.exposure + number
    )  # fmt: skip


def charge_of(observation: Observation) -> Image:
    return calibrations.charge(SEED, observation, CHIP, lambda: response(CHIP, observation.band))


def test_a_bias_has_no_charge() -> None:
    assert not charge_of(of_type("bias", 0.0)).any()


def test_a_dark_has_the_dark_current_and_rays() -> None:
    charge = charge_of(of_type("dark", 300.0))
    for amplifier in SMALL.amplifiers:
        part = view(charge, amplifier, (112, 64))
        assert np.median(part) == pytest.approx(300.0 * CHIP.dark[amplifier.index], rel=1e-3)
    assert np.sum(charge > 100.0) > 60


def test_a_flat_is_the_response_under_the_lamp_for_its_time() -> None:
    one = of_type("flat", 2.0)
    expected = response(CHIP, "r") * 2.0 * LAMP_RATE * lamp_level(SEED, one)
    assert np.median(charge_of(one) / expected) == pytest.approx(1.0, abs=1e-4)


def test_the_lamp_is_the_same_in_a_visit_and_a_percent_off_in_another() -> None:
    assert lamp_level(SEED, of_type("flat", 2.0, 0)) == lamp_level(SEED, of_type("flat", 2.0, 1))
    levels = [lamp_level(SEED, of_type("flat", 2.0, 0, visit)) for visit in range(300)]
    assert np.std(levels) == pytest.approx(0.01, rel=0.15)
    assert np.mean(levels) == pytest.approx(1.0, abs=0.002)


def test_a_flat_beyond_the_full_well_is_full_everywhere() -> None:
    charge = charge_of(of_type("flat", 9.0))
    for amplifier in SMALL.amplifiers:
        part = view(charge, amplifier, (112, 64))
        assert np.percentile(part, 2) == pytest.approx(CHIP.full_well[amplifier.index], rel=1e-6)


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_spots_light_one_amplifier_at_a_time_and_each_of_them(shift: int) -> None:
    charge = charge_of(of_type("spot", 1.0, shift))
    segments = np.stack([view(charge, a, (112, 64)) for a in SMALL.amplifiers])
    lit = segments > 0.1 * SPOT_ELECTRONS
    assert np.mean(lit.sum(axis=0) > 1) < 5e-3  # where a bad pixel is hit
    assert lit.sum(axis=(1, 2)).min() > 50
    assert 0.8 * SPOT_ELECTRONS < np.percentile(segments, 99.5) < CHIP.full_well.min()


def test_each_exposure_lights_other_places() -> None:
    one, two = (charge_of(of_type("spot", 1.0, shift)) > 1e4 for shift in (0, 1))
    assert not np.any(one & two & (response(CHIP, "r") > 0.9) & (charge_of(of_type("dark", 1.0)) < 100.0))


@pytest.mark.parametrize("kind", ["science", "cwfs"])
def test_what_is_no_calibration_is_refused_by_name(kind: str) -> None:
    with pytest.raises(BadData, match=f"MC_O_20260705_000004: no calibration is of type '{kind}'"):
        charge_of(of_type(kind, 1.0))


def test_the_focal_plane_exposes_calibrations(sky: FixedSky) -> None:
    plane = FocalPlane(SEED, "LSSTCam", sky)
    observation = of_type("flat", 1.0)
    charge = plane.charge(recipe_of(observation), SCIENCE)
    made = plane.segments(recipe_of(observation), SCIENCE, charge)
    np.testing.assert_array_equal(made, calibrations.raw(SEED, observation, plane.camera[SCIENCE]).segments)
