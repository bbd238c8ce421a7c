import numpy as np
import pytest

from schemas.errors import BadData
from schemas.image import Calibration, Mask
from schemas.instrument import camera
from schemas.skymap import PATCH_PIXELS, tract_at
from simulators.camera.ccd import ccd, response
from simulators.camera.products import (
    calibration,
    electrons_per_njy,
    reference_catalogue,
    template_patch,
    template_psf,
    template_variance,
)
from simulators.sky.sky import Sky
from simulators.sky.sources import SKY_SOURCE_DTYPE
from tests.simulators.camera.conftest import SCIENCE, SEED, FixedSky

TRACT = tract_at(250.0, -20.0)
PATCH = 190


@pytest.fixture(scope="module")
def stars() -> FixedSky:
    rows = np.zeros(40, SKY_SOURCE_DTYPE)
    rng = np.random.default_rng(1)
    box = TRACT.patch_box(PATCH)
    x, y = rng.uniform(box.x0 + 100, box.x1 - 100, 40), rng.uniform(box.y0 + 100, box.y1 - 100, 40)
    rows["ra"], rows["dec"] = TRACT.wcs.pixel_to_sky(x, y)
    rows["id"], rows["axis_ratio"], rows["flux"], rows["template_flux"] = np.arange(40) + 1, 1.0, 3e5, 1e5
    rows["template_flux"][0], rows["template_flux"][1] = 1e8, 0.0
    return FixedSky(rows)


def test_calibration_is_the_truth_with_small_errors(master: Calibration) -> None:
    chip = ccd(SEED, "LSSTCam", camera("LSSTCam")[SCIENCE])
    flat = response(chip, "r")
    flat /= flat.mean(dtype=np.float64)
    assert np.std(master.flat - flat) == pytest.approx(7e-4, rel=0.05)
    assert master.flat.mean(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(master.gain, chip.gain, rtol=2e-3)
    np.testing.assert_allclose(master.crosstalk, chip.crosstalk, rtol=0.05)
    assert np.all(master.saturation < chip.full_well)
    for plane, dtype in (
        (master.bias, "f4"),
        (master.dark, "f4"),
        (master.flat, "f4"),
        (master.defects, "u2"),
    ):
        assert plane.shape == (4004, 4096)
        assert plane.dtype == np.dtype(dtype)


def test_its_linearity_turns_signals_back_into_charge(master: Calibration) -> None:
    chip = ccd(SEED, "LSSTCam", camera("LSSTCam")[SCIENCE])
    for amplifier, curve in enumerate(chip.compression):
        charge = np.linspace(100.0, chip.full_well[amplifier], 50)
        x = charge / chip.full_well[amplifier]
        shown = charge * (1.0 + curve[0] * x + curve[1] * x**2 + curve[2] * x**3)
        assert 0.004 < 1.0 - shown[-1] / charge[-1] < 0.010
        back = shown * (1.0 + sum(c * (shown / 1e5) ** (k + 1) for k, c in enumerate(master.linearity[amplifier])))
        np.testing.assert_allclose(back, charge, rtol=4e-4)


def test_calibration_is_the_same_again_and_its_flat_is_the_band_s(master: Calibration) -> None:
    again, other = (calibration(SEED, camera("LSSTCam"), SCIENCE, band) for band in "ru")
    np.testing.assert_array_equal(again.flat, master.flat)
    np.testing.assert_array_equal(other.bias, master.bias)
    assert not np.array_equal(other.flat, master.flat)


def test_a_detector_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(BadData, match="no detector 999"):
        calibration(SEED, camera("LSSTCam"), 999, "r")


def test_a_template_shows_the_template_fluxes_with_its_psf(stars: FixedSky) -> None:
    template = template_patch(stars, SEED, TRACT, PATCH, "r")
    x, y = template.wcs.sky_to_pixel(stars.rows["ra"], stars.rows["dec"])
    fluxes = []
    for k in range(2, 40):
        i, j = round(x[k]), round(y[k])
        fluxes.append(template.pixels.image[j - 15 : j + 16, i - 15 : i + 16].sum())
        if abs(x[k] - i) < 0.1 and abs(y[k] - j) < 0.1:
            stamp = template.pixels.image[j - 5 : j + 6, i - 5 : i + 6] / 1e5
            assert np.abs(stamp - template.psf.at(x[k], y[k])[15:26, 15:26]).max() < 0.01
    assert np.median(fluxes) == pytest.approx(1e5, rel=0.01)
    i, j = round(x[1]), round(y[1])
    assert abs(template.pixels.image[j, i]) < 10 * template_variance("r") ** 0.5


def test_a_template_is_as_deep_as_twenty_visits(stars: FixedSky) -> None:
    template = template_patch(stars, SEED, TRACT, PATCH, "r")
    sigma = (np.percentile(template.pixels.image, 75) - np.percentile(template.pixels.image, 25)) / 1.349
    assert sigma == pytest.approx(template_variance("r") ** 0.5, rel=0.02)
    assert np.median(template.pixels.variance) == pytest.approx(template_variance("r"), rel=0.01)
    depth = 31.4 - 2.5 * np.log10(5.0 * sigma * np.sqrt(4 * np.pi) * 0.775 / 0.2 / 2.35)
    assert 25.7 < depth < 26.7


def test_saturated_cores_are_flagged_and_cut_off(stars: FixedSky) -> None:
    template = template_patch(stars, SEED, TRACT, PATCH, "r")
    x, y = template.wcs.sky_to_pixel(stars.rows["ra"][:1], stars.rows["dec"][:1])
    assert template.pixels.mask[round(y[0]), round(x[0])] == Mask.SAT
    assert 0 < np.sum(template.pixels.mask != 0) < 2000
    assert template.pixels.image.max() < 1.1e5 / (15.0 * electrons_per_njy("r"))


def test_templates_of_neighbours_fit_together_and_are_the_same_again(stars: FixedSky) -> None:
    left, right = (template_patch(stars, SEED, TRACT, patch, "r") for patch in (PATCH, PATCH + 1))
    np.testing.assert_allclose(left.wcs.pixel_to_sky(PATCH_PIXELS, 5), right.wcs.pixel_to_sky(0, 5), atol=1e-12)
    seam = (
        template_psf(SEED, TRACT, PATCH, "r").at(2047.5, 9.0),
        template_psf(SEED, TRACT, PATCH + 1, "r").at(-0.5, 9.0),
    )
    np.testing.assert_allclose(*seam, atol=1e-6)
    assert 0.74 < 0.2 * seam[0][0] < 0.81
    again = template_patch(stars, SEED, TRACT, PATCH, "r")
    np.testing.assert_array_equal(again.pixels.image, left.pixels.image)
    assert not np.array_equal(right.pixels.image, left.pixels.image)


def test_the_contract_s_psf_is_the_field_s(stars: FixedSky) -> None:
    template, field = template_patch(stars, SEED, TRACT, PATCH, "r"), template_psf(SEED, TRACT, PATCH, "r")
    for x, y in ((0.0, 0.0), (1000.0, 400.0), (2047.0, 2047.0)):
        np.testing.assert_allclose(template.psf.at(x, y), field.kernel(x, y, 41), atol=2e-5)


def test_the_reference_catalogue_is_the_sky_s() -> None:
    sky = Sky(3)
    stars = reference_catalogue(sky, 250.0, -20.0, 0.1)
    np.testing.assert_array_equal(stars, sky.refcat(250.0, -20.0, 0.1))
    assert len(stars) > 20
