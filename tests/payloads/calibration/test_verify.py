from dataclasses import replace

import numpy as np
import pytest

from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import Crosstalk
from payloads.calibration.dark import Dark
from payloads.calibration.defects import Defects
from payloads.calibration.flat import Flat
from payloads.calibration.frames import Rejected
from payloads.calibration.photon_transfer import PhotonTransfer
from payloads.calibration.stack import Stacked
from payloads.calibration.verify import _LIMITS, Product, verify
from schemas.image import Image
from tests.payloads.calibration.small_ccd import SMALL, raws

SHAPE = (320, 768)
USED = tuple(range(10))


def stacked(image: Image, noise: float) -> Stacked:
    return Stacked(image, np.full(SHAPE, noise**2, np.float32), np.zeros(SHAPE, np.uint16), USED, ())


def plane(value: float) -> Image:
    return np.full(SHAPE, value, np.float32)


def good() -> dict[str, Product]:
    ones = np.ones(16)
    return {
        "bias": Bias(94, stacked(plane(1.0), 1.5), 4.5 * ones),
        "dark": Dark(94, stacked(plane(0.02), 0.03), 600.0),
        "flat": Flat(94, "r", stacked(plane(1.0), 0.002), 2e4),
        "defects": Defects(94, np.zeros(SHAPE, np.uint16), 0, 0, 0),
        "crosstalk": Crosstalk(94, 1e-4 * (1 - np.eye(16)), 1e-6 * (1 - np.eye(16)), 1.1, USED, ()),
        "photon transfer": PhotonTransfer(
            detector=94, gain=1.5 * ones, gain_error=1e-3 * ones, read_noise=6.0 * ones, full_well=1e5 * ones,
            reached=np.ones(16, bool), linearity=np.full((16, 3), 3e-3), curve_error=3e-4 * ones,
            correlation=0.0 * ones, lamp=np.full(8, 0.01), residuals=np.full((8, 16), 1e-5), used=USED, rejected=(),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(good()))
def test_a_good_product_passes_every_check(kind: str) -> None:
    report = verify(good()[kind])
    assert [check for check in report if not check.passed] == []
    assert all(check.name.startswith(f"{kind}: ") for check in report)


def test_every_limit_is_of_a_check_that_is_made() -> None:
    assert {check.name for product in good().values() for check in verify(product)} == set(_LIMITS)


def broken() -> list[tuple[Product, str]]:
    made = good()
    bias, dark, flat = made["bias"], made["dark"], made["flat"]
    transfer, crosstalk = made["photon transfer"], made["crosstalk"]
    assert isinstance(bias, Bias)
    assert isinstance(dark, Dark)
    assert isinstance(flat, Flat)
    assert isinstance(crosstalk, Crosstalk)
    assert isinstance(transfer, PhotonTransfer)
    tilted = np.linspace(-60.0, 60.0, SHAPE[1], dtype=np.float32) + plane(0.0)
    half_lit = plane(1.0)
    half_lit[:, :100] = 0.05
    left_out = tuple(Rejected(number, "dark") for number in range(6))
    bad = np.zeros(SHAPE, np.uint16)
    bad[:20] = 1
    ones = np.ones(16)
    return [
        (replace(bias, pixels=stacked(tilted, 1.5)), "bias: gradient"),
        (replace(bias, pixels=replace(bias.pixels, rejected=left_out)), "bias: frames left out"),
        (replace(bias, read_noise=np.where(np.arange(16) == 3, 30.0, 4.5)), "bias: read noise"),
        (replace(dark, pixels=stacked(plane(3.0), 0.03)), "dark: current"),
        (replace(flat, pixels=stacked(half_lit, 0.002)), "flat: lowest"),
        (replace(flat, pixels=stacked(plane(1.0), 0.02)), "flat: photon noise"),
        (Defects(94, bad, 0, 0, 0), "defects: bad pixels"),
        (replace(crosstalk, matrix=crosstalk.matrix + 0.01), "crosstalk: largest coefficient"),
        (replace(crosstalk, agreement=float("nan")), "crosstalk: exposures differ"),
        (replace(transfer, gain=3.0 * ones), "photon transfer: highest gain"),
        (replace(transfer, gain=0.5 * ones), "photon transfer: lowest gain"),
        (replace(transfer, gain=np.nan * ones), "photon transfer: lowest gain"),
        (replace(transfer, residuals=np.full((8, 16), 2e-3)), "photon transfer: residual non-linearity"),
        (replace(transfer, correlation=0.01 * ones), "photon transfer: neighbours' correlation"),
        (replace(transfer, reached=np.arange(16) > 0), "photon transfer: amplifiers not filled"),
    ]


@pytest.mark.parametrize(("product", "fails"), broken(), ids=[name for _, name in broken()])
def test_a_bad_product_fails_by_the_name_of_what_is_wrong(product: Product, fails: str) -> None:
    failed = [check.name for check in verify(product) if not check.passed]
    assert any(name.startswith(fails) for name in failed), failed


def test_a_real_bias_passes() -> None:
    assert all(check.passed for check in verify(make_bias(raws("bias", 6), SMALL)))
