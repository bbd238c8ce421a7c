"""The archive in a real Data Butler repository: what is put is got, once and for all, by whoever asks."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from lsst.daf.butler import Butler

from backbone import butler_repository
from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from backbone.sameness import same
from schemas.errors import BadData, Transient
from schemas.identity import DatasetId
from schemas.instrument import camera
from schemas.skymap import NAME, Box, tract_at
from schemas.tables import REFCAT_DTYPE, dtype_of, empty, nulls
from tests.backbone import kept_objects as kept
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.kept_objects import E2V_DETECTOR, ITL_DETECTOR

TRACT = tract_at(150.0, 2.2)
SUMMARY = {
    "seeing": 0.71,
    "n_sources": 53,
    "stages": {"isr": 0.25},
    "flags": ["ok"],
    "zero_point": float("nan"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("with a space") / "butler"


@pytest.fixture(scope="module")
def archive(folder: Path) -> ButlerArchive:
    archive = ButlerArchive.create(folder)
    archive.register_camera(camera("LSSTCam"))
    archive.register_exposure(kept.observation())
    return archive


@pytest.fixture
def file_of(archive: ButlerArchive) -> Iterator[Path]:
    """The file of a raw, as it was again after the test."""
    archive.put_raw(kept.raw(snap=1))
    path = path_of(archive.uri(kept.raw_id(snap=1)))
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def path_of(uri: str) -> Path:
    return Path(urlsplit(uri).path.replace("%20", " "))


def sources(n: int = 60) -> np.ndarray:
    table = empty("DiaSource", n)
    table["diaSourceId"] = np.arange(n) + 7
    table["psfFlux"] = np.random.default_rng(3).normal(1000.0, 10.0, n)
    return table


def stars(n: int = 500) -> np.ndarray:
    table = nulls(REFCAT_DTYPE, n)
    table["id"], table["ra"], table["dec"], table["variable"] = (
        np.arange(n),
        150.0,
        2.2,
        np.arange(n) % 2 == 0,
    )
    return table


KEPT = {
    "raw": (kept.raw_id(), kept.raw),
    "calibration": (kept.calibration_id(), kept.calibration),
    "template_patch": (kept.patch_id(TRACT, 21), lambda: kept.template_patch(TRACT, 21)),
    "reference_catalogue": (DatasetId(dataset_type="reference_catalogue", tract=TRACT.id), stars),
    "dia_source": (kept.visit_id("dia_source"), sources),
    "visit_summary": (kept.visit_id("visit_summary"), lambda: SUMMARY),
}


def test_importing_the_archive_does_not_import_the_butler() -> None:
    code = "import sys, backbone.butler, backbone.sky_products; sys.exit('lsst.daf.butler' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, check=True)


def test_a_calibration_exposure_makes_no_visit(folder: Path, archive: ButlerArchive) -> None:
    flat = replace(
        kept.observation(), exposure=2026070500900, visit=2026070500900, image_name="MC_O_20260705_000900",
        image_type="flat", group="flats",
    )  # fmt: skip
    archive.register_exposure(flat)
    archive.register_exposure(flat)
    registry = Butler.from_config(str(folder)).registry
    (record,) = registry.queryDimensionRecords("exposure", instrument="LSSTCam", exposure=flat.exposure)
    assert (record.observation_type, record.can_see_sky, record.tracking_ra) == ("flat", False, None)
    assert not list(registry.queryDimensionRecords("visit", instrument="LSSTCam", visit=flat.visit))
    (science,) = registry.queryDimensionRecords("exposure", instrument="LSSTCam", exposure=kept.observation().exposure)
    assert (science.observation_type, science.can_see_sky) == ("science", True)


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_put_is_got_and_the_same_again_changes_nothing(kind: str, archive: ButlerArchive) -> None:
    dataset, make = KEPT[kind]
    uri = archive.put(dataset, make())
    before = path_of(uri).stat().st_mtime_ns
    assert archive.exists(dataset)
    assert same(archive.get(dataset), make())
    assert archive.put(dataset, make()) == uri == archive.uri(dataset)
    assert path_of(uri).stat().st_mtime_ns == before
    assert dataset in archive.query(kind, **({} if "tract" in dataset.data_id() else {"instrument": "LSSTCam"}))


def test_other_content_for_the_same_name_is_refused_and_the_first_stays(archive: ButlerArchive) -> None:
    others = {
        "raw": kept.raw(seed=2),
        "calibration": kept.calibration(seed=2),
        "template_patch": kept.template_patch(TRACT, 21, sigma=2.1),
        "reference_catalogue": stars(499),
        "dia_source": sources(59),
        "visit_summary": SUMMARY | {"seeing": 0.72},
    }
    for kind, (dataset, make) in KEPT.items():
        archive.put(dataset, make())
        with pytest.raises(BadData, match=f"^{dataset} is kept already"):
            archive.put(dataset, others[kind])
        assert same(archive.get(dataset), make()), kind


def test_put_raw_tells_where_the_raw_lies_and_its_checksum(archive: ButlerArchive, folder: Path) -> None:
    taken = kept.raw(detector=ITL_DETECTOR)
    uri, sha256 = archive.put_raw(taken)
    assert sha256 == taken.sha256 == fits.getheader(path_of(uri))["PACHSHA"]
    assert archive.put_raw(taken) == (uri, sha256)
    assert list(folder.glob("incoming/*")) == []


def test_what_is_absent_is_said_by_name(archive: ButlerArchive) -> None:
    for dataset in (kept.raw_id(detector=3), kept.calibration_id(3), kept.patch_id(TRACT, 399)):
        assert not archive.exists(dataset)
        for ask in (archive.get, archive.uri):
            with pytest.raises(NotKept, match=str(dataset)):
                ask(dataset)


def test_names_that_refer_to_nothing_known_are_refused(archive: ButlerArchive) -> None:
    unknown = kept.visit_id("dia_source").model_copy(update={"visit": 2026070600001})
    assert not archive.exists(unknown)
    with pytest.raises(BadData, match=str(unknown)):
        archive.put(unknown, sources())
    with pytest.raises(BadData, match=r"'spectrum'.*raw, calibration"):
        archive.get(DatasetId(dataset_type="spectrum", exposure=1))
    with pytest.raises(BadData, match=r"distinguished by.*'detector', 'exposure', 'instrument'"):
        archive.get(DatasetId(dataset_type="raw", exposure=1))
    with pytest.raises(BadData, match="instrument"):
        archive.query("raw", exposure=kept.observation().exposure)


def test_an_object_of_another_kind_or_table_is_refused(archive: ButlerArchive) -> None:
    with pytest.raises(BadData, match="calibration/LSSTCam/94/r_57 is a dict, not a Calibration"):
        archive.put(kept.calibration_id(), {})
    lacking = sources()[[name for name in dtype_of("DiaSource").names if name != "psfFlux"]]
    with pytest.raises(BadData, match=r"raw/LSSTCam/2026070500004/3 is another raw than .*/94"):
        archive.put(kept.raw_id(3), kept.raw())
    with pytest.raises(BadData, match="psfFlux is absent, not float32"):
        archive.put(kept.visit_id("dia_source"), lacking)


def test_queries_go_by_any_dimension(archive: ButlerArchive) -> None:
    archive.put_raw(kept.raw())
    archive.put_raw(kept.raw(snap=1))
    night = {"instrument": "LSSTCam", "day_obs": kept.DAY_OBS}
    of_detector = archive.query("raw", **night, detector=E2V_DETECTOR)
    assert of_detector == [kept.raw_id(), kept.raw_id(snap=1)]
    assert archive.query("raw", **night, detector=E2V_DETECTOR, visit=kept.observation().visit) == of_detector
    assert archive.query("raw", instrument="LSSTCam", day_obs=20260101) == []
    assert archive.query("visit_summary", instrument="LSSTCam", physical_filter="g_6") == []


def test_a_template_is_got_in_part(archive: ButlerArchive) -> None:
    archive.put(kept.patch_id(TRACT, 21), kept.template_patch(TRACT, 21))
    part = archive.get(kept.patch_id(TRACT, 21), Box(10, 20, 50, 90))
    assert part.pixels.shape == (70, 40)
    assert (part.pixels.image[0, 0], part.pixels.variance[0, 0]) == (2048 + 20, 2048 + 10)


def test_a_file_that_was_damaged_cut_or_removed_is_refused_by_name(archive: ButlerArchive, file_of: Path) -> None:
    whole = file_of.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damage in (bytes(flipped), whole[:-2880]):
        file_of.write_bytes(damage)
        with pytest.raises(BadData, match=rf"^{kept.raw_id(snap=1)}: .*{file_of.name}"):
            archive.get(kept.raw_id(snap=1))
        with pytest.raises(BadData, match=file_of.name):
            archive.put_raw(kept.raw(snap=1))
    file_of.unlink()
    with pytest.raises(BadData, match=f"^{kept.raw_id(snap=1)}: its file is gone"):
        archive.get(kept.raw_id(snap=1))


def test_a_flipped_bit_in_a_table_is_refused_by_name(archive: ButlerArchive) -> None:
    dataset = DatasetId(dataset_type="reference_catalogue", tract=tract_at(160.0, 2.2).id)
    path = path_of(archive.put(dataset, stars()))
    whole = path.read_bytes()
    for place in (len(whole) // 10, len(whole) // 3):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(BadData, match=f"^{dataset}: .*parq"):
            archive.get(dataset)
    path.write_bytes(whole)
    assert same(archive.get(dataset), stars())


def test_a_file_left_by_a_writer_that_died_is_no_obstacle(archive: ButlerArchive) -> None:
    """It has its name already, but the registry's transaction never came through."""
    first = path_of(archive.put(kept.calibration_id(1), kept.calibration()))
    orphan = first.with_name(first.name.replace("R01_S01", "R01_S02"))
    orphan.write_bytes(b"half a calibration")
    archive.put(kept.calibration_id(2), kept.calibration(seed=2))
    assert path_of(archive.uri(kept.calibration_id(2))) == orphan
    assert same(archive.get(kept.calibration_id(2)), kept.calibration(seed=2))


