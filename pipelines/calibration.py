"""Calibration production: a detector's raws of an afternoon, to the `Calibration` that prompt processing takes.

Exposures are told apart by their observation type (bias, dark, flat, spot), flats of pairs from single ones by their
group: the two of a pair are the snaps of one.
"""

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

from lsst.daf.butler import DataCoordinate, DatasetRef, DeferredDatasetHandle, DimensionRecord
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base import connectionTypes as connection

from backbone.butler_errors import told_as_ours
from payloads.calibration.assemble import assemble
from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import Crosstalk, measure_crosstalk
from payloads.calibration.dark import Dark, make_dark
from payloads.calibration.defects import Defects, find_defects
from payloads.calibration.flat import Flat, make_flat
from payloads.calibration.frames import Rejected
from payloads.calibration.photon_transfer import PhotonTransfer, measure_photon_transfer
from payloads.calibration.verify import verify
from pipelines.steps import Handles, Step
from schemas.errors import BadData
from schemas.image import Raw
from schemas.instrument import Detector, camera

OF_DETECTOR = ("instrument", "detector")
PAIR = 2
OF_FILTER = (*OF_DETECTOR, "physical_filter")

Inputs = dict[str, tuple[Any, Collection[DatasetRef]]]
"""Of a quantum, by connection: its declaration and its datasets."""


def _input(name: str, kind: str, dimensions: tuple[str, ...] = OF_DETECTOR) -> Any:  # noqa: ANN401 - pipe_base's classes are not typed
    return connection.Input(doc=f"The {name}.", name=name, storageClass=kind, dimensions=dimensions, isCalibration=True)


def _output(name: str, kind: str, dimensions: tuple[str, ...] = OF_DETECTOR) -> Any:  # noqa: ANN401 - the same
    return connection.Output(
        doc=f"The {name}.", name=name, storageClass=kind, dimensions=dimensions, isCalibration=True
    )


class _FromRaws(PipelineTaskConnections, dimensions=OF_DETECTOR):
    """A step that takes some of the raws: read one at a time, a CCD's takes 70 MB."""

    raws = connection.Input(
        doc="Exposures of all types.", name="raw", storageClass="PachonRaw",
        dimensions=("instrument", "exposure", "detector"), multiple=True, deferLoad=True,
    )  # fmt: skip

    observation_type: ClassVar[str]
    """Of the exposures that the step takes."""

    of_pairs: ClassVar[bool | None] = None
    """Whether they are those of pairs, or the single ones; None: both."""

    def adjustQuantum(
        self, inputs: Inputs, outputs: Inputs, label: str, data_id: DataCoordinate
    ) -> tuple[Inputs, Inputs]:
        """Leave the wanted exposures, in their order; a step without any is not in the graph."""
        declared, refs = inputs["raws"]
        kept = {_exposure(ref.dataId): ref for ref in refs if self._wants(_exposure(ref.dataId))}
        ordered = [kept[seen] for seen in sorted(kept, key=lambda seen: int(seen.id))]
        adjusted: Inputs = {"raws": (declared, ordered)}
        super().adjustQuantum({**inputs, **adjusted}, outputs, label, data_id)
        return adjusted, {}

    def _wants(self, seen: DimensionRecord) -> bool:
        if self.of_pairs is not None and self.of_pairs != (int(seen.seq_end) > int(seen.seq_start)):
            return False
        return str(seen.observation_type) == self.observation_type


class _OfDetector(Step):
    """A step on one detector, whose geometry `run` is given besides its datasets."""

    def given(self, data_id: DataCoordinate) -> dict[str, object]:
        """The detector."""
        return {"detector": camera(str(data_id["instrument"]))[int(data_id["detector"])]}


class BiasConnections(_FromRaws, dimensions=OF_DETECTOR):
    """Exposures of no time, and their mean."""

    observation_type = "bias"
    bias = _output("bias", "PachonBias")


class BiasConfig(PipelineTaskConfig, pipelineConnections=BiasConnections):
    """See `BiasConnections`."""


class MakeBias(_OfDetector):
    """See `payloads.calibration.bias`."""

    ConfigClass = BiasConfig
    _DefaultName = "bias"

    def run(self, detector: Detector, raws: Handles) -> Struct:
        """The bias."""
        return Struct(bias=make_bias(_read(raws), detector))


class CrosstalkConnections(_FromRaws, dimensions=OF_DETECTOR):
    """Exposures of spots, and the matrix."""

    observation_type = "spot"
    bias = _input("bias", "PachonBias")
    crosstalk = _output("crosstalk", "PachonCrosstalk")


class CrosstalkConfig(PipelineTaskConfig, pipelineConnections=CrosstalkConnections):
    """See `CrosstalkConnections`."""


