r"""What the observatory's messages mean: a decoded SAL record becomes an event, or is refused with a reason.

Fields as ts_xml names them. A camera's message carries its group in `additionalKeys`/`additionalValues`, two
lists delimited by colons in which a backslash takes the next character as it is; so does the image's type, OBJECT if
none is told. A camera counts a visit's images from 1. A visit in no coordinates looks at no sky.
"""

import math
import re
from collections.abc import Callable, Mapping

from schemas.errors import BadData
from schemas.events import Event, IntegrationStarted, NextVisit, NextVisitCanceled, ReadoutEnded
from schemas.identity import exposure_id, parse_image_name
from schemas.image import SCIENCE

Record = Mapping[str, object]

_CAMERAS = {"MTCamera": "LSSTCam", "ATCamera": "LATISS"}
_DAY_S, _END_OF_TIME = 86400.0, 7.26e9
"""Seconds: the longest exposure; the end of the year 2200, TAI."""
_MOST_IMAGES = 9999
_COORDINATES = {1: "NONE", 2: "ICRS", 3: "OBSERVED", 4: "MOUNT"}
_ROTATIONS = {1: "NONE", 2: "SKY", 3: "HORIZON", 4: "MOUNT"}
_USABLE = {"NONE", "ICRS", "SKY"}
_ITEM = re.compile(r"(?:[^:\\]|\\.?)*", re.DOTALL)


def event_of(topic: str, record: Record) -> Event | None:
    """The event that a record of a SAL topic tells of, None for a topic that tells none here.

    Raises BadData naming the field that is missing or makes no sense.
    """
    reader = _READERS.get(topic)
    return reader(topic, record) if reader else None


def _next_visit(_: str, record: Record) -> NextVisit:
    for field, names in (("coordinateSystem", _COORDINATES), ("rotationSystem", _ROTATIONS)):
        name = names.get(_integer(record, field), "unknown")
        if name not in _USABLE:
            raise BadData(f"{field} {record[field]} ({name}) is not used here")
    ra, dec = _position(record)
    return NextVisit(
        group=_text(record, "groupId"),
        instrument=_instrument(record),
        ra=ra,
        dec=dec,
        rotation=_between(-360.0, 360.0, record, "cameraAngle"),
        filters=_string(record, "filters"),
        start_time=_time(record, "startTime"),
        duration=_between(0.0, _DAY_S, record, "duration"),
        n_images=int(_between(0, _MOST_IMAGES, record, "nimages")),
        survey=_string(record, "survey"),
        announced=_time(record, "private_sndStamp"),
        on_sky=_COORDINATES[_integer(record, "coordinateSystem")] != "NONE",
    )


def _canceled(_: str, record: Record) -> NextVisitCanceled:
    return NextVisitCanceled(group=_text(record, "groupId"))


def _integration_started(topic: str, record: Record) -> IntegrationStarted:
    return IntegrationStarted(
        **_image(topic, record),
        exposure_time=_between(0.0, _DAY_S, record, "exposureTime"),
        started=_time(record, "timestampAcquisitionStart"),
    )


def _readout_ended(topic: str, record: Record) -> ReadoutEnded:
    return ReadoutEnded(
        **_image(topic, record),
        exposure_time=_between(0.0, _DAY_S, record, "requestedExposureTime"),
        started=_time(record, "timestampAcquisitionStart"),
        readout_ended=_time(record, "timestampEndOfReadout"),
        image_type=_image_type(record),
    )


_READERS: dict[str, Callable[[str, Record], Event]] = {
    "lsst.sal.ScriptQueue.logevent_nextVisit": _next_visit,
    "lsst.sal.ScriptQueue.logevent_nextVisitCanceled": _canceled,
    **{f"lsst.sal.{camera}.logevent_startIntegration": _integration_started for camera in _CAMERAS},
    **{f"lsst.sal.{camera}.logevent_endReadout": _readout_ended for camera in _CAMERAS},
}

