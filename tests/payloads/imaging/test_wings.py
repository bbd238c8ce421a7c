import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.imaging.wings import light_within
from schemas.image import Psf

Floats = NDArray[np.float64]


def moffat(fwhm: float, index: float, half: int) -> Floats:
    core = fwhm / 2 / np.sqrt(2 ** (1 / index) - 1)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    profile: Floats = (index - 1) / np.pi / core**2 * (1 + (x**2 + y**2) / core**2) ** -index
    return profile


def psf_of(kernel: Floats) -> Psf:
    return Psf((kernel / kernel.sum())[None].astype(np.float32), 0, (200, 300))


@pytest.mark.parametrize(
    ("fwhm", "index", "half"), [(4.0, 3.0, 12), (4.0, 3.0, 15), (5.5, 2.5, 15), (5.5, 4.8, 15), (8.5, 3.0, 24)]
)
def test_the_light_beyond_the_stamp_of_a_moffat_profile_is_told(fwhm: float, index: float, half: int) -> None:
    kernel = moffat(fwhm, index, half)
    assert light_within(psf_of(kernel)) == pytest.approx(kernel.sum(), abs=3e-4)


def test_of_a_noisy_stamp_it_is_told_to_half_a_percent() -> None:
    kernel, draw = moffat(5.5, 3.0, 15), np.random.default_rng(3)
    told = [light_within(psf_of(kernel + draw.normal(0, 1e-5, kernel.shape))) for _ in range(20)]
    assert np.abs(np.array(told) - kernel.sum()).max() < 0.005


def test_nearly_all_of_a_gaussian_is_within_its_stamp() -> None:
    y, x = np.mgrid[-12:13, -12:13]
    assert light_within(psf_of(np.exp(-(x**2 + y**2) / (2 * 1.8**2)))) > 0.999
