"""The graphs of a release's steps: what each quantum takes; nothing is computed."""

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from lsst.daf.butler import Butler, CollectionType, DatasetType
from lsst.pipe.base import NoWorkFound, Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.sphgeom import Region
from rich.console import Console

from backbone.butler import ButlerArchive
from cluster.release import Campaign, Patch, first_part, patches, ranked, release
from pipelines import steps
from pipelines.steps import OF_CCD
from pipelines.visits import SingleFrameConfig, SingleFrameStep
from schemas import skymap
from schemas.errors import BadData
from schemas.identity import exposure_id, image_name
from schemas.image import Observation
from schemas.instrument import camera
from tests.backbone import kept_objects as kept

PIPELINE = Path(__file__).parents[2] / "pipelines" / "drp.yaml"
DAY, DETECTORS = 20260701, (93, 94)
VISITS = [("r_57", 0.0), ("r_57", 0.01), ("i_39", 0.0)]
"""Filter, and degrees from the first."""
RA, DEC = 329.744, -4.5


def observation(number: int, snap: int) -> Observation:
    physical_filter, offset = VISITS[number]
    first = 1 + 2 * number
    return replace(
        kept.observation(snap), group=f"g{number}", visit=exposure_id(DAY, first),
        exposure=exposure_id(DAY, first + snap), image_name=image_name(DAY, first + snap), ra=RA + offset, dec=DEC,
        physical_filter=physical_filter, band=physical_filter[0],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which three visits' raws, calibrations of the first detector and a catalogue are known."""
    path = tmp_path_factory.mktemp("week")
    archive = ButlerArchive.create(path)
    archive.register_camera(camera("LSSTCam"))
    seen = [observation(number, snap) for number in range(len(VISITS)) for snap in (0, 1)]
    for each in seen:
        archive.register_exposure(each)
    patches(campaign(path))  # it makes the tracts known
    butler = Butler.from_config(str(path), writeable=True)
    names = [{"instrument": "LSSTCam", "exposure": each.exposure, "detector": d} for each in seen for d in DETECTORS]
    butler.registry.insertDatasets("raw", names, run="LSSTCam/raw/all")
    held = [{"instrument": "LSSTCam", "detector": DETECTORS[0], "physical_filter": f} for f in ("r_57", "i_39")]
    butler.registry.insertDatasets("calibration", held, run="LSSTCam/calib/unbounded")
    tract = skymap.tract_at(RA, DEC).id
    butler.registry.insertDatasets("reference_catalogue", [{"skymap": skymap.NAME, "tract": tract}], run="refcats")
    return path


def campaign(path: Path) -> Campaign:
    return Campaign(path, path / "batch", "LSSTCam", DETECTORS, DAY, DAY, "drp/test")


def graph(path: Path, step: str, *, inputs: str = "LSSTCam/defaults", where: str = "") -> PredictedQuantumGraph:
    butler = Butler.from_config(str(path), collections=inputs.split(","), run="drp/test/1", writeable=True)
    pipeline = Pipeline.from_uri(f"{PIPELINE}#{step}").to_graph()
    query = campaign(path).query + (f" AND {where}" if where else "")
    return AllDimensionsQuantumGraphBuilder(pipeline, butler, where=query).finish().assemble()


def taken(made: PredictedQuantumGraph, label: str, dataset_type: str) -> list[int]:
    """How many datasets of a type each quantum takes."""
    quanta = made.build_execution_quanta(task_label=label)
    return [len(quantum.inputs.get(dataset_type, ())) for quantum in quanta.values()]


def put_names(path: Path, run: str, dataset_type: DatasetType, names: list[dict[str, int | str]]) -> None:
    butler = Butler.from_config(str(path), writeable=True)
    butler.collections.register(run, CollectionType.RUN)
    butler.registry.registerDatasetType(dataset_type)
    butler.registry.insertDatasets(dataset_type, names, run=run)


def test_a_visit_detector_takes_both_snaps_its_calibration_and_the_catalogues_about(folder: Path) -> None:
    made = graph(folder, "step1")
    assert taken(made, "single_frame", "raw") == [2] * 6
    assert Counter(taken(made, "single_frame", "calibration")) == {1: 3, 0: 3}
    assert set(taken(made, "single_frame", "reference_catalogue")) == {1}


def test_a_visit_detector_without_a_calibration_fails_by_name_when_it_is_run(folder: Path) -> None:
    made = graph(folder, "step1")
    for quantum in made.build_execution_quanta(task_label="single_frame").values():
        if not quantum.inputs.get("calibration"):
            step = SingleFrameStep(config=SingleFrameConfig())
            with pytest.raises(BadData, match=r"no calibration of detector 94 in (r_57|i_39)"):
                step.run(data_id=quantum.dataId, raws=[], calibrations=[], refcats=[])


def test_the_second_step_takes_all_detectors_of_a_tract_and_band_that_the_first_made(folder: Path) -> None:
    butler = Butler.from_config(str(folder))
    names: list[dict[str, int | str]] = [
        {"instrument": "LSSTCam", "visit": observation(number, 0).visit, "detector": d}
        for number in range(len(VISITS))
        for d in DETECTORS[:1]
    ]
    for name, kind in (("visit_detector_summary", "PachonFrameSummary"), ("single_visit_star", "ArrowNumpy")):
        dataset_type = DatasetType(name, OF_CCD, kind, universe=butler.dimensions)
        put_names(folder, "drp/made", dataset_type, names)
    made = graph(folder, "step2", inputs="drp/made,LSSTCam/defaults")
    tracts = {int(name[0]) for name in patches(campaign(folder))}
    found = [number for number in taken(made, "relative_calibration", "single_visit_star") if number]
    assert sorted(found) == sorted([2, 1] * len(tracts))


def seen_in_the_middle(name: Patch, regions: list[Region]) -> int:
    number, box = name[0], skymap.Tract.patch_box(name[1])
    ra, dec = skymap.tract(number).wcs.pixel_to_sky((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    return sum(region.contains(math.radians(ra), math.radians(dec)) for region in regions)


def test_a_part_of_the_sky_is_its_best_covered_patches(folder: Path) -> None:
    touching = patches(campaign(folder))
    seen = ranked(touching)
    assert first_part(seen, 100) == seen
    assert set(seen) <= set(touching)
    assert max(map(len, touching.values())) == len(VISITS) * len(DETECTORS)
    middles = [seen_in_the_middle(patch, touching[patch]) for patch in seen]
    assert middles[0] == max(middles) > middles[-1]
    assert first_part(seen, 10) == seen[: max(1, -(-len(seen) // 10))]
    for part in (0, 101):
        with pytest.raises(BadData, match=f"{part} %"):
            first_part(seen, part)


def test_a_disk_without_room_for_a_release_is_told_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(BadData, match=r"100 MB free; drp/test needs about \d+ MB more"):
        release(campaign(folder), 100, Console())
    assert not (folder / "batch").exists()


def test_nights_that_nothing_is_known_of_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(BadData, match="day_obs >= 20250101"):
        patches(replace(campaign(folder), first=20250101, last=20250102))


class Handle:
    """Of an image, whose reads are counted."""

    def __init__(self, visit: int, detector: int) -> None:
        self.dataId, self.ref, self.reads = {"visit": visit, "detector": detector}, SimpleNamespace(id=uuid4()), 0

    def get(self) -> str:
        self.reads += 1
        return f"image {self.dataId}"


def test_a_visits_images_are_read_once_for_all_its_patches_and_excluded_ones_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "apply", lambda _, image, visit, detector: (image, visit, detector))
    first, other, out = Handle(1, 94), Handle(1, 93), Handle(1, 90)
    relative: Any = SimpleNamespace(excluded=[SimpleNamespace(visit=1, detector=90)])
    for images in ([first, other, out], [other, out], [first]):
        seen: Any = list(steps.calibrated(images, relative))  # type: ignore[arg-type]
        wanted = sorted((each for each in images if each is not out), key=lambda each: each.dataId["detector"])
        assert seen == [
            (each.dataId["detector"], (f"image {each.dataId}", 1, each.dataId["detector"])) for each in wanted
        ]
    assert [first.reads, other.reads, out.reads] == [1, 1, 0]
    with pytest.raises(NoWorkFound, match=r"excludes \[\(1, 90\)\]"):
        list(steps.calibrated([out], relative))  # type: ignore[list-item]
