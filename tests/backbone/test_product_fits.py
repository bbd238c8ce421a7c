from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from backbone.product_fits import read_product, write_product
from schemas.errors import BadData


@dataclass(frozen=True)
class Left:
    exposure: int
    why: str


@dataclass(frozen=True, eq=False)
class Planes:
    image: NDArray[np.float32]
    mask: NDArray[np.uint16]
    used: tuple[int, ...]
    rejected: tuple[Left, ...]


@dataclass(frozen=True, eq=False)
class Product:
    detector: int
    band: str
    rate: float
    pixels: Planes
    gain: NDArray[np.float64]
    counts: NDArray[np.int64]
    reached: NDArray[np.bool_]


@pytest.fixture
def product() -> Product:
    rng = np.random.default_rng(3)
    image = rng.normal(size=(21, 17)).astype(np.float32)
    image[3, 4] = np.nan
    planes = Planes(image, rng.integers(0, 1 << 16, (21, 17)).astype(np.uint16), (7, 9), (Left(8, "lamp off \u00b5"),))
    counts = rng.integers(-(1 << 60), 1 << 60, 5)
    return Product(94, "r", 0.1, planes, rng.normal(size=16), counts, np.array([True, False, True]))


def test_a_product_comes_back_as_it_was(tmp_path: Path, product: Product) -> None:
    write_product(tmp_path / "p.fits", product, {"LSST BUTLER RUN": "here"})
    again = read_product(tmp_path / "p.fits", Product)
    assert (again.detector, again.band, again.rate) == (94, "r", 0.1)
    assert (again.pixels.used, again.pixels.rejected) == (product.pixels.used, product.pixels.rejected)
    for told, kept in (
        (again.pixels.image, product.pixels.image), (again.pixels.mask, product.pixels.mask),
        (again.gain, product.gain), (again.counts, product.counts), (again.reached, product.reached),
    ):  # fmt: skip
        assert told.dtype == kept.dtype
        assert np.array_equal(told, kept, equal_nan=kept.dtype.kind == "f")


def test_astropy_alone_reads_its_planes_and_whence_it_came(tmp_path: Path, product: Product) -> None:
    write_product(tmp_path / "p.fits", product, {"LSST BUTLER RUN": "here"})
    with fits.open(tmp_path / "p.fits", checksum=True) as hdus:
        assert hdus[0].header["LSST BUTLER RUN"] == "here"
        assert np.array_equal(hdus["PIXELS.MASK"].data, product.pixels.mask)
        assert np.array_equal(hdus["GAIN"].data, product.gain)


def test_a_flipped_bit_is_refused_by_name(tmp_path: Path, product: Product) -> None:
    path = tmp_path / "p.fits"
    write_product(path, product, {})
    with fits.open(path) as hdus:
        at = hdus["GAIN"].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[at + 9] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(BadData, match=r"p\.fits.*GAIN"):
        read_product(path, Product)


def test_a_file_of_another_product_is_refused_by_name(tmp_path: Path, product: Product) -> None:
    write_product(tmp_path / "p.fits", product.pixels, {})
    with pytest.raises(BadData, match=r"p\.fits"):
        read_product(tmp_path / "p.fits", Product)


def test_an_array_that_fits_has_not_is_refused(tmp_path: Path, product: Product) -> None:
    with pytest.raises(BadData, match="GAIN is complex128"):
        write_product(tmp_path / "p.fits", replace(product, gain=product.gain.astype(complex)), {})
