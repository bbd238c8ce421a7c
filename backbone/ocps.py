"""The OCPS (OCS-Controlled Pipeline Service) on Kafka, by SAL's conventions: what is commanded, and how it is answered.

Names and fields are those of ts_xml (`OCPS_Commands.xml`, `OCPS_Events.xml`, `SALGenerics.xml`), acknowledgements those
of ts_salobj: an `ackcmd` bears the number of the command that it answers, and its origin and identity. Every integer is
an Avro long.
"""

import asyncio
import hashlib
import io
import json
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Self, TypeVar

import structlog
from fastavro import parse_schema, schemaless_writer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backbone.alert_stream import create_topic
from backbone.csc import LIFE
from backbone.dead_letters import send
from backbone.registry_client import RegistryClient, Schema
from schemas.clock import TAI_MINUS_UTC, Clock
from schemas.errors import BadData, Transient

_OCPS = "lsst.sal.OCPS"
_COMMAND, _EVENT = f"{_OCPS}.command_", f"{_OCPS}.logevent_"
EXECUTE, ABORT_JOB = f"{_COMMAND}execute", f"{_COMMAND}abort_job"
COMMANDS = (*(f"{_COMMAND}{name}" for name in LIFE), EXECUTE, ABORT_JOB)
"""Topics that are read."""

ACKCMD, JOB_ID, JOB_RESULT = f"{_OCPS}.ackcmd", f"{_EVENT}job_id", f"{_EVENT}job_result"
SUMMARY_STATE, HEARTBEAT, ERROR_CODE = f"{_EVENT}summaryState", f"{_EVENT}heartbeat", f"{_EVENT}errorCode"
SOFTWARE_VERSIONS = f"{_EVENT}softwareVersions"
CONFIGURATIONS_AVAILABLE, CONFIGURATION_APPLIED = f"{_EVENT}configurationsAvailable", f"{_EVENT}configurationApplied"

PATIENCE_S = 600.0
"""How long a broker or a registry may be away."""

_RETRY_S = 1.0
_END_OF_TIME = 7.26e9
_BY_ALPHABET = sorted([*COMMANDS, f"{_COMMAND}setAuthList", f"{_COMMAND}setLogLevel"])
"""The component's commands: `cmdtype` is a place among them."""

_COMMON = {
    "private_efdStamp": "double", "private_kafkaStamp": "double", "salIndex": "long", "private_revCode": "string",
    "private_sndStamp": "double", "private_rcvStamp": "double", "private_seqNum": "long", "private_identity": "string",
    "private_origin": "long",
}  # fmt: skip
_OWN = {
    ACKCMD: {
        "ack": "long", "error": "long", "result": "string", "identity": "string", "origin": "long", "cmdtype": "long",
        "timeout": "double",
    },
    JOB_ID: {"event_name": "string", "seq_num": "long", "job_id": "string"},
    JOB_RESULT: {"job_id": "string", "exit_code": "long", "result": "string"},
    SUMMARY_STATE: {"summaryState": "long"},
    HEARTBEAT: {"heartbeat": "boolean"},
    ERROR_CODE: {"errorCode": "long", "errorReport": "string", "traceback": "string"},
    SOFTWARE_VERSIONS: dict.fromkeys(
        ("salVersion", "xmlVersion", "openSpliceVersion", "cscVersion", "subsystemVersions"), "string"
    ),
    CONFIGURATIONS_AVAILABLE: dict.fromkeys(("overrides", "version", "url", "schemaVersion"), "string"),
    CONFIGURATION_APPLIED: dict.fromkeys(
        ("configurations", "version", "url", "schemaVersion", "otherInfo"), "string"
    ),
}  # fmt: skip

Record = Mapping[str, object]
_Model = TypeVar("_Model", bound=BaseModel)

_log = structlog.get_logger()


class Ack(IntEnum):
    """SAL's codes for what becomes of a command (`SalRetCode`)."""

    ACK = 300
    IN_PROGRESS = 301
    COMPLETE = 303
    FAILED = -302
    ABORTED = -303


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True)


class Command(_Told):
    """Who commanded, and when: `sent` in TAI s. What it takes to answer."""

    topic: str
    index: int = Field(alias="salIndex")
    seq_num: int = Field(alias="private_seqNum")
    origin: int = Field(alias="private_origin")
    identity: str = Field(alias="private_identity")
    sent: float = Field(alias="private_sndStamp", ge=0.0, le=_END_OF_TIME, allow_inf_nan=False)

    @classmethod
    def of(cls, topic: str, record: Record) -> Self:
        """Of a command's record. Raises BadData for one that cannot be answered."""
        return checked(cls, {"topic": topic, **record})

    @property
    def name(self) -> str:
        """As ts_xml has it: `execute`."""
        return self.topic.removeprefix(_COMMAND)

    @property
    def job_id(self) -> str:
        """The same for the same command, however often it is read or delivered; no two commands share one."""
        whole = repr((self.topic, self.identity, self.origin, self.seq_num, self.sent))
        utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.sent - TAI_MINUS_UTC))
        return f"{utc}-{self.seq_num}-{hashlib.blake2b(whole.encode(), digest_size=3).hexdigest()}"


