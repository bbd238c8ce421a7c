"""A visit-detector's context from a small real archive: one patch, one catalogue, one calibration of few pixels."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from cluster.products import STARS_WITHIN_DEG, ButlerProducts
from payloads.alert_production.pipeline import Context
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Mask
from schemas.instrument import camera
from schemas.pointing import nominal_wcs
from schemas.skymap import tract_at
from schemas.tables import REFCAT_DTYPE, nulls
from schemas.wcs import separation_arcsec
from tests.backbone import kept_objects as kept

DETECTOR = camera("LSSTCam")[94]
RA, DEC, ROTATION = 150.0, 2.2, 30.0
NIGHT = 20260705
WCS = nominal_wcs(DETECTOR, RA, DEC, ROTATION)
MIDDLE = (DETECTOR.format.width - 1) / 2, (DETECTOR.format.height - 1) / 2
CENTER = tuple(float(v) for v in WCS.pixel_to_sky(*MIDDLE))
TRACT = tract_at(*CENTER)
PATCH = TRACT.patches_in(TRACT.box_of(WCS, (DETECTOR.format.height, DETECTOR.format.width)))[4]


def stars() -> np.ndarray:
    table = nulls(REFCAT_DTYPE, 3)
    table["id"] = 1, 2, 3
    table["ra"], table["dec"] = CENTER[0], CENTER[1] + np.array([0.0, 0.19, 0.21])
    return table


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ButlerArchive:
    archive = ButlerArchive.create(tmp_path_factory.mktemp("butler"))
    archive.register_camera(camera("LSSTCam"))
    archive.put(kept.calibration_id(), kept.calibration())
    archive.put(kept.patch_id(TRACT, PATCH), kept.template_patch(TRACT, PATCH))
    archive.put(DatasetId(dataset_type="reference_catalogue", tract=TRACT.id), stars())
    return archive


@pytest.fixture(scope="module")
def context(archive: ButlerArchive) -> Context:
    return ButlerProducts(archive, "LSSTCam").context_for(DETECTOR, RA, DEC, ROTATION, "r_57", NIGHT)


def test_the_calibration_is_the_one_of_detector_and_filter(context: Context) -> None:
    assert context.detector is DETECTOR
    assert np.array_equal(context.calibration.flat, kept.calibration().flat)
    assert np.array_equal(context.calibration.crosstalk, kept.calibration().crosstalk)


def test_the_template_covers_the_detector_in_the_filters_band(context: Context) -> None:
    template = context.template
    assert template.band == "r"
    ny, nx = template.pixels.shape
    edges = np.array([0, DETECTOR.format.width - 1]), np.array([0, DETECTOR.format.height - 1])
    x, y = template.wcs.sky_to_pixel(*WCS.pixel_to_sky(np.tile(edges[0], 2), np.repeat(edges[1], 2)))
    assert min(x.min(), y.min(), (nx - 1 - x).min(), (ny - 1 - y).min()) >= 31
    has_pixels = template.pixels.mask != Mask.NO_DATA
    assert 0.1 < has_pixels.mean() < 0.5  # one patch of several


def test_the_reference_stars_are_those_about_the_detectors_centre(context: Context) -> None:
    assert list(context.refcat["id"]) == [1, 2]
    apart = separation_arcsec(context.refcat["ra"], context.refcat["dec"], *CENTER)
    assert apart.max() <= STARS_WITHIN_DEG * 3600.0


def _told(got: list[str], read: Callable[..., object], name: DatasetId, *rest: object) -> object:
    got.append(name.dataset_type)
    return read(name, *rest)


def test_a_calibration_is_read_once_and_a_template_each_time(
    archive: ButlerArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[str] = []
    for method in ("get", "get_certified"):
        read = getattr(archive, method)
        told = partial(_told, got, read)
        monkeypatch.setattr(archive, method, told)
    products = ButlerProducts(archive, "LSSTCam")
    first, second = (products.context_for(DETECTOR, RA, DEC, ROTATION, "r_57", NIGHT) for _ in range(2))
    assert first.calibration is second.calibration
    assert got.count("calibration") == 1
    assert got.count("reference_catalogue") >= 2


def test_a_calibration_that_is_not_kept_is_named(archive: ButlerArchive) -> None:
    with pytest.raises(NotKept, match="calibration/LSSTCam/94/g_6"):
        ButlerProducts(archive, "LSSTCam").context_for(DETECTOR, RA, DEC, ROTATION, "g_6", NIGHT)


def test_a_filter_that_the_camera_lacks_is_bad_data_and_named(archive: ButlerArchive) -> None:
    with pytest.raises(BadData, match="H_alpha"):
        ButlerProducts(archive, "LSSTCam").context_for(DETECTOR, RA, DEC, ROTATION, "H_alpha", NIGHT)


def test_sky_without_a_template_is_named(archive: ButlerArchive) -> None:
    with pytest.raises(NotKept, match="no r template patch of tract"):
        ButlerProducts(archive, "LSSTCam").context_for(DETECTOR, 10.0, -40.0, ROTATION, "r_57", NIGHT)
