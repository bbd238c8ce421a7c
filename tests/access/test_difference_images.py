"""FITS images of any make, read as pixels, noise and mask."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from access.difference.images import Source, read_picture
from schemas.errors import BadData
from schemas.image import Mask
from tests.access.fits_made_here import GAIN, SHAPE, SKY_E, TAN, sky, written

NOISE_E = np.sqrt(SKY_E)


def noise_of(variance: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.median(variance)))


def test_a_header_with_a_gain_makes_electrons_and_the_sky_their_noise(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", sky(), GAIN=GAIN, FILTER="g", EXPTIME="53.9")
    picture = read_picture(Source(path))
    assert (picture.about.gain, picture.about.noise) == (GAIN, "sky noise and gain")
    assert (picture.about.filter, picture.about.exposure_time, picture.about.psf) == ("g", 53.9, None)
    np.testing.assert_allclose(picture.pixels.image, sky() * GAIN, rtol=1e-6)
    assert noise_of(picture.pixels.variance) == pytest.approx(NOISE_E, rel=0.02)
    assert not picture.pixels.mask.any()
    assert {plane.dtype for plane in (picture.pixels.image, picture.pixels.variance)} == {np.dtype(np.float32)}
    assert picture.about.wcs.pixel_scale == pytest.approx(0.36)


def test_a_source_over_the_sky_has_its_photons_noise_too(tmp_path: Path) -> None:
    image = sky()
    image[150, 200] += 40_000.0 / GAIN
    picture = read_picture(Source(written(tmp_path / "a.fits", image, GAIN=GAIN)))
    assert picture.pixels.variance[150, 200] == pytest.approx(40_000.0 + SKY_E, rel=0.01)


def test_a_gain_that_is_told_goes_before_the_headers(tmp_path: Path) -> None:
    picture = read_picture(Source(written(tmp_path / "a.fits", sky(), GAIN=7.0), gain=GAIN))
    assert picture.about.gain == GAIN
    assert noise_of(picture.pixels.variance) == pytest.approx(NOISE_E, rel=0.02)


@pytest.mark.parametrize("keyword", ["EGAIN", "CCDGAIN", "GAINEFF"])
def test_a_gain_has_many_names(keyword: str, tmp_path: Path) -> None:
    assert read_picture(Source(written(tmp_path / "a.fits", sky(), **{keyword: str(GAIN)}))).about.gain == GAIN


def test_without_a_gain_the_skys_level_over_its_variance_tells_it(tmp_path: Path) -> None:
    picture = read_picture(Source(written(tmp_path / "a.fits", sky())))
    assert picture.about.gain == pytest.approx(GAIN, rel=0.03)
    assert "gain taken from the sky's level" in picture.about.noise
    assert noise_of(picture.pixels.variance) == pytest.approx(NOISE_E, rel=0.03)


@pytest.mark.parametrize("level", [SKY_E / GAIN, 9e3])
def test_without_a_gain_and_a_sky_the_skys_noise_is_all_there_is(level: float, tmp_path: Path) -> None:
    """As a coadd's, which has its sky taken away: what stands above it adds none that is known."""
    image = sky() - np.float32(level)
    image[150, 200] += 40_000.0
    picture = read_picture(Source(written(tmp_path / "a.fits", image)))
    assert (picture.about.gain, picture.about.noise) == (1.0, "sky noise alone: no gain is known")
    np.testing.assert_array_equal(picture.pixels.image, image)
    assert picture.pixels.variance.dtype == np.float32
    np.testing.assert_allclose(np.sqrt(picture.pixels.variance), NOISE_E / GAIN, rtol=0.1)
    told = read_picture(Source(tmp_path / "a.fits", gain=GAIN))
    assert (told.about.gain, told.about.noise) == (GAIN, "sky noise and gain")
    assert told.pixels.variance[150, 200] > 40_000.0 * GAIN


def test_a_soft_bias_is_no_light(tmp_path: Path) -> None:
    biased = (np.rint(sky()) + 1000).astype(np.int16)
    picture = read_picture(Source(written(tmp_path / "a.fits", biased, SOFTBIAS=1000, SATURATE=1520.0)))
    # Whole ADU add a twelfth of one to the variance of 192.
    assert picture.about.gain == pytest.approx(GAIN, rel=0.03)
    assert np.median(picture.pixels.image) == pytest.approx(SKY_E, rel=0.03)
    saturated = (picture.pixels.mask & Mask.SAT) != 0
    assert saturated.any()
    np.testing.assert_array_equal(saturated, biased >= 1520)


