import io
import itertools

import numpy as np
import pytest
from astropy.io import fits

from payloads.alert_production.alert_schema import Record, alert_schema
from payloads.alert_production.fits_stamp import stamp_bytes
from payloads.alert_production.lite import CUTOUTS
from payloads.alert_production.smaller_cutouts import reduced
from schemas.errors import BadData
from schemas.image import MaskedImage
from schemas.wcs import Wcs
from tests.backbone.l1_results import filled
from tests.payloads.alert_production.plain_records import decoded_alert, encoded_alert, records

CD = np.array([[-4.6e-5, 3e-5], [3e-5, 4.6e-5]])
SIP = np.zeros((2, 4, 4))
SIP[0, 2, 0], SIP[1, 0, 2] = 2e-7, -3e-7
PLANES = "PRIMARY", "UNCERT", "MASK"


def cutout(side: int, seed: int = 0) -> bytes:
    """The source, the brightest pixel, where stamps have it."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(side, side)).astype("f4")
    image[side // 2, side // 2] = 99.0
    pixels = MaskedImage(image, rng.integers(0, 9, (side, side)).astype("u2"), rng.random((side, side), "f4"))
    wcs = Wcs((63.48, -46.61), (side / 2 - 300.0, side / 2 + 70.0), CD, SIP)
    return bytes(stamp_bytes(pixels, wcs, rng.random((21, 21), "f4"), 33.2))


def alert(*cutouts: bytes | None) -> Record:
    row = records(filled("DiaSource", 1, np.random.default_rng(1)), "diaSource")[0]
    names = [field["name"] for field in alert_schema()["fields"]]
    return dict.fromkeys(names) | {"diaSourceId": 1, "diaSource": row} | dict(zip(CUTOUTS, cutouts, strict=True))


def packet(*sides: int) -> bytes:
    return encoded_alert(alert(*(cutout(side, seed) for seed, side in enumerate(sides))))


def opened(file: bytes) -> dict[str, fits.ImageHDU]:
    return {hdu.name: hdu for hdu in fits.open(io.BytesIO(file))}


def test_cutouts_become_half_as_large_down_to_what_fills_a_block_and_then_none() -> None:
    sizes, lengths, less = [], [10**6], reduced(packet(102, 102, 102))
    while less is not None:
        sizes.append(less.size)
        lengths.append(len(less.packet))
        cutouts = [decoded_alert(less.packet)[name] for name in CUTOUTS]
        expected = (less.size, less.size)
        assert all(opened(each)["PRIMARY"].shape == expected for each in cutouts if each is not None)
        assert [each is None for each in cutouts] == [less.size == 0] * 3
        less = reduced(less.packet)
    assert sizes == [51, 26, 0]
    assert all(after < before for before, after in itertools.pairwise(lengths))


@pytest.mark.parametrize(("side", "size"), [(102, 51), (101, 50), (51, 26), (30, 26), (27, 26)])
def test_what_is_left_is_the_middle_with_the_source_where_stamps_have_it(side: int, size: int) -> None:
    less = reduced(packet(side, side, side))
    assert less is not None
    old, new = opened(cutout(side, 1)), opened(decoded_alert(less.packet)["cutoutScience"])
    start = side // 2 - size // 2
    for name in PLANES:
        middle = old[name].data[start : start + size, start : start + size]
        np.testing.assert_array_equal(new[name].data, middle)
        assert new[name].data.dtype == old[name].data.dtype
    assert np.unravel_index(np.argmax(new["PRIMARY"].data), (size, size)) == (size // 2, size // 2)
    np.testing.assert_array_equal(new["PSFIMAGE"].data, old["PSFIMAGE"].data)


def test_the_sky_is_where_it_was_and_all_other_cards_say_the_same() -> None:
    less = reduced(packet(51, 51, 51))
    assert less is not None
    old, new = opened(cutout(51, 0)), opened(decoded_alert(less.packet)["cutoutDifference"])
    start = 51 // 2 - less.size // 2
    before, after = (Wcs.from_header(dict(each["PRIMARY"].header)) for each in (old, new))
    for x, y in ((0.0, 0.0), (20.0, 3.5)):
        np.testing.assert_allclose(after.pixel_to_sky(x, y), before.pixel_to_sky(x + start, y + start), rtol=1e-13)
    for name in old:
        differ = fits.HeaderDiff(old[name].header, new[name].header)
        assert {key for key, _ in differ.diff_keyword_values.items()} <= {"NAXIS1", "NAXIS2", "CRPIX1", "CRPIX2"}
        assert not differ.diff_keywords


def test_all_but_the_cutouts_is_as_it_was_and_the_same_packet_gives_the_same_bytes() -> None:
    whole = packet(31, 31, 31)
    less = reduced(whole)
    assert less is not None
    assert less == reduced(bytes(bytearray(whole)))
    before, after = decoded_alert(whole), decoded_alert(less.packet)
    assert encoded_alert(before | dict.fromkeys(CUTOUTS)) == encoded_alert(after | dict.fromkeys(CUTOUTS))
    assert less.packet == encoded_alert(after)


def test_cutouts_of_different_sizes_are_cropped_to_the_half_of_the_largest() -> None:
    less = reduced(encoded_alert(alert(cutout(60), None, cutout(20))))
    assert less is not None
    after = decoded_alert(less.packet)
    assert less.size == 30
    assert opened(after["cutoutDifference"])["PRIMARY"].shape == (30, 30)
    assert after["cutoutScience"] is None
    assert opened(after["cutoutTemplate"])["PRIMARY"].shape == (20, 20)


def test_an_alert_without_cutouts_cannot_be_made_smaller() -> None:
    assert reduced(encoded_alert(alert(None, None, None))) is None


@pytest.mark.parametrize("end", [0, 100, 2880, 5000, 20_000])
def test_a_cutout_that_is_no_whole_fits_file_is_refused_with_its_size(end: int) -> None:
    with pytest.raises(BadData, match=f"a cutout of {end} bytes cannot be cropped"):
        reduced(encoded_alert(alert(cutout(31)[:end], None, None)))
    empty = io.BytesIO()
    fits.PrimaryHDU().writeto(empty)
    with pytest.raises(BadData, match="cannot be cropped"):
        reduced(encoded_alert(alert(empty.getvalue(), None, None)))
