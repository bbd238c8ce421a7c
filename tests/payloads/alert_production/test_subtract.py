from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from payloads.alert_production import subtract as module
from payloads.alert_production.subtract import Subtraction, effective_sigma, subtract, warp_template
from payloads.imaging.morphology import grown
from payloads.imaging.photometry import fit_point_sources
from payloads.imaging.psf_field import kernels_at
from schemas.errors import BadData
from schemas.image import Mask, MaskedImage, MaskPlane
from tests.payloads.alert_production.pairs import Pair, make_pair
from tests.payloads.planes import masks, noise, shapes

Floats = NDArray[np.float64]


def clean(subtraction: Subtraction) -> NDArray[np.bool_]:
    return ~grown(subtraction.difference.pixels.mask, 0xFFFF, 12)


def forced_pulls(pair: Pair, subtraction: Subtraction) -> tuple[Floats, Floats]:
    """(flux measured at the true places less the true one) over its error, of sources that stand alone."""
    difference = subtraction.difference
    fits = fit_point_sources(difference.pixels, kernels_at(difference.psf, pair.x, pair.y), pair.x, pair.y, move=False)
    distance = np.hypot(pair.x[:, None] - pair.x, pair.y[:, None] - pair.y) + 1e3 * np.eye(pair.x.size)
    alone = (distance.min(1) > 30) & (fits.failure == 0)
    return ((fits.flux - pair.flux) / fits.flux_err)[alone], (fits.flux / pair.flux)[alone]


def blank_scores(pair: Pair, subtraction: Subtraction) -> Floats:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(50, 970, (2, 3000))
    known_x, known_y = np.concatenate([pair.x, pair.stars_x]), np.concatenate([pair.y, pair.stars_y])
    far = np.hypot(x[:, None] - known_x, y[:, None] - known_y).min(1) > 20
    psfs = kernels_at(subtraction.difference.psf, x[far], y[far])
    fits = fit_point_sources(subtraction.difference.pixels, psfs, x[far], y[far], move=False)
    return (fits.flux / fits.flux_err)[fits.failure == 0]


def test_what_is_left_of_the_constant_sky_is_noise(pair: Pair, subtraction: Subtraction) -> None:
    pixels, sky = subtraction.difference.pixels, clean(subtraction)
    z = pixels.image[sky] / np.sqrt(pixels.variance[sky])
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1.0, abs=0.03)
    scores = blank_scores(pair, subtraction)
    assert np.std(scores) == pytest.approx(1.0, abs=0.05)
    assert abs(np.mean(scores)) < 0.06


def test_new_and_faded_sources_keep_their_fluxes(pair: Pair, subtraction: Subtraction) -> None:
    pulls, ratios = forced_pulls(pair, subtraction)
    assert 1.4826 * np.median(np.abs(pulls - np.median(pulls))) == pytest.approx(1.0, abs=0.3)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02)


def test_the_sharper_image_is_convolved_and_the_flux_stays_the_sciences() -> None:
    pair = make_pair(1024, 12, science_fwhm=3.8, template_fwhm=5.0, injected=60, snr=(10, 60), density=1.5)
    reverse = subtract(pair.science, warp_template(pair.template, pair.science))
    assert reverse.convolved == "science"
    pulls, ratios = forced_pulls(pair, reverse)
    assert 1.4826 * np.median(np.abs(pulls - np.median(pulls))) == pytest.approx(1.0, abs=0.3)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02)
    assert np.std(blank_scores(pair, reverse)) == pytest.approx(1.0, abs=0.05)


def test_neighbouring_pixels_noise_is_uncorrelated_even_where_the_science_image_was_smoothed() -> None:
    pair = make_pair(1024, 13, science_fwhm=3.8, template_fwhm=5.0, injected=0, density=1.5)
    reverse = subtract(pair.science, warp_template(pair.template, pair.science))
    pixels, sky = reverse.difference.pixels, clean(reverse)
    z = np.where(sky, pixels.image / np.sqrt(pixels.variance), 0.0).clip(-4, 4)
    both = sky[:, 1:] & sky[:, :-1]
    assert abs((z[:, 1:] * z[:, :-1])[both].mean() / z[sky].var()) < 0.25  # 0.6 if it were not whitened


def test_the_template_that_was_taken_away_is_the_science_image_of_the_constant_sky(
    pair: Pair, subtraction: Subtraction
) -> None:
    sky = clean(subtraction)
    image, noise = pair.science.pixels.image, np.sqrt(pair.science.pixels.variance)
    assert np.std(((image - subtraction.matched) / noise)[sky]) == pytest.approx(1.0, abs=0.1)
    assert subtraction.kernel_sum == pytest.approx(1.0, abs=0.02)