class MeasureCrosstalk(_OfDetector):
    """See `payloads.calibration.crosstalk`."""

    ConfigClass = CrosstalkConfig
    _DefaultName = "crosstalk"

    def run(self, detector: Detector, raws: Handles, bias: Bias) -> Struct:
        """The matrix."""
        return Struct(crosstalk=measure_crosstalk(_read(raws), detector, bias))


class PhotonTransferConnections(_FromRaws, dimensions=OF_DETECTOR):
    """Flats in pairs, and what they tell of the amplifiers."""

    observation_type, of_pairs = "flat", True
    bias = _input("bias", "PachonBias")
    crosstalk = _input("crosstalk", "PachonCrosstalk")
    photon_transfer = _output("photon_transfer", "PachonPhotonTransfer")


class PhotonTransferConfig(PipelineTaskConfig, pipelineConnections=PhotonTransferConnections):
    """See `PhotonTransferConnections`."""


class MeasurePhotonTransfer(_OfDetector):
    """See `payloads.calibration.photon_transfer`."""

    ConfigClass = PhotonTransferConfig
    _DefaultName = "photon_transfer"

    def run(self, detector: Detector, raws: Handles, bias: Bias, crosstalk: Crosstalk) -> Struct:
        """Gain, read noise, full well and linearity."""
        return Struct(photon_transfer=measure_photon_transfer(_pairs(raws), detector, bias, crosstalk))


class DarkConnections(_FromRaws, dimensions=OF_DETECTOR):
    """Long exposures in the dark, and their mean."""

    observation_type = "dark"
    bias = _input("bias", "PachonBias")
    crosstalk = _input("crosstalk", "PachonCrosstalk")
    photon_transfer = _input("photon_transfer", "PachonPhotonTransfer")
    dark = _output("dark", "PachonDark")


class DarkConfig(PipelineTaskConfig, pipelineConnections=DarkConnections):
    """See `DarkConnections`."""


class MakeDark(_OfDetector):
    """See `payloads.calibration.dark`."""

    ConfigClass = DarkConfig
    _DefaultName = "dark"

    def run(
        self, detector: Detector, raws: Handles, bias: Bias, crosstalk: Crosstalk, photon_transfer: PhotonTransfer
    ) -> Struct:
        """The dark."""
        return Struct(dark=make_dark(_read(raws), detector, bias, photon_transfer.electronics(crosstalk)))


class FlatConnections(_FromRaws, dimensions=OF_FILTER):
    """Single flats in a filter, and their mean."""

    observation_type, of_pairs = "flat", False
    bias = _input("bias", "PachonBias")
    crosstalk = _input("crosstalk", "PachonCrosstalk")
    photon_transfer = _input("photon_transfer", "PachonPhotonTransfer")
    dark = _input("dark", "PachonDark")
    flat = _output("flat", "PachonFlat", OF_FILTER)


class FlatConfig(PipelineTaskConfig, pipelineConnections=FlatConnections):
    """See `FlatConnections`."""


class MakeFlat(_OfDetector):
    """See `payloads.calibration.flat`."""

    ConfigClass = FlatConfig
    _DefaultName = "flat"

    def run(
        self, detector: Detector, raws: Handles, bias: Bias, crosstalk: Crosstalk, photon_transfer: PhotonTransfer,
        dark: Dark,
    ) -> Struct:  # fmt: skip
        """The flat."""
        seen = _exposure(raws[0].dataId)
        band = camera(str(seen.instrument)).band_of(str(seen.physical_filter))
        electronics = photon_transfer.electronics(crosstalk)
        return Struct(flat=make_flat(_read(raws), detector, band, bias, dark, electronics))


class DefectsConnections(PipelineTaskConnections, dimensions=OF_FILTER):
    """Means of all kinds, and the pixels that stand out."""

    bias = _input("bias", "PachonBias")
    dark = _input("dark", "PachonDark")
    flat = _input("flat", "PachonFlat", OF_FILTER)
    defects = _output("defects", "PachonDefects", OF_FILTER)


class DefectsConfig(PipelineTaskConfig, pipelineConnections=DefectsConnections):
    """See `DefectsConnections`."""

    axis_rate = Field[float](  # type: ignore[no-untyped-call]
        default=20_000.0, doc="Electrons/s that the flats' lamp gives a pixel on the axis: less is vignetted.",
        check=lambda rate: rate > 0.0,
    )  # fmt: skip


class FindDefects(_OfDetector):
    """See `payloads.calibration.defects`."""

    ConfigClass = DefectsConfig
    _DefaultName = "defects"
    config: DefectsConfig

    def run(self, detector: Detector, bias: Bias, dark: Dark, flat: Flat) -> Struct:
        """The defects."""
        return Struct(defects=find_defects(detector, bias, dark, flat, self.config.axis_rate))


