"""Calibrations and template patches as FITS: what was written is read, whole or in part; damage is named."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from backbone.masked_fits import (
    inputs_of_template,
    read_calibration,
    read_template,
    write_calibration,
    write_template,
)
from schemas.errors import BadData
from schemas.image import Calibration, Inputs, MaskedImage, Psf, Template
from schemas.skymap import Box, tract_at
from schemas.wcs import Wcs
from tests.backbone.kept_objects import calibration, gaussian, template_patch

TRACT = tract_at(150.0, 2.2)


@pytest.fixture(scope="module")
def patch() -> Template:
    return template_patch(TRACT, 21)


@pytest.fixture(scope="module")
def patch_file(patch: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "patch.fits"
    write_template(path, patch, {})
    return path


def test_a_calibration_is_read_back_plane_by_plane_in_native_byte_order(tmp_path: Path) -> None:
    made = calibration()
    write_calibration(tmp_path / "c.fits", made, {})
    back = read_calibration(tmp_path / "c.fits")
    for field in fields(Calibration):
        before, after = getattr(made, field.name), getattr(back, field.name)
        assert np.array_equal(before, after), field.name
        assert after.dtype == before.dtype, field.name
        assert after.dtype.isnative, field.name
        assert after.flags.c_contiguous, field.name
        assert after.flags.writeable, field.name


def test_a_calibration_of_before_linearity_was_kept_is_linear(tmp_path: Path) -> None:
    made = calibration()
    write_calibration(tmp_path / "c.fits", made, {})
    with fits.open(tmp_path / "c.fits") as hdus:
        del hdus["LINEARITY"]
        hdus.writeto(tmp_path / "old.fits")
    back = read_calibration(tmp_path / "old.fits")
    assert np.array_equal(back.linearity, np.zeros((16, 3), np.float32))
    assert np.array_equal(back.crosstalk, made.crosstalk)


def test_astropy_alone_reads_the_same_planes(tmp_path: Path) -> None:
    made = calibration()
    write_calibration(tmp_path / "c.fits", made, {})
    with fits.open(tmp_path / "c.fits", checksum=True) as hdus:
        for field in fields(Calibration):
            assert np.array_equal(hdus[field.name].data, getattr(made, field.name)), field.name


def test_cards_with_long_names_come_through(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.fits", calibration(), {"LSST BUTLER N_INPUTS": 2, "SHORT": "x"})
    header = fits.getheader(tmp_path / "c.fits")
    assert (header["LSST BUTLER N_INPUTS"], header["SHORT"]) == (2, "x")


def test_a_template_tells_of_which_visits_it_is_the_mean(patch: Template, patch_file: Path, tmp_path: Path) -> None:
    assert inputs_of_template(patch_file) is None
    assert read_template(patch_file).inputs is None
    visits, rng = tuple(2026070500001 + number for number in range(40)), np.random.default_rng(1)
    taken = rng.integers(0, 65536, (3, 1024, 1024)).astype(np.uint16)
    made = Inputs(visits, rng.uniform(1e-4, 1.0, (40, 64, 64)).astype(np.float32), taken)
    write_template(tmp_path / "made.fits", replace(patch, inputs=made), {})
    for told in (inputs_of_template(tmp_path / "made.fits"), read_template(tmp_path / "made.fits").inputs):
        assert told is not None
        assert told.visits == visits
        assert np.array_equal(told.weight, made.weight)
        assert np.array_equal(told.taken, made.taken)
    assert read_template(tmp_path / "made.fits", Box(0, 0, 5, 5)).inputs is None
    with fits.open(tmp_path / "made.fits") as hdus:  # as they were once written
        del hdus["WEIGHT"], hdus["TAKEN"]
        hdus.writeto(tmp_path / "old.fits")
    assert inputs_of_template(tmp_path / "old.fits") is read_template(tmp_path / "old.fits").inputs is None


def test_a_template_is_read_back(patch: Template, patch_file: Path) -> None:
    back = read_template(patch_file)
    for name in ("image", "mask", "variance"):
        assert np.array_equal(getattr(back.pixels, name), getattr(patch.pixels, name))
    assert (back.band, back.psf.order, back.psf.shape) == ("r", 1, (2048, 2048))
    assert np.array_equal(back.psf.components, patch.psf.components)
    assert (back.wcs.crval, back.wcs.crpix) == (patch.wcs.crval, patch.wcs.crpix)
    assert np.allclose(back.wcs.cd, patch.wcs.cd, rtol=1e-12)


def test_a_distorted_wcs_survives_and_astropy_agrees(tmp_path: Path, patch: Template) -> None:
    sip = np.zeros((2, 4, 4))
    sip[0, 2, 0], sip[0, 1, 2], sip[1, 0, 3] = 1.5e-6, -2e-9, 3e-10
    bent = replace(patch, wcs=Wcs(patch.wcs.crval, (100.25, 200.5), patch.wcs.cd, sip))
    write_template(tmp_path / "t.fits", bent, {})
    x, y = np.array([0.0, 500.0, 2047.0]), np.array([0.0, 1500.0, 2047.0])
    ra, dec = bent.wcs.pixel_to_sky(x, y)
    assert np.allclose(read_template(tmp_path / "t.fits").wcs.pixel_to_sky(x, y), (ra, dec), atol=1e-12)
    theirs = WCS(fits.getheader(tmp_path / "t.fits", "IMAGE")).all_pix2world(x, y, 0)
    assert np.allclose(theirs, (ra, dec), atol=1e-10)


def test_a_box_is_the_same_as_that_part_of_the_whole(patch: Template, patch_file: Path) -> None:
    box = Box(100, 300, 1124, 812)
    part = read_template(patch_file, box)
    for name in ("image", "mask", "variance"):
        assert np.array_equal(getattr(part.pixels, name), getattr(patch.pixels, name)[300:812, 100:1124])
    assert np.allclose(part.wcs.pixel_to_sky(3, 4), patch.wcs.pixel_to_sky(103, 304), atol=1e-12)
    assert part.psf.shape == (512, 1024)
    for x, y in ((0, 0), (1023, 0), (500, 511)):
        assert np.allclose(part.psf.at(x, y), patch.psf.at(x + 100, y + 300), atol=1e-7)


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, 0, 2049, 5), Box(7, 7, 7, 9), Box(0, 2040, 9, 2049)])
def test_a_box_beyond_the_image_is_refused(box: Box, patch_file: Path) -> None:
    with pytest.raises(BadData, match=r"patch\.fits.*not inside"):
        read_template(patch_file, box)


@pytest.mark.parametrize("plane", ["BIAS", "FLAT", "DEFECTS", "GAIN", "CROSSTALK"])
def test_one_flipped_bit_in_a_plane_is_refused_by_name(plane: str, tmp_path: Path) -> None:
    path = tmp_path / "c.fits"
    write_calibration(path, calibration(), {})
    with fits.open(path) as hdus:
        start = hdus[plane].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[start + 21] ^= 0x04
    path.write_bytes(data)
    with pytest.raises(BadData, match=rf"c\.fits.*{plane.lower()}.*checksum"):
        read_calibration(path)


def test_a_file_cut_short_or_absent_or_of_another_kind_is_refused_by_name(patch_file: Path, tmp_path: Path) -> None:
    whole = patch_file.read_bytes()
    short = tmp_path / "short.fits"
    for size in (0, 2880, 20_000_000, len(whole) - 2880):
        short.write_bytes(whole[:size])
        with pytest.raises(BadData, match=r"short\.fits"):
            read_template(short)
    with pytest.raises(BadData, match=r"absent\.fits"):
        read_template(tmp_path / "absent.fits")
    with pytest.raises(BadData, match=r"patch\.fits.*BIAS"):
        read_calibration(patch_file)


def test_planes_that_are_not_as_they_should_be_are_refused_by_name(tmp_path: Path, patch: Template) -> None:
    made = calibration()
    nowhere = tmp_path / "c.fits"
    with pytest.raises(BadData, match="flat has values that are not finite"):
        write_calibration(nowhere, replace(made, flat=np.full_like(made.flat, np.nan)), {})
    with pytest.raises(BadData, match="gain is float64"):
        write_calibration(nowhere, replace(made, gain=made.gain.astype(np.float64)), {})
    with pytest.raises(BadData, match="shape"):
        write_calibration(nowhere, replace(made, dark=made.dark[1:]), {})
    pixels = MaskedImage(patch.pixels.image, patch.pixels.mask.astype(np.int32), patch.pixels.variance)
    with pytest.raises(BadData, match="mask is int32"):
        write_template(nowhere, replace(patch, pixels=pixels), {})
    with pytest.raises(BadData, match="psf is float64"):
        write_template(nowhere, replace(patch, psf=Psf(gaussian(2.0)[None].astype(float), 0, (1, 1))), {})
    assert not nowhere.exists()
