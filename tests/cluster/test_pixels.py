"""The store of an inline run; the one on Ray is held to it by the tests of a whole night."""

import pytest

from cluster.pixels import KEPT_RAWS, MemoryPixels
from schemas.identity import DatasetId


def raw(exposure: int) -> DatasetId:
    return DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=exposure, detector=94)


PRODUCTS = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=1, detector=94)


@pytest.fixture
def pixels() -> MemoryPixels:
    return MemoryPixels()


async def test_what_is_put_is_got_uncopied_under_an_equal_name(pixels: MemoryPixels) -> None:
    value = object()
    await pixels.put(raw(5), value)
    assert await pixels.get(raw(5)) is value
    assert await pixels.get(raw(5)) is value


async def test_what_was_never_put_is_none(pixels: MemoryPixels) -> None:
    assert await pixels.get(raw(5)) is None


async def test_what_is_dropped_is_gone_and_may_be_dropped_again(pixels: MemoryPixels) -> None:
    await pixels.put(PRODUCTS, 1)
    await pixels.drop(PRODUCTS)
    await pixels.drop(PRODUCTS)
    assert await pixels.get(PRODUCTS) is None


async def test_a_name_put_again_holds_the_newer_value(pixels: MemoryPixels) -> None:
    await pixels.put(raw(5), 1)
    await pixels.put(raw(5), 2)
    assert await pixels.get(raw(5)) == 2


async def test_the_oldest_raws_make_room_for_newer_ones_and_products_stay(pixels: MemoryPixels) -> None:
    await pixels.put(PRODUCTS, "kept")
    for exposure in range(KEPT_RAWS + 3):
        await pixels.put(raw(exposure), exposure)
    held = [await pixels.get(raw(exposure)) for exposure in range(KEPT_RAWS + 3)]
    assert held == [None, None, None, *range(3, KEPT_RAWS + 3)]
    assert await pixels.get(PRODUCTS) == "kept"
