import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.signal import fftconvolve

from payloads.alert_production import peaks as module
from payloads.alert_production.peaks import least_score, least_seen, refined
from schemas.image import Image, Psf

Floats = NDArray[np.float64]


def gaussian(sigma: float, x: float = 0.0, y: float = 0.0, half: int = 12) -> Floats:
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    result: Floats = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return result


def psf_of(kernel: Floats) -> Psf:
    return Psf((kernel / kernel.sum())[None].astype(np.float32), 0, (500, 500))


def white_score(psf: Psf, size: int, rng: np.random.Generator) -> Image:
    """The score image of noise alone."""
    kernel = psf.components[0].astype(np.float64)
    field = fftconvolve(rng.normal(size=(size, size)), kernel[::-1, ::-1], mode="valid")
    score: Image = (field / np.sqrt((kernel**2).sum())).astype(np.float32)
    return score


def maxima(score: Image) -> NDArray[np.int64]:
    return np.flatnonzero(np.abs(score) == maximum_filter(np.abs(score), 3))


@pytest.mark.parametrize(("sigma", "least"), [(0.9, 50), (1.7, 80), (2.4, 80)])
def test_noise_alone_exceeds_the_threshold_as_often_as_it_may(
    monkeypatch: pytest.MonkeyPatch, sigma: float, least: int
) -> None:
    """Held at a lower score, where there is enough to count. Where a PSF is undersampled, parabolas are too low."""
    monkeypatch.setattr(module, "_NOISE_ALONE", 100.0 / 2000**2)
    monkeypatch.setattr(module, "THRESHOLD", 3.0)
    psf = psf_of(gaussian(sigma))
    score = white_score(psf, 2000, np.random.default_rng(2))
    height = refined(score, maxima(score), 1.0 / least_seen(psf))
    assert least < (np.abs(height) > least_score(psf)).sum() < 125


def test_the_threshold_is_five_where_the_psf_is_wide_and_more_where_it_is_narrow() -> None:
    assert least_score(psf_of(gaussian(4.5))) == 5.0
    assert 5.2 < least_score(psf_of(gaussian(1.3))) < 5.5


@pytest.mark.parametrize("sigma", [1.0, 1.7])
def test_on_a_corner_of_four_pixels_a_source_shows_the_least(sigma: float) -> None:
    kernel = gaussian(sigma)
    score = fftconvolve(gaussian(sigma, 0.5, 0.5), kernel, mode="same")
    whole = fftconvolve(kernel, kernel, mode="same")
    assert score.max() / whole.max() == pytest.approx(least_seen(psf_of(kernel)), rel=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.45)])
def test_between_pixels_a_peak_is_as_high_as_on_one(x: float, y: float, sign: int) -> None:
    score = (sign * 30.0 * gaussian(2.5, x, y)).astype(np.float32)
    at = np.array([np.abs(score).argmax()])
    assert refined(score, at, 1.2)[0] == pytest.approx(sign * 30.0, rel=0.005)
    assert abs(refined(score, at, 1.001)[0]) <= np.float32(1.0011) * np.abs(score).max()


def test_a_peak_at_the_edge_or_beside_what_has_no_score_is_its_pixels() -> None:
    score = np.zeros((3, 4), np.float32)
    score[0, 0], score[2, 3], score[1, 1] = 7.0, -6.0, 9.0
    np.testing.assert_array_equal(refined(score, np.array([0, 11, 5]), 1.5), [7.0, -6.0, 9.0])


def test_of_no_peaks_there_are_no_heights() -> None:
    assert refined(np.zeros((3, 3), np.float32), np.zeros(0, np.int64), 1.1).shape == (0,)
