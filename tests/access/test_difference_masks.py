"""Mask planes of other programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from access.difference.masks import read_mask
from schemas.errors import BadData
from schemas.image import Mask

SHAPE = (300, 400)


def bits_at(mask: NDArray[np.uint16], *pixel: int) -> Mask:
    return Mask(int(mask[pixel]))


def test_bits_are_told_by_their_names(tmp_path: Path) -> None:
    """As LSST's exposures have them, each in a place of its own."""
    plane = np.zeros(SHAPE, np.int32)
    plane[1, 2], plane[3, 4], plane[5, 6], plane[7, 8] = 1 << 3, 1 << 0 | 1 << 17, 1 << 9, -(1 << 31)
    cards = {"MP_CR": 3, "MP_SAT": 0, "HIERARCH MP_NO_DATA": 17, "HIERARCH MP_DETECTED": 9, "MP_INTRP": 31}
    hdu = fits.ImageHDU(plane, fits.Header(cards), name="MASK")
    fits.HDUList([fits.PrimaryHDU(np.ones(SHAPE)), hdu]).writeto(tmp_path / "m.fits")
    mask = read_mask(tmp_path / "m.fits", SHAPE)
    assert mask.dtype == np.uint16
    assert bits_at(mask, 1, 2) == Mask.CR
    assert bits_at(mask, 3, 4) == Mask.SAT | Mask.NO_DATA
    assert bits_at(mask, 5, 6) == 0  # what another program detected is no flaw
    assert bits_at(mask, 7, 8) == Mask.INTRP
    assert np.count_nonzero(mask) == 3


def test_without_names_whatever_is_not_zero_is_bad(tmp_path: Path) -> None:
    plane = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.int16)
    fits.PrimaryHDU(plane).writeto(tmp_path / "m.fits")
    mask = read_mask(tmp_path / "m.fits", SHAPE)
    np.testing.assert_array_equal(mask, np.where(plane != 0, int(Mask.BAD), 0))
    assert mask.dtype == np.uint16


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64])
def test_a_plane_of_any_whole_number_is_a_mask(kind: type[np.integer], tmp_path: Path) -> None:
    plane = np.random.default_rng(2).random(SHAPE) < 0.1
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(plane.astype(kind), name="DQ")]).writeto(tmp_path / "m.fits")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.fits", SHAPE) == Mask.BAD, plane)


def test_a_compressed_plane_is_a_mask(tmp_path: Path) -> None:
    plane = (np.random.default_rng(3).random(SHAPE) < 0.1).astype(np.int32) << 5
    packed = fits.CompImageHDU(plane, fits.Header({"MP_SAT": 5}), name="MASK")
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "m.fits")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.fits", SHAPE) == Mask.SAT, plane != 0)


@pytest.mark.parametrize(
    ("plane", "cards"),
    [
        pytest.param(np.zeros((400, 300), np.uint8), {}, id="another shape"),
        pytest.param(np.zeros((1, *SHAPE), np.uint8), {}, id="three axes"),
        pytest.param(np.zeros(SHAPE, np.float32), {}, id="fractions"),
        pytest.param(np.zeros(SHAPE, np.uint8), {"MP_BAD": 8}, id="a bit that it has not"),
        pytest.param(np.zeros(SHAPE, np.int32), {"MP_BAD": -1}, id="a bit below the first"),
        pytest.param(np.zeros(SHAPE, np.int32), {"MP_BAD": "first"}, id="a bit in words"),
        pytest.param(None, {}, id="no plane"),
    ],
)
def test_a_plane_that_is_no_mask_of_the_image_is_refused_by_name(
    plane: NDArray[Any] | None, cards: dict[str, str | int], tmp_path: Path
) -> None:
    fits.PrimaryHDU(plane, fits.Header(cards)).writeto(tmp_path / "m.fits")
    with pytest.raises(BadData, match=r"m\.fits: "):
        read_mask(tmp_path / "m.fits", SHAPE)


Span = tuple[int, int, int]

KINDS = ("S_MASK_INTERP", "S_MASK_SATUR", "S_MASK_NOTCHECKED", "S_MASK_OBJECT", "S_MASK_CR")


def object_masks(objects: list[list[Span]]) -> fits.BinTableHDU:
    """An extension of an fpM file: an object a row, its spans (row, first and last column) as big-endian bytes."""
    packed = np.empty(len(objects), object)
    packed[:] = [np.array(spans, ">u2").view(np.uint8).ravel() for spans in objects]
    columns = [
        fits.Column("nspan", "1J", array=np.array([len(spans) for spans in objects], np.int32)),
        fits.Column("s", "1PB()", array=packed),
    ]
    return fits.BinTableHDU.from_columns(columns)


def fpm(path: Path, masks: dict[str, list[list[Span]]]) -> Path:
    names = [
        fits.Column("defName", "31A", array=["S_MASKTYPE"] * (len(KINDS) + 1)),
        fits.Column("attributeName", "31A", array=[*KINDS, "S_NMASK_TYPES"]),
        fits.Column("Value", "1J", array=[*range(len(KINDS)), 10]),
    ]
    tables = [object_masks(masks.get(kind, [])) for kind in KINDS]
    fits.HDUList([fits.PrimaryHDU(), *tables, fits.BinTableHDU.from_columns(names)]).writeto(path)
    return path


def test_spans_of_sdss_are_painted_each_as_its_kind(tmp_path: Path) -> None:
    masks = {
        "S_MASK_INTERP": [[(10, 20, 25), (11, 21, 22)], [(299, 390, 399)]],
        "S_MASK_SATUR": [[(10, 24, 30)]],
        "S_MASK_OBJECT": [[(50, 0, 399)]],
        "S_MASK_CR": [[(258, 300, 300)]],
    }
    mask = read_mask(fpm(tmp_path / "m.fit", masks), SHAPE)
    expected = np.zeros(SHAPE, np.uint16)
    expected[10, 20:26] = expected[11, 21:23] = expected[299, 390:400] = Mask.INTRP
    expected[10, 24:31] |= np.uint16(Mask.SAT)
    expected[258, 300] = Mask.CR
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("span", [(300, 0, 5), (10, 399, 400), (10, 9, 8)])
def test_a_span_off_the_image_is_refused_by_name(span: Span, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"m\.fit: "):
        read_mask(fpm(tmp_path / "m.fit", {"S_MASK_CR": [[span]]}), SHAPE)


def test_an_absent_mask_and_one_cut_short_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"absent\.fit: FileNotFoundError"):
        read_mask(tmp_path / "absent.fit", SHAPE)
    path = fpm(tmp_path / "m.fit", {"S_MASK_CR": [[(1, 2, 3)] * 2000]})
    path.write_bytes(path.read_bytes()[: 5 * 2880])
    with pytest.raises(BadData, match=r"m\.fit: "):
        read_mask(path, SHAPE)
