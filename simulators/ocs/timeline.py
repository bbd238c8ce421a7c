"""What the observatory says, and when: the one description of a night's messages."""

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from schemas.image import SCIENCE, Observation
from schemas.instrument import ITL, Detector, camera
from simulators.ocs import sal
from simulators.ocs.schedule import READOUT_S, SHUTTER_S, PlannedVisit

ANNOUNCED_S = 22.0
"""How long before the first shutter opening `nextVisit` leaves: 20 s at least (LSE-72), two for its way."""

CANCELED_S = 5.0
"""How long after its announcement a visit is called off."""

TELEMETRY_S = 0.3
"""From the end of readout to `endOfImageTelemetry` (ts_xml)."""

EXPOSE = "expose"
"""The kind of a moment at which the shutter opens and the DAQ is told; its payload is an `Observation`."""

_NONE, _ICRS, _SKY = 1, 2, 2
_DOME_CLOSED, _DOME_OPEN = 1, 2
_CAMERAS = {"LSSTCam": "MTCamera", "LATISS": "ATCamera"}
_QUEUES = {"LSSTCam": 1, "LATISS": 2}


class Moment(NamedTuple):
    """At `tai` (s): a SAL message (`kind` its topic, `payload` its record, or its bytes), or the shutter opens."""

    tai: float
    kind: str
    payload: sal.Record | bytes | Observation


Change = Callable[[int, PlannedVisit, list[Moment]], list[Moment]]
"""(number from 1, visit, its moments in order of time) -> its moments, again in order."""


def timeline(
    plan: Sequence[PlannedVisit], canceled_groups: Collection[str] = (), change: Change = lambda _, __, same: same
) -> Iterator[Moment]:
    """A night in order of time. Visits whose group is in `canceled_groups` are announced and called off."""
    visits = [
        _changed(change, number, visit, _visit(visit, called_off=visit.group in canceled_groups))
        for number, visit in enumerate(plan, start=1)
    ]
    return heapq.merge(*visits, key=lambda moment: moment.tai)


def _changed(change: Change, number: int, visit: PlannedVisit, moments: Iterator[Moment]) -> Iterator[Moment]:
    yield from change(number, visit, list(moments))


def camera_component(instrument: str) -> str:
    """The SAL component that speaks for an instrument's camera."""
    return _CAMERAS.get(instrument, "MTCamera")


def _visit(visit: PlannedVisit, *, called_off: bool) -> Iterator[Moment]:
    announced = visit.start_tai - ANNOUNCED_S
    yield _next_visit(visit, announced)
    if called_off:
        yield canceled(visit, announced + CANCELED_S)
        return
    moments = [moment for snap in range(visit.n_snaps) for moment in _snap(visit.observation(snap))]
    yield from sorted(moments, key=lambda moment: moment.tai)


def _script(visit: PlannedVisit) -> dict[str, sal.Value]:
    return {
        "salIndex": _QUEUES.get(visit.instrument, 1),
        "scriptSalIndex": 100_000 + visit.seq_num,
        "groupId": visit.group,
    }


def _next_visit(visit: PlannedVisit, tai: float) -> Moment:
    topic, on_sky = sal.topic("ScriptQueue", "nextVisit"), visit.image_type == SCIENCE
    message = sal.record(
        topic,
        **_script(visit),
        coordinateSystem=_ICRS if on_sky else _NONE,
        position=[visit.ra, visit.dec],
        startTime=visit.start_tai,
        rotationSystem=_SKY if on_sky else _NONE,
        cameraAngle=visit.rotation,
        filters=visit.physical_filter,
        dome=_DOME_OPEN if on_sky else _DOME_CLOSED,
        duration=visit.duration,
        nimages=visit.n_snaps,
        instrument=visit.instrument,
        survey=visit.survey,
    )
    return Moment(tai, topic, message)


def canceled(visit: PlannedVisit, tai: float) -> Moment:
    """The observatory calls a visit off."""
    topic = sal.topic("ScriptQueue", "nextVisitCanceled")
    return Moment(tai, topic, sal.record(topic, **_script(visit)))


def _snap(observation: Observation) -> list[Moment]:
    """One exposure, from shutter opening to the end of its telemetry. The DAQ hears of it first."""
    component, image = camera_component(observation.instrument), _image(observation)
    asked = observation.exposure_time
    opened, ended = observation.started, observation.readout_ended
    closed = ended - READOUT_S

    def said(tai: float, event: str, **values: sal.Value) -> Moment:
        topic = sal.topic(component, event)
        return Moment(tai, topic, sal.record(topic, **values))

    return [
        Moment(opened, EXPOSE, observation),
        said(opened, "startIntegration", **image, exposureTime=asked, mode="normal", timeout=asked),
        said(closed, "startReadout", **image, exposureTime=asked, timestampStartOfReadout=closed),
        said(closed, "imageReadoutParameters", **_readout_parameters(observation, component)),
        said(ended, "endReadout", **image, requestedExposureTime=asked, timestampEndOfReadout=ended),
        said(
            ended + TELEMETRY_S,
            "endOfImageTelemetry",
            **image,
            exposureTime=asked,
            imageTag=hashlib.blake2b(observation.image_name.encode(), digest_size=8).hexdigest(),
            timestampDateObs=opened,
            timestampDateEnd=closed,
            measuredShutterOpenTime=asked,
            darkTime=asked + SHUTTER_S,
        ),
    ]


def _image(observation: Observation) -> dict[str, sal.Value]:
    """The fields that all messages about an exposure share."""
    source, controller, date, number = observation.image_name.split("_")
    return {
        "additionalKeys": sal.joined(["imageType", "groupId"]),
        "additionalValues": sal.joined([_image_type(observation), observation.group]),
        "imagesInSequence": observation.n_snaps,
        "imageName": observation.image_name,
        "imageIndex": observation.snap + 1,
        "imageSource": source,
        "imageController": controller,
        "imageDate": date,
        "imageNumber": int(number),
        "timestampAcquisitionStart": observation.started,
    }


def _image_type(observation: Observation) -> str:
    """In the camera's words."""
    return "OBJECT" if observation.image_type == SCIENCE else observation.image_type.upper()


def _readout_parameters(observation: Observation, component: str) -> dict[str, sal.Value]:
    """How each CCD is read: the geometry of `schemas.instrument`, unused places 0."""
    detectors = camera(observation.instrument).detectors
    padding = [0] * (sal.READOUT_CCDS[component] - len(detectors))
    values: dict[str, sal.Value] = {
        "imageName": observation.image_name,
        "ccdLocation": sal.joined(detector.name.replace("_", "") for detector in detectors),
        "raftBay": sal.joined(detector.raft for detector in detectors),
        "ccdSlot": sal.joined(detector.name.split("_")[1] for detector in detectors),
        "daqFolder": "raw",
    }
    geometry = [_geometry(detector) for detector in detectors]
    for name in geometry[0]:
        column = [one[name] for one in geometry] + padding
        values[name] = column if len(column) > 1 else column[0]
    return values


def _geometry(detector: Detector) -> dict[str, int]:
    form = detector.format
    return {
        "ccdType": int(form is ITL),
        "overRows": form.parallel_overscan,
        "overCols": form.serial_overscan,
        "readRows": form.amp_height,
        "readCols": form.amp_width,
        "preCols": form.prescan,
    }
