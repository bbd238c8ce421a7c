"""Calibration production: which exposure goes where, and which are left out."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lsst.daf.butler import Butler, DatasetType
from lsst.pipe.base import Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from backbone.butler import ButlerArchive
from payloads.calibration.bias import make_bias
from payloads.calibration.frames import Rejected
from pipelines.calibration import Assemble, CalibrationConfig, _pairs, _read
from schemas.errors import BadData, Transient
from schemas.identity import exposure_id, image_name
from schemas.image import Raw
from schemas.instrument import camera
from tests.backbone import kept_objects as kept
from tests.payloads.calibration import small_ccd

PIPELINE = Path(__file__).parents[2] / "pipelines" / "calibration.yaml"
DAY, DETECTORS = 20260705, (93, 94)
TAKEN = [
    *[("bias", "r_57", 1)] * 4, *[("dark", "r_57", 1)] * 3, *[("flat", "r_57", 1)] * 3, *[("flat", "g_6", 1)] * 3,
    *[("flat", "r_57", 2)] * 3, *[("spot", "r_57", 1)] * 2, ("science", "r_57", 1),
]  # fmt: skip
"""Type, filter, snaps of each group."""


def _register(archive: ButlerArchive) -> dict[int, tuple[str, str, int]]:
    """Make the exposures known; what each is of."""
    known: dict[int, tuple[str, str, int]] = {}
    for group, (kind, physical_filter, n_snaps) in enumerate(TAKEN):
        first = len(known) + 1
        for snap in range(n_snaps):
            number = exposure_id(DAY, first + snap)
            seen = replace(
                kept.observation(), group=f"g{group}", visit=exposure_id(DAY, first), exposure=number, snap=snap,
                n_snaps=n_snaps, image_name=image_name(DAY, first + snap), physical_filter=physical_filter,
                band=physical_filter[0], image_type=kind,
            )  # fmt: skip
            archive.register_exposure(seen)
            known[number] = (kind, physical_filter, n_snaps)
    return known


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, tuple[str, str, int]]]:
    folder = tmp_path_factory.mktemp("afternoon")
    archive = ButlerArchive.create(folder)
    archive.register_camera(camera("LSSTCam"))
    known = _register(archive)
    butler = Butler.from_config(str(folder), writeable=True)
    names = [{"instrument": "LSSTCam", "exposure": number, "detector": d} for number in known for d in DETECTORS]
    butler.registry.insertDatasets("raw", names, run="LSSTCam/raw/all")
    return folder, known


@pytest.fixture(scope="module")
def graph(taken: tuple[Path, dict[int, tuple[str, str, int]]]) -> PredictedQuantumGraph:
    butler = Butler.from_config(str(taken[0]), collections="LSSTCam/defaults", run="u/calib", writeable=True)
    pipeline = Pipeline.from_uri(str(PIPELINE)).to_graph()
    where = f"instrument='LSSTCam' AND exposure.day_obs={DAY}"
    return AllDimensionsQuantumGraphBuilder(pipeline, butler, where=where).finish().assemble()


def _raws_of(graph: PredictedQuantumGraph, label: str) -> dict[tuple[int, str], set[int]]:
    """By detector and filter, the exposures that a step takes."""
    taken = defaultdict(set)
    quanta = graph.build_execution_quanta(task_label=label)
    for quantum in quanta.values():
        assert quantum.dataId is not None
        name = int(quantum.dataId["detector"]), str(quantum.dataId.get("physical_filter", ""))
        taken[name] |= {int(ref.dataId["exposure"]) for ref in quantum.inputs["raw"]}
    return taken


@pytest.mark.parametrize(
    ("label", "kind", "n_snaps"),
    [("bias", "bias", 1), ("dark", "dark", 1), ("crosstalk", "spot", 1), ("photon_transfer", "flat", 2)],
)
def test_a_step_takes_the_exposures_of_its_kind(
    graph: PredictedQuantumGraph,
    taken: tuple[Path, dict[int, tuple[str, str, int]]],
    label: str,
    kind: str,
    n_snaps: int,
) -> None:
    wanted = {number for number, told in taken[1].items() if (told[0], told[2]) == (kind, n_snaps)}
    assert _raws_of(graph, label) == {(detector, ""): wanted for detector in DETECTORS}


def test_flats_are_of_their_filter_and_no_pairs(
    graph: PredictedQuantumGraph, taken: tuple[Path, dict[int, tuple[str, str, int]]]
) -> None:
    expected = {
        (detector, name): {number for number, told in taken[1].items() if told == ("flat", name, 1)}
        for detector in DETECTORS
        for name in ("g_6", "r_57")
    }
    assert _raws_of(graph, "flat") == expected


def test_there_is_a_calibration_for_each_detector_and_filter_with_flats(graph: PredictedQuantumGraph) -> None:
    made = {(data_id["detector"], data_id["physical_filter"]) for data_id in graph.quanta_by_task["calibration"]}
    assert made == {(detector, name) for detector in DETECTORS for name in ("g_6", "r_57")}


def test_products_that_failed_a_check_are_not_assembled() -> None:
    report = {
        "bias: noise of a pixel, ADU": {"value": 1.0, "low": 0.3, "high": 5.0, "passed": True},
        "flat: photon noise of a pixel": {"value": 0.0171, "low": 0.0, "high": 0.005, "passed": False},
    }
    step = Assemble(config=CalibrationConfig())

    class Flat:
        band = "r"

    with pytest.raises(BadData, match=r"detector 94, r: not verified: flat: photon noise of a pixel is 0\.0171$"):
        step.run(camera("LSSTCam")[94], report, None, None, None, None, Flat(), None)  # type: ignore[arg-type]


def test_an_afternoon_takes_crosstalk_and_photon_transfer_that_stand(
    taken: tuple[Path, dict[int, tuple[str, str, int]]],
) -> None:
    butler = Butler.from_config(str(taken[0]), collections=["LSSTCam/raw/all", "u/standing"], run="u/new")
    pipeline = Pipeline.from_uri(f"{PIPELINE}#afternoon").to_graph(registry=butler.registry)
    standing = Butler.from_config(str(taken[0]), run="u/standing", writeable=True)
    names = [{"instrument": "LSSTCam", "detector": detector} for detector in DETECTORS]
    for name, kind in (("crosstalk", "PachonCrosstalk"), ("photon_transfer", "PachonPhotonTransfer")):
        dimensions = ("instrument", "detector")
        made = DatasetType(name, dimensions, kind, universe=standing.dimensions, isCalibration=True)
        standing.registry.registerDatasetType(made)
        standing.registry.insertDatasets(name, names, run="u/standing")
    where = f"instrument='LSSTCam' AND exposure.day_obs={DAY}"
    graph = AllDimensionsQuantumGraphBuilder(pipeline, butler, where=where).finish().assemble()
    steps = {label: len(quanta) for label, quanta in graph.quanta_by_task.items()}
    assert steps == {"bias": 2, "dark": 2, "flat": 4, "defects": 4, "verify": 4, "calibration": 4}
    quanta = graph.build_execution_quanta(task_label="dark").values()
    assert {ref.run for quantum in quanta for ref in quantum.inputs["photon_transfer"]} == {"u/standing"}


def handles(*got: Raw | Exception, groups: str = "") -> Any:
    """Deferred datasets; `groups`: a letter each."""

    def handle(number: int, what: Raw | Exception) -> SimpleNamespace:
        def get() -> Raw:
            if isinstance(what, Exception):
                raise what
            return what

        seen = SimpleNamespace(id=number, group=groups[number] if groups else "g")
        return SimpleNamespace(dataId=_DataId({"exposure": seen}), get=get)

    return [handle(number, what) for number, what in enumerate(got)]


class _DataId(dict[str, int]):
    """A data id with its records."""

    def __init__(self, records: dict[str, Any]) -> None:
        super().__init__(detector=94)
        self.records = records


def broken(what: str) -> ValueError:
    """As the Data Butler tells of a file that its formatter refuses."""
    error = ValueError("Failure from formatter")
    error.__cause__ = BadData(what)
    return error


def test_a_raw_that_cannot_be_read_is_left_out_of_a_product_and_named() -> None:
    first, *others = small_ccd.raws("bias", 3)
    frames = [first, broken("no END card"), *others]
    bias = make_bias(_read(handles(*frames)), small_ccd.SMALL)
    assert bias.pixels.used == tuple(raw.observation.exposure for raw in (first, *others))
    (left_out,) = bias.pixels.rejected
    assert left_out.exposure == 1
    assert "exposure 1 detector 94" in left_out.why
    assert "no END card" in left_out.why


def test_a_disk_that_does_not_answer_is_no_bad_raw() -> None:
    error = ValueError("Failure from formatter")
    error.__cause__ = OSError(5, "Input/output error")
    with pytest.raises(Transient, match="exposure 0 detector 94"):
        list(_read(handles(error)))


def test_a_pair_of_which_one_is_broken_or_lacking_is_left_out_and_named() -> None:
    one, other = small_ccd.raws("bias", 2)
    told = list(_pairs(handles(one, other, one, broken("no END card"), one, groups="aabbc")))
    assert told[0] == (one, other)
    rejected = [each for each in told if isinstance(each, Rejected)]
    assert [each.exposure for each in rejected] == [2, 4]
    assert "exposure 3 detector 94" in rejected[0].why
    assert rejected[1].why == "group c: 1 exposures are no pair"
