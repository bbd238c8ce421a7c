"""A whole CCD, calibrated from its own exposures alone, against what the simulator put in."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from payloads.calibration.assemble import assemble
from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import Crosstalk, measure_crosstalk
from payloads.calibration.dark import Dark, make_dark
from payloads.calibration.defects import Defects, find_defects
from payloads.calibration.flat import Flat, make_flat
from payloads.calibration.photon_transfer import PhotonTransfer, measure_photon_transfer
from payloads.calibration.verify import verify
from payloads.imaging.isr import remove_signature
from schemas.image import Mask, Raw
from schemas.instrument import camera
from simulators.camera import calibrations
from simulators.camera.ccd import Ccd, bias_pattern, defects, response
from simulators.camera.sensor import read_out
from tests.payloads.calibration.small_ccd import SEED, chip, exposed, linearity_error, true_crosstalk_in_adu

DETECTOR = camera("LSSTCam")[94]
LADDER = (0.1, 0.5, 1.2, 2.1, 3.0, 3.8, 4.3, 7.0)


@dataclass(frozen=True, eq=False)
class Made:
    chip: Ccd
    bias: Bias
    crosstalk: Crosstalk
    transfer: PhotonTransfer
    dark: Dark
    flat: Flat
    defects: Defects
    science: Raw


@pytest.fixture(scope="module")
def made() -> Made:
    device = chip(DETECTOR)
    lit = response(device, "r")

    def raw(kind: str, number: int, seconds: float, visit: int | None = None) -> Raw:
        seen = exposed(kind, number, seconds, visit=visit)
        light = calibrations.charge(SEED, seen, device, lambda: lit)
        return Raw.of(seen, DETECTOR.id, read_out(light, device, SEED, seen.exposure))

    def raws(kind: str, n: int, seconds: float) -> Iterator[Raw]:
        return (raw(kind, number, seconds) for number in range(n))

    bias = make_bias(raws("bias", 5, 0.0), DETECTOR)
    crosstalk = measure_crosstalk(raws("spot", 3, 1.0), DETECTOR, bias)
    pairs = (
        (raw("flat", 20 + 2 * k, seconds, 1000 + k), raw("flat", 21 + 2 * k, seconds, 1000 + k))
        for k, seconds in enumerate(LADDER)
    )
    transfer = measure_photon_transfer(pairs, DETECTOR, bias, crosstalk)
    electronics = transfer.electronics(crosstalk)
    dark = make_dark(raws("dark", 4, 30.0), DETECTOR, bias, electronics)
    flat = make_flat(raws("flat", 4, 2.0), DETECTOR, "r", bias, dark, electronics)
    bad = find_defects(DETECTOR, bias, dark, flat, flat.rate)
    return Made(device, bias, crosstalk, transfer, dark, flat, bad, raw("flat", 90, 0.5))


def test_gains_and_read_noises(made: Made) -> None:
    np.testing.assert_allclose(made.transfer.gain, made.chip.gain, rtol=0.005)
    np.testing.assert_allclose(made.transfer.read_noise, made.chip.read_noise, rtol=0.02)


def test_linearity_up_to_the_full_well(made: Made) -> None:
    assert linearity_error(made.chip, made.transfer.linearity).max() < 0.001


def test_crosstalk(made: Made) -> None:
    truth = true_crosstalk_in_adu(made.chip)
    off, large = made.crosstalk.matrix - truth, np.abs(truth) > 3e-5
    assert np.abs(off[large] / truth[large]).max() < 0.05
    assert np.abs(off).max() < 3.5e-6
    assert made.crosstalk.error.max() < 2e-6


def test_bias_flat_and_defects(made: Made) -> None:
    off = made.bias.in_electrons(made.transfer.gain.astype(np.float32), DETECTOR) - bias_pattern(made.chip)
    assert off.std() < 1.05 * np.sqrt(np.mean(made.chip.read_noise**2) / 5)
    truth = response(made.chip, "r")
    built = defects(made.chip) & Mask.BAD != 0
    ratio = made.flat.pixels.image / (truth / truth.mean(dtype=np.float64))
    assert abs(ratio.mean(dtype=np.float64) - 1.0) < 1e-4
    assert ratio.std() == pytest.approx(np.sqrt(np.mean(made.flat.pixels.variance / truth**2)), rel=0.05)
    bad = made.defects.plane & Mask.BAD != 0
    assert bad[built].mean() > 0.99
    assert np.sum(bad & ~built) < 1000


def test_what_is_made_passes_its_checks(made: Made) -> None:
    products = (made.bias, made.crosstalk, made.transfer, made.dark, made.flat, made.defects)
    assert [check for product in products for check in verify(product) if not check.passed] == []


def test_the_calibration_flattens_an_exposure_it_was_not_made_of(made: Made) -> None:
    electronics = made.transfer.electronics(made.crosstalk)
    calibration = assemble(DETECTOR, made.bias, made.dark, made.flat, made.defects, electronics)
    image = remove_signature(made.science, calibration, DETECTOR)
    form = DETECTOR.format
    levels = np.array([
        np.median(image.image[a.y0 : a.y0 + form.amp_height, a.x0 : a.x0 + form.amp_width]) for a in DETECTOR.amplifiers
    ])  # fmt: skip
    assert np.std(levels) / np.mean(levels) < 2e-4
    pull = (image.image - levels.mean())[image.mask == 0] / np.sqrt(image.variance[image.mask == 0])
    assert np.diff(np.percentile(pull, [15.87, 84.13]))[0] / 2.0 == pytest.approx(1.0, abs=0.05)