def reference_joint(science: MaskPlane, template: MaskPlane, reach: int) -> MaskPlane:
    renamed = {Mask.NO_DATA: Mask.NO_DATA, Mask.BAD: Mask.BAD, Mask.SAT: Mask.SAT_TEMPLATE}
    joint = science.copy()
    for theirs, ours in (renamed | {Mask.INJECTED: Mask.INJECTED_TEMPLATE}).items():
        joint[template & theirs != 0] |= np.uint16(ours)
    joint[binary_dilation(joint & Mask.NO_DATA != 0, np.ones((2 * reach + 1, 2 * reach + 1)))] |= np.uint16(
        Mask.NO_DATA
    )
    return joint


@given(data=st.data(), shape=shapes(1, 40), reach=st.sampled_from([12, 17, 22]))
@settings(max_examples=60, deadline=None)
def test_the_templates_bits_go_by_their_own_names_and_missing_data_by_the_kernels_reach(
    data: st.DataObject, shape: tuple[int, int], reach: int
) -> None:
    bits = (Mask.BAD, Mask.SAT, Mask.CR, Mask.INJECTED, Mask.DETECTED, Mask.SUSPECT)
    science, template = data.draw(masks(shape, bits)), data.draw(masks(shape, bits))
    science.flat[:: data.draw(st.integers(2, 2000))] |= np.uint16(Mask.NO_DATA)
    template.flat[1 :: data.draw(st.integers(2, 2000))] |= np.uint16(Mask.NO_DATA)
    joint = module._joint_mask(science, template, reach)
    np.testing.assert_array_equal(joint, reference_joint(science, template, reach))


@given(data=st.data(), shape=shapes(1, 40), value=st.sampled_from([0.0, np.nan, np.inf]))
@settings(max_examples=40, deadline=None)
def test_what_is_punched_out_takes_the_value_and_nothing_else_does(
    data: st.DataObject, shape: tuple[int, int], value: float
) -> None:
    plane, mask = data.draw(noise(shape)), data.draw(masks(shape, (Mask.SAT, Mask.BAD, Mask.CR)))
    expected = np.where(mask & (Mask.SAT | Mask.BAD) != 0, np.float32(value), plane)
    module._punch(plane, mask, np.uint16(Mask.SAT | Mask.BAD), np.float32(value))
    np.testing.assert_array_equal(plane, expected)


def test_the_border_that_no_kernel_reaches_is_edge(subtraction: Subtraction) -> None:
    mask = subtraction.difference.pixels.mask
    assert (mask[: subtraction.reach] & Mask.EDGE).all()
    assert (mask[:, -subtraction.reach :] & Mask.EDGE).all()


def test_where_the_template_ends_the_difference_has_no_data() -> None:
    pair = make_pair(1024, 14, injected=0, density=1.5)
    pixels = pair.template.pixels
    half = pixels.image.shape[0] // 2
    short = replace(pair.template, pixels=MaskedImage(pixels.image[:half], pixels.mask[:half], pixels.variance[:half]))
    difference = subtract(pair.science, warp_template(short, pair.science)).difference.pixels
    nothing = (difference.mask & Mask.NO_DATA) != 0
    assert 0.3 < nothing.mean() < 0.7
    assert np.isnan(difference.image[nothing]).all()
    assert np.isfinite(difference.image[~nothing]).all()
    assert np.isinf(difference.variance[nothing]).all()


def test_inputs_are_left_as_they_were_and_may_be_read_only() -> None:
    pair = make_pair(1024, 15, injected=0, density=1.5)
    for pixels in (pair.science.pixels, pair.template.pixels):
        for plane in (pixels.image, pixels.mask, pixels.variance):
            plane.flags.writeable = False
    assert np.isfinite(subtract(pair.science, warp_template(pair.template, pair.science)).difference.pixels.image).all()


def test_a_template_of_another_band_is_refused(pair: Pair) -> None:
    with pytest.raises(BadData, match="a template in i cannot be taken from an image in r"):
        warp_template(replace(pair.template, band="i"), pair.science)


def test_a_template_elsewhere_is_refused(pair: Pair) -> None:
    wcs = replace(pair.template.wcs, crval=(151.0, 2.2))
    with pytest.raises(BadData, match="does not overlap"):
        warp_template(replace(pair.template, wcs=wcs), pair.science)


def test_the_effective_sigma_of_a_gaussian_is_its_own() -> None:
    from tests.payloads.imaging.test_warp import gaussian_psf  # noqa: PLC0415

    assert effective_sigma(gaussian_psf(4.0, 4.0, 0.0, (100, 100))) == pytest.approx(2.0, rel=1e-3)


def test_the_whitener_makes_the_spectrum_flat() -> None:
    t = np.arange(-12, 13)
    kernel = np.exp(-(t[:, None] ** 2) / 4.0 - t**2 / 4.0)
    kernel /= kernel.sum()
    white = module._whitener(kernel, 1.0, 0.2)
    spectrum = (np.abs(np.fft.fft2(kernel, (64, 64))) ** 2 + 0.2) * np.abs(np.fft.fft2(white, (64, 64))) ** 2
    np.testing.assert_allclose(spectrum, 1.2, rtol=0.05)
    assert white.sum() == pytest.approx(1.0)
