"""What is read from headers: places, times, filters."""

import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS

from access.difference.header import common_band, exposure_of, filter_of, midpoint_of, number, wcs_of
from schemas.clock import tai_from_mjd
from schemas.errors import BadData

SHAPE = (900, 1200)
Cards = Mapping[str, str | float]

TAN: Cards = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
    "CRVAL1": 215.3, "CRVAL2": -31.2, "CRPIX1": 640.0, "CRPIX2": 400.5,
    "CD1_1": -7.2e-5, "CD1_2": 3.1e-6, "CD2_1": 2.9e-6, "CD2_2": 7.3e-5,
}  # fmt: skip
SIP = {
    **TAN, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 4, "B_ORDER": 4,
    "A_2_0": 2.1e-6, "A_1_1": -1.3e-6, "A_0_3": 3.0e-10, "A_4_0": 4.0e-14,
    "B_0_2": -1.7e-6, "B_2_1": 2.0e-10, "B_2_2": -5.0e-14,
}  # fmt: skip
TPV = {
    **TAN, "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV",
    "PV1_0": 1e-5, "PV1_1": 1.001, "PV1_4": 2e-3, "PV1_7": 0.05, "PV2_1": 0.999, "PV2_4": -1e-3, "PV2_7": 0.04,
}  # fmt: skip
ZPN = {**TAN, "CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN", "PV2_1": 1.0, "PV2_3": 42.0}
"""The polynomial of WFCAM, on UKIRT."""
FK5 = {**TAN, "RADESYS": "FK5", "EQUINOX": 1975.0}
FK4 = {**TAN, "RADESYS": "FK4", "EQUINOX": 1950.0}
GALACTIC = {**TAN, "CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "RADESYS": ""}
OLD = {
    **{key: value for key, value in TAN.items() if not key.startswith("CD")},
    "CDELT1": -1e-4, "CDELT2": 1e-4, "CROTA2": 31.0,
}  # fmt: skip
SWAPPED = {**TAN, "CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -31.2, "CRVAL2": 215.3}
ROUND_ZERO = {**TAN, "CRVAL1": 359.999}
NEAR_POLE = {**TAN, "CRVAL2": 89.99}
SINUSOIDAL = {**TAN, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}


def header(cards: Cards) -> fits.Header:
    made = fits.Header(cards)
    made.insert(0, ("NAXIS", 2))
    made.set("NAXIS1", SHAPE[1], after="NAXIS")
    made.set("NAXIS2", SHAPE[0], after="NAXIS1")
    return made


def truth(cards: Cards, x: np.ndarray, y: np.ndarray) -> SkyCoord:
    """Where astropy, after wcslib, says that pixels are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(header(cards)).celestial.pixel_to_world(x, y).icrs


@pytest.mark.parametrize(
    ("cards", "tolerance_px"),
    [
        pytest.param(TAN, 1e-6, id="TAN"),
        pytest.param(SIP, 0.02, id="TAN-SIP of order 4"),
        pytest.param(TPV, 1e-3, id="TPV"),
        pytest.param(ZPN, 1e-3, id="ZPN"),
        pytest.param(FK5, 1e-4, id="FK5 of 1975"),
        pytest.param(FK4, 1e-4, id="FK4"),
        pytest.param(GALACTIC, 1e-6, id="galactic"),
        pytest.param(OLD, 1e-6, id="CDELT and CROTA2"),
        pytest.param(SWAPPED, 1e-6, id="declination first"),
        pytest.param(ROUND_ZERO, 1e-6, id="astride RA 0"),
        pytest.param(NEAR_POLE, 1e-5, id="over the pole"),
        pytest.param(SINUSOIDAL, 1e-3, id="SIN"),
    ],
)
def test_any_projection_becomes_tan_with_cubics_where_astropy_says(cards: Cards, tolerance_px: float) -> None:
    draw = np.random.default_rng(1)
    x, y = draw.uniform(0.0, SHAPE[1] - 1.0, 500), draw.uniform(0.0, SHAPE[0] - 1.0, 500)
    wcs, true = wcs_of(header(cards), SHAPE), truth(cards, x, y)
    ra, dec = wcs.pixel_to_sky(x, y)
    assert SkyCoord(ra, dec, unit="deg").separation(true).arcsec.max() < tolerance_px * wcs.pixel_scale
    back = wcs.sky_to_pixel(true.ra.deg, true.dec.deg)
    assert np.hypot(back[0] - x, back[1] - y).max() < tolerance_px


def test_the_celestial_axes_are_taken_out_of_a_cube(recwarn: pytest.WarningsRecorder) -> None:
    cube = header({**TAN, "CTYPE3": "FREQ", "CRVAL3": 1.4e9, "CDELT3": 1e6, "CRPIX3": 1.0, "CUNIT3": "Hz"})
    assert wcs_of(cube, SHAPE).pixel_scale == pytest.approx(wcs_of(header(TAN), SHAPE).pixel_scale, rel=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        pytest.param({}, "no celestial WCS", id="none"),
        pytest.param({"CTYPE1": "WAVE", "CTYPE2": "OFFSET", "CRVAL1": 5e-7, "CDELT1": 1e-10, "CUNIT1": "m"},
                     "no celestial WCS", id="of a spectrum"),
        pytest.param({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no celestial WCS", id="linear"),
        pytest.param({**TAN, "CTYPE2": "WAVE"}, "WCS", id="right ascension alone"),
        pytest.param({**TAN, "CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, "WCS", id="a projection of nobody"),
        pytest.param({**TAN, "CUNIT1": "furlong", "CUNIT2": "furlong"}, "WCS", id="units of nobody"),
        pytest.param({**TAN, "RADESYS": "GAPPT"}, "WCS", id="a frame that astropy cannot turn into ICRS"),
        pytest.param({**TAN, "CD1_1": 0.0, "CD1_2": 0.0}, "WCS", id="a singular matrix"),
        pytest.param({**TAN, "CD1_1": "north"}, "WCS", id="text for a number"),
        pytest.param({**TAN, "CRVAL1": "east"}, "WCS", id="text for a place"),
        pytest.param({**TAN, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CD1_1": 0.2, "CD2_2": 0.2},
                     "nowhere on the sky", id="pixels off the sphere"),
        pytest.param({**TAN, "CTYPE1": "RA---CAR", "CTYPE2": "DEC--CAR", "CRVAL2": 0.0, "CD1_1": -0.3, "CD2_2": 0.2},
                     "WCS", id="all the sky"),
        pytest.param({**SIP, "A_4_0": 1e-9}, "a cubic misses its WCS by", id="a quartic distortion"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
def test_a_wcs_that_is_of_no_use_is_refused(cards: Cards, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        wcs_of(header(cards), SHAPE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(53.9, 53.9), (54, 54.0), ("53.9", 53.9), (" 53.9 ", 53.9), ("5.39E+01", 53.9)],
)
def test_a_number_may_be_text(value: str | float, expected: float) -> None:
    assert number(fits.Header({"EXPTIME": value}), ("EXPTIME",)) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["long", "", None, "nan", "inf"])
def test_what_is_no_number_is_passed_over_for_the_next_keyword(value: str | None) -> None:
    found = fits.Header([("EXPTIME", value), ("EXPOSURE", 30.0)])
    assert number(found, ("EXPTIME", "EXPOSURE")) == 30.0
    assert exposure_of(found) == 30.0
    assert number(found, ("EXPTIME",)) is None
    assert number(found, ("ABSENT",)) is None


NOWHEN = tai_from_mjd(Time("2000-01-01", scale="tai").mjd)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        pytest.param({"MJD-OBS": 60000.5, "EXPTIME": 30.0}, tai_from_mjd(60000.5) + 52.0, id="MJD-OBS, UTC"),
        pytest.param({"MJD-OBS": "60000.5", "EXPTIME": "30"}, tai_from_mjd(60000.5) + 52.0, id="as text"),
        pytest.param({"MJD-OBS": 60000.5, "TIMESYS": "TAI"}, tai_from_mjd(60000.5), id="MJD-OBS, TAI"),
        pytest.param({"DATE-OBS": "2024-02-29", "TIMESYS": "TT"},
                     tai_from_mjd(Time("2024-02-29", scale="tt").tai.mjd), id="DATE-OBS, TT"),
        pytest.param({"TAI": 4507681767.78, "EXPTIME": "53.907456"},
                     tai_from_mjd(4507681767.78 / 86400.0) + 53.907456 / 2.0, id="TAI in seconds (SDSS)"),
        pytest.param({"TAI": 52172.25}, tai_from_mjd(52172.25), id="TAI in days"),
        pytest.param({"DATE-OBS": "2024-02-29T12:00:00.5", "EXPOSURE": 10.0},
                     tai_from_mjd(Time("2024-02-29T12:00:42.5", scale="tai").mjd), id="DATE-OBS, UTC"),
        pytest.param({"DATE-OBS": "2001-09-20"}, tai_from_mjd(Time("2001-09-20T00:00:32", scale="tai").mjd),
                     id="DATE-OBS, a day alone"),
        pytest.param({"MJD-OBS": "unknown", "DATE-OBS": "20/09/01"}, NOWHEN, id="neither can be read"),
        pytest.param({"MJD-OBS": "nan", "EXPTIME": "nan"}, NOWHEN, id="not a number"),
        pytest.param({"EXPTIME": 20.0}, NOWHEN + 10.0, id="nothing of the time"),
        pytest.param({}, NOWHEN, id="nothing"),
    ],
)  # fmt: skip
def test_the_midpoint_is_the_start_and_half_the_exposure(cards: Cards, expected: float) -> None:
    assert midpoint_of(fits.Header(cards)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "band"),
    [("r", "r"), ("g", "g"), ("i2", "i"), ("z_SDSS", "z"), ("u.MP9302", "u"), ("y DECam", "y"),
     ("gri", "r"), ("clear", "r"), ("", "r"), ("F606W", "r"), ("V", "r"), ("ZTF_g", "r")],
)  # fmt: skip
def test_a_filter_is_a_band_where_its_name_says_so(name: str, band: str) -> None:
    assert common_band(name, "") == common_band("", name) == band


def test_a_filter_that_tells_no_band_has_the_others() -> None:
    assert common_band("ZTF_g", "g") == common_band("g", "clear") == "g"


def test_two_bands_are_refused_by_their_filters_names() -> None:
    with pytest.raises(BadData, match="an image in i2 and a template in r are not of one band"):
        common_band("i2", "r")


def test_the_filter_is_the_first_keyword_that_has_text() -> None:
    assert filter_of(fits.Header({"FILTER": " ", "FILTER1": 3, "BAND": " i2 "})) == "i2"
    assert not filter_of(fits.Header())
