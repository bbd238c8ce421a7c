"""Templates put together from patches, and reference stars from tracts, in a real archive."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from backbone.psf_model import psf_in_box, psf_of_mosaic
from backbone.sky_products import NO_DATA_VARIANCE, refcat_for, template_for
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Mask, Psf
from schemas.instrument import camera
from schemas.pointing import nominal_wcs
from schemas.skymap import Box, tract_at
from schemas.tables import REFCAT_DTYPE, nulls
from schemas.wcs import from_tangent, separation_arcsec
from tests.backbone import kept_objects as kept

SHAPE = (1500, 1300)
"""A part of a detector, so that four patches cover it."""
RA, DEC = 150.0, 2.2
WCS = nominal_wcs(camera("LSSTCam")[94], RA, DEC, 30.0)
TRACT = tract_at(*(float(v) for v in WCS.pixel_to_sky(SHAPE[1] / 2, SHAPE[0] / 2)))
BOX = TRACT.box_of(WCS, SHAPE)
PATCHES = TRACT.patches_in(BOX)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ButlerArchive:
    archive = ButlerArchive.create(tmp_path_factory.mktemp("butler"))
    archive.register_camera(camera("LSSTCam"))
    return archive


@pytest.fixture(scope="module")
def covered(archive: ButlerArchive) -> ButlerArchive:
    for patch in PATCHES:
        archive.put(kept.patch_id(TRACT, patch), kept.template_patch(TRACT, patch))
    return archive


def stars_about(ra: float, dec: float, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    stars = nulls(REFCAT_DTYPE, n)
    stars["id"] = np.arange(n)
    stars["ra"], stars["dec"] = from_tangent(rng.uniform(-1, 1, n), rng.uniform(-1, 1, n), (ra, dec))
    return stars


def test_the_detector_lies_on_several_patches() -> None:
    assert len(PATCHES) == 4


def test_every_pixel_of_a_template_is_that_of_its_tract(covered: ButlerArchive) -> None:
    template = template_for(covered, WCS, SHAPE, "r")
    assert template.pixels.shape == BOX.shape
    y, x = np.mgrid[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1]
    assert np.array_equal(template.pixels.image, y)  # as the patches were painted
    assert np.array_equal(template.pixels.variance, x)
    assert np.array_equal(template.pixels.mask, y // 2048 * 20 + x // 2048)
    assert np.allclose(template.wcs.pixel_to_sky(5, 7), TRACT.wcs.pixel_to_sky(BOX.x0 + 5, BOX.y0 + 7), atol=1e-12)
    assert template.band == "r"


def test_the_detector_lies_within_its_template_with_a_margin(covered: ButlerArchive) -> None:
    template = template_for(covered, WCS, SHAPE, "r")
    ny, nx = template.pixels.shape
    x, y = template.wcs.sky_to_pixel(*WCS.pixel_to_sky([0, SHAPE[1] - 1] * 2, [0, 0, SHAPE[0] - 1, SHAPE[0] - 1]))
    assert min(x.min(), y.min(), (nx - 1 - x).min(), (ny - 1 - y).min()) >= 31


def test_the_psf_of_a_template_is_that_of_its_patches(covered: ButlerArchive) -> None:
    """Each patch repeats the same slope in x, which one plane over all of them cannot follow: hence 2e-3."""
    template = template_for(covered, WCS, SHAPE, "r")
    assert template.psf.shape == template.pixels.shape
    middle = template.psf.at(BOX.shape[1] / 2, BOX.shape[0] / 2)
    assert middle.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.abs(middle - kept.gaussian(2.0)).max() < 2e-3


def test_where_there_is_no_patch_the_template_says_so_and_has_no_nan(archive: ButlerArchive) -> None:
    here = PATCHES[0]
    archive.put(
        DatasetId(dataset_type="template_patch", tract=TRACT.id, patch=here, band="g"),
        kept.template_patch(TRACT, here),
    )
    pixels = template_for(archive, WCS, SHAPE, "g").pixels
    y, x = np.mgrid[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1]
    there = y // 2048 * 20 + x // 2048 == here
    assert np.array_equal(pixels.image, np.where(there, y, 0))
    assert np.array_equal(pixels.mask, np.where(there, here, Mask.NO_DATA))
    assert np.array_equal(pixels.variance, np.where(there, x, NO_DATA_VARIANCE).astype(np.float32))
    assert np.isfinite(np.square(NO_DATA_VARIANCE))


@pytest.mark.parametrize("wide_patches", [1, 3])
def test_of_patches_that_differ_in_psf_those_that_cover_most_are_taken(tmp_path: Path, wide_patches: int) -> None:
    archive = ButlerArchive.create(tmp_path)
    archive.register_camera(camera("LSSTCam"))
    by_area = sorted(PATCHES, key=lambda patch: overlap(patch).sum())
    wide = by_area[-wide_patches:] if wide_patches > 1 else by_area[:1]
    for patch in PATCHES:
        made = kept.template_patch(TRACT, patch)
        flat = np.zeros((1, 25, 25), np.float32)
        flat[0, 9:16, 9:16] = 1.0 / 49.0 if patch in wide else 0.0
        flat[0, 10:15, 10:15] += 0.0 if patch in wide else 1.0 / 25.0
        archive.put(kept.patch_id(TRACT, patch), replace(made, psf=Psf(flat, 0, made.psf.shape)))
    template = template_for(archive, WCS, SHAPE, "r")
    left_out = wide if wide_patches == 1 else by_area[:1]
    blank = np.any([overlap(patch) for patch in left_out], axis=0)
    assert np.array_equal(template.pixels.mask == Mask.NO_DATA, blank)
    assert (template.pixels.variance[blank] == NO_DATA_VARIANCE).all()
    assert (template.pixels.image[blank] == 0.0).all()
    width = 7 if wide_patches == 3 else 5
    assert template.psf.at(200.0, 200.0).max() == pytest.approx(1.0 / width**2, rel=1e-3)


def test_patches_count_by_what_they_show(tmp_path: Path) -> None:
    archive = ButlerArchive.create(tmp_path)
    archive.register_camera(camera("LSSTCam"))
    largest = max(PATCHES, key=lambda patch: overlap(patch).sum())
    for patch in PATCHES:
        made = kept.template_patch(TRACT, patch)
        made.pixels.mask[:] = 0
        if patch == largest:
            made.pixels.mask[:] = Mask.NO_DATA
            wide = np.full((1, 25, 25), 1.0 / 625.0, np.float32)
            made = replace(made, psf=Psf(wide, 0, made.psf.shape))
        archive.put(kept.patch_id(TRACT, patch), made)
    template = template_for(archive, WCS, SHAPE, "r")
    assert np.array_equal(template.pixels.mask == Mask.NO_DATA, overlap(largest))
    assert template.psf.at(200.0, 200.0).max() > 2.0 / 625.0


def overlap(patch: int) -> np.ndarray:
    """(ny, nx): where the template's box lies on a patch."""
    y, x = np.mgrid[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1]
    return np.asarray(y // 2048 * 20 + x // 2048 == patch)


def test_no_patch_at_all_is_said_by_band_and_tract(archive: ButlerArchive) -> None:
    with pytest.raises(NotKept, match=f"no z template patch of tract {TRACT.id}"):
        template_for(archive, WCS, SHAPE, "z")


def test_a_patch_cut_short_is_refused_by_name(archive: ButlerArchive) -> None:
    patch = DatasetId(dataset_type="template_patch", tract=TRACT.id, patch=PATCHES[1], band="i")
    path = Path(archive.put(patch, kept.template_patch(TRACT, PATCHES[1])).removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-2880])
    with pytest.raises(BadData, match=str(patch)):
        template_for(archive, WCS, SHAPE, "i")


