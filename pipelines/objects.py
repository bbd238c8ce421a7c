"""A release's objects and their light curves: docs/data-release.md says what is made of what."""

from collections.abc import Sequence

import numpy as np
from astropy.table import Table as AstropyTable
from lsst.daf.butler import DataCoordinate
from lsst.pipe.base import PipelineTaskConfig, PipelineTaskConnections, Struct

from payloads.drp.coadd import Coadd
from payloads.drp.forced import forced_sources
from payloads.drp.light_curves import light_curves
from payloads.drp.objects import measure_objects
from payloads.drp.relative import RelativeCalibration
from pipelines.steps import (
    OF_CCD,
    OF_COADD,
    OF_PATCH,
    OF_TRACT,
    OF_WARP,
    Handles,
    Step,
    calibrated,
    made,
    taken,
)
from schemas import skymap
from schemas.tables import Table, official_schema


class ObjectsConnections(PipelineTaskConnections, dimensions=OF_PATCH):
    """Coadds of a patch in all bands, and the objects on them."""

    coadds = taken("deep_coadd", "PachonCoadd", OF_COADD, many=True)
    objects = made("object", "ArrowAstropy", OF_PATCH)


class ObjectsConfig(PipelineTaskConfig, pipelineConnections=ObjectsConnections):
    """See `ObjectsConnections`."""


class ObjectsStep(Step):
    """See `payloads.drp.objects`."""

    ConfigClass = ObjectsConfig
    _DefaultName = "objects"

    def run(self, data_id: DataCoordinate, coadds: Sequence[Coadd]) -> Struct:
        """The objects."""
        by_band = {coadd.band: coadd for coadd in coadds}
        found = measure_objects(by_band, skymap.tract(int(data_id["tract"])), int(data_id["patch"]))
        return Struct(objects=_published(found, "Object"))


class ForcedConnections(PipelineTaskConnections, dimensions=OF_WARP):
    """A visit's images on a patch, and their light at the patch's objects."""

    images = taken("preliminary_visit_image", "PachonVisitImage", OF_CCD, many=True, late=True)
    relative = taken("relative_calibration", "PachonRelativeCalibration", OF_TRACT)
    objects = taken("object", "ArrowAstropy", OF_PATCH)
    forced = made("visit_forced_source", "ArrowNumpy", OF_WARP)


class ForcedConfig(PipelineTaskConfig, pipelineConnections=ForcedConnections):
    """See `ForcedConnections`."""


class ForcedStep(Step):
    """See `payloads.drp.forced`."""

    ConfigClass = ForcedConfig
    _DefaultName = "forced"

    def run(
        self, data_id: DataCoordinate, images: Handles, relative: RelativeCalibration, objects: AstropyTable
    ) -> Struct:
        """The forced sources of all the detectors."""
        rows, number = objects.as_array(), {name: int(data_id[name]) for name in ("visit", "tract", "patch")}
        seen = calibrated(images, relative)
        found = [forced_sources(image, rows, detector=detector, **number) for detector, image in seen]
        return Struct(forced=np.concatenate(found))


class LightCurvesConnections(PipelineTaskConnections, dimensions=OF_PATCH):
    """Forced sources of all visits of a patch, by object and time."""

    objects = taken("object", "ArrowAstropy", OF_PATCH)
    forced = taken("visit_forced_source", "ArrowNumpy", OF_WARP, many=True)
    ordered = made("object_forced_source", "ArrowAstropy", OF_PATCH)
    curves = made("object_light_curve", "ArrowAstropy", OF_PATCH)


class LightCurvesConfig(PipelineTaskConfig, pipelineConnections=LightCurvesConnections):
    """See `LightCurvesConnections`."""


class LightCurvesStep(Step):
    """See `payloads.drp.light_curves`."""

    ConfigClass = LightCurvesConfig
    _DefaultName = "light_curves"

    def run(self, data_id: DataCoordinate, objects: AstropyTable, forced: Sequence[Table]) -> Struct:
        """Ordered forced sources, and a row for each object and band."""
        self.log.info("%s: %d objects in %d visits", data_id, len(objects), len(forced))
        ordered, curves = light_curves(objects.as_array(), forced)
        return Struct(ordered=_published(ordered, "ForcedSource"), curves=AstropyTable(curves))


def _published(rows: Table, name: str) -> AstropyTable:
    """Rows of an official table, with its units and descriptions."""
    table, official = AstropyTable(rows), official_schema("drp_base.yaml")[name]
    for column in table.itercols():
        told = official.get(column.name, {})
        column.unit, column.description = told.get("ivoa:unit"), told.get("description")
    return table