def test_a_full_disk_is_transient_names_the_dataset_and_leaves_nothing(archive: ButlerArchive, folder: Path) -> None:
    files = set(folder.rglob("*.fits"))
    full = kept.raw(detector=50)
    with files_of_at_most(5_000_000):
        with pytest.raises(Transient, match=r"^raw/LSSTCam/2026070500004/50 .*no room"):
            archive.put_raw(full)
        with pytest.raises(Transient, match=r"^calibration/LSSTCam/50/r_57 .*no room"):
            archive.put(kept.calibration_id(50), kept.calibration(shape=(2000, 2000)))
    assert set(folder.rglob("*.fits")) == files
    assert not archive.exists(kept.raw_id(detector=50))
    archive.put_raw(full)
    assert archive.exists(kept.raw_id(detector=50))


def test_a_registry_that_stays_locked_is_transient(
    archive: ButlerArchive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(butler_repository, "LOCK_DEADLINE_S", 0.3)
    other = sqlite3.connect(folder / "gen3.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(Transient, match=r"calibration/LSSTCam/60/r_57.*locked"):
            archive.put(kept.calibration_id(60), kept.calibration())
    finally:
        other.close()
    archive.put(kept.calibration_id(60), kept.calibration())


def test_an_archive_is_opened_again_with_all_it_had_and_made_only_once(archive: ButlerArchive, folder: Path) -> None:
    archive.put(kept.visit_id("visit_summary"), SUMMARY)
    for again in (ButlerArchive.open(folder), ButlerArchive.create(folder)):
        again.register_camera(camera("LSSTCam"))
        again.register_exposure(kept.observation())
        assert same(again.get(kept.visit_id("visit_summary")), SUMMARY)
    with pytest.raises(BadData, match=r"no archive in .*nowhere"):
        ButlerArchive.open(folder / "nowhere")


def test_what_a_dataset_was_made_of_is_in_its_file(archive: ButlerArchive) -> None:
    archive.put_raw(kept.raw())
    inputs = [kept.raw_id()]
    template = path_of(archive.put(kept.patch_id(TRACT, 22), kept.template_patch(TRACT, 22), inputs))
    header = fits.getheader(template)
    assert header["LSST BUTLER N_INPUTS"] == "1"
    assert header["LSST BUTLER INPUT 0 DATASETTYPE"] == "raw"
    with pytest.raises(BadData, match=r"template_patch/.*its input raw/LSSTCam/2026070500004/3 is not kept"):
        archive.put(kept.patch_id(TRACT, 23), kept.template_patch(TRACT, 23), [kept.raw_id(detector=3)])


def test_a_stranger_with_only_the_data_butler_finds_and_loads_everything(archive: ButlerArchive, folder: Path) -> None:
    for dataset, make in KEPT.values():
        archive.put(dataset, make())
    observation = kept.observation()
    butler = Butler.from_config(str(folder), collections="LSSTCam/defaults", instrument="LSSTCam", skymap=NAME)
    found = butler.get("raw", exposure=observation.exposure, detector=E2V_DETECTOR)
    assert np.array_equal(found.segments, kept.raw().segments)
    assert butler.get("calibration", detector=E2V_DETECTOR, physical_filter="r_57").bias.shape == (401, 515)
    assert len(butler.get("reference_catalogue", tract=TRACT.id)) == 500
    night = f"LSSTCam/prompt/{kept.DAY_OBS}"
    where = {"visit": observation.visit, "detector": E2V_DETECTOR}
    assert butler.get("visit_summary", where, collections=night)["n_sources"] == 53
    table = pq.read_table(butler.getURI("dia_source", where, collections=night).ospath)
    assert table["psfFlux"].to_pylist() == sources()["psfFlux"].tolist()


def test_a_stranger_finds_raws_by_the_sky_they_cover(archive: ButlerArchive, folder: Path) -> None:
    archive.put_raw(kept.raw())
    butler = Butler.from_config(str(folder))
    seen = kept.observation()
    for offset, there in ((0.0, True), (3.0, False)):
        point = f"visit_detector_region.region OVERLAPS POINT({seen.ra}, {seen.dec + offset})"
        with butler.query() as query:
            rows = query.where(point, instrument="LSSTCam").data_ids(["visit", "detector"])
            assert [row["detector"] for row in rows] == ([E2V_DETECTOR] if there else [])


def test_exposures_know_their_visit_night_and_times(archive: ButlerArchive, folder: Path) -> None:
    archive.register_exposure(kept.observation(snap=1))
    butler = Butler.from_config(str(folder))
    records = butler.query_dimension_records("exposure", instrument="LSSTCam", visit=kept.observation().visit)
    assert [record.obs_id for record in records] == ["MC_O_20260705_000004", "MC_O_20260705_000005"]
    assert [record.timespan.begin.tai.unix_tai for record in records] == pytest.approx(
        [kept.observation(snap).started for snap in (0, 1)], abs=1e-5
    )
    (visit,) = butler.query_dimension_records("visit", instrument="LSSTCam", visit=kept.observation().visit)
    assert (visit.day_obs, visit.exposure_time, visit.physical_filter) == (kept.DAY_OBS, 30.0, "r_57")


def test_a_name_with_a_nan_or_a_list_is_compared_as_it_is() -> None:
    assert same({"a": [1.0, float("nan")]}, {"a": [1.0, float("nan")]})
    assert not same({"a": [1.0, 2.0]}, {"a": [1.0]})
    assert not same({"a": 1}, {"a": True})
    assert not same(kept.raw().segments, kept.raw().segments.astype(np.int64))
    assert not same(kept.observation(), replace(kept.observation(), ra=150.2))
