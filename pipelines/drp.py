"""Data releases and templates as steps of pipelines: docs/data-release.md says what they make of what."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from astropy.table import Table as AstropyTable
from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, DeferredDatasetHandle
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, QuantumContext, Struct
from lsst.pipe.base import connectionTypes as connection
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection

from backbone.sky_products import tracts_touched
from payloads.drp.coadd import Coadd, make_coadd, sharpest, template_of
from payloads.drp.forced import forced_sources
from payloads.drp.light_curves import light_curves
from payloads.drp.objects import measure_objects
from payloads.drp.relative import Frame, RelativeCalibration, apply, relative_calibration
from payloads.drp.single_frame import single_frame
from payloads.drp.warps import Warp, make_warp
from schemas import skymap
from schemas.errors import BadData
from schemas.image import Calibration, Raw, VisitImage
from schemas.instrument import camera
from schemas.tables import Table

OF_CCD = ("instrument", "visit", "detector")
OF_TRACT = ("instrument", "skymap", "tract", "band")
OF_PATCH = ("skymap", "tract", "patch")
OF_WARP = ("instrument", "visit", *OF_PATCH)
OF_COADD = (*OF_PATCH, "band")

Handles = Sequence[DeferredDatasetHandle]


def _input(name: str, kind: str, dimensions: tuple[str, ...], *, many: bool = False, late: bool = False) -> Any:  # noqa: ANN401 - pipe_base's classes are not typed
    return connection.Input(
        doc=f"The {name}.", name=name, storageClass=kind, dimensions=dimensions, multiple=many, deferLoad=late
    )


def _output(name: str, kind: str, dimensions: tuple[str, ...]) -> Any:  # noqa: ANN401 - the same
    return connection.Output(doc=f"The {name}.", name=name, storageClass=kind, dimensions=dimensions)


def _near(
    dataset_type: DatasetType, registry: Any, data_id: DataCoordinate, collections: Sequence[str]  # noqa: ANN401 - a registry, or pipe_base's likeness of one
) -> list[DatasetRef]:  # fmt: skip
    """The catalogues of the tracts that a quantum's region touches."""
    assert data_id.region is not None
    found = (
        registry.findDataset(dataset_type, skymap=skymap.NAME, tract=tract, collections=collections)
        for tract in tracts_touched(data_id.region.getBoundingCircle())
    )
    return [ref for ref in found if ref is not None]


def _catalogues() -> Any:  # noqa: ANN401 - the same
    """Reference catalogues. None at all is the quantum's own failure, which names it, and not the graph's."""
    return connection.PrerequisiteInput(
        doc="Reference stars.", name="reference_catalogue", storageClass="ArrowNumpy",
        dimensions=("skymap", "tract"), multiple=True, minimum=0, lookupFunction=_near,
    )  # fmt: skip


class _Step(PipelineTask):
    """A step whose `run` is given its quantum's data id besides its datasets."""

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        """Get, run, put."""
        data_id = butlerQC.quantum.dataId
        assert data_id is not None
        butlerQC.put(self.run(data_id=data_id, **butlerQC.get(inputRefs)), outputRefs)


class SingleFrameConnections(PipelineTaskConnections, dimensions=OF_CCD):
    """Raws of a visit-detector, and what they are as one image."""

    raws = _input("raw", "PachonRaw", ("instrument", "exposure", "detector"), many=True)
    calibrations = connection.PrerequisiteInput(
        doc="The calibration that holds for the visit's night.", name="calibration", storageClass="PachonCalibration",
        dimensions=("instrument", "detector", "physical_filter"), isCalibration=True, multiple=True, minimum=0,
    )  # fmt: skip
    refcats = _catalogues()
    image = _output("preliminary_visit_image", "PachonVisitImage", OF_CCD)
    stars = _output("single_visit_star", "ArrowNumpy", OF_CCD)
    summary = _output("visit_detector_summary", "PachonFrameSummary", OF_CCD)


class SingleFrameConfig(PipelineTaskConfig, pipelineConnections=SingleFrameConnections):
    """See `SingleFrameConnections`."""


class SingleFrameStep(_Step):
    """See `payloads.drp.single_frame`."""

    ConfigClass = SingleFrameConfig
    _DefaultName = "single_frame"

    def run(
        self,
        data_id: DataCoordinate,
        raws: Sequence[Raw],
        calibrations: Sequence[Calibration],
        refcats: Sequence[Table],
    ) -> Struct:
        """Image, stars, summary. Raises BadData, naming what there is none of."""
        detector = camera(str(data_id["instrument"]))[int(data_id["detector"])]
        calibration = _one(calibrations, f"calibration of detector {detector.id} in {data_id['physical_filter']}")
        made = single_frame(raws, calibration, detector, _joined(refcats, data_id))
        return Struct(image=made.image, stars=made.stars, summary=made.summary)


