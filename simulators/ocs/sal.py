r"""SAL on Kafka: which topics the observatory publishes, their Avro schemas, and complete records of them.

Names, types and counts are those of ts_xml (`ScriptQueue_Events.xml`, `MTCamera_Events.xml`,
`ATCamera_Events.xml`, 2026-07). A topic is `lsst.sal.<Component>.logevent_<name>`; every integer is an Avro
long; a list has a fixed count. Lists within a string are delimited by colons; a colon or backslash in a value
is preceded by a backslash. So the group `2026-07-05T22:36:08.255` travels as `2026-07-05T22\:36\:08.255`.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from schemas.clock import TAI_MINUS_UTC
from schemas.errors import Broken

Value = str | int | float | list[int] | list[float]
Record = dict[str, Value]
Schema = dict[str, object]


class Field(NamedTuple):
    """A field of a topic: `size` above one makes it a list."""

    name: str
    type: str
    size: int = 1

    @property
    def avro_type(self) -> object:
        """The type in Avro's words."""
        return self.type if self.size == 1 else {"type": "array", "items": self.type}

    @property
    def default(self) -> Value:
        """What an unset field holds."""
        if self.type == "string":
            return ""
        zero = 0 if self.type == "long" else 0.0
        return zero if self.size == 1 else [zero] * self.size


_STAMPS = (Field("private_efdStamp", "double"), Field("private_kafkaStamp", "double"))
_INDEX = (Field("salIndex", "long"),)
_PRIVATE = (
    Field("private_revCode", "string"),
    Field("private_sndStamp", "double"),
    Field("private_rcvStamp", "double"),
    Field("private_seqNum", "long"),
    Field("private_identity", "string"),
    Field("private_origin", "long"),
)
_SCRIPT = (Field("scriptSalIndex", "long"), Field("groupId", "string"))
_NEXT_VISIT = (
    *_SCRIPT,
    Field("coordinateSystem", "long"),
    Field("position", "double", 2),
    Field("startTime", "double"),
    Field("rotationSystem", "long"),
    Field("cameraAngle", "double"),
    Field("filters", "string"),
    Field("dome", "long"),
    Field("duration", "double"),
    Field("nimages", "long"),
    Field("instrument", "string"),
    Field("survey", "string"),
    Field("totalCheckpoints", "long"),
)
_IMAGE = (
    Field("additionalKeys", "string"),
    Field("additionalValues", "string"),
    Field("imagesInSequence", "long"),
    Field("imageName", "string"),
    Field("imageIndex", "long"),
    Field("imageSource", "string"),
    Field("imageController", "string"),
    Field("imageDate", "string"),
    Field("imageNumber", "long"),
    Field("timestampAcquisitionStart", "double"),
)
_EXPOSURE_TIME = (Field("exposureTime", "double"),)
_TELEMETRY = (
    Field("imageTag", "string"),
    Field("timestampDateObs", "double"),
    Field("timestampDateEnd", "double"),
    Field("measuredShutterOpenTime", "double"),
    Field("darkTime", "double"),
    Field("emulatedImage", "string"),
)
_PER_CCD = (
    "ccdType", "overRows", "overCols", "readRows", "readCols", "readCols2",
    "preCols", "preRows", "postCols", "underCols",
)  # fmt: skip


def _readout_parameters(ccds: int) -> tuple[Field, ...]:
    return (
        *(Field(name, "string") for name in ("imageName", "ccdLocation", "raftBay", "ccdSlot")),
        *(Field(name, "long", ccds) for name in _PER_CCD),
        Field("daqFolder", "string"),
        Field("daqAnnotation", "string"),
    )


def _doubles(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, "double") for name in names)


def _camera(ccds: int) -> dict[str, tuple[Field, ...]]:
    return {
        "startIntegration": (*_IMAGE, *_EXPOSURE_TIME, Field("mode", "string"), Field("timeout", "double")),
        "startReadout": (*_IMAGE, *_EXPOSURE_TIME, Field("timestampStartOfReadout", "double")),
        "endReadout": (*_IMAGE, *_doubles("requestedExposureTime", "timestampEndOfReadout")),
        "imageReadoutParameters": _readout_parameters(ccds),
        "endOfImageTelemetry": (*_IMAGE, *_EXPOSURE_TIME, *_TELEMETRY),
    }


READOUT_CCDS = {"MTCamera": 201, "ATCamera": 1}
"""How many CCDs `imageReadoutParameters` has room for."""

_COMPONENTS: dict[str, dict[str, tuple[Field, ...]]] = {
    "ScriptQueue": {"nextVisit": _NEXT_VISIT, "nextVisitCanceled": _SCRIPT},
    **{component: _camera(ccds) for component, ccds in READOUT_CCDS.items()},
}
_INDEXED = frozenset({"ScriptQueue"})


def topic(component: str, event: str) -> str:
    """`lsst.sal.ScriptQueue.logevent_nextVisit`."""
    return f"lsst.sal.{component}.logevent_{event}"


def common(*, indexed: bool) -> tuple[Field, ...]:
    """What every topic of a component has."""
    return (*_STAMPS, *(_INDEX if indexed else ()), *_PRIVATE)


def _fields(component: str, event: str) -> tuple[Field, ...]:
    return (*common(indexed=component in _INDEXED), *_COMPONENTS[component][event])


FIELDS: Mapping[str, tuple[Field, ...]] = {
    topic(component, event): _fields(component, event) for component, events in _COMPONENTS.items() for event in events
}
"""Topic -> all its fields, in order."""


def schema(topic_name: str, only: Collection[str] | None = None) -> Schema:
    """The Avro schema of a topic, of all its fields or `only` some."""
    return schema_of(topic_name, [field for field in FIELDS[topic_name] if only is None or field.name in only])


def schema_of(topic_name: str, fields: Iterable[Field]) -> Schema:
    """The Avro schema of a topic that has these fields."""
    namespace, _, name = topic_name.rpartition(".")
    told = [{"name": field.name, "type": field.avro_type, "default": field.default} for field in fields]
    return {"type": "record", "name": name, "namespace": namespace, "fields": told}


def record(topic_name: str, **values: Value) -> Record:
    """A record of a topic with every field, the others at their default. Raises Broken for unknown ones."""
    complete: Record = {field.name: field.default for field in FIELDS[topic_name]}
    unknown = values.keys() - complete.keys()
    if unknown:
        raise Broken(f"{topic_name} has no field {', '.join(sorted(unknown))}")
    return complete | values


def stamped(topic_name: str, message: Record, *, sent: float, seq_num: int, origin: int) -> Record:
    """The message as it leaves at `sent` (TAI s), private fields filled in. `origin`: the process id."""
    component = topic_name.split(".")[2]
    index = f":{message['salIndex']}" if component in _INDEXED else ""
    return message | {
        "private_efdStamp": sent - TAI_MINUS_UTC,
        "private_kafkaStamp": sent,
        "private_sndStamp": sent,
        "private_revCode": _revision(topic_name),
        "private_seqNum": seq_num,
        "private_identity": f"{component}{index}",
        "private_origin": origin,
    }


def _revision(topic_name: str) -> str:
    return hashlib.blake2b(json.dumps(FIELDS[topic_name]).encode(), digest_size=4).hexdigest()


def joined(values: Iterable[str]) -> str:
    """A colon-delimited list; colons and backslashes within a value are escaped by a backslash."""
    return ":".join(value.replace("\\", "\\\\").replace(":", "\\:") for value in values)