class Start(_Told):
    """Take up a configuration."""

    configuration_override: str = Field(alias="configurationOverride", default="")


class Execute(_Told):
    """Run a pipeline on selected data."""

    pipeline: str
    version: str = ""
    config: str = ""
    data_query: str = ""
    prereq_jobs: str = ""


class AbortJob(_Told):
    """End a job."""

    job_id: str


def checked(model: type[_Model], record: Record) -> _Model:
    """A record as a model. Raises BadData naming the field that is missing or makes no sense."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadData(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class OcpsWriter:
    """Answers commands, as the OCPS with a SAL `index`, from the process `origin`.

    What it sends has been taken by the broker when a call returns. Raises Transient if broker or registry is away for
    `PATIENCE_S`.
    """

    def __init__(self, bootstrap: str, registry: RegistryClient, index: int, origin: int, clock: Clock) -> None:
        self._bootstrap, self._registry, self._index, self._origin = bootstrap, registry, index, origin
        self._clock = clock
        self._sent = 0
        self._made: set[str] = set()

    async def ack(
        self, command: Command, code: Ack, *, error: int = 0, result: str = "", timeout_s: float = 0.0
    ) -> None:
        """Acknowledge a command. `timeout_s`: until when, from now, whoever waits may expect the next one."""
        values = {
            "private_seqNum": command.seq_num, "ack": int(code), "error": error, "result": result,
            "identity": command.identity, "origin": command.origin, "cmdtype": _BY_ALPHABET.index(command.topic),
            "timeout": timeout_s,
        }  # fmt: skip
        await self._send(ACKCMD, values)

    async def make_topics(self, topics: Sequence[str]) -> None:
        """Have them there before anybody asks: what is sent first on a topic that is new is seen late."""
        await self._insisting(topics[0], lambda: self._make(topics))

    async def event(self, topic: str, **values: object) -> None:
        """Tell what is so from now on; fields that are not given are empty."""
        empty = {"string": "", "long": 0, "boolean": False}
        await self._send(topic, {name: empty[kind] for name, kind in _OWN[topic].items()} | values)

    async def heartbeat(self) -> None:
        """Tell that it is there, once: one that is late is of no use. Raises Transient if it could not be told."""
        await self._deliver(HEARTBEAT, self._stamped(HEARTBEAT, {"heartbeat": True}))

    async def job_id(self, command: Command, job: str) -> None:
        """Tell that a command has become a job."""
        await self._send(JOB_ID, {"event_name": "cmd_execute", "seq_num": command.seq_num, "job_id": job})

    async def job_result(self, job: str, exit_code: int, result: str) -> None:
        """Tell that a job has ended. `result`: JSON."""
        await self._send(JOB_RESULT, {"job_id": job, "exit_code": exit_code, "result": result})

    async def _send(self, topic: str, values: Record) -> None:
        record = self._stamped(topic, values)
        await self._insisting(topic, lambda: self._deliver(topic, record))

    def _stamped(self, topic: str, values: Record) -> Record:
        self._sent += 1
        now = self._clock.now()
        private: dict[str, object] = {
            "private_efdStamp": now - TAI_MINUS_UTC, "private_kafkaStamp": now, "salIndex": self._index,
            "private_revCode": _revision(topic), "private_sndStamp": now, "private_rcvStamp": 0.0,
            "private_seqNum": self._sent, "private_identity": f"OCPS:{self._index}", "private_origin": self._origin,
        }  # fmt: skip
        return {**private, **values}

    async def _insisting(self, topic: str, attempt: Callable[[], Awaitable[None]]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                await attempt()
            except Transient as error:
                _log.warning("not taken", topic=topic, error=str(error))
                self._made.clear()  # the next broker may begin with nothing
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _deliver(self, topic: str, record: Record) -> None:
        schema = schema_of(topic)
        number = await self._registry.register(f"{topic}-value", schema)
        await self._make([topic])
        await asyncio.to_thread(send, self._bootstrap, topic, _framed(number, schema, record), None, (), 0)

    async def _make(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic not in self._made:
                await asyncio.to_thread(create_topic, self._bootstrap, topic, partitions=1)
                self._made.add(topic)


def schema_of(topic: str) -> Schema:
    """The Avro schema of what is sent on a topic."""
    namespace, _, name = topic.rpartition(".")
    fields = [{"name": name, "type": kind} for name, kind in (_COMMON | _OWN[topic]).items()]
    return {"type": "record", "name": name, "namespace": namespace, "fields": fields}


def _revision(topic: str) -> str:
    return hashlib.blake2b(json.dumps(_OWN[topic]).encode(), digest_size=4).hexdigest()


def _framed(number: int, schema: Schema, record: Record) -> bytes:
    """Confluent's wire format."""
    buffer = io.BytesIO()
    buffer.write(struct.pack(">bI", 0, number))
    schemaless_writer(buffer, parse_schema(schema), record)
    return buffer.getvalue()
