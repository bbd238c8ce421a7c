import io
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.wcs import WCS

from payloads.alert_production.fits_stamp import card, stamp_bytes
from schemas.errors import BadData
from schemas.image import Mask, MaskedImage
from schemas.wcs import Wcs


def _cutout(ny: int = 30, nx: int = 33, seed: int = 1) -> MaskedImage:
    rng = np.random.default_rng(seed)
    image = rng.normal(0.0, 100.0, (ny, nx)).astype(np.float32)
    image[3, 4] = np.nan
    return MaskedImage(image, rng.integers(0, 1 << 16, (ny, nx)).astype(np.uint16), np.abs(image) + 1.0)


WCS_SIP = Wcs((63.48212494674968, -46.6143), (15.25, 14.5), np.array([[-4.65e-5, 3.03e-5], [3.03e-5, 4.65e-5]]))
PSF = np.random.default_rng(2).random((41, 41)).astype(np.float32)


@pytest.fixture
def hdus() -> Iterator[fits.HDUList]:
    with fits.open(io.BytesIO(stamp_bytes(_cutout(), WCS_SIP, PSF, 33.244)), checksum=True) as opened:
        yield opened


def test_astropy_reads_back_every_pixel(hdus: fits.HDUList) -> None:
    cutout = _cutout()
    assert [hdu.name for hdu in hdus] == ["PRIMARY", "UNCERT", "MASK", "PSFIMAGE"]
    for hdu, pixels in zip(hdus, (cutout.image, cutout.variance, cutout.mask, PSF), strict=True):
        assert np.array_equal(hdu.data, pixels, equal_nan=True)
    assert [hdu.header["BITPIX"] for hdu in hdus] == [-32, -32, 16, -32]


def test_the_file_keeps_the_standard(hdus: fits.HDUList) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hdus.verify("exception")
    assert len(stamp_bytes(_cutout(), WCS_SIP, PSF)) % 2880 == 0


def test_the_header_says_units_and_the_camera_s_angle(hdus: fits.HDUList) -> None:
    assert hdus[0].header["BUNIT"] == "nJy"
    assert hdus[0].header["ROTPA"] == 33.244
    assert hdus["UNCERT"].header["UTYPE"] == "VarianceUncertainty"
    assert "ROTPA" not in fits.open(io.BytesIO(stamp_bytes(_cutout(), WCS_SIP, PSF)))[0].header


def test_the_mask_names_its_bits(hdus: fits.HDUList) -> None:
    named = {key: value for key, value in hdus["MASK"].header.items() if key.startswith("MP_")}
    assert {key[3:]: 1 << bit for key, bit in named.items()} == {bit.name: bit.value for bit in Mask}


@pytest.mark.parametrize("distorted", [False, True])
def test_astropy_sees_the_same_sky(distorted: bool) -> None:
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[1, 1, 1] = 1e-4, -2e-4
    wcs = Wcs(WCS_SIP.crval, WCS_SIP.crpix, WCS_SIP.cd, sip if distorted else np.zeros((2, 4, 4)))
    opened = fits.open(io.BytesIO(stamp_bytes(_cutout(), wcs, PSF)))
    x, y = np.meshgrid([0.0, 16.0, 32.0], [0.0, 29.0])
    found = WCS(opened[0].header).all_pix2world(x, y, 0)
    assert np.array(found) == pytest.approx(np.array(wcs.pixel_to_sky(x, y)), abs=1e-11)


def test_ccddata_reads_it_as_rubins() -> None:
    cutout = _cutout()
    ccd = CCDData.read(io.BytesIO(stamp_bytes(cutout, WCS_SIP, PSF)), format="fits")
    assert str(ccd.unit) == "nJy"
    assert isinstance(ccd.uncertainty, VarianceUncertainty)
    assert np.array_equal(ccd.uncertainty.array, cutout.variance, equal_nan=True)
    assert np.array_equal(ccd.mask, cutout.mask != 0)
    assert np.array_equal(ccd.psf, PSF)


@pytest.mark.parametrize(
    "value", [1.0, -1.5e-05, 3.4e38, 0.1 + 0.2, -5.555555555555556e-05, 7, -3, True, False, "nJy", "it's"]
)
def test_a_card_is_read_as_it_was_meant(value: str | float | bool) -> None:
    text = card("KEY", value)
    assert len(text) == 80
    parsed = fits.Card.fromstring(text)
    parsed.verify("exception")
    assert parsed.value == value
    assert type(parsed.value) is type(value)


def test_a_long_key_gets_a_hierarch_card() -> None:
    parsed = fits.Card.fromstring(card("MP_DETECTED_NEGATIVE", 6))
    assert (parsed.keyword, parsed.value) == ("MP_DETECTED_NEGATIVE", 6)


def test_planes_that_do_not_fit_are_refused_by_shape() -> None:
    cutout = _cutout()
    with pytest.raises(BadData, match=r"have shapes \(30, 33\), \(29, 33\)"):
        stamp_bytes(MaskedImage(cutout.image, cutout.mask[1:], cutout.variance), WCS_SIP, PSF)


def test_a_slice_of_a_larger_image_is_written_as_it_looks() -> None:
    cutout = _cutout(40, 50)
    sliced = MaskedImage(cutout.image[5:25, 7:30], cutout.mask[5:25, 7:30], cutout.variance[5:25, 7:30])
    opened = fits.open(io.BytesIO(stamp_bytes(sliced, WCS_SIP, PSF)))
    assert np.array_equal(opened[0].data, sliced.image, equal_nan=True)
    assert np.array_equal(opened["MASK"].data, sliced.mask)
