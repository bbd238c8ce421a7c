import numpy as np
import pytest

from schemas.instrument import camera
from simulators.camera.hits import Streak, _deposit, add_cosmic_rays, add_streak, streak, streak_ends
from tests.simulators.camera.conftest import SCIENCE, SEED

CHIP = camera("LSSTCam")[SCIENCE]
SHAPE = (CHIP.format.height, CHIP.format.width)


def test_hits_are_as_many_as_the_sky_sends() -> None:
    charge = np.zeros((500, 500), np.float32)
    counts = [add_cosmic_rays(charge, SEED, exposure, 3, 15.0) for exposure in range(40)]
    assert 70 < np.mean(counts) < 90
    assert charge.min() >= 0.0
    assert 1e5 < charge.sum() / 40 < 5e6


def test_a_hit_is_sharper_than_any_star() -> None:
    charge = np.zeros((800, 800), np.float32)
    add_cosmic_rays(charge, SEED, 1, 3, 15.0)
    y, x = np.unravel_index(np.argsort(charge[2:-2, 2:-2].ravel())[-20:], (796, 796))
    contrast = [charge[j + 2, i + 2] / np.median(charge[j : j + 5, i : i + 5] + 1.0) for j, i in zip(y, x, strict=True)]
    assert np.median(contrast) > 5.0


def test_a_track_s_electrons_all_arrive() -> None:
    charge = np.zeros((40, 50), np.float32)
    track = np.array([[10.3, 12.7, 500.0], [11.1, 13.0, 250.0], [0.1, 5.0, 1e6]])  # the last one at the edge: lost
    _deposit(charge, track, 0.4)
    assert charge.sum() == pytest.approx(750.0, rel=1e-5)
    y, x = np.mgrid[:40, :50]
    assert (charge * x).sum() / 750.0 == pytest.approx((10.3 * 500 + 11.1 * 250) / 750, abs=0.1)
    assert (charge * y).sum() / 750.0 == pytest.approx((12.7 * 500 + 13.0 * 250) / 750, abs=0.1)


def test_one_exposure_in_five_has_a_streak() -> None:
    assert 0.14 < np.mean([streak(SEED, exposure) is not None for exposure in range(500)]) < 0.26


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, np.pi / 2, 2.5])
def test_a_streak_is_a_line_of_its_width_between_its_ends(angle: float) -> None:
    path = Streak(angle, 40.0, 1000.0, 2.5)
    charge, response = np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.5, np.float32)
    add_streak(charge, response, path, CHIP)
    a, b, c = path.in_pixels(CHIP)
    y, x = np.mgrid[: SHAPE[0] : 7, : SHAPE[1] : 5]
    across = (a * x + b * y - c) / 2.5
    expected = np.where(np.abs(across) <= 4.0, 500.0 * np.exp(-0.5 * across**2), 0.0)
    np.testing.assert_allclose(charge[::7, ::5], expected, atol=0.2)
    ends = streak_ends(path, CHIP)
    assert ends is not None
    np.testing.assert_allclose(ends @ (a, b), c, atol=1e-3)


def test_a_streak_elsewhere_is_not_here() -> None:
    path = Streak(0.3, 4000.0, 1000.0, 2.5)
    charge = np.zeros(SHAPE, np.float32)
    add_streak(charge, np.ones(SHAPE, np.float32), path, CHIP)
    assert streak_ends(path, CHIP) is None
    assert not charge.any()