class RelativeCalibrationConnections(PipelineTaskConnections, dimensions=OF_TRACT):
    """All visit-detectors of a tract in a band, and how they fit together."""

    summaries = _input("visit_detector_summary", "PachonFrameSummary", OF_CCD, many=True, late=True)
    stars = _input("single_visit_star", "ArrowNumpy", OF_CCD, many=True, late=True)
    refcats = _catalogues()
    relative = _output("relative_calibration", "PachonRelativeCalibration", OF_TRACT)


class RelativeCalibrationConfig(PipelineTaskConfig, pipelineConnections=RelativeCalibrationConnections):
    """See `RelativeCalibrationConnections`."""


class RelativeCalibrationStep(_Step):
    """See `payloads.drp.relative`."""

    ConfigClass = RelativeCalibrationConfig
    _DefaultName = "relative_calibration"

    def run(self, data_id: DataCoordinate, summaries: Handles, stars: Handles, refcats: Sequence[Table]) -> Struct:
        """Scales and WCSs."""
        of = {_ccd(handle.dataId): handle for handle in stars}
        frames = [Frame(handle.get(), of[_ccd(handle.dataId)].get()) for handle in summaries]
        return Struct(relative=relative_calibration(frames, _joined(refcats, data_id)))


class WarpConnections(PipelineTaskConnections, dimensions=OF_WARP):
    """The detectors of a visit that lie on a patch, on the patch's pixels."""

    images = _input("preliminary_visit_image", "PachonVisitImage", OF_CCD, many=True, late=True)
    relative = _input("relative_calibration", "PachonRelativeCalibration", OF_TRACT)
    warp = _output("direct_warp", "PachonWarp", OF_WARP)


class WarpConfig(PipelineTaskConfig, pipelineConnections=WarpConnections):
    """See `WarpConnections`."""


class WarpStep(_Step):
    """See `payloads.drp.warps`."""

    ConfigClass = WarpConfig
    _DefaultName = "warp"

    def run(self, data_id: DataCoordinate, images: Handles, relative: RelativeCalibration) -> Struct:
        """The warp."""
        calibrated = [(_ccd(handle.dataId)[1], _calibrated(handle, relative)) for handle in images]
        tract, patch = skymap.tract(int(data_id["tract"])), int(data_id["patch"])
        return Struct(warp=make_warp(calibrated, tract, patch, int(data_id["visit"])))


class CoaddConnections(PipelineTaskConnections, dimensions=OF_COADD):
    """Warps of a patch in a band, and their coadd."""

    warps = _input("direct_warp", "PachonWarp", OF_WARP, many=True, late=True)
    coadd = _output("deep_coadd", "PachonCoadd", OF_COADD)


class CoaddConfig(PipelineTaskConfig, pipelineConnections=CoaddConnections):
    """See `CoaddConnections`."""


class CoaddStep(_Step):
    """See `payloads.drp.coadd`."""

    ConfigClass = CoaddConfig
    _DefaultName = "coadd"

    def run(self, data_id: DataCoordinate, warps: Handles) -> Struct:
        """The coadd of all."""
        self.log.info("%s: %d warps", data_id, len(warps))
        return Struct(coadd=make_coadd(_loaders(warps)))


class TemplateConnections(PipelineTaskConnections, dimensions=OF_COADD):
    """Warps of a patch in a band, and the template made of the sharpest."""

    warps = _input("direct_warp", "PachonWarp", OF_WARP, many=True, late=True)
    template = _output("template_patch", "PachonTemplate", OF_COADD)


class TemplateConfig(PipelineTaskConfig, pipelineConnections=TemplateConnections):
    """See `TemplateConnections`."""


class TemplateStep(_Step):
    """See `payloads.drp.coadd`."""

    ConfigClass = TemplateConfig
    _DefaultName = "template"

    def run(self, data_id: DataCoordinate, warps: Handles) -> Struct:
        """The template."""
        chosen = sharpest(_loaders(warps))
        self.log.info("%s: %d of %d warps", data_id, len(chosen), len(warps))
        return Struct(template=template_of(make_coadd(chosen)))