@pytest.mark.parametrize("gain", [None, GAIN])
@pytest.mark.parametrize("name", ["VARIANCE", "VAR"])
def test_a_variance_plane_of_the_same_file_is_the_noise(name: str, gain: float | None, tmp_path: Path) -> None:
    variance = np.random.default_rng(2).uniform(100.0, 300.0, SHAPE).astype(np.float32)
    picture = read_picture(Source(written(tmp_path / "a.fits", sky(), fits.ImageHDU(variance, name=name)), gain=gain))
    unit = gain or 1.0
    assert (picture.about.noise, picture.about.gain) == ("variance plane", unit)
    np.testing.assert_allclose(picture.pixels.variance, variance * unit**2, rtol=1e-6)
    np.testing.assert_allclose(picture.pixels.image, sky() * unit, rtol=1e-6)


def test_a_variance_file_goes_before_the_plane_beside_the_image(tmp_path: Path) -> None:
    beside = fits.ImageHDU(np.full(SHAPE, 9.0, np.float32), name="VARIANCE")
    image = written(tmp_path / "a.fits", sky(), beside)
    variance = np.full(SHAPE, 192.0)
    variance[3, 4], variance[5, 6], variance[7, 8] = np.nan, -1.0, 0.0
    picture = read_picture(Source(image, variance=written(tmp_path / "v.fits", variance)))
    assert np.all(picture.pixels.variance == 192.0)
    np.testing.assert_array_equal(np.argwhere(picture.pixels.mask & Mask.NO_DATA), [[3, 4], [5, 6], [7, 8]])


def test_what_is_not_finite_is_masked_and_filled_in(tmp_path: Path) -> None:
    image = sky()
    image[10, 20], image[11, 20], image[100:120, 100:120] = np.inf, -np.inf, np.nan
    picture = read_picture(Source(written(tmp_path / "a.fits", image, GAIN=GAIN)))
    lost = ~np.isfinite(image)
    np.testing.assert_array_equal((picture.pixels.mask & Mask.UNMASKED_NAN) != 0, lost)
    np.testing.assert_array_equal((picture.pixels.mask & Mask.NO_DATA) != 0, lost)
    assert np.isfinite(picture.pixels.image).all()
    assert np.isfinite(picture.pixels.variance).all()
    assert noise_of(picture.pixels.variance) == pytest.approx(NOISE_E, rel=0.02)


def test_a_blank_integer_is_not_finite(tmp_path: Path) -> None:
    image = np.rint(sky()).astype(np.int16)
    image[40, 50] = -32768
    picture = read_picture(Source(written(tmp_path / "a.fits", image, BLANK=-32768)))
    np.testing.assert_array_equal(np.argwhere(picture.pixels.mask), [[40, 50]])


@pytest.mark.parametrize("value", [-1.7e308, 1.6e38, -1e30])
def test_a_number_too_large_to_be_light_is_a_mark_of_none(value: float, tmp_path: Path) -> None:
    image, variance = sky().astype(np.float64), np.full(SHAPE, 192.0)
    image[40, 50], variance[60, 70] = value, abs(value)
    path = written(tmp_path / "a.fits", image, fits.ImageHDU(variance, name="VARIANCE"))
    np.testing.assert_array_equal(np.argwhere(read_picture(Source(path)).pixels.mask), [[40, 50], [60, 70]])


@pytest.mark.parametrize("kind", ["int16", "uint16", "int32", "uint32", "float32", "float64", ">f4", ">i2", "<f8"])
def test_pixels_of_any_number_are_the_same_image(kind: str, tmp_path: Path) -> None:
    whole = np.rint(sky())
    picture = read_picture(Source(written(tmp_path / "a.fits", whole.astype(kind), GAIN=GAIN)))
    np.testing.assert_array_equal(picture.pixels.image, whole * np.float32(GAIN))
    assert picture.pixels.image.dtype.isnative