class ReportConnections(PipelineTaskConnections, dimensions=OF_FILTER):
    """All products, and their figures against limits."""

    bias = _input("bias", "PachonBias")
    crosstalk = _input("crosstalk", "PachonCrosstalk")
    photon_transfer = _input("photon_transfer", "PachonPhotonTransfer")
    dark = _input("dark", "PachonDark")
    flat = _input("flat", "PachonFlat", OF_FILTER)
    defects = _input("defects", "PachonDefects", OF_FILTER)
    report = connection.Output(
        doc="Figures of the products against their limits.", name="calibration_report",
        storageClass="StructuredDataDict", dimensions=OF_FILTER,
    )  # fmt: skip


class ReportConfig(PipelineTaskConfig, pipelineConnections=ReportConnections):
    """See `ReportConnections`."""


class Verify(_OfDetector):
    """See `payloads.calibration.verify`. What fails is told here, and refused by the step after."""

    ConfigClass = ReportConfig
    _DefaultName = "verify"

    def run(self, detector: Detector, **products: Bias | Crosstalk | PhotonTransfer | Dark | Flat | Defects) -> Struct:
        """Each check by name: its value, limits, and whether it passed."""
        checks = [check for product in products.values() for check in verify(product)]
        told = {
            check.name: {"value": check.value, "low": check.low, "high": check.high, "passed": check.passed}
            for check in checks
        }
        self.log.info("detector %d: %d of %d checks passed", detector.id, sum(c.passed for c in checks), len(checks))
        return Struct(report=told)


class CalibrationConnections(PipelineTaskConnections, dimensions=OF_FILTER):
    """All products and their report, and the calibration."""

    report = connection.Input(
        doc="Whether the products may be used.", name="calibration_report", storageClass="StructuredDataDict",
        dimensions=OF_FILTER,
    )  # fmt: skip
    bias = _input("bias", "PachonBias")
    crosstalk = _input("crosstalk", "PachonCrosstalk")
    photon_transfer = _input("photon_transfer", "PachonPhotonTransfer")
    dark = _input("dark", "PachonDark")
    flat = _input("flat", "PachonFlat", OF_FILTER)
    defects = _input("defects", "PachonDefects", OF_FILTER)
    calibration = _output("calibration", "PachonCalibration", OF_FILTER)


class CalibrationConfig(PipelineTaskConfig, pipelineConnections=CalibrationConnections):
    """See `CalibrationConnections`."""


class Assemble(_OfDetector):
    """See `payloads.calibration.assemble`."""

    ConfigClass = CalibrationConfig
    _DefaultName = "calibration"

    def run(
        self, detector: Detector, report: dict[str, dict[str, Any]], bias: Bias, crosstalk: Crosstalk,
        photon_transfer: PhotonTransfer, dark: Dark, flat: Flat, defects: Defects,
    ) -> Struct:  # fmt: skip
        """The calibration. Raises BadData, naming the checks, if any failed."""
        failed = [f"{name} is {check['value']:.4g}" for name, check in report.items() if not check["passed"]]
        if failed:
            raise BadData(f"detector {detector.id}, {flat.band}: not verified: {'; '.join(failed)}")
        electronics = photon_transfer.electronics(crosstalk)
        return Struct(calibration=assemble(detector, bias, dark, flat, defects, electronics))


def _read(raws: Handles) -> Iterator[Raw | Rejected]:
    """Raws, one at a time. One that cannot be read is left out, by name; Transient is raised."""
    for handle in raws:
        seen = _exposure(handle.dataId)
        try:
            with told_as_ours(f"exposure {seen.id} detector {handle.dataId['detector']}"):
                raw: Raw = handle.get()
        except BadData as error:
            yield Rejected(int(seen.id), str(error))
        else:
            yield raw


def _pairs(raws: Handles) -> Iterator[tuple[Raw, Raw] | Rejected]:
    """The exposures of each group; without its fellow, one is left out."""
    groups: dict[str, list[DeferredDatasetHandle]] = {}
    for handle in raws:
        groups.setdefault(str(_exposure(handle.dataId).group), []).append(handle)
    for name, handles in groups.items():
        first = int(_exposure(handles[0].dataId).id)
        if len(handles) != PAIR:
            yield Rejected(first, f"group {name}: {len(handles)} exposures are no pair")
            continue
        match list(_read(handles)):
            case [Raw() as one, Raw() as other]:
                yield one, other
            case read:
                yield Rejected(first, "; ".join(each.why for each in read if isinstance(each, Rejected)))


def _exposure(data_id: DataCoordinate) -> DimensionRecord:
    record = data_id.records["exposure"]
    assert record is not None
    return record
