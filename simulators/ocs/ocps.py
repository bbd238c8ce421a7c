"""The OCS commands the OCPS (OCS-Controlled Pipeline Service), and waits for what becomes of it, as a script does.

Fields of commands are those of ts_xml's `OCPS_Commands.xml` and `SALGenerics.xml`. `state` commands nothing: it tells
the last `summaryState`.
"""

import argparse
import asyncio
import io
import json
import os
import random
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.types import Schema

from schemas.clock import REAL_TIME, TAI_MINUS_UTC
from schemas.errors import BadData, PachonError, Transient
from simulators.ocs import sal

ACKCMD, JOB_RESULT = "lsst.sal.OCPS.ackcmd", "lsst.sal.OCPS.logevent_job_result"
SUMMARY_STATE = "lsst.sal.OCPS.logevent_summaryState"
STATES = {1: "DISABLED", 2: "ENABLED", 3: "FAULT", 4: "OFFLINE", 5: "STANDBY"}
_EXECUTE = ("pipeline", "version", "config", "data_query", "prereq_jobs", "output_dataset_types")
_OWN: dict[str, tuple[str, ...]] = {
    "start": ("configurationOverride",), "enable": (), "disable": (), "standby": (), "exitControl": (),
    "execute": _EXECUTE, "abort_job": ("job_id",),
}  # fmt: skip
FIELDS = {
    f"lsst.sal.OCPS.command_{name}": (*sal.common(indexed=True), *(sal.Field(own, "string") for own in _OWN[name]))
    for name in _OWN
}
"""Topic of a command -> its fields, in order."""

_COMPLETE = 303
_FINAL = {_COMPLETE, -300, -301, -302, -303, -304}
_CALL_S = 20.0
_POLL_MS = 100

Told = Mapping[str, object]


