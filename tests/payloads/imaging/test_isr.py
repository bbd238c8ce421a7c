from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from payloads.imaging.isr import remove_signature
from schemas.errors import BadData
from schemas.image import Calibration, Image, Mask, MaskedImage, Observation, Raw
from schemas.instrument import ITL, Detector, Format
from tests.payloads.planes import generators

PEDESTAL = 25_000
OBSERVATION = Observation(
    instrument="LSSTCam", group="g", visit=1, exposure=20260101_00012, snap=0, n_snaps=2,
    image_name="MC_O_20260101_000012", physical_filter="r_57", band="r", ra=10.0, dec=-20.0, rotation=0.0,
    exposure_time=15.0, started=0.0, readout_ended=17.0,
)  # fmt: skip

SMALL = Format("E2V", 96, 120, 10, 54, 6)
"""An e2v CCD of few pixels."""


def ccd(form: Format) -> Detector:
    return Detector(7, "R22_S11", "R22", form, (0.0, 0.0))


def calibration_of(form: Format, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    shape = (form.height, form.width)
    crosstalk = rng.normal(0, 1e-4, (16, 16)) * (1 - np.eye(16))
    return Calibration(
        bias=rng.normal(0, 3, shape).astype(np.float32),
        dark=rng.uniform(0, 0.05, shape).astype(np.float32),
        flat=rng.normal(1, 0.02, shape).astype(np.float32),
        defects=np.where(rng.random(shape) < 1e-4, np.uint16(Mask.BAD), np.uint16(0)),
        gain=rng.normal(1.5, 0.05, 16).astype(np.float32),
        read_noise=rng.normal(6, 0.5, 16).astype(np.float32),
        saturation=rng.normal(1.3e5, 1e3, 16).astype(np.float32),
        crosstalk=crosstalk.astype(np.float32),
        linearity=rng.normal(0.0, 5e-3, (16, 3)).astype(np.float32),
    )


def raw_of(form: Format, seed: int = 1) -> Raw:
    """Sky, a drift of the pedestal with rows, and a star in one amplifier that all others hear."""
    rng = np.random.default_rng(seed)
    segments = rng.normal(600, 25, form.raw_shape)
    imaging = form.prescan + form.amp_width
    segments[:, :, imaging:] = rng.normal(0, 4, (16, form.raw_shape[1], form.serial_overscan))
    segments[3, 30:40, 40:60] = 80_000.0
    segments += PEDESTAL + 20 * np.sin(np.arange(form.raw_shape[1]) / 40)[:, None]
    return Raw(OBSERVATION, 7, segments.astype(np.int32), "")


def reference(raw: Raw, calibration: Calibration, detector: Detector) -> MaskedImage:
    """The same in plain NumPy, a step at a time."""
    form = detector.format
    segments = raw.segments[:, : form.amp_height].astype(np.float64)
    overscan = segments[:, :, form.prescan + form.amp_width + 4 :]
    offset = np.abs(overscan - overscan.mean(axis=2, keepdims=True))
    kept = offset <= 3 * overscan.std(axis=2, keepdims=True) + 1
    level = np.where(kept, overscan, 0).sum(axis=2) / kept.sum(axis=2)
    imaging = segments[:, :, form.prescan : form.prescan + form.amp_width]
    electrons = (imaging - level[:, :, None]) * calibration.gain[:, None, None]
    clean = electrons - np.tensordot(calibration.crosstalk.astype(np.float64), electrons, 1)
    image, full = np.empty((form.height, form.width)), np.empty((form.height, form.width), bool)
    noise, terms = np.empty_like(image), np.empty((3, form.height, form.width))
    for a in detector.amplifiers:
        turn = np.s_[:: -1 if a.flip_y else 1, :: -1 if a.flip_x else 1]
        where = np.s_[a.y0 : a.y0 + form.amp_height, a.x0 : a.x0 + form.amp_width]
        image[where], noise[where] = clean[a.index][turn], calibration.read_noise[a.index] ** 2
        terms[:, *where] = calibration.linearity[a.index][:, None, None]
        full[where] = electrons[a.index][turn] >= 0.98 * calibration.saturation[a.index]
    shown = image - calibration.bias
    with np.errstate(invalid="ignore"):
        charge = shown * (1.0 + sum(c * (shown / 1e5) ** (k + 1) for k, c in enumerate(terms)))
        value = charge - calibration.dark * raw.observation.exposure_time
    good = np.isfinite(value) & (calibration.flat > 0) & (calibration.flat < np.inf)
    flat = np.where(good, calibration.flat, 1.0)
    signal, variance = np.where(good, value / flat, 0.0), (np.where(good, np.maximum(charge, 0), 0.0) + noise) / flat**2
    mask = calibration.defects | np.where(good, 0, Mask.BAD | Mask.UNMASKED_NAN).astype(np.uint16)
    mask |= np.where(binary_dilation(full, np.ones((5, 3))), np.uint16(Mask.SAT), np.uint16(0))
    return MaskedImage(signal.astype(np.float32), mask, variance.astype(np.float32))


@pytest.mark.parametrize("form", [SMALL, ITL], ids=["e2v", "itl"])
def test_it_is_each_step_in_turn(form: Format) -> None:
    detector = ccd(form)
    raw, calibration = raw_of(detector.format), calibration_of(detector.format)
    made, expected = remove_signature(raw, calibration, detector), reference(raw, calibration, detector)
    np.testing.assert_allclose(made.image, expected.image, rtol=2e-5, atol=0.02)
    np.testing.assert_allclose(made.variance, expected.variance, rtol=2e-5, atol=0.02)
    assert np.array_equal(made.mask, expected.mask)
    assert {made.image.dtype, made.variance.dtype} == {np.dtype("f4")}
    assert made.mask.dtype == np.uint16


def forms() -> st.SearchStrategy[Format]:
    """CCDs from one pixel an amplifier on, read with at least one column of overscan that counts."""
    narrow, overscan = st.integers(1, 12), st.integers(5, 16)
    return st.builds(Format, st.just("E2V"), narrow, narrow, st.integers(0, 4), overscan, st.integers(0, 3))


def spoil(calibration: Calibration, raw: Raw, rng: np.random.Generator) -> None:
    """Calibrations without a value here and there, saturated pixels, and rays in the overscan."""
    for plane in (calibration.bias, calibration.dark, calibration.flat):
        plane[rng.random(plane.shape) < 0.03] = np.nan
    calibration.bias[rng.random(calibration.bias.shape) < 0.03] = rng.choice([np.inf, -np.inf])
    calibration.dark[rng.random(calibration.dark.shape) < 0.03] = np.inf
    calibration.flat[rng.random(calibration.flat.shape) < 0.03] = rng.choice([0.0, -0.5, np.inf])
    calibration.defects[rng.random(calibration.defects.shape) < 0.1] |= np.uint16(Mask.VIGNETTED)
    raw.segments[rng.random(raw.segments.shape) < 0.01] = PEDESTAL + 150_000


@given(form=forms(), rng=generators())
@settings(max_examples=60, deadline=None)
def test_a_ccd_of_any_format_with_any_holes_in_its_calibration_is_each_step_in_turn(
    form: Format, rng: np.random.Generator
) -> None:
    raw, calibration = raw_of(form, int(rng.integers(1 << 30))), calibration_of(form, int(rng.integers(1 << 30)))
    spoil(calibration, raw, rng)
    made, expected = remove_signature(raw, calibration, ccd(form)), reference(raw, calibration, ccd(form))
    np.testing.assert_allclose(made.image, expected.image, rtol=2e-5, atol=0.02)
    np.testing.assert_allclose(made.variance, expected.variance, rtol=2e-5, atol=0.02)
    np.testing.assert_array_equal(made.mask, expected.mask)


def full_well() -> tuple[Raw, Calibration]:
    raw, calibration = raw_of(SMALL), calibration_of(SMALL)
    raw.segments[:, 20:90, 50] = PEDESTAL + 100_000
    return raw, calibration


def test_saturated_columns_are_marked_and_grown() -> None:
    detector = ccd(SMALL)
    raw, calibration = full_well()
    made, expected = remove_signature(raw, calibration, detector), reference(raw, calibration, detector)
    saturated = expected.mask & Mask.SAT != 0
    assert saturated.sum() >= 16 * 74
    np.testing.assert_array_equal(made.mask & Mask.SAT != 0, saturated)


def test_a_ray_in_the_overscan_does_not_pull_its_row() -> None:
    detector, calibration = ccd(SMALL), calibration_of(SMALL)
    clean, struck = raw_of(SMALL), raw_of(SMALL)
    struck.segments[5, 70, -20] += 30_000
    before, after = (remove_signature(r, calibration, detector).image for r in (clean, struck))
    assert np.abs(after - before).max() < 1.0


def test_a_calibration_without_value_is_masked_not_spread() -> None:
    detector, raw, calibration = ccd(SMALL), raw_of(SMALL), calibration_of(SMALL)
    calibration.flat[10, 20] = 0.0
    calibration.flat[11, 20] = np.nan
    calibration.bias[12, 20] = np.nan
    calibration.dark[13, 20] = np.inf
    calibration.flat[14, 20] = np.inf
    made = remove_signature(raw, calibration, detector)
    assert np.all(made.mask[10:15, 20] & (Mask.BAD | Mask.UNMASKED_NAN) == Mask.BAD | Mask.UNMASKED_NAN)
    assert np.all(made.image[10:15, 20] == 0.0)
    assert np.isfinite(made.image).all()
    assert np.isfinite(made.variance).all()
    assert np.all(made.variance > 0)
    assert not made.mask[15, 20] & Mask.UNMASKED_NAN


def frozen(image: Image) -> Image:
    image.setflags(write=False)
    return image


def test_read_only_arrays_are_taken() -> None:
    detector, raw, calibration = ccd(SMALL), raw_of(SMALL), calibration_of(SMALL)
    expected = remove_signature(raw, calibration, detector)
    raw.segments.setflags(write=False)
    for name in ("bias", "dark", "flat", "defects", "gain", "read_noise", "saturation", "crosstalk", "linearity"):
        frozen(getattr(calibration, name))
    assert np.array_equal(remove_signature(raw, calibration, detector).image, expected.image)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        (np.zeros((16, 100, 160), np.int32), r"int32 \(16, 100, 160\)"),
        (np.zeros((15, 126, 160), np.int32), r"\(15, 126, 160\)"),
        (np.zeros(SMALL.raw_shape, np.uint16), "uint16"),
    ],
)
def test_a_short_or_strange_raw_is_refused_by_name(segments: NDArray[np.int32], said: str) -> None:
    raw = replace(raw_of(SMALL), segments=segments)
    with pytest.raises(BadData, match=rf"exposure 2026010100012 .* detector 7: .*{said}"):
        remove_signature(raw, calibration_of(SMALL), ccd(SMALL))


def test_a_calibration_of_another_format_is_refused_by_name() -> None:
    with pytest.raises(BadData, match="detector 7: calibration bias has shape"):
        remove_signature(raw_of(SMALL), calibration_of(ITL), ccd(SMALL))


@pytest.mark.parametrize("plane", ["gain", "read_noise", "saturation", "crosstalk", "linearity"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_amplifiers_calibration_that_is_no_number_is_refused_by_name(plane: str, value: float) -> None:
    calibration = calibration_of(SMALL)
    getattr(calibration, plane).flat[3] = value
    with pytest.raises(BadData, match=f"exposure 2026010100012 .* detector 7: calibration {plane} .* not finite"):
        remove_signature(raw_of(SMALL), calibration, ccd(SMALL))


def test_a_raw_of_another_detector_is_refused() -> None:
    with pytest.raises(BadData, match="detector 8: processed as detector 7"):
        remove_signature(replace(raw_of(SMALL), detector=8), calibration_of(SMALL), ccd(SMALL))
