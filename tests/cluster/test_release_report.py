"""A release in a Data Butler, read back and reported."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table as AstropyTable
from lsst.daf.butler import Butler, CollectionType, DatasetType

from access.release.model import Missing
from backbone.butler import ButlerArchive
from cluster.release_report import catalogue_of, truth_of, write_report
from payloads.drp.relative import Excluded, RelativeCalibration, relative_calibration
from payloads.drp.relative import Frame as Seen
from payloads.drp.single_frame import SINGLE_VISIT_STAR_DTYPE, FrameSummary
from schemas import drp_tables, skymap
from schemas.errors import BadData
from schemas.identity import DatasetId, image_name, parse_exposure_id
from schemas.image import Observation, Psf
from schemas.instrument import camera
from schemas.tables import REFCAT_DTYPE, Table, nulls
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind
from tests.access.release.small_release import MJD, PATCH, SmallFrame, SmallRelease, stars

RUN = "drp/week/20260712T000000Z"
OF_CCD = ("instrument", "visit", "detector")
OF_PATCH = ("skymap", "tract", "patch")
TYPES = {
    "object": (OF_PATCH, "ArrowAstropy"),
    "object_forced_source": (OF_PATCH, "ArrowAstropy"),
    "object_light_curve": (OF_PATCH, "ArrowAstropy"),
    "visit_detector_summary": (OF_CCD, "PachonFrameSummary"),
    "single_visit_star": (OF_CCD, "ArrowNumpy"),
    "relative_calibration": (("instrument", "skymap", "tract", "band"), "PachonRelativeCalibration"),
}


def summary_of(frame: SmallFrame) -> FrameSummary:
    return FrameSummary(
        visit=frame.visit, detector=frame.detector, band=frame.band, physical_filter="r_57", ny=frame.ny, nx=frame.nx,
        wcs=frame.wcs, midpoint=frame.midpoint, exposure_time=30.0, zero_point=1.0, fwhm_px=4.0, sky_e=1000.0,
        depth_mag=24.5, wcs_rms_mas=5.0, n_stars=100, psf=Psf(np.ones((1, 1, 1), np.float32), 0, (frame.ny, frame.nx)),
    )  # fmt: skip


def seen_stars(frame: SmallFrame, sources: Table) -> Table:
    rows = np.zeros(len(sources), SINGLE_VISIT_STAR_DTYPE)
    rows["visit"], rows["detector"], rows["position_err"] = frame.visit, frame.detector, 0.01
    rows["x"], rows["y"] = frame.wcs.sky_to_pixel(sources["ra"], sources["dec"])
    rows["ra"], rows["dec"], rows["flux"], rows["flux_err"] = sources["ra"], sources["dec"], sources["flux"], 100.0
    return rows


def refcat_of(sources: Table) -> Table:
    rows = np.zeros(len(sources), REFCAT_DTYPE)
    for name in ("id", "ra", "dec"):
        rows[name] = sources[name]
    rows["r_flux"], rows["r_fluxErr"] = sources["flux"], 100.0
    return rows


def observation(frame: SmallFrame) -> Observation:
    day_obs, number = parse_exposure_id(frame.visit)
    return Observation(
        instrument="LSSTCam", group=image_name(day_obs, number), visit=frame.visit, exposure=frame.visit, snap=0,
        n_snaps=1, image_name=image_name(day_obs, number), physical_filter="r_57", band="r", ra=150.0, dec=2.0,
        rotation=0.0, exposure_time=30.0, started=frame.midpoint - 15.0, readout_ended=frame.midpoint + 17.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> SmallRelease:
    return stars(np.concatenate([np.full(400, 18.2), np.full(100, 25.2)]), visits=3)


@pytest.fixture(scope="module")
def folder(small: SmallRelease, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Butler with the small release in a run."""
    path = tmp_path_factory.mktemp("release") / "butler"
    archive = ButlerArchive.create(path)
    archive.register_camera(camera("LSSTCam"))
    refcat = refcat_of(small.sources[:400])
    archive.put(DatasetId(dataset_type="reference_catalogue", tract=small.tract), refcat)
    for frame in small.frames:
        archive.register_exposure(observation(frame))
    with Butler.from_config(str(path), writeable=True) as butler:
        butler.collections.register(RUN, CollectionType.RUN)
        for name, (dimensions, storage) in TYPES.items():
            butler.registry.registerDatasetType(DatasetType(name, dimensions, storage, universe=butler.dimensions))
        fill(butler, small, refcat)
    return path


def fill(butler: Butler, small: SmallRelease, refcat: Table) -> None:
    on_sky: dict[str, int | str] = {"skymap": skymap.NAME, "tract": small.tract}
    curves = nulls(drp_tables.light_curve_dtype(), 7)
    tables = {"object": small.objects, "object_forced_source": small.forced, "object_light_curve": curves}
    for name, table in tables.items():
        butler.put(AstropyTable(table), name, on_sky | {"patch": PATCH}, run=RUN)
    for frame in small.frames:
        where = {"instrument": "LSSTCam", "visit": frame.visit, "detector": frame.detector}
        butler.put(summary_of(frame), "visit_detector_summary", where, run=RUN)
        butler.put(seen_stars(frame, small.sources[:400]), "single_visit_star", where, run=RUN)
    calibration = calibrated(small, refcat)
    butler.put(calibration, "relative_calibration", on_sky | {"instrument": "LSSTCam", "band": "r"}, run=RUN)