def test_scaled_integers_are_scaled_back(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(sky().astype(np.float64), fits.Header(TAN | {"GAIN": GAIN}))
    hdu.scale("int16", bscale=0.02, bzero=500.0)
    hdu.writeto(tmp_path / "a.fits")
    np.testing.assert_allclose(read_picture(Source(tmp_path / "a.fits")).pixels.image, sky() * GAIN, atol=0.01 * GAIN)


@pytest.mark.parametrize("algorithm", ["RICE_1", "GZIP_2"])
def test_a_compressed_image_is_read(algorithm: str, tmp_path: Path) -> None:
    whole = np.rint(sky()).astype(np.int32)
    packed = fits.CompImageHDU(whole, fits.Header(TAN | {"GAIN": GAIN}), compression_type=algorithm)
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "a.fits.fz")
    picture = read_picture(Source(tmp_path / "a.fits.fz"))
    np.testing.assert_array_equal(picture.pixels.image, whole * np.float32(GAIN))


def zipped(tmp_path: Path) -> Path:
    plain = written(tmp_path / "a.fits", sky(), GAIN=GAIN)
    path = tmp_path / "a.fits.gz"
    path.write_bytes(gzip.compress(plain.read_bytes(), 1))
    return path


def test_a_zipped_image_is_read(tmp_path: Path) -> None:
    np.testing.assert_allclose(read_picture(Source(zipped(tmp_path))).pixels.image, sky() * GAIN, rtol=1e-6)


def test_an_image_in_an_extension_has_the_primary_headers_cards(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU(None, fits.Header({"GAIN": 9.0, "FILTER": "z", "MJD-OBS": 60000.0}))
    image = fits.ImageHDU(sky(), fits.Header(TAN | {"GAIN": GAIN}), name="SCI")
    fits.HDUList([primary, image]).writeto(tmp_path / "a.fits")
    picture = read_picture(Source(tmp_path / "a.fits"))
    assert (picture.about.filter, picture.about.gain) == ("z", GAIN)


def test_axes_of_one_pixel_are_none(tmp_path: Path) -> None:
    picture = read_picture(Source(written(tmp_path / "a.fits", sky()[None], GAIN=GAIN)))
    np.testing.assert_allclose(picture.pixels.image, sky() * GAIN, rtol=1e-6)


def test_the_mask_of_the_same_file_or_of_another_is_taken(tmp_path: Path) -> None:
    plane = np.zeros(SHAPE, np.uint8)
    plane[5, 6] = 1
    image = written(tmp_path / "a.fits", sky(), fits.ImageHDU(plane, name="MASK"))
    np.testing.assert_array_equal(np.argwhere(read_picture(Source(image)).pixels.mask), [[5, 6]])
    other = written(tmp_path / "m.fits", np.roll(plane, 1))
    np.testing.assert_array_equal(np.argwhere(read_picture(Source(image, mask=other)).pixels.mask), [[5, 7]])


def test_a_psf_is_one_kernel_of_sum_one(tmp_path: Path) -> None:
    kernel = np.random.default_rng(3).uniform(0.0, 5.0, (11, 11))
    psf = written(tmp_path / "p.fits", kernel)
    picture = read_picture(Source(written(tmp_path / "a.fits", sky()), psf=psf))
    assert picture.about.psf is not None
    np.testing.assert_allclose(picture.about.psf.at(100.0, 20.0), kernel / kernel.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "kernel",
    [np.ones((10, 10)), np.ones((9, 11)), np.ones(9), np.full((9, 9), np.nan), np.zeros((9, 9)), -np.ones((9, 9))],
)
def test_a_psf_that_is_none_is_refused_by_name(kernel: NDArray[Any], tmp_path: Path) -> None:
    psf = written(tmp_path / "p.fits", kernel)
    with pytest.raises(BadData, match=r"p\.fits: .*PSF"):
        read_picture(Source(written(tmp_path / "a.fits", sky()), psf=psf))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(np.full(SHAPE, np.nan, np.float32), "none of its pixels is finite", id="all NaN"),
        pytest.param(sky().astype(np.uint8), "8 bits", id="a picture"),
        pytest.param(sky()[0], "two axes", id="one axis"),
        pytest.param(np.stack([sky(), sky()]), "two axes", id="three axes"),
        pytest.param(sky()[:, :255], "256 pixels at least", id="too small"),
        pytest.param(None, "no image", id="no pixels"),
        pytest.param(np.full(SHAPE, 37.5, np.float32), "no noise", id="constant"),
        pytest.param(np.zeros(SHAPE, np.int16), "no noise", id="zero"),
        pytest.param(sky() * np.float32(1e-16), "no noise", id="of W / m2 / nm"),
    ],
)
def test_pixels_that_measure_nothing_are_refused_by_name(
    data: NDArray[Any] | None, reason: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "these.fits", data)
    with pytest.raises(BadData, match=rf"these\.fits: .*{reason}") as caught:
        read_picture(Source(path))
    assert str(caught.value).count("these.fits") == 1


