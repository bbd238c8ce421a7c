from dataclasses import replace

import numpy as np
import pytest

from schemas.image import Calibration, Image
from schemas.instrument import Detector, Format, camera
from simulators.camera.ccd import bias_pattern, ccd, view
from simulators.camera.exposure import FocalPlane
from simulators.camera.noise import Purpose, fill_normal, stream
from simulators.camera.products import calibration
from simulators.camera.sensor import Segments, _bleed, bleed, read_out, row_levels
from tests.simulators.camera.conftest import SCIENCE, SEED, FixedSky, exposed, recipe_of, remove_signature

CAMERA = camera("LSSTCam")


def level_charge(detector: int, electrons: float) -> Image:
    form = CAMERA[detector].format
    return np.full((form.height, form.width), electrons, np.float32)


SMALL = replace(CAMERA[SCIENCE], format=Format("E2V", 64, 90, 10, 54, 46))


@pytest.mark.parametrize("detector", [SMALL, CAMERA[0]], ids=["small e2v", "itl"])
def test_a_raw_is_what_the_formulas_say(detector: Detector) -> None:
    chip = ccd(SEED, "LSSTCam", detector)
    form = chip.detector.format
    charge = np.random.default_rng(1).random((form.height, form.width), np.float32) * np.float32(9e4)
    raw = read_out(charge, chip, SEED, 7)
    data = slice(form.prescan, form.prescan + form.amp_width)
    signal, shot = np.zeros(form.raw_shape), np.zeros(form.raw_shape)
    pattern = bias_pattern(chip)
    for amplifier in chip.detector.amplifiers:
        part = view(charge, amplifier, (form.amp_height, form.amp_width)).astype(np.float64)
        full = part / chip.full_well[amplifier.index]
        loss = [c * full ** (k + 1) for k, c in enumerate(chip.compression[amplifier.index])]
        slope = 1.0 + sum((k + 2) * part_lost for k, part_lost in enumerate(loss))
        shot[amplifier.index, : form.amp_height, data] = slope**2 * part
        shown = part * (1.0 + sum(loss))
        signal[amplifier.index, : form.amp_height, data] = shown + view(pattern, amplifier, part.shape)
    drawn = np.empty(raw.size, np.float32)
    fill_normal(stream(SEED, Purpose.READOUT, 7, detector.id), drawn)
    deviates = drawn.reshape(form.raw_shape[1], 16, form.raw_shape[2]).transpose(1, 0, 2)
    noise = deviates * np.sqrt(shot + (chip.read_noise**2)[:, None, None])
    heard = signal + np.einsum("ij,jrc->irc", chip.crosstalk, signal)
    adu = (heard + noise) / chip.gain[:, None, None] + row_levels(chip, SEED, 7)[:, :, None]
    assert np.abs(raw - adu).max() < 0.54  # float32 has steps of 0.008 at a full well
    assert raw.dtype == np.int32


def test_charge_above_the_well_runs_along_the_column_and_is_kept() -> None:
    charge = np.full((400, 32), 100.0, np.float32)
    charge[150:153, 5] = 1e6
    wells = np.full((2, 8), 1e5, np.float32)
    before = charge.sum(dtype=np.float64)
    _bleed(charge, wells)
    assert charge.max() <= 1e5
    assert charge.sum(dtype=np.float64) == pytest.approx(before, rel=1e-5)
    assert np.all(charge[:, 4] == 100.0)
    full = np.flatnonzero(charge[:, 5] > 99_000.0)
    assert full[-1] - full[0] + 1 == len(full)
    assert abs(len(full) - 30) <= 2
    assert abs((full[0] + full[-1]) / 2 - 151) <= 1


def test_what_bleeds_over_the_end_is_lost() -> None:
    charge = np.zeros((40, 8), np.float32)
    charge[3, 2] = 1e7
    _bleed(charge, np.full((2, 8), 1e5, np.float32))
    assert np.all(charge[:, 2] == np.float32(1e5))


def test_an_unsaturated_image_is_left_alone() -> None:
    charge = level_charge(SCIENCE, 5e4)
    bleed(charge, ccd(SEED, "LSSTCam", CAMERA[SCIENCE]))
    assert np.all(charge == np.float32(5e4))