TOPICS: tuple[str, ...] = tuple(_READERS)
"""Topics that tell of events, causes before effects."""


def _image(topic: str, record: Record) -> dict[str, str | int]:
    """What all camera messages say of an exposure."""
    name = _text(record, "imageName")
    index, images = _integer(record, "imageIndex"), _integer(record, "imagesInSequence")
    if not 1 <= index <= images <= _MOST_IMAGES:
        raise BadData(f"imageIndex {index} of imagesInSequence {images}")
    return {
        "group": _group(record),
        "instrument": _CAMERAS[topic.split(".")[2]],
        "exposure": exposure_id(*parse_image_name(name)),
        "image_name": name,
        "snap": index - 1,
        "n_snaps": images,
    }


def _group(record: Record) -> str:
    told = _additional(record)
    group = told.get("groupId", "")
    if not group:
        raise BadData(f"no groupId among the additionalKeys {[*told]}")
    return _printable(group, "groupId")


def _image_type(record: Record) -> str:
    told = _printable(_additional(record).get("imageType", ""), "imageType")
    return SCIENCE if told in {"", "OBJECT"} else told.lower()


def _additional(record: Record) -> dict[str, str]:
    keys, values = (split_list(_string(record, name)) for name in ("additionalKeys", "additionalValues"))
    if len(keys) != len(values):
        raise BadData(f"{len(keys)} additionalKeys {keys} but {len(values)} additionalValues {values}")
    return dict(zip(keys, values, strict=True))


def split_list(text: str) -> list[str]:
    """The values of a colon-delimited list, unescaped."""
    items, position = [], 0
    while True:
        match = _ITEM.match(text, position)
        assert match is not None
        items.append(re.sub(r"\\(.)", r"\1", match[0], flags=re.DOTALL).strip())
        position = match.end() + 1
        if position > len(text):
            return items


def _position(record: Record) -> tuple[float, float]:
    position = _present(record, "position")
    if not isinstance(position, list) or len(position) != 2:
        raise BadData(f"position {position!r} is not two numbers")
    ra, dec = (_finite(value, "position") for value in position)
    if not -90.0 <= dec <= 90.0:
        raise BadData(f"position {position}: the declination is out of range")
    if not -360.0 <= ra <= 360.0:
        raise BadData(f"position {position}: the right ascension is out of range")
    return ra % 360.0, dec


def _present(record: Record, field: str) -> object:
    if field not in record:
        raise BadData(f"no field {field}")
    return record[field]


def _finite(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadData(f"{field} {value!r} is not a finite number")
    return float(value)


def _number(record: Record, field: str) -> float:
    return _finite(_present(record, field), field)


def _time(record: Record, field: str) -> float:
    value = _number(record, field)
    if not 0.0 < value < _END_OF_TIME:
        raise BadData(f"{field} {value} is not a time")
    return value


def _between(least: float, most: float, record: Record, field: str) -> float:
    value = _number(record, field)
    if not least <= value <= most:
        raise BadData(f"{field} {value} is not between {least} and {most}")
    return value


def _instrument(record: Record) -> str:
    name = _text(record, "instrument")
    if name not in _CAMERAS.values():
        raise BadData(f"instrument {name!r} is none of {', '.join(_CAMERAS.values())}")
    return name


def _integer(record: Record, field: str) -> int:
    value = _present(record, field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadData(f"{field} {value!r} is not an integer")
    return value


def _string(record: Record, field: str) -> str:
    value = _present(record, field)
    if not isinstance(value, str):
        raise BadData(f"{field} {value!r} is not text")
    return value


def _text(record: Record, field: str) -> str:
    value = _string(record, field).strip()
    if not value:
        raise BadData(f"{field} is empty")
    return _printable(value, field)


def _printable(value: str, field: str) -> str:
    if not value.isprintable():
        raise BadData(f"{field} {value!r} has characters that are not printable")
    return value