class ObjectsConnections(PipelineTaskConnections, dimensions=OF_PATCH):
    """Coadds of a patch in all bands, and the objects on them."""

    coadds = _input("deep_coadd", "PachonCoadd", OF_COADD, many=True)
    objects = _output("object", "ArrowAstropy", OF_PATCH)


class ObjectsConfig(PipelineTaskConfig, pipelineConnections=ObjectsConnections):
    """See `ObjectsConnections`."""


class ObjectsStep(_Step):
    """See `payloads.drp.objects`."""

    ConfigClass = ObjectsConfig
    _DefaultName = "objects"

    def run(self, data_id: DataCoordinate, coadds: Sequence[Coadd]) -> Struct:
        """The objects."""
        by_band = {coadd.band: coadd for coadd in coadds}
        found = measure_objects(by_band, skymap.tract(int(data_id["tract"])), int(data_id["patch"]))
        return Struct(objects=AstropyTable(found))


class ForcedConnections(PipelineTaskConnections, dimensions=OF_WARP):
    """A visit's images on a patch, and their light at the patch's objects."""

    images = _input("preliminary_visit_image", "PachonVisitImage", OF_CCD, many=True, late=True)
    relative = _input("relative_calibration", "PachonRelativeCalibration", OF_TRACT)
    objects = _input("object", "ArrowAstropy", OF_PATCH)
    forced = _output("visit_forced_source", "ArrowNumpy", OF_WARP)


class ForcedConfig(PipelineTaskConfig, pipelineConnections=ForcedConnections):
    """See `ForcedConnections`."""


class ForcedStep(_Step):
    """See `payloads.drp.forced`."""

    ConfigClass = ForcedConfig
    _DefaultName = "forced"

    def run(
        self, data_id: DataCoordinate, images: Handles, relative: RelativeCalibration, objects: AstropyTable
    ) -> Struct:
        """The forced sources of all the detectors."""
        rows, number = objects.as_array(), {name: int(data_id[name]) for name in ("visit", "tract", "patch")}
        made = [
            forced_sources(_calibrated(handle, relative), rows, detector=_ccd(handle.dataId)[1], **number)
            for handle in images
        ]
        return Struct(forced=np.concatenate(made))


class LightCurvesConnections(PipelineTaskConnections, dimensions=OF_PATCH):
    """Forced sources of all visits of a patch, by object and time."""

    objects = _input("object", "ArrowAstropy", OF_PATCH)
    forced = _input("visit_forced_source", "ArrowNumpy", OF_WARP, many=True)
    ordered = _output("object_forced_source", "ArrowAstropy", OF_PATCH)
    curves = _output("object_light_curve", "ArrowAstropy", OF_PATCH)


class LightCurvesConfig(PipelineTaskConfig, pipelineConnections=LightCurvesConnections):
    """See `LightCurvesConnections`."""


class LightCurvesStep(_Step):
    """See `payloads.drp.light_curves`."""

    ConfigClass = LightCurvesConfig
    _DefaultName = "light_curves"

    def run(self, data_id: DataCoordinate, objects: AstropyTable, forced: Sequence[Table]) -> Struct:
        """Ordered forced sources, and a row for each object and band."""
        self.log.info("%s: %d objects in %d visits", data_id, len(objects), len(forced))
        ordered, curves = light_curves(objects.as_array(), forced)
        return Struct(ordered=AstropyTable(ordered), curves=AstropyTable(curves))


def _one(found: Sequence[Calibration], what: str) -> Calibration:
    if len(found) != 1:
        raise BadData(f"no {what}" if not found else f"{len(found)} times a {what}")
    return found[0]


def _joined(refcats: Sequence[Table], data_id: DataCoordinate) -> Table:
    if not refcats:
        raise BadData(f"no reference catalogue for {data_id}")
    joined: Table = np.concatenate(refcats)
    return joined


def _ccd(data_id: DataCoordinate) -> tuple[int, int]:
    return int(data_id["visit"]), int(data_id["detector"])


def _calibrated(handle: DeferredDatasetHandle, relative: RelativeCalibration) -> VisitImage:
    visit, detector = _ccd(handle.dataId)
    image: VisitImage = handle.get()
    return apply(relative, image, visit, detector)


def _loaders(warps: Handles) -> list[Callable[[], Warp]]:
    """The warps, in order of visit, each read when it is called for."""
    return [partial(handle.get) for handle in sorted(warps, key=lambda handle: int(handle.dataId["visit"]))]
