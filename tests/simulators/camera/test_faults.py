import hashlib

import numpy as np
import pytest

from simulators import faults
from simulators.camera.buffer import Raster
from simulators.camera.ccd import ADC_MAX
from simulators.camera.faults import SWARMS, Cut, Fault, of_night, spoilt
from simulators.camera.sensor import Segments
from simulators.ocs.schedule import plan_own

PLAN = plan_own(2, 4)


@pytest.fixture(scope="module")
def raster(raw: Segments) -> Raster:
    return Raster(raw, hashlib.sha256(raw.data).hexdigest())


def test_a_nights_camera_faults_are_of_its_exposures() -> None:
    night = [
        faults.Camera(what="dark", visit=2, detector=94),
        faults.Camera(what="cut", visit=2, visits=3),
        faults.Rush(),
        faults.Camera(what="short", visit=4, visits=3),
    ]
    first, last = PLAN[1], PLAN[3]
    assert of_night(night, PLAN, (90, 94)) == [
        Fault(94, first.observation(0).exposure, "dark"),
        Fault(94, first.observation(1).exposure, "dark"),
        Cut(first.start_tai, last.start_tai + last.duration),
        *(Fault(d, last.observation(snap).exposure, "short") for snap in (0, 1) for d in (90, 94)),
    ]


@pytest.mark.parametrize(("fault", "value"), [("dark", 0), ("saturated", ADC_MAX)])
def test_a_dead_detector_has_one_value_and_its_checksum(raster: Raster, fault: str, value: int) -> None:
    dead = spoilt(raster, fault, 1)
    assert dead.segments.dtype == np.int32
    assert dead.segments.shape == raster.segments.shape
    assert np.all(dead.segments == value)
    assert dead.sha256 == hashlib.sha256(dead.segments.data).hexdigest()


@pytest.mark.parametrize("fault", [None, "silent", "corrupt"])
def test_other_faults_leave_the_pixels_alone(raster: Raster, fault: str | None) -> None:
    assert spoilt(raster, fault, 1) is raster


@pytest.mark.parametrize("fault", SWARMS)
def test_a_swarm_stands_at_the_same_pixels_in_all_snaps(raster: Raster, fault: str) -> None:
    crowded = spoilt(raster, fault, 7)
    more = crowded.segments - raster.segments
    flat = spoilt(Raster(np.full_like(raster.segments, 1000), ""), fault, 7).segments
    assert flat.max() == 1000  # no noise, nothing to add
    again = spoilt(raster, fault, 7)
    assert again.sha256 == crowded.sha256 != raster.sha256
    peaks = (more > 0) & (more >= np.roll(more, 1, 2)) & (more >= np.roll(more, -1, 2))
    peaks &= (more >= np.roll(more, 1, 1)) & (more >= np.roll(more, -1, 1)) & (more > 0.8 * more.max() / 2.0)
    assert 0.8 * SWARMS[fault] < peaks.sum() < 1.5 * SWARMS[fault]
