"""Visits on the sky's pixels, releases' coadds and templates: docs/data-release.md says what is made of what."""

from collections.abc import Callable
from functools import partial

from lsst.daf.butler import DataCoordinate
from lsst.pipe.base import NoWorkFound, PipelineTaskConfig, PipelineTaskConnections, Struct

from payloads.drp.coadd import make_coadd, sharpest, template_of
from payloads.drp.relative import RelativeCalibration
from payloads.drp.template_psf import TemplatePsf, template_psf
from payloads.drp.warps import NothingThere, Warp, make_warp
from pipelines.steps import OF_CCD, OF_COADD, OF_TRACT, OF_WARP, Handles, Step, calibrated, made, taken, used
from schemas import skymap


class WarpConnections(PipelineTaskConnections, dimensions=OF_WARP):
    """The detectors of a visit that lie on a patch, on the patch's pixels."""

    images = taken("preliminary_visit_image", "PachonVisitImage", OF_CCD, many=True, late=True)
    relative = taken("relative_calibration", "PachonRelativeCalibration", OF_TRACT)
    warp = made("direct_warp", "PachonWarp", OF_WARP)


class WarpConfig(PipelineTaskConfig, pipelineConnections=WarpConnections):
    """See `WarpConnections`."""


class WarpStep(Step):
    """See `payloads.drp.warps`."""

    ConfigClass = WarpConfig
    _DefaultName = "warp"

    def run(self, data_id: DataCoordinate, images: Handles, relative: RelativeCalibration) -> Struct:
        """The warp."""
        tract, patch = skymap.tract(int(data_id["tract"])), int(data_id["patch"])
        seen = list(calibrated(images, relative))
        try:
            return Struct(warp=make_warp(seen, tract, patch, int(data_id["visit"])))
        except NothingThere as error:
            raise NoWorkFound(str(error)) from error


class CoaddConnections(PipelineTaskConnections, dimensions=OF_COADD):
    """Warps of a patch in a band, and their coadd."""

    warps = taken("direct_warp", "PachonWarp", OF_WARP, many=True, late=True)
    coadd = made("deep_coadd", "PachonCoadd", OF_COADD)


class CoaddConfig(PipelineTaskConfig, pipelineConnections=CoaddConnections):
    """See `CoaddConnections`."""


class CoaddStep(Step):
    """See `payloads.drp.coadd`."""

    ConfigClass = CoaddConfig
    _DefaultName = "coadd"

    def run(self, data_id: DataCoordinate, warps: Handles) -> Struct:
        """The coadd of all."""
        self.log.info("%s: %d warps", data_id, len(warps))
        return Struct(coadd=make_coadd(_loaders(warps)))


class TemplatePsfConnections(PipelineTaskConnections, dimensions=OF_TRACT):
    """All visit-detectors of a tract in a band, and the PSF that its templates have."""

    summaries = taken("visit_detector_summary", "PachonFrameSummary", OF_CCD, many=True, late=True)
    relative = taken("relative_calibration", "PachonRelativeCalibration", OF_TRACT)
    psf = made("template_psf", "PachonTemplatePsf", OF_TRACT)


class TemplatePsfConfig(PipelineTaskConfig, pipelineConnections=TemplatePsfConnections):
    """See `TemplatePsfConnections`."""


class TemplatePsfStep(Step):
    """See `payloads.drp.template_psf`."""

    ConfigClass = TemplatePsfConfig
    _DefaultName = "template_psf"

    def run(self, data_id: DataCoordinate, summaries: Handles, relative: RelativeCalibration) -> Struct:
        """The PSF. Raises NoWorkFound if the calibration excludes all."""
        frames = (handle.get() for handle in used(summaries, relative))
        return Struct(psf=template_psf(frames, skymap.tract(int(data_id["tract"])).wcs))


class TemplateConnections(PipelineTaskConnections, dimensions=OF_COADD):
    """Warps of a patch in a band, and the template made of the sharpest."""

    warps = taken("direct_warp", "PachonWarp", OF_WARP, many=True, late=True)
    psf = taken("template_psf", "PachonTemplatePsf", OF_TRACT)
    template = made("template_patch", "PachonTemplate", OF_COADD)


class TemplateConfig(PipelineTaskConfig, pipelineConnections=TemplateConnections):
    """See `TemplateConnections`."""


class TemplateStep(Step):
    """See `payloads.drp.coadd`."""

    ConfigClass = TemplateConfig
    _DefaultName = "template"

    def run(self, data_id: DataCoordinate, warps: Handles, psf: TemplatePsf) -> Struct:
        """The template."""
        chosen = sharpest(_loaders(warps))
        self.log.info("%s: %d of %d warps", data_id, len(chosen), len(warps))
        return Struct(template=template_of(make_coadd(chosen, psf.kernel)))


def _loaders(warps: Handles) -> list[Callable[[], Warp]]:
    """The warps, in order of visit, each read when it is called for."""
    return [partial(handle.get) for handle in sorted(warps, key=lambda handle: int(handle.dataId["visit"]))]