def test_a_raw_undone_is_the_light_that_fell(
    plane: FocalPlane, raw: Segments, charge: Image, master: Calibration
) -> None:
    image = remove_signature(raw, CAMERA[SCIENCE], master, 15.0)
    field = plane.field(recipe_of(exposed()), SCIENCE)
    truth = (charge - 15.0 * field.chip.dark.mean()) / field.response * field.response.mean(dtype=np.float64)
    good = (master.defects == 0) & (charge < 8e4)
    sigma = np.sqrt(charge + 7.0**2) / master.flat
    pull = ((image - truth) / sigma)[good]
    assert abs(np.median(pull)) < 0.01
    assert 0.98 < np.percentile(pull, 84.13) - np.percentile(pull, 50) < 1.03
    assert np.mean(np.abs(pull) > 5.0) < 1e-4


def test_crosstalk_is_there_and_can_be_taken_away() -> None:
    chip = ccd(SEED, "LSSTCam", CAMERA[SCIENCE])
    charge = level_charge(SCIENCE, 400.0)
    source, victim = chip.detector.amplifiers[2], int(np.argmax(chip.crosstalk[:, 2]))
    view(charge, source, (2002, 512))[500:900, 100:400] = 9e4
    raw = read_out(charge, chip, SEED, 9)
    master = calibration(SEED, CAMERA, SCIENCE, "r")

    def ghost(crosstalk: Image) -> float:
        plain = Calibration(**{**vars(master), "flat": np.ones_like(master.flat), "crosstalk": crosstalk})
        image = remove_signature(raw, chip.detector, plain, 15.0)
        part = view(image, chip.detector.amplifiers[victim], (2002, 512))
        return float(np.median(part[500:900, 100:400]) - np.median(part[1000:1400, 100:400]))

    expected = chip.crosstalk[victim, 2] * (9e4 - 400.0)
    assert expected > 10.0
    assert ghost(np.zeros_like(master.crosstalk)) == pytest.approx(expected, abs=1.0)
    assert abs(ghost(master.crosstalk)) < 1.5


def test_overscan_shows_the_level_of_its_row(raw: Segments) -> None:
    chip = ccd(SEED, "LSSTCam", CAMERA[SCIENCE])
    overscan = raw[:, :, 10 + 512 :]
    levels = row_levels(chip, SEED, exposed().exposure)
    mean_error = overscan.mean(axis=2) - levels
    assert np.abs(mean_error).max() < 6.0 * 9.0 / 1.3 / np.sqrt(54)
    noise = overscan.std(axis=2).mean(axis=1) * chip.gain
    np.testing.assert_allclose(noise, chip.read_noise, rtol=0.05)
    assert np.ptp(levels, axis=1).max() > 1.0


def test_the_same_recipe_gives_the_same_bits(sky: FixedSky, raw: Segments) -> None:
    again = FocalPlane(SEED, "LSSTCam", sky)
    recipe = recipe_of(exposed())
    np.testing.assert_array_equal(again.segments(recipe, SCIENCE, again.charge(recipe, SCIENCE)), raw)


def test_the_second_snap_sees_the_same_sky_and_other_noise(plane: FocalPlane, charge: Image) -> None:
    second = plane.charge(recipe_of(exposed(1)), SCIENCE)
    differs = np.abs(second - charge) > 1e-3 * charge
    assert 0.0001 < differs.mean() < 0.02  # cosmic rays, asteroids, a streak at most
    chip = ccd(SEED, "LSSTCam", CAMERA[SCIENCE])
    one, two = read_out(charge, chip, SEED, 4), read_out(charge, chip, SEED, 5)
    assert np.mean(one == two) < 0.1


def test_latiss_is_rendered_by_the_same_code(sky: FixedSky) -> None:
    latiss = FocalPlane(SEED, "LATISS", sky)
    recipe = recipe_of(exposed(instrument="LATISS"))
    raw = latiss.segments(recipe, 0, latiss.charge(recipe, 0))
    assert raw.shape == (16, 2048, 576)
    signal = raw[:, :2000, 3 : 3 + 509].mean(axis=(1, 2)) - raw[:, :2000, 3 + 509 + 4 :].mean(axis=(1, 2))
    assert np.all(signal > 100.0)
