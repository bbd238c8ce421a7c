"""A release's visits, each by itself and then together: docs/data-release.md says what is made of what."""

from collections.abc import Sequence

from lsst.daf.butler import DataCoordinate
from lsst.pipe.base import PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base import connectionTypes as connection

from payloads.drp.relative import Frame, relative_calibration
from payloads.drp.single_frame import single_frame
from pipelines.steps import OF_CCD, OF_TRACT, Handles, Step, catalogues, ccd_of, joined, made, taken
from schemas.errors import BadData
from schemas.image import Calibration, Raw
from schemas.instrument import camera
from schemas.tables import Table


class SingleFrameConnections(PipelineTaskConnections, dimensions=OF_CCD):
    """Raws of a visit-detector, and what they are as one image."""

    raws = taken("raw", "PachonRaw", ("instrument", "exposure", "detector"), many=True)
    calibrations = connection.PrerequisiteInput(
        doc="The calibration that holds for the visit's night.", name="calibration", storageClass="PachonCalibration",
        dimensions=("instrument", "detector", "physical_filter"), isCalibration=True, multiple=True, minimum=0,
    )  # fmt: skip
    refcats = catalogues()
    image = made("preliminary_visit_image", "PachonVisitImage", OF_CCD)
    stars = made("single_visit_star", "ArrowNumpy", OF_CCD)
    summary = made("visit_detector_summary", "PachonFrameSummary", OF_CCD)


class SingleFrameConfig(PipelineTaskConfig, pipelineConnections=SingleFrameConnections):
    """See `SingleFrameConnections`."""


class SingleFrameStep(Step):
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
        made = single_frame(raws, calibration, detector, joined(refcats, data_id))
        return Struct(image=made.image, stars=made.stars, summary=made.summary)


class RelativeCalibrationConnections(PipelineTaskConnections, dimensions=OF_TRACT):
    """All visit-detectors of a tract in a band, and how they fit together."""

    summaries = taken("visit_detector_summary", "PachonFrameSummary", OF_CCD, many=True, late=True)
    stars = taken("single_visit_star", "ArrowNumpy", OF_CCD, many=True, late=True)
    refcats = catalogues()
    relative = made("relative_calibration", "PachonRelativeCalibration", OF_TRACT)


class RelativeCalibrationConfig(PipelineTaskConfig, pipelineConnections=RelativeCalibrationConnections):
    """See `RelativeCalibrationConnections`."""


class RelativeCalibrationStep(Step):
    """See `payloads.drp.relative`."""

    ConfigClass = RelativeCalibrationConfig
    _DefaultName = "relative_calibration"

    def run(self, data_id: DataCoordinate, summaries: Handles, stars: Handles, refcats: Sequence[Table]) -> Struct:
        """Scales and WCSs."""
        of = {ccd_of(handle.dataId): handle for handle in stars}
        frames = [Frame(handle.get(), of[ccd_of(handle.dataId)].get()) for handle in summaries]
        return Struct(relative=relative_calibration(frames, joined(refcats, data_id)))


def _one(found: Sequence[Calibration], what: str) -> Calibration:
    if len(found) != 1:
        raise BadData(f"no {what}" if not found else f"{len(found)} times a {what}")
    return found[0]