def test_reference_stars_come_from_all_tracts_of_a_circle(archive: ButlerArchive) -> None:
    ra, dec = TRACT.ra, TRACT.dec + 0.8  # the border to the next ring
    stars = stars_about(ra, dec, 3000)
    tracts = np.array([tract_at(*place).id for place in zip(stars["ra"], stars["dec"], strict=True)])
    assert len(np.unique(tracts)) >= 2
    for tract in np.unique(tracts).tolist():
        archive.put(DatasetId(dataset_type="reference_catalogue", tract=tract), stars[tracts == tract])
    for radius in (0.05, 0.2, 0.7):
        near = refcat_for(archive, ra, dec, radius)
        inside = separation_arcsec(stars["ra"], stars["dec"], ra, dec) <= radius * 3600.0
        assert sorted(near["id"]) == sorted(stars["id"][inside])
        assert near.dtype == REFCAT_DTYPE


def test_no_reference_catalogue_is_said_by_place(archive: ButlerArchive) -> None:
    with pytest.raises(NotKept, match=r"no reference catalogue within 0.2 deg of \(10.0000, -40.0000\)"):
        refcat_for(archive, 10.0, -40.0, 0.2)


def varying_psf(order: int, shape: tuple[int, int]) -> Psf:
    terms = (order + 1) * (order + 2) // 2
    rng = np.random.default_rng(order)
    wobble = 0.01 * kept.gaussian(3.0) * rng.standard_normal((terms, 21, 21))
    wobble -= wobble.mean(axis=(1, 2), keepdims=True)
    wobble[0] += kept.gaussian(2.0)
    return Psf(wobble.astype(np.float32), order, shape)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_psf_in_a_box_is_the_same_psf_there(order: int) -> None:
    whole, box = varying_psf(order, (2048, 1024)), Box(100, 1900, 800, 2000)
    part = psf_in_box(whole, box)
    for x, y in ((100, 1900), (799, 1999), (450, 1950)):
        assert np.allclose(part.at(x - 100, y - 1900), whole.at(x, y), atol=2e-7)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_mosaic_of_boxes_of_one_psf_has_that_psf(order: int) -> None:
    whole = varying_psf(order, (2000, 3000))
    boxes = [Box(0, 0, 1000, 2000), Box(1000, 0, 3000, 1200), Box(1000, 1200, 3000, 2000)]
    mosaic = psf_of_mosaic([(box, psf_in_box(whole, box)) for box in boxes], (2000, 3000))
    for x, y in ((0, 0), (2999, 1999), (1000, 1200)):
        assert np.allclose(mosaic.at(x, y), whole.at(x, y), atol=1e-6)


def test_kernels_of_different_size_are_padded_to_the_largest() -> None:
    small = Psf(kept.gaussian(2.0, 11)[None], 0, (100, 100))
    large = Psf(kept.gaussian(2.0, 21)[None], 0, (100, 100))
    mosaic = psf_of_mosaic([(Box(0, 0, 100, 100), small), (Box(100, 0, 200, 100), large)], (100, 200))
    assert mosaic.components.shape == (1, 21, 21)
    assert np.allclose(mosaic.at(50, 50), (np.pad(small.at(0, 0), 5) + large.at(0, 0)) / 2, atol=1e-7)
