from dataclasses import replace

import numpy as np
import pytest

from schemas.image import Mask
from schemas.instrument import Detector, Format, camera
from simulators.camera.ccd import (
    _coarse_vignetting,
    _grain,
    _steps,
    bias_pattern,
    ccd,
    defects,
    response,
    view,
)
from simulators.camera.noise import Purpose, fill_normal, stream
from tests.simulators.camera.conftest import SCIENCE, SEED

CAMERA = camera("LSSTCam")


def test_a_ccd_is_the_same_every_time_and_like_no_other() -> None:
    one, other = ccd(SEED, "LSSTCam", CAMERA[SCIENCE]), ccd(SEED, "LSSTCam", CAMERA[SCIENCE + 1])
    ccd.cache_clear()
    np.testing.assert_array_equal(one.gain, ccd(SEED, "LSSTCam", CAMERA[SCIENCE]).gain)
    assert len(set(one.gain) | set(other.gain)) == 32


def test_crosstalk_is_strongest_between_neighbours_and_never_with_oneself() -> None:
    matrix = ccd(SEED, "LSSTCam", CAMERA[SCIENCE]).crosstalk
    index = np.arange(16)
    near = (np.abs(np.subtract.outer(index, index)) == 1) & np.equal.outer(index // 8, index // 8)
    assert np.all(np.diag(matrix) == 0.0)
    assert matrix[near].min() > np.abs(matrix[~near]).max() / 2
    assert 1e-4 < np.abs(matrix).max() < 1e-3


SMALL = replace(CAMERA[0], format=Format("E2V", 70, 190, 10, 54, 46))


@pytest.mark.parametrize("chip", [SMALL, CAMERA[0]], ids=["small e2v", "itl"])
def test_response_is_vignetting_times_steps_times_grain(chip: Detector) -> None:
    form = chip.format
    device = ccd(SEED, "LSSTCam", chip)
    got = np.empty((form.height, form.width), np.float32)
    _grain(got, _coarse_vignetting(chip), _steps(device, "r"), stream(1, Purpose.RESPONSE), 64, 0.004)
    deviates = np.empty(got.size, np.float32)
    fill_normal(stream(1, Purpose.RESPONSE), deviates)
    coarse = _coarse_vignetting(chip)
    x, y = np.arange(form.width) / 64.0, np.arange(form.height) / 64.0
    i, j = y.astype(int), x.astype(int)
    rows = coarse[i] * (1 - (y - i))[:, None] + coarse[i + 1] * (y - i)[:, None]
    smooth = rows[:, j] * (1 - (x - j)) + rows[:, j + 1] * (x - j)
    steps = _steps(device, "r").repeat(form.amp_height, 0).repeat(form.amp_width, 1)
    np.testing.assert_allclose(got, smooth * steps * (1 + 0.004 * deviates.reshape(got.shape)), rtol=2e-6)


def test_response_differs_a_little_between_bands_and_a_lot_at_the_field_s_edge() -> None:
    device = ccd(SEED, "LSSTCam", CAMERA[SCIENCE])
    red, blue = response(device, "r"), response(device, "u")
    assert 1e-4 < np.std(red / blue) < 0.02
    corner = response(ccd(SEED, "LSSTCam", CAMERA[0]), "r")
    assert corner.mean() < 0.8 * red.mean()
    assert corner.min() > 0.0


def test_amplifiers_lie_where_the_format_says() -> None:
    for detector in (SCIENCE, 0):
        chip = CAMERA[detector]
        form = chip.format
        y, x = np.mgrid[: form.height, : form.width].astype(np.float32)
        seen = np.zeros((form.height, form.width), bool)
        for amplifier in chip.amplifiers:
            shape = form.amp_height, form.amp_width
            view(seen, amplifier, shape)[:] = True
            first = view(y, amplifier, shape)[0, 0], view(x, amplifier, shape)[0, 0]
            assert first[0] in {0.0, form.height - 1.0}
            left, right = amplifier.x0, amplifier.x0 + form.amp_width - 1
            assert first[1] == (right if amplifier.flip_x else left)
        assert seen.all()


def test_defects_name_bad_pixels_and_the_dim_corner() -> None:
    assert not np.any(defects(ccd(SEED, "LSSTCam", CAMERA[SCIENCE])) & Mask.VIGNETTED)
    plane = defects(ccd(SEED, "LSSTCam", CAMERA[0]))
    assert 0.05 < np.mean(plane & Mask.VIGNETTED != 0) < 0.9
    assert 10 < np.sum(plane & Mask.BAD != 0) < 20000
    assert plane.dtype == np.uint16


def test_the_bias_pattern_is_a_sum_of_rows_and_columns() -> None:
    device = ccd(SEED, "LSSTCam", CAMERA[SCIENCE])
    amplifier = device.detector.amplifiers[3]
    part = view(bias_pattern(device), amplifier, (2002, 512))
    assert part[5, 7] == pytest.approx(device.bias_rows[3, 5] + device.bias_columns[3, 7])
    assert 0.5 < np.std(part) < 20.0
