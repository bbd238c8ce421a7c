"""What the steps of releases share: how datasets are declared, and what every quantum is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, DeferredDatasetHandle
from lsst.pipe.base import NoWorkFound, PipelineTask, QuantumContext
from lsst.pipe.base import connectionTypes as connection
from lsst.pipe.base.connections import InputQuantizedConnection, OutputQuantizedConnection

from backbone.sky_products import tracts_touched
from payloads.drp.relative import RelativeCalibration, apply
from schemas import skymap
from schemas.errors import BadData
from schemas.image import VisitImage
from schemas.tables import Table

OF_CCD = ("instrument", "visit", "detector")
OF_TRACT = ("instrument", "skymap", "tract", "band")
OF_PATCH = ("skymap", "tract", "patch")
OF_WARP = ("instrument", "visit", *OF_PATCH)
OF_COADD = (*OF_PATCH, "band")

Handles = Sequence[DeferredDatasetHandle]

_KEPT_IMAGES = 4
"""As many as a patch has detectors of a visit where four meet; 170 MB each."""


def taken(name: str, kind: str, dimensions: tuple[str, ...], *, many: bool = False, late: bool = False) -> Any:  # noqa: ANN401 - pipe_base's classes are not typed
    """A step's input; `many` of them, or read `late`, when the step asks for each."""
    return connection.Input(
        doc=f"The {name}.", name=name, storageClass=kind, dimensions=dimensions, multiple=many, deferLoad=late
    )


def made(name: str, kind: str, dimensions: tuple[str, ...]) -> Any:  # noqa: ANN401 - the same
    """A step's output."""
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


def catalogues() -> Any:  # noqa: ANN401 - the same
    """Reference catalogues. None at all is the quantum's own failure, which names it, and not the graph's."""
    return connection.PrerequisiteInput(
        doc="Reference stars.", name="reference_catalogue", storageClass="ArrowNumpy",
        dimensions=("skymap", "tract"), multiple=True, minimum=0, lookupFunction=_near,
    )  # fmt: skip


class Step(PipelineTask):
    """A step whose `run` is given what its quantum is about, besides its datasets."""

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        """Get, run, put."""
        data_id = butlerQC.quantum.dataId
        assert data_id is not None
        butlerQC.put(self.run(**self.given(data_id), **butlerQC.get(inputRefs)), outputRefs)

    def given(self, data_id: DataCoordinate) -> dict[str, object]:
        """The data id."""
        return {"data_id": data_id}


def joined(refcats: Sequence[Table], data_id: DataCoordinate) -> Table:
    """Catalogues as one. Raises BadData if there is none, naming what it was for."""
    if not refcats:
        raise BadData(f"no reference catalogue for {data_id}")
    joined: Table = np.concatenate(refcats)
    return joined


def ccd_of(data_id: DataCoordinate) -> tuple[int, int]:
    """Visit and detector."""
    return int(data_id["visit"]), int(data_id["detector"])


def used(handles: Handles, relative: RelativeCalibration) -> list[DeferredDatasetHandle]:
    """By visit and detector, what their tract's calibration does not exclude. Raises NoWorkFound if that is nothing."""
    excluded = {(each.visit, each.detector) for each in relative.excluded}
    left = [handle for handle in handles if ccd_of(handle.dataId) not in excluded]
    if not left:
        raise NoWorkFound(f"the relative calibration excludes {[ccd_of(handle.dataId) for handle in handles]}")
    return sorted(left, key=lambda handle: ccd_of(handle.dataId))


def calibrated(images: Handles, relative: RelativeCalibration) -> Iterator[tuple[int, VisitImage]]:
    """By detector, a visit's images with the scales and WCSs of their tract's calibration, each read when its turn is.

    Without those that `used` leaves out, and raises as it does.
    """
    for handle in used(images, relative):
        visit, detector = ccd_of(handle.dataId)
        yield detector, apply(relative, _image(_Asked(handle.ref.id, handle)), visit, detector)


@dataclass(frozen=True)
class _Asked:
    """A dataset by its id, and who reads it."""

    id: UUID
    handle: DeferredDatasetHandle = field(compare=False)


@lru_cache(maxsize=_KEPT_IMAGES)
def _image(asked: _Asked) -> VisitImage:
    """A visit's image, kept for the next patch: a CCD lies on thirty, and to read it takes half of a warp's time."""
    image: VisitImage = asked.handle.get()
    return image
