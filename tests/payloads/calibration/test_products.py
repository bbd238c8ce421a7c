"""Bias, dark, flat and defects of a small CCD against what the simulator put in; and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from payloads.calibration.assemble import assemble
from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.dark import Dark, make_dark
from payloads.calibration.defects import _close_columns, find_defects, local_median
from payloads.calibration.electronics import Electronics
from payloads.calibration.flat import Flat, make_flat
from payloads.imaging.isr import remove_signature
from schemas.errors import BadData
from schemas.image import Mask, Raw
from schemas.instrument import camera
from simulators.camera.ccd import add_dark_current, bias_pattern, defects, response
from simulators.camera.noise import Purpose, generator
from tests.payloads.calibration.small_ccd import SMALL, chip, raw, raws, spoilt, true_electronics

CHIP = chip()
ELECTRONICS = true_electronics(CHIP)
DARK_SECONDS, FLAT_SECONDS = 60.0, 2.0


@pytest.fixture(scope="module")
def bias() -> Bias:
    return make_bias(raws("bias", 8), SMALL)


@pytest.fixture(scope="module")
def dark(bias: Bias) -> Dark:
    return make_dark(iter(raws("dark", 8, DARK_SECONDS)), SMALL, bias, ELECTRONICS)


@pytest.fixture(scope="module")
def flat(bias: Bias, dark: Dark) -> Flat:
    return make_flat(raws("flat", 6, FLAT_SECONDS), SMALL, "r", bias, dark, ELECTRONICS)


def test_the_bias_is_the_pattern_with_the_noise_it_tells(bias: Bias) -> None:
    off = bias.in_electrons(ELECTRONICS.gain, SMALL) - bias_pattern(CHIP)
    pull = off / np.sqrt(bias.pixels.variance) / 1.5
    assert abs(off.mean()) < 0.1
    assert 0.95 < pull.std() < 1.10  # gains are 1.5 but for 4 %; a row's overscan adds 1 %
    assert bias.pixels.used == tuple(taken.observation.exposure for taken in raws("bias", 8))
    np.testing.assert_allclose(bias.read_noise * CHIP.gain, CHIP.read_noise, rtol=0.025)


def test_the_dark_is_the_current_without_rays(dark: Dark) -> None:
    truth = np.zeros_like(dark.pixels.image)
    add_dark_current(truth, CHIP, 1.0)
    calm = truth < 1.0
    pull = ((dark.pixels.image - truth) / np.sqrt(dark.pixels.variance))[calm]
    assert dark.seconds == 8 * DARK_SECONDS
    assert 0.95 < pull.std() < 1.10
    assert abs(pull.mean()) < 0.2
    assert np.mean(np.abs(pull) > 6.0) < 2e-4
    np.testing.assert_allclose(dark.pixels.image[~calm], truth[~calm], rtol=0.05, atol=1.0)


def test_the_flat_is_the_response_over_its_mean(flat: Flat) -> None:
    truth = response(CHIP, "r")
    truth /= truth.mean(dtype=np.float64)
    pull = (flat.pixels.image - truth) / np.sqrt(flat.pixels.variance)
    assert flat.pixels.image.mean(where=flat.pixels.mask == 0) == pytest.approx(1.0, abs=1e-6)
    assert 0.95 < np.std(pull) < 1.05
    assert abs(np.mean(pull)) < 0.1
    assert flat.rate == pytest.approx(20_000.0 * response(CHIP, "r").mean(), rel=0.01)


def test_lamps_that_differ_do_not_matter(flat: Flat, bias: Bias, dark: Dark) -> None:
    other = [raw("flat", 10 + number, seconds) for number, seconds in enumerate((1.0, 3.0, 2.0, 3.0))]
    again = make_flat(other, SMALL, "r", bias, dark, ELECTRONICS)
    sigma = np.sqrt(again.pixels.variance + flat.pixels.variance)
    assert np.std((again.pixels.image - flat.pixels.image) / sigma) < 1.05


def test_a_calibration_made_of_them_gives_flat_light(flat: Flat, bias: Bias, dark: Dark) -> None:
    found = find_defects(SMALL, bias, dark, flat, flat.rate)
    calibration = assemble(SMALL, bias, dark, flat, found, ELECTRONICS)
    assert all(np.array_equal(part, Electronics.of(calibration).parts()[n]) for n, part in ELECTRONICS.parts().items())
    taken = raw("flat", 19, 1.0)
    image = remove_signature(taken, calibration, SMALL)
    level = flat.rate * 1.0
    lamp = generator(1, Purpose.LAMP, taken.observation.visit).normal(1.0, 0.01)
    good = image.mask == 0
    assert np.median(image.image[good]) == pytest.approx(level * lamp, rel=0.01)
    pull = (image.image - np.median(image.image[good])) / np.sqrt(image.variance)
    quarter = np.percentile(pull[good], [15.87, 84.13])
    assert 0.97 < np.diff(quarter)[0] / 2.0 < 1.06
    means = [
        image.image[a.y0 : a.y0 + 160, a.x0 : a.x0 + 96][good[a.y0 : a.y0 + 160, a.x0 : a.x0 + 96]].mean()
        for a in SMALL.amplifiers
    ]
    assert np.std(means) / np.mean(means) < 6e-4


def test_defects_are_those_that_were_built_in_and_few_others(bias: Bias, dark: Dark, flat: Flat) -> None:
    found = find_defects(SMALL, bias, dark, flat, flat.rate)
    built = defects(CHIP) & Mask.BAD != 0
    bad = found.plane & Mask.BAD != 0
    assert bad[built].mean() > 0.98
    assert bad[~built].mean() < 2e-3
    assert found.hot >= 0.95 * len(CHIP.hot)
    assert not np.any(found.plane & Mask.VIGNETTED)
    dim = find_defects(SMALL, bias, dark, flat, 2.0 * flat.rate)
    assert np.all(dim.plane & Mask.VIGNETTED)


def test_a_dead_pixel_and_a_dead_column_are_found(bias: Bias, dark: Dark, flat: Flat) -> None:
    spoilt_flat = flat.pixels.image.copy()
    spoilt_flat[50, 70] = 0.1
    spoilt_flat[20:130:2, 300] *= np.float32(0.5)
    pixels = replace(flat.pixels, image=spoilt_flat)
    found = find_defects(SMALL, bias, dark, replace(flat, pixels=pixels), flat.rate)
    assert found.plane[50, 70] == Mask.BAD
    assert np.all(found.plane[20:129, 300] == Mask.BAD)


def test_columns_are_closed_from_end_to_end() -> None:
    bad = np.zeros((30, 4), bool)
    bad[[3, 9, 20], 1] = True
    bad[[2, 8], 3] = True
    assert _close_columns(bad, 3) == 1
    assert np.flatnonzero(bad[:, 1]).tolist() == list(range(3, 21))
    assert np.flatnonzero(bad[:, 3]).tolist() == [2, 8]


@pytest.mark.parametrize("shape", [(64, 128), (70, 200), (30, 40)])
def test_the_local_median_is_that_of_each_square(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = local_median(image)
    for y in range(0, shape[0], 16):
        for x in range(0, shape[1], 16):
            tile = np.s_[y : y + 16, x : x + 16]
            assert np.all(found[tile] == np.median(image[tile]))


ZEROS = np.zeros(SMALL.format.raw_shape, np.int32)


def bad_biases() -> dict[str, tuple[Raw, str]]:
    taken = raw("bias", 3)
    return {
        "all zeros": (spoilt(taken, ZEROS), "no noise in the overscan of C10, C11"),
        "short": (spoilt(taken, ZEROS[:, :100]), r"segments are int32 \(16, 100, 160\)"),
        "not a number": (spoilt(taken, np.full(ZEROS.shape, np.nan)), "segments are float64"),
        "another detector": (replace(taken, detector=7), "detector 7: processed as detector 94"),
        "another type": (raw("dark", 3, DARK_SECONDS), "a dark exposure among those of bias"),
        "light": (spoilt(taken, taken.segments + (raw("flat", 1, 0.05).segments - taken.segments)), "first frames"),
    }


@pytest.mark.parametrize("what", sorted(bad_biases()))
def test_one_bad_bias_is_left_out_and_named(what: str) -> None:
    bad, said = bad_biases()[what]
    made = make_bias([*raws("bias", 3), bad, raw("bias", 4), raw("bias", 5)], SMALL)
    assert len(made.pixels.used) == 5
    (left,) = made.pixels.rejected
    assert left.exposure == bad.observation.exposure
    assert str(left.exposure) in left.why
    assert re.search(said, left.why)


def test_a_product_without_three_good_frames_is_refused_by_name() -> None:
    bad = spoilt(raw("bias", 2), ZEROS)
    with pytest.raises(BadData, match=r"bias of detector 94: 2 frames are left.*exposure 2026070500006.*no noise"):
        make_bias([raw("bias", 0), bad, raw("bias", 1)], SMALL)


@pytest.mark.parametrize(
    ("number", "seconds", "said"),
    [(12, 0.001, "the lamp was off"), (13, 4.6, "a saturated flat"), (14, 60.0, "a saturated flat")],
)
def test_a_flat_without_lamp_or_with_too_much_is_left_out(
    number: int, seconds: float, said: str, bias: Bias, dark: Dark
) -> None:
    bad = raw("flat", number, seconds)
    made = make_flat([bad, *raws("flat", 3, FLAT_SECONDS)], SMALL, "r", bias, dark, ELECTRONICS)
    (left,) = made.pixels.rejected
    assert left.exposure == bad.observation.exposure
    assert said in left.why


def test_a_flat_of_another_band_is_left_out(bias: Bias, dark: Dark) -> None:
    green = raw("flat", 15, FLAT_SECONDS)
    green = replace(green, observation=replace(green.observation, band="g"))
    made = make_flat([*raws("flat", 3, FLAT_SECONDS), green], SMALL, "r", bias, dark, ELECTRONICS)
    assert "a flat in 'g' among those in 'r'" in made.pixels.rejected[0].why


def test_a_dark_of_no_time_is_left_out(bias: Bias) -> None:
    short = [raw("dark", 20, 0.0), *raws("dark", 3, DARK_SECONDS)]
    assert "a dark of 0.0 s" in make_dark(short, SMALL, bias, ELECTRONICS).pixels.rejected[0].why


def test_parts_of_another_detector_are_refused_by_name(bias: Bias, dark: Dark, flat: Flat) -> None:
    found = find_defects(SMALL, bias, dark, flat, flat.rate)
    with pytest.raises(BadData, match="calibration of detector 94: Flat is of detector 95"):
        assemble(SMALL, bias, dark, replace(flat, detector=95), found, ELECTRONICS)
    with pytest.raises(BadData, match="defects of detector 94: a Dark of detector 95"):
        find_defects(SMALL, bias, replace(dark, detector=95), flat, flat.rate)
    with pytest.raises(BadData, match=r"calibration of detector 94: bias is \(320, 768\).*not \(4004, 4096\)"):
        assemble(camera("LSSTCam")[94], bias, dark, flat, found, ELECTRONICS)