def calibrated(small: SmallRelease, refcat: Table) -> RelativeCalibration:
    seen = [Seen(summary_of(frame), seen_stars(frame, small.sources[:400])) for frame in small.frames]
    return relative_calibration(seen, refcat)


def test_a_release_is_read_patch_by_patch_and_reported(folder: Path, small: SmallRelease, tmp_path: Path) -> None:
    lacking = Missing(step="coadd", data_id="patch=3", why="BadData: no warp")
    told = write_report(folder, [RUN], tmp_path / "report", name="week", reference=small.reference, missing=[lacking])
    assert told.contents.model_dump() == {
        "visits": 3, "detectors": 1, "tracts": 1, "patches": 1, "objects": 500, "forced_sources": 1500,
        "light_curves": 7, "bands": ("r",),
    }  # fmt: skip
    (band,) = told.bands
    assert band.visits == 3
    assert [(found.true, found.share) for found in band.stars] == [(400, 1.0), (100, 1.0)]
    assert band.repeats.pairs > 500
    assert band.repeats.am1_mas == pytest.approx(0.0, abs=0.1)
    assert told.missing == [lacking]
    assert json.loads((tmp_path / "report" / "summary.json").read_text("utf-8"))["name"] == "week"
    assert "<svg" in (tmp_path / "report" / "release.html").read_text("utf-8")


def test_a_real_release_is_held_to_the_reference_catalogue(folder: Path, small: SmallRelease) -> None:
    reference = catalogue_of(folder)
    stars_there = reference.sources(*small.tables.middle, 0.1, "r", MJD)
    assert len(stars_there) == 400
    assert set(stars_there["kind"]) == {"star"}
    assert stars_there["mean_flux"] == pytest.approx(small.sources["flux"][0], rel=1e-6)
    assert not reference.complete
    assert len(reference.sources(10.0, -60.0, 0.1, "r", MJD)) == 0


def test_collections_without_a_release_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no object table in LSSTCam/defaults"):
        write_report(folder, ["LSSTCam/defaults"], tmp_path, name="", reference=None)
    with pytest.raises(BadData, match="drp/none"):
        write_report(folder, ["drp/none"], tmp_path, name="", reference=None)
    assert list(tmp_path.iterdir()) == []


def without_the_first(calibration: RelativeCalibration) -> RelativeCalibration:
    first = Excluded(int(calibration.visit[0]), int(calibration.detector[0]), "elsewhere")
    values = {each.name: getattr(calibration, each.name) for each in fields(calibration)}
    others = {name: value[1:] for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(calibration, **others, excluded=(first,))


def test_a_frame_that_one_tract_left_out_is_another_tracts(folder: Path, small: SmallRelease, tmp_path: Path) -> None:
    run, kept = "drp/edge", calibrated(small, refcat_of(small.sources[:400]))
    on_sky: dict[str, int | str] = {"skymap": skymap.NAME, "tract": small.tract}
    ButlerArchive.open(folder).register_tracts([skymap.tract(small.tract + 1)])
    with Butler.from_config(str(folder), writeable=True) as butler:
        butler.collections.register(run, CollectionType.RUN)
        for name, table in (("object", small.objects), ("object_forced_source", small.forced)):
            butler.put(AstropyTable(table), name, on_sky | {"patch": PATCH}, run=run)
        for frame in small.frames:
            where = {"instrument": "LSSTCam", "visit": frame.visit, "detector": frame.detector}
            butler.put(summary_of(frame), "visit_detector_summary", where, run=run)
        for tract, calibration in ((small.tract, without_the_first(kept)), (small.tract + 1, kept)):
            where = on_sky | {"tract": tract, "instrument": "LSSTCam", "band": "r"}
            butler.put(calibration, "relative_calibration", where, run=run)
    told = write_report(folder, [run], tmp_path, name="edge", reference=small.reference)
    assert (told.contents.visits, told.bands[0].visits) == (3, 2)
    assert [(each.data_id, each.why) for each in told.missing] == [
        (f"tract {small.tract} visit {small.frames[0].visit} detector 94", "elsewhere")
    ]


def test_a_table_that_cannot_be_read_is_named(folder: Path, small: SmallRelease, tmp_path: Path) -> None:
    run, where = "drp/torn", {"skymap": skymap.NAME, "tract": small.tract, "patch": PATCH}
    with Butler.from_config(str(folder), writeable=True) as butler:
        butler.collections.register(run, CollectionType.RUN)
        ref = butler.put(AstropyTable(small.objects), "object", where, run=run)
        Path(butler.getURI(ref).ospath).write_bytes(b"no Parquet")
    with pytest.raises(BadData, match=r"object@.*drp/torn"):
        write_report(folder, [run], tmp_path, name="", reference=None)


def test_the_simulators_truth_is_the_sky_without_what_moves() -> None:
    there = (150.0, 2.0, 0.05, "r", MJD)
    sky, truth = Sky(3).sources(*there), truth_of(3)
    told = truth.sources(*there)
    assert truth.complete
    assert len(told) == np.sum(sky["kind"] != Kind.ASTEROID)
    for name in ("star", "galaxy", "variable", "transient"):
        assert np.sum(told["kind"] == name) == np.sum(sky["kind"] == Kind[name.upper()])
    lasting = told["kind"] != "transient"
    assert (told["mean_flux"][lasting] > 0.0).all()
    assert (told["mean_flux"][~lasting] == 0.0).all()