class OcpsRemote:
    """One that commands the OCPS of a SAL index. An async context manager. Raises Transient for a peer that is away."""

    def __init__(self, bootstrap: str, registry: str, index: int = 3) -> None:
        self._bootstrap, self._registry, self.index = bootstrap, registry.rstrip("/"), index
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=False)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_S))
        self._number = random.randrange(1, 2**30)
        self._schemas: dict[int, Schema] = {}

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(_CALL_S):
                await self._producer.start()
        except (KafkaError, TimeoutError) as error:
            await self._close()
            raise Transient(f"broker {self._bootstrap}: {error!r}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await self._producer.stop()
        await self._session.close()

    async def command(self, name: str, **values: str) -> int:
        """Send a command once; its number, by which acknowledgements name it."""
        number, value = await self.framed(name, **values)
        await self.send(name, value)
        return number

    async def framed(self, name: str, **values: str) -> tuple[int, bytes]:
        """A command's number, and its bytes in Confluent's frame."""
        topic = f"lsst.sal.OCPS.command_{name}"
        self._number += 1
        now = REAL_TIME.now()
        private: sal.Record = {
            "private_efdStamp": now - TAI_MINUS_UTC, "private_kafkaStamp": now, "private_sndStamp": now,
            "private_seqNum": self._number, "private_identity": "Script:100017", "private_origin": os.getpid(),
            "salIndex": self.index,
        }  # fmt: skip
        record = {field.name: field.default for field in FIELDS[topic]} | private | values
        schema = sal.schema_of(topic, FIELDS[topic])
        buffer = io.BytesIO()
        buffer.write(struct.pack(">bI", 0, await self.registered(f"{topic}-value", schema)))
        schemaless_writer(buffer, parse_schema(schema), record)
        return self._number, buffer.getvalue()

    async def send(self, name: str, value: bytes) -> None:
        """Send a command's bytes as they are."""
        try:
            async with asyncio.timeout(_CALL_S):
                await self._producer.send_and_wait(f"lsst.sal.OCPS.command_{name}", value, partition=0)
        except (KafkaError, TimeoutError) as error:
            raise Transient(f"broker {self._bootstrap} did not take the command: {error!r}") from error

    async def registered(self, subject: str, schema: sal.Schema) -> int:
        """The id of a schema. Raises BadData if the registry refuses it."""
        url = f"{self._registry}/subjects/{subject}/versions"
        return int((await self._asked("POST", url, {"schema": json.dumps(schema)}))["id"])

    async def acknowledgements(
        self, number: int, within_s: float, hear: Callable[[Told], object] = lambda _: None
    ) -> list[Told]:
        """Those of a command, up to the last; each is given to `hear` as it comes.

        Raises Transient if the last does not come in time.
        """
        heard = []
        try:
            async with asyncio.timeout(within_s), aclosing(self.told(ACKCMD)) as every:
                async for told in every:
                    if (told["private_seqNum"], told["origin"]) == (number, os.getpid()):
                        heard.append(told)
                        hear(told)
                        if told["ack"] in _FINAL:
                            break
        except TimeoutError as error:
            raise Transient(f"command {number}: {[told['ack'] for told in heard]} within {within_s:g} s") from error
        return heard

    async def told(self, topic: str) -> AsyncGenerator[Told, None]:
        """All that was ever said on a topic of one partition, and is said from now on."""
        async with self._read(topic) as consumer:
            async for message in consumer:
                yield await self.decoded(message.value)

    async def last(self, topic: str) -> Told | None:
        """What the component said last on a topic, as one who joins late finds it; None if it never said anything.

        Raises Transient if the broker does not tell within `_CALL_S`.
        """
        found = None
        try:
            async with asyncio.timeout(_CALL_S), self._read(topic) as consumer:
                async for told in self._there(consumer, TopicPartition(topic, 0)):
                    found = told if told["salIndex"] == self.index else found
        except TimeoutError as error:
            raise Transient(f"broker {self._bootstrap}: {topic} was not read to its end in {_CALL_S:g} s") from error
        return found

    async def _there(self, consumer: AIOKafkaConsumer, place: TopicPartition) -> AsyncIterator[Told]:
        """What is on a topic now; nothing if there is none. Its end comes with each answer, also one of no messages.

        (Not every broker can be asked for it.)
        """
        if place.topic not in await consumer.topics():
            return
        while (end := consumer.highwater(place)) is None or await consumer.position(place) < end:
            for batch in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for message in batch:
                    yield await self.decoded(message.value)

    @asynccontextmanager
    async def _read(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, enable_auto_commit=False, fetch_max_wait_ms=50, metadata_max_age_ms=1000
        )
        try:
            await consumer.start()
            place = TopicPartition(topic, 0)
            consumer.assign([place])
            consumer.seek(place, 0)
            yield consumer
        except KafkaError as error:
            raise Transient(f"broker {self._bootstrap}: {error!r}") from error
        finally:
            await consumer.stop()

    async def decoded(self, value: bytes) -> Told:
        """A message's record."""
        _, number = struct.unpack_from(">bI", value)
        if number not in self._schemas:
            answer = await self._asked("GET", f"{self._registry}/schemas/ids/{number}", None)
            self._schemas[number] = parse_schema(json.loads(answer["schema"]))
        told = schemaless_reader(io.BytesIO(value[5:]), self._schemas[number], None)
        if not isinstance(told, dict):
            raise BadData(f"schema {number}: a {type(told).__name__}, not a record")
        return told

    async def _asked(self, method: str, url: str, body: object) -> dict[str, str]:
        try:
            async with self._session.request(method, url, json=body) as answer:
                if answer.status != 200:
                    raise BadData(f"registry, {method} {url}: {await answer.text()}")
                told: dict[str, str] = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Transient(f"registry {url}: {error!r}") from error
        return told


async def _play(options: argparse.Namespace) -> int:
    """Command, and tell what becomes of it: 0 if it was completed."""
    async with OcpsRemote(options.kafka, options.registry, options.index) as remote:
        if options.command == "state":
            return _tell(await remote.last(SUMMARY_STATE))
        values = {name: value for name in _OWN[options.command] if (value := getattr(options, name)) is not None}
        number = await remote.command(options.command, **values)
        heard = await remote.acknowledgements(number, options.within, _say)
    return 0 if heard[-1]["ack"] == _COMPLETE else 1


def _tell(told: Told | None) -> int:
    sys.stdout.write(f"{STATES[int(str(told['summaryState']))] if told else 'never heard of'}\n")
    return 0 if told else 1


def _say(told: Told) -> None:
    sys.stdout.write(f"{told['ack']} {told['result']}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """The process: its exit code."""
    parser = argparse.ArgumentParser(prog="simulators.ocs.ocps", description="Command the OCPS as the OCS does.")
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--index", type=int, default=3)
    parser.add_argument("--within", type=float, default=86400.0, help="seconds")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, own in _OWN.items():
        each = commands.add_parser(name)
        for option in own:
            each.add_argument("--" + option.replace("_", "-"), required=option in {"pipeline", "job_id"})
    commands.add_parser("state")
    try:
        return asyncio.run(_play(parser.parse_args(arguments)))
    except PachonError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