@pytest.mark.parametrize("gain", [0.0, -1.6, np.inf, np.nan])
def test_a_gain_that_is_none_is_refused_by_name(gain: float, tmp_path: Path) -> None:
    told = written(tmp_path / "told.fits", sky(), GAIN=GAIN)
    with pytest.raises(BadData, match=r"told\.fits: its gain is"):
        read_picture(Source(told, gain=gain))


@pytest.mark.parametrize("gain", [0.0, -1.6])
def test_a_headers_gain_that_is_none_is_refused_by_name(gain: float, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"a\.fits: its gain is"):
        read_picture(Source(written(tmp_path / "a.fits", sky(), GAIN=gain)))


@pytest.mark.parametrize(
    ("variance", "reason"),
    [
        pytest.param(np.ones((400, 300)), r"the variance is \(400, 300\), the image \(300, 400\)", id="another shape"),
        pytest.param(-np.ones(SHAPE), "nowhere positive", id="negative"),
        pytest.param(np.full(SHAPE, np.nan), "nowhere positive", id="NaN"),
    ],
)
def test_a_variance_that_is_none_is_refused_by_name(variance: NDArray[Any], reason: str, tmp_path: Path) -> None:
    image, beside = written(tmp_path / "a.fits", sky()), written(tmp_path / "v.fits", variance)
    with pytest.raises(BadData, match=rf"v\.fits: .*{reason}"):
        read_picture(Source(image, variance=beside))
    inside = written(tmp_path / "b.fits", sky(), fits.ImageHDU(variance, name="VARIANCE"))
    with pytest.raises(BadData, match=rf"b\.fits: .*{reason}"):
        read_picture(Source(inside))


def test_a_noise_too_small_to_reckon_with_is_refused_by_name(tmp_path: Path) -> None:
    variance = fits.ImageHDU(np.full(SHAPE, 1e-30), name="VARIANCE")
    image = written(tmp_path / "a.fits", sky() * np.float32(1e-16), variance)
    with pytest.raises(BadData, match=r"a\.fits: its noise of 1e-15 is too small"):
        read_picture(Source(image))


def test_an_image_that_is_masked_all_over_is_refused_by_name(tmp_path: Path) -> None:
    image = written(tmp_path / "a.fits", sky(), fits.ImageHDU(np.ones(SHAPE, np.uint8), name="MASK"), GAIN=GAIN)
    with pytest.raises(BadData, match=r"a\.fits: no sky"):
        read_picture(Source(image))


def test_an_image_without_a_wcs_is_refused_by_name(tmp_path: Path) -> None:
    fits.PrimaryHDU(sky()).writeto(tmp_path / "a.fits")
    with pytest.raises(BadData, match=r"a\.fits: .*no celestial WCS"):
        read_picture(Source(tmp_path / "a.fits"))


@pytest.mark.parametrize("content", [b"", b"not FITS at all\n" * 500, b"SIMPLE  =                    T"])
def test_a_file_that_is_no_fits_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"a\.fits: "):
        read_picture(Source(path))


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"absent\.fits: FileNotFoundError"):
        read_picture(Source(tmp_path / "absent.fits"))
    with pytest.raises(BadData, match=r"absent\.fits: FileNotFoundError"):
        read_picture(Source(written(tmp_path / "a.fits", sky()), variance=tmp_path / "absent.fits"))


@pytest.mark.parametrize("part", [0.999, 0.5, 0.02])
def test_a_file_cut_short_is_refused_by_name(part: float, tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", sky(), GAIN=GAIN)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * 4 * sky().size)])
    with pytest.raises(BadData, match=r"a\.fits: "):
        read_picture(Source(path))


@pytest.mark.parametrize("part", [0.9, 0.5, 0.001])
def test_a_zipped_file_cut_short_is_refused_by_name(part: float, tmp_path: Path) -> None:
    path = zipped(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(BadData, match=r"a\.fits\.gz: "):
        read_picture(Source(path))
